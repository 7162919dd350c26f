"""Tests of choose_ridge: equality with brute force over leave_one_out, symmetries, input checks."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kernelmem.core.errors import InputError, NumericalError
from kernelmem.kernel_machines.model_selection.leave_one_out import leave_one_out
from kernelmem.kernel_machines.model_selection.ridge_selection import choose_ridge
from tests.profiles import examples


def problem(n: int = 30, noise: float = 0.5, width: int = 60, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """A kernel, real targets (smooth plus noise), labels (which of the two targets is larger)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    phi = torch.tanh(x @ torch.randn(3, width, generator=generator, dtype=torch.float64))
    clean = torch.stack([x[:, 0], x[:, 1] - x[:, 2]], 1)
    y = clean + noise * torch.randn(n, 2, generator=generator, dtype=torch.float64)
    return phi @ phi.T, y, y.argmax(1)


@examples(0.375)
@given(st.integers(0, 1000), st.sampled_from([10, 60]), st.booleans())
def test_equals_brute_force(seed, width, as_labels):
    K, y, labels = problem(seed=seed, width=width, n=15)
    target = labels if as_labels and len(labels.unique()) == 2 else y
    grid = np.logspace(-4, 3, 9)
    got = choose_ridge(K, target, grid=grid)
    want = torch.stack([leave_one_out(K, target, ridge).errors.square().mean() for ridge in grid])
    assert torch.allclose(got.errors, want, rtol=1e-8, atol=0)
    assert got.index == int(want.argmin())
    assert got.ridge == grid[got.index]


def test_the_default_choice_is_a_minimum_of_the_left_out_error():
    K, y, _ = problem()
    got = choose_ridge(K, y)
    assert not got.at_edge
    best = leave_one_out(K, y, got.ridge).errors.square().mean()
    for factor in (0.1, 10):
        assert leave_one_out(K, y, factor * got.ridge).errors.square().mean() > best
    assert float(got.errors[got.index]) == pytest.approx(float(best), rel=1e-9)
    assert float(got.grid[got.index]) == got.ridge


def test_more_noise_asks_for_more_ridge():
    quiet, loud = (choose_ridge(*problem(n=80, noise=noise)[:2]).ridge for noise in (0.01, 1.0))
    assert loud > 10 * quiet


@pytest.mark.parametrize("scale", [2.0**-30, 3.7, 1e6])
def test_the_ridge_scales_with_the_kernel(scale):
    K, y, _ = problem()
    want, got = choose_ridge(K, y), choose_ridge(scale * K, y)
    assert got.index == want.index
    assert got.ridge == pytest.approx(scale * want.ridge, rel=1e-12)
    assert torch.allclose(got.errors, want.errors, rtol=1e-6)


def test_the_order_of_rows_does_not_matter():
    K, y, _ = problem()
    order = torch.randperm(len(K), generator=torch.Generator().manual_seed(0))
    assert choose_ridge(K[order][:, order], y[order]).index == choose_ridge(K, y).index


def test_random_targets_run_to_the_edge_and_ties_go_to_the_larger_ridge():
    generator = torch.Generator().manual_seed(0)
    K = problem(n=40)[0]
    got = choose_ridge(K, torch.randn(40, 20, generator=generator, dtype=torch.float64))
    assert got.index >= len(got.grid) - 8
    # On the identity every left-out prediction is 0 whatever the ridge: all tie.
    tied = choose_ridge(torch.eye(5), [0, 1, 0, 1, 0], grid=[0.1, 1.0, 10.0])
    assert tied.ridge == 10
    assert tied.at_edge
    assert choose_ridge(torch.eye(5), torch.zeros(5)).at_edge


def test_the_grid_is_sorted():
    K, y, _ = problem()
    got = choose_ridge(K, y, grid=[10.0, 1e-3, 1.0])
    assert got.grid.tolist() == [1e-3, 1.0, 10.0]
    assert choose_ridge(K, y, grid=[0.5]).at_edge


def test_a_singular_float32_kernel_gives_a_ridge_that_leave_one_out_takes():
    generator = torch.Generator().manual_seed(0)
    phi = torch.randn(60, 5, generator=generator)
    K, labels = phi @ phi.T, (phi[:, 0] > 0).long()
    got = choose_ridge(K, labels)
    assert bool(torch.isinf(got.errors[0]))
    assert leave_one_out(K, labels, got.ridge).residual < 1e-8
    edge = choose_ridge(K, phi[:, 0], grid=[1e-12, 1e-3, 1.0, 10.0])  # no noise: the less ridge, the better
    assert edge.index == 1
    assert edge.at_edge
    with pytest.raises(NumericalError, match="ridge"):
        choose_ridge(K, labels, grid=[1e-12, 1e-11])


def test_indefinite_kernel_is_refused():
    K = torch.diag(torch.tensor([1.0, 1.0, -0.25, 2.0]))
    with pytest.raises(NumericalError, match=r"-0\.25"):
        choose_ridge(K, [0, 1, 0, 1])


@pytest.mark.parametrize("grid", [[], [0.0, 1.0], [-1.0], [float("nan")], [[1.0, 2.0]], 1.0, ["a"], [1j]])
def test_bad_grid(grid):
    with pytest.raises(InputError, match=r"Got grid.*; expected .*. Hint: "):
        choose_ridge(torch.eye(4), [0, 1, 0, 1], grid=grid)


@pytest.mark.parametrize(
    ("kernel", "y"),
    [
        (torch.zeros(4, 4), [0, 1, 0, 1]),
        (torch.eye(4), [0, 0, 0, 0]),
        (torch.eye(4), [0, 1, 0]),
        (torch.ones(1, 1), [0.5]),
        (torch.ones(2, 3), [0, 1]),
    ],
)
def test_bad_kernel_or_y(kernel, y):
    with pytest.raises(InputError, match=r"Got .*; expected .*. Hint: "):
        choose_ridge(kernel, y)
