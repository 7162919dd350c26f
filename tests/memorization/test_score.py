"""Tests of Score: order, table, files, text; means over runs."""

import pytest
import torch

from kernelmem.core.errors import InputError
from kernelmem.memorization.score import Score, check_same_examples, mean_of_runs


def make_score(values, error=None):
    return Score(
        values=torch.tensor(values, dtype=torch.float64),
        standard_error=None if error is None else torch.tensor(error, dtype=torch.float64),
        name="loss",
        level="model",
        n_models=1,
        meaning="cross-entropy at the last step, in nats.",
        source="nobody 1900",
    )


def test_top_is_largest_first_and_keeps_the_order_of_ties():
    assert make_score([1.0, 3.0, 3.0, 2.0]).top(3) == [(1, 3.0), (2, 3.0), (3, 2.0)]


def test_values_that_are_not_defined_are_last():
    assert [i for i, _ in make_score([float("nan"), 1.0, -2.0, float("inf")]).top(4)] == [3, 1, 2, 0]


def test_the_table_has_a_standard_error_only_if_there_is_one():
    assert list(make_score([1.0]).to_frame()) == ["value"]
    assert list(make_score([1.0], [0.5]).to_frame()) == ["value", "standard_error"]


def test_the_text_says_direction_level_and_error():
    assert "exact for these inputs" in str(make_score([1.0, 2.0]))
    text = str(make_score([1.0, float("nan")], [0.5, 0.25]))
    assert "larger = more memorized" in text
    assert "speaks of the model" in text
    assert "no finite value" in str(make_score([float("nan")]))


def test_files_give_the_same_score(tmp_path):
    score = make_score([1.0, 2.0], [0.1, 0.2])
    loaded = Score.load(score.save(tmp_path / "score.safetensors"))
    assert torch.equal(loaded.values, score.values)
    assert str(loaded) == str(score)


def test_scores_of_other_examples_are_refused():
    assert check_same_examples([make_score([1.0, 2.0]), make_score([3.0, 4.0])]) == 2
    with pytest.raises(InputError, match="all of the same examples"):
        check_same_examples([make_score([1.0]), make_score([3.0, 4.0])])
    with pytest.raises(InputError, match="at least one score"):
        check_same_examples([])


def test_mean_of_runs():
    values = torch.tensor([[1.0, 2.0], [3.0, 2.0]], dtype=torch.float64)
    mean, error = mean_of_runs(values)
    assert mean.tolist() == [2.0, 2.0]
    assert error is not None
    torch.testing.assert_close(error, torch.tensor([1.0, 0.0], dtype=torch.float64))
    assert mean_of_runs(values[:1])[1] is None
