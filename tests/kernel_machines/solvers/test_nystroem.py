"""Tests of landmarks, leverage scores and preconditioner: equality with their definitions."""

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import aslinearoperator

from kernelmem.kernel_machines.solvers.linear_system import as_system
from kernelmem.kernel_machines.solvers.nystroem import build_preconditioner, draw_landmarks, leverage_scores
from kernelmem.testing.kernels import gaussian_kernel

RNG = np.random.default_rng(0)
N = 80
K = gaussian_kernel(RNG.standard_normal((N, 2)))
ONES = torch.ones(N, dtype=torch.float64)
SCALE = torch.tensor(RNG.uniform(0.5, 2.0, N))


@pytest.mark.parametrize("ridge", [1e-2, 1.0])
@pytest.mark.parametrize("scale", [ONES, SCALE])
def test_leverage_scores_of_a_full_pilot_are_exact(ridge, scale):
    weighted = scale[:, None].numpy() * K * scale.numpy()
    want = np.diagonal(weighted @ np.linalg.inv(weighted + ridge * np.eye(N)))
    got = leverage_scores(as_system(K), scale, ridge, torch.arange(N))
    assert np.allclose(got.numpy(), want, rtol=1e-8)


def test_leverage_scores_of_a_part_are_over_estimates_that_follow_them():
    want = np.diagonal(K @ np.linalg.inv(K + 0.1 * np.eye(N)))
    got = leverage_scores(as_system(K), ONES, 0.1, torch.arange(0, N, 2)).numpy()
    assert np.corrcoef(got, want)[0, 1] > 0.8
    assert got.max() <= 1
    assert (got > 0.5 * want).all()
    assert (leverage_scores(as_system(aslinearoperator(K)), ONES, 0.1, torch.arange(9)) == 1).all()


def test_landmarks_are_different_rows_with_weight_and_prefer_those_alone():
    scale = ONES.clone()
    scale[::4] = 0
    for rank in (1, 10, 200):
        rows = draw_landmarks(as_system(K), scale, 0.1, rank, seed=0)
        assert len(rows) == len(rows.unique()) == min(rank, 60)
        assert bool((scale[rows] > 0).all())
    assert torch.equal(
        draw_landmarks(as_system(K), ONES, 0.1, 10, seed=5), draw_landmarks(as_system(K), ONES, 0.1, 10, seed=5)
    )
    crowd = np.concatenate([0.01 * RNG.standard_normal((95, 2)), 10 * RNG.standard_normal((5, 2)) + 30])
    ones = torch.ones(100, dtype=torch.float64)
    chosen = [
        int((draw_landmarks(as_system(gaussian_kernel(crowd)), ones, 1e-2, 10, seed=s) >= 95).sum()) for s in range(20)
    ]
    assert np.mean(chosen) > 3


@pytest.mark.parametrize("scale", [ONES, SCALE])
def test_with_all_rows_the_preconditioner_is_the_inverse_up_to_a_factor(scale):
    ridge = 1e-2
    weighted = scale[:, None] * torch.tensor(K) * scale
    P = build_preconditioner(as_system(K), scale, ridge, torch.arange(N))
    image = P(weighted + ridge * torch.eye(N, dtype=torch.float64))
    factor = image.diagonal().mean()
    assert float((image / factor - torch.eye(N)).abs().max()) < 1e-6
    few = build_preconditioner(as_system(K), scale, ridge, torch.arange(0, N, 2))
    values = torch.linalg.eigvals(few(weighted + ridge * torch.eye(N, dtype=torch.float64))).real
    assert float(values.max() / values.min()) < float(torch.linalg.cond(weighted + ridge * torch.eye(N))) / 5
