"""Summaries, table and file of a ledger made by hand."""

import pytest
import torch

from kernelmem.core.errors import FileCorruptError
from kernelmem.trajectory.ledger.result import Ledger


def by_hand(**changed):
    """Two rows, three examples, two outputs, four steps."""
    contributions = torch.tensor(
        [[[1.0, 0.0], [-3.0, 2.0], [0.5, -2.0]], [[0.0, 1.0], [0.0, 2.0], [0.0, 4.0]]], dtype=torch.float64
    )
    initial = torch.tensor([[0.5, 1.0], [2.0, -1.0]], dtype=torch.float64)
    small = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    lines = {"decay": 0.1 * small, "rounding": 0.01 * small, "buffers": 0.2 * small, "residual": -1e-3 * small}
    parts = {
        "contributions": contributions,
        "initial": initial,
        "final": initial + contributions.sum(1) + sum(lines.values()),
        **lines,
        "residuals": torch.zeros(4, 2, 2, dtype=torch.float64),
        "evaluations": torch.ones(4, dtype=torch.float64),
        "names": ("a", "b"),
        "tape": "1234",
    }
    return Ledger(**{**parts, **changed})


def test_mass_and_cancellation():
    own = by_hand()
    assert own.mass.tolist() == [[4.5, 4.0], [0.0, 7.0]]
    found = own.cancellation
    assert float(found[0, 0]) == 3.0  # 4.5 of -1.5
    assert float(found[0, 1]) == float("inf")  # all of it cancels
    assert bool(found[1, 0].isnan())  # there is nothing to cancel
    assert float(found[1, 1]) == 1.0


def test_top_ranks_by_absolute_contribution():
    own = by_hand()
    assert own.top(0, 2) == [(1, -3.0), (0, 1.0)]
    assert own.top(1, output=1) == [(2, 4.0), (1, 2.0), (0, 1.0)]
    assert own.largest_residual == 4e-3


def test_table_has_a_row_for_every_row_and_output():
    frame = by_hand().to_frame()
    assert frame["row"].tolist() == [0, 0, 1, 1]
    assert frame["output"].tolist() == ["a", "b", "a", "b"]
    assert frame["contributions"].tolist() == [-1.5, 0.0, 0.0, 7.0]
    total = frame[["contributions", "decay", "rounding", "buffers", "residual"]].sum(axis=1)
    assert float((total - frame["change"]).abs().max()) < 1e-15
    assert frame["mass"].tolist() == [4.5, 4.0, 0.0, 7.0]


@pytest.mark.parametrize("name", ["contributions", "initial", "final", "decay", "rounding", "buffers", "residual"])
def test_altered_terms_are_found(name):
    own = by_hand()
    assert own.recomputed_residual() == pytest.approx(4e-3, abs=1e-15)
    for change in (1e-9, float("nan")):
        altered = getattr(own, name).clone()
        altered.view(-1)[0] += change
        with pytest.raises(FileCorruptError, match="another residual"):
            by_hand(**{name: altered}).recomputed_residual()


def test_file_keeps_every_field(tmp_path):
    own = by_hand(by="group", sources=("one", "two", "three"))
    again = Ledger.load(own.save(tmp_path / "ledger.safetensors"))
    for name, value in vars(own).items():
        kept = getattr(again, name)
        assert torch.equal(kept, value) if isinstance(value, torch.Tensor) else kept == value, name
    assert "path of 4 segments" in str(again)
    assert "by group (3)" in str(again)
