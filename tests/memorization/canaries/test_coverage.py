"""Tests of canary_coverage: counts of batches and of recorded runs, rows without loss, refusals."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import kernelmem as km
from kernelmem.memorization.canaries import CanaryCoverage, canary_coverage
from tests.profiles import examples

BATCHES = st.lists(st.lists(st.integers(0, 9), max_size=6), min_size=1, max_size=8)


@examples(1)
@given(BATCHES)
def test_batches_and_their_counter_agree(batches):
    counter = Counter(row for batch in batches for row in batch)
    canaries = [[0], [1, 2, 3], 7, []]
    found = canary_coverage(batches, canaries)
    assert found.counts.tolist() == [counter[0], counter[1] + counter[2] + counter[3], counter[7], 0]
    assert found.n_rows.tolist() == [1, 3, 1, 0]
    assert torch.equal(canary_coverage(counter, canaries).counts, found.counts)
    assert torch.equal(
        canary_coverage([torch.tensor(b, dtype=torch.int32) for b in batches], canaries).counts, found.counts
    )
    assert found.missing == [i for i in (0, 1, 2) if found.counts[i] == 0]


def test_rows_without_loss_in_a_run_are_not_covered(tmp_path):
    """Row 4 has an ignored target, and row 3 the weight 0."""
    x = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([0, 1, 0, 1, -100, 1, 0])
    weight = torch.tensor([1.0, 1, 1, 0, 1, 1, 1])
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    options = km.FitOptions(loss=nn.CrossEntropyLoss(), batch_size=6)
    run = km.fit(model, x, y, out=tmp_path / "run", epochs=2, seed=0, sample_weight=weight, options=options)
    found = canary_coverage(run, [0, 3, 4, [1, 2], []])
    assert found.counts.tolist() == [2, 0, 0, 4, 0]
    assert found.missing == [1, 2]
    assert str(found) == ("canary coverage: 4 of 5 canaries planted; 2 received loss, 0 to 4 times (median 0)")


def test_a_result_is_saved_and_printed(tmp_path):
    found = canary_coverage([[0, 1], [1]], [0, 1, []])
    read = CanaryCoverage.load(found.save(tmp_path / "coverage.safetensors"))
    assert str(read) == str(found)
    assert list(found.to_frame().counts) == [1, 2, 0]
    assert str(canary_coverage([[0]], [[], []])) == "canary coverage: none of 2 canaries was planted"


@pytest.mark.parametrize(
    ("training", "canaries", "says"),
    [
        ([[0, 1]], [], "at least one canary"),
        ([[0, 1]], [-1], "canaries"),
        ([[0, 1]], [0.5], "canaries"),
        ([[0, 1]], [0, [1, 0]], "row 0 twice"),
        ([[0, 1]], [[1, 1]], "row 1 twice"),
        ([[0.5, 1]], [0], r"training\[0\]"),
        ([[0], [-1]], [0], r"training\[1\]"),
        ([[True, False]], [0], "whole numbers"),
        ({0: -1}, [0], "training=-1"),
        ({"a": 1}, [0], "training"),
        ("01", [0], "training"),
        (3, [0], "training"),
    ],
)
def test_bad_arguments_are_refused(training, canaries, says):
    with pytest.raises(km.InputError, match=says):
        canary_coverage(training, canaries)
