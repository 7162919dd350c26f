"""kernelmem.double_descent.variance.effective_parameters: closed forms of smoothers, and refusals."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernelmem.core.errors import InputError, NumericalError
from kernelmem.double_descent.variance.effective_parameters import (
    effective_parameters,
    feature_smoother,
    kernel_smoother,
)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.integers(1, 8), st.integers(1, 9), st.integers(0, 1000))
def test_it_matches_the_definition(m, n, seed):
    s = draw(m, n, seed=seed)
    result = effective_parameters(s)
    assert result.value == pytest.approx(n / m * float((s**2).sum()), rel=1e-12)
    assert result.per_example.shape == (m,)
    if m > 1:
        assert result.se == pytest.approx(float(result.per_example.std()) / m**0.5, rel=1e-12)
    else:
        assert math.isnan(result.se)


@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 4), st.integers(0, 1000))
def test_copies_of_a_smoother_for_every_output_count_once(m, n, C, seed):
    s = draw(m, n, seed=seed)
    copies = torch.einsum("mn,cd->mcnd", s, torch.eye(C, dtype=torch.float64))
    assert effective_parameters(copies).value == pytest.approx(effective_parameters(s).value, rel=1e-12)


@pytest.mark.parametrize("k", [1, 3, 10])
def test_nearest_neighbors_have_n_over_k_and_the_mean_has_one(k):
    s = torch.zeros(7, 10)
    for i in range(7):
        s[i, torch.randperm(10, generator=torch.Generator().manual_seed(i))[:k]] = 1 / k
    assert effective_parameters(s).value == pytest.approx(10 / k, rel=1e-6)


@pytest.mark.parametrize("p", [3, 19, 20, 21, 60])
def test_least_squares_has_min_p_n_on_training_examples(p):
    phi, new = draw(20, p), draw(9, p, seed=1)
    assert effective_parameters(feature_smoother(phi)).value == pytest.approx(min(p, 20), rel=1e-7)
    assert torch.allclose(feature_smoother(phi, test_features=new), new @ torch.linalg.pinv(phi), rtol=0, atol=1e-8)


def test_only_test_examples_show_a_peak_at_the_threshold():
    n = 40
    values = {}
    for p in (20, 40, 400):
        phi, new = draw(n, p, seed=p) / p**0.5, draw(200, p, seed=p + 1) / p**0.5
        values[p] = effective_parameters(feature_smoother(phi, test_features=new)).value
    assert values[40] > 5 * max(values[20], values[400])
    assert values[400] < n  # an interpolator, but smoother than one free value for each row


@given(st.integers(2, 12), st.integers(1, 15), st.sampled_from([0.0, 1e-3, 0.5]), st.integers(0, 1000))
def test_kernel_and_feature_smoothers_agree(n, p, ridge, seed):
    phi, new = draw(n, p, seed=seed), draw(4, p, seed=seed + 1)
    got = kernel_smoother(phi @ phi.T, K_test=new @ phi.T, ridge=ridge)
    want = feature_smoother(phi, test_features=new, ridge=ridge)
    assert float((got - want).abs().max()) < 1e-6 * (1 + float(want.abs().max()) ** 2)
    assert torch.allclose(
        kernel_smoother(phi @ phi.T, ridge=ridge), kernel_smoother(phi @ phi.T, K_test=phi @ phi.T, ridge=ridge)
    )


def test_kernel_ridge_equals_a_solve_and_its_trace_the_degrees_of_freedom():
    phi, new = draw(12, 30), draw(4, 30, seed=1)
    K = phi @ phi.T
    want = torch.linalg.solve(K + 0.3 * torch.eye(12, dtype=K.dtype), phi @ new.T).T
    assert torch.allclose(kernel_smoother(K, K_test=new @ phi.T, ridge=0.3), want, rtol=1e-9)
    assert torch.allclose(kernel_smoother(K), torch.eye(12, dtype=K.dtype), atol=1e-9)
    shrunk = [effective_parameters(kernel_smoother(K, ridge=r)).value for r in (0.0, 1.0, 10.0, 1e9)]
    assert shrunk == sorted(shrunk, reverse=True)
    assert shrunk[0] == pytest.approx(12)
    assert shrunk[-1] < 1e-9


@pytest.mark.parametrize(
    "bad",
    [torch.ones(3), torch.ones(0, 3), torch.ones(3, 0), torch.ones(3, 2, 3, 4), torch.full((2, 2), float("nan")), "s"],
)
def test_invalid_smoothers_are_refused(bad):
    with pytest.raises(InputError):
        effective_parameters(bad)


def test_invalid_arguments_are_refused():
    K = torch.eye(3)
    for ridge in (-1.0, float("nan"), float("inf"), "0", True):
        with pytest.raises(InputError):
            kernel_smoother(K, ridge=ridge)
        with pytest.raises(InputError):
            feature_smoother(K, ridge=ridge)
    for rows in (torch.ones(2, 4), torch.ones(3)):
        with pytest.raises(InputError):
            kernel_smoother(K, K_test=rows)
        with pytest.raises(InputError):
            feature_smoother(K, test_features=rows)
    with pytest.raises(NumericalError):
        kernel_smoother([[1.0, 2.0], [0.0, 1.0]])
