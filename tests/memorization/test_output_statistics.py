"""Tests of label_statistic: direct definitions, invariances, ties, values that are not finite."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernelmem.core.errors import InputError
from kernelmem.memorization.output_statistics import STATISTICS, label_statistic
from tests.profiles import examples
from tests.tolerances import EPS


@st.composite
def outputs_and_labels(draw):
    """Outputs (m, n, C) of size up to 50, and labels (n,)."""
    m, n, C = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(2, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    scale = draw(st.sampled_from([1.0, 50.0]))
    z = scale * torch.randn(m, n, C, generator=generator, dtype=torch.float64)
    return z, torch.randint(C, (n,), generator=generator)


def by_definition(z, y, statistic):
    """The statistic of one row with moderate outputs, in plain Python."""
    exponentials = [math.exp(value - max(z)) for value in z]
    others = [value for k, value in enumerate(z) if k != y]
    return {
        "correct": float(z[y] > max(others)),
        "probability": exponentials[y] / sum(exponentials),
        "logit": z[y] - max(others) - math.log(sum(math.exp(value - max(others)) for value in others)),
        "margin": z[y] - max(others),
        "log_likelihood": z[y] - max(z) - math.log(sum(exponentials)),
    }[statistic]


@pytest.mark.parametrize("statistic", STATISTICS)
@examples(0.5)
@given(case=outputs_and_labels())
def test_equals_the_definition(statistic, case):
    z, y = case
    values = label_statistic(z, y, statistic)
    assert values.shape == z.shape[:-1]
    assert values.dtype == torch.float64
    for k in range(z.shape[0]):
        for i in range(z.shape[1]):
            expected = by_definition(z[k, i].tolist(), int(y[i]), statistic)
            assert abs(float(values[k, i]) - expected) <= 100 * EPS * (1 + float(z.abs().max()))


@pytest.mark.parametrize("statistic", STATISTICS)
@examples(0.5)
@given(case=outputs_and_labels(), shift=st.floats(-10, 10), seed=st.integers(0, 1000))
def test_shifts_and_names_of_classes_do_not_matter(statistic, case, shift, seed):
    z, y = case
    order = torch.randperm(z.shape[-1], generator=torch.Generator().manual_seed(seed))
    renamed = label_statistic((z + shift)[..., order], order.argsort()[y], statistic)
    bound = 1000 * EPS * (1 + float(z.abs().max()) + abs(shift))
    torch.testing.assert_close(renamed, label_statistic(z, y, statistic), rtol=0, atol=bound)


def test_ties_are_shared():
    z = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 1.0]])
    correct = label_statistic(z, torch.tensor([0, 2, 0]), "correct")
    torch.testing.assert_close(correct, torch.tensor([0.5, 1 / 3, 0.0], dtype=torch.float64))


@pytest.mark.parametrize("statistic", STATISTICS)
def test_extreme_outputs_keep_their_value(statistic):
    """p = 1 - exp(-700) has a finite logit, although 1 - p is 0 in float64."""
    z = torch.tensor([[700.0, 0.0], [-700.0, 0.0]], dtype=torch.float64)
    expected = {
        "correct": [1.0, 0.0],
        "probability": [1.0, math.exp(-700)],
        "logit": [700.0, -700.0],
        "margin": [700.0, -700.0],
        "log_likelihood": [0.0, -700.0],
    }[statistic]
    values = label_statistic(z, torch.tensor([0, 0]), statistic)
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_outputs_that_are_not_finite_give_nan(statistic, bad):
    z = torch.tensor([[1.0, bad], [1.0, 0.0]])
    values = label_statistic(z, torch.tensor([0, 0]), statistic)
    assert values.isnan().tolist() == [True, False]


def test_real_targets_have_a_log_likelihood_only():
    z, target = torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 1.0]])
    assert label_statistic(z, target, "log_likelihood").tolist() == [-2.5]
    for statistic in STATISTICS[:-1]:
        with pytest.raises(InputError, match="real targets"):
            label_statistic(z, target, statistic)


def test_an_unknown_statistic_is_refused():
    with pytest.raises(InputError, match="statistic"):
        label_statistic(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64), "accuracy")  # pyright: ignore[reportArgumentType]
