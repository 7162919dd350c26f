"""Predictions of kernel regressions from the rows before, against literal refits, the evidence, and other labels."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import kernelmem as km
from kernelmem.compression.online.kernel_scores import KernelScores, scaled_kernel
from tests.kernels.store.stores import stored
from tests.profiles import examples
from tests.tolerances import solving

RIDGES = (1e-3, 0.1, 1.0)


def draw(n, C, seed, *, unit_diagonal=False):
    """Return a kernel (n, n), its labels (n,) and an order of the rows."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    kernel = torch.exp(-torch.cdist(x, x).square() / 6) + (0 if unit_diagonal else x @ x.T / 3)
    y = torch.randint(C, (n,), generator=generator).numpy()
    return kernel, y, torch.randperm(n, generator=generator).numpy()


def refits(kernel, ridge, y, C):
    """Scores of all rows by one linear system per row."""
    targets = torch.nn.functional.one_hot(torch.from_numpy(y), C).double() - 1 / C
    scores = torch.zeros(len(y), C, dtype=torch.float64)
    for i in range(len(y)):
        past = kernel[:i, :i] + ridge * torch.eye(i, dtype=torch.float64)
        weights = torch.linalg.solve(past, kernel[:i, i]) if i else kernel[:0, 0]
        scores[i] = weights @ targets[:i] / (kernel[i, i] + ridge - weights @ kernel[:i, i])
    return scores


@given(st.integers(1, 25), st.integers(1, 5), st.sampled_from(RIDGES), st.integers(0, 2**31))
@examples(1)
def test_scores_are_those_of_literal_refits(n, C, ridge, seed):
    kernel, y, order = draw(n, C, seed)
    scaled = scaled_kernel(kernel, "kernel", torch.from_numpy(order))
    expected = refits(scaled, ridge, y, C)
    scores = KernelScores({"": kernel}, [ridge], C, order).of_all_rows(y)[0]
    # mean and variance are each accurate relative to 1 (the targets) and to v >= ridge
    assert np.abs(scores - expected.numpy()).max() <= solving(scaled, ridge=ridge) / ridge


def test_refits_of_a_well_conditioned_kernel_agree_to_1e_12():
    kernel, y, order = draw(60, 4, 0)
    scores = KernelScores({"": kernel}, [0.1, 1.0], 4, order).of_all_rows(y)
    scaled = scaled_kernel(kernel, "kernel", torch.from_numpy(order))
    for computed, ridge in zip(scores, (0.1, 1.0), strict=True):
        np.testing.assert_allclose(computed, refits(scaled, ridge, y, 4), rtol=0, atol=1e-12)


@pytest.mark.parametrize("ridge", RIDGES)
def test_log_densities_sum_to_the_evidence_of_the_gaussian_process(ridge):
    n, C = 40, 3
    kernel, y, _ = draw(n, C, 1, unit_diagonal=True)
    targets = np.eye(C)[y] - 1 / C
    scores = KernelScores({"": kernel}, [ridge], C, np.arange(n)).of_all_rows(y)[0]
    L = torch.linalg.cholesky(kernel + ridge * torch.eye(n, dtype=torch.float64)).diagonal().numpy()
    variance = L[:, None] ** 2
    log_density = -0.5 * ((targets - scores * variance) ** 2 / variance + np.log(2 * np.pi * variance))
    process = km.KernelMachineGP(kernel="precomputed", ridge=ridge).fit(kernel.numpy(), targets)
    assert log_density.sum() == pytest.approx(process.log_evidence_, abs=1e-9)


@given(st.integers(2, 20), st.integers(2, 4), st.data())
@examples(1)
def test_predictions_of_earlier_rows_do_not_move_by_a_bit(n, C, data):
    kernel, y, order = draw(n, C, data.draw(st.integers(0, 99)))
    t = data.draw(st.integers(0, n - 1))
    other = y.copy()
    other[t:] = data.draw(st.lists(st.integers(0, C - 1), min_size=n - t, max_size=n - t))
    scores = KernelScores({"": kernel}, RIDGES, C, order)
    assert np.array_equal(scores.of_all_rows(y)[:, : t + 1], scores.of_all_rows(other)[:, : t + 1])


def test_rows_one_by_one_have_the_same_scores():
    kernel, y, order = draw(50, 3, 2)
    scores = KernelScores({"": kernel, "b": kernel @ kernel}, RIDGES, 3, order)
    expected = scores.of_all_rows(y)
    steps = scores.one_by_one()
    rows = [next(steps)] + [steps.send(int(label)) for label in y[:-1]]
    np.testing.assert_allclose(np.stack(rows, 1), expected, rtol=0, atol=1e-9)
    assert scores.names == [f"ridge {r:g}" for r in RIDGES] + [f"kernel b, ridge {r:g}" for r in RIDGES]


def test_a_kernel_that_is_not_positive_is_refused(tmp_path):
    kernel = torch.eye(4, dtype=torch.float64)
    kernel[0, 1] = kernel[1, 0] = 1.5
    with stored(tmp_path / "k", 2 * kernel, tile=3, symmetric=True) as store:
        for k in (2 * kernel, store):
            with pytest.raises(
                km.NumericalError, match=r"kernel a with smallest eigenvalue -0.5 .* ridge 0.1;.*with ridges above"
            ):
                KernelScores({"a": k}, [0.1, 1.0], 2, np.arange(4)).of_all_rows(np.zeros(4, dtype=np.int64))
    for bad in (torch.zeros(3, 3), torch.diag(torch.tensor([1.0, 1.0, -0.1]))):
        with pytest.raises(km.InputError, match="diagonal entries"):
            scaled_kernel(bad.double(), "kernel", torch.arange(3))


def test_a_kernel_in_a_file_has_the_same_scores(tmp_path):
    kernel, y, order = draw(20, 3, 3)
    kernel = (kernel + kernel.T) / 2
    expected = KernelScores({"": kernel}, RIDGES, 3, order).of_all_rows(y)
    with stored(tmp_path / "k", kernel, tile=7, symmetric=True) as store:
        scores = KernelScores({"": store}, RIDGES, 3, order)
        np.testing.assert_allclose(scores.of_all_rows(y), expected, rtol=1e-9)
        assert km.compression.online_code(store, y).bits == km.compression.online_code(kernel, y).bits
        one_by_one = scores.one_by_one()
        np.testing.assert_allclose(next(one_by_one), expected[:, 0], rtol=1e-9, atol=1e-12)
