"""Tests of solve: equality with dense linear algebra for every solver, weights, streaming, operators, codes."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import aslinearoperator
from torch import nn

import kernelmem.kernel_machines.solvers.solve as module
from kernelmem.core.errors import InputError, NumericalError
from kernelmem.kernel_machines.solvers.linear_system import as_system
from kernelmem.kernel_machines.solvers.solution import Code
from kernelmem.kernel_machines.solvers.solve import solve
from kernelmem.kernels.ntk import ntk
from kernelmem.kernels.operator import ntk_operator
from kernelmem.testing.kernels import gaussian_kernel, invalid_system, kernel_with_spectrum, solvable_system
from tests.tolerances import backward_stable_residual

EPS = np.finfo(np.float64).eps
SOLVERS = ["auto", "cholesky", "eigen", "cg"]


def problem(n: int = 60, outputs: int = 3, seed: int = 0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 3))
    return gaussian_kernel(x), rng.standard_normal((n, outputs)), rng


def residual(K, y, ridge, coefficients):
    return np.linalg.norm((K + ridge * np.eye(len(K))) @ np.asarray(coefficients) - y) / np.linalg.norm(y)


def dense(K, y, ridge, weights=None):
    if weights is None:
        return np.linalg.solve(K + ridge * np.eye(len(K)), y)
    used = weights > 0
    a = np.zeros_like(y)
    a[used] = np.linalg.solve(K[np.ix_(used, used)] + np.diag(ridge / weights[used]), y[used])
    return a


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("ridge", [1e-3, 1.0])
def test_every_solver_gives_the_solution(solver, ridge):
    K, y, _ = problem()
    got = solve(K, y, ridge, solver=solver)
    want = dense(K, y, ridge)
    rounding = backward_stable_residual(K + ridge * np.eye(len(K)), want, y)
    assert got.code is Code.solved
    assert np.abs(got.coefficients.numpy() - want).max() < 1e-8 * np.abs(want).max()
    assert got.residual < rounding + (1e-10 if solver == "cg" else 0)
    exact = np.linalg.cond(K + ridge * np.eye(len(K)))
    assert exact / 1.5 < got.condition < exact * 1.5
    assert got.residual == pytest.approx(residual(K, y, ridge, got.coefficients), rel=0.5, abs=rounding)


@pytest.mark.parametrize("ridge", [1e-3, 1.0])
def test_the_residual_is_that_of_the_coefficients(ridge):
    """Far above rounding, where its digits mean something: iterations that end early."""
    K, y, _ = problem()
    got = solve(K, y, ridge, solver="cg", tolerance=1e-4)
    rounding = backward_stable_residual(K + ridge * np.eye(len(K)), got.coefficients, y)
    assert 1e-6 < got.residual < 1e-4
    assert got.residual == pytest.approx(residual(K, y, ridge, got.coefficients), rel=1e-12, abs=rounding)


@pytest.mark.parametrize("solver", SOLVERS)
def test_weights_are_those_of_the_normal_equations(solver):
    K, y, rng = problem()
    weights = rng.integers(0, 4, len(K)).astype(float)
    got = solve(K, y, 0.1, solver=solver, sample_weight=weights, tolerance=1e-12)
    want = dense(K, y, 0.1, weights)
    assert np.abs(got.coefficients.numpy() - want).max() < 1e-9 * np.abs(want).max()
    assert got.residual < 1e-11
    assert not got.coefficients[weights == 0].any()


@pytest.mark.parametrize("solver", SOLVERS)
def test_one_target_keeps_its_shape(solver):
    K, y, _ = problem()
    got = solve(K, y[:, 0], 0.1, solver=solver, tolerance=1e-12)
    assert got.coefficients.shape == (len(K),)
    assert np.allclose(got.coefficients.numpy(), dense(K, y, 0.1)[:, 0], atol=1e-9)


def test_a_memory_mapped_kernel_is_streamed(tmp_path, monkeypatch):
    K, y, _ = problem(n=150)
    np.save(tmp_path / "K.npy", K)
    mapped = np.load(tmp_path / "K.npy", mmap_mode="r")
    assert as_system(mapped).mapped
    assert as_system(np.asarray(mapped)).mapped
    assert as_system(mapped[:]).mapped
    assert not as_system(K).mapped
    monkeypatch.setattr(module, "MAX_DIRECT_BYTES", 0)
    monkeypatch.setattr("kernelmem.kernel_machines.solvers.linear_system.BLOCK", 7 * 150)
    parts = []
    read = type(as_system(K))._as_float64
    monkeypatch.setattr(type(as_system(K)), "_as_float64", lambda s, part: parts.append(part.shape) or read(s, part))
    got = solve(mapped, y, 1e-2, tolerance=1e-12)
    assert got.solver == "cg"
    blocks = [part for part in parts if len(part) == 2 and part[1] != 150]  # landmarks are whole rows
    assert {rows for rows, _ in blocks} == {7}
    assert np.abs(got.coefficients.numpy() - dense(K, y, 1e-2)).max() < 1e-6


def test_products_of_a_kernel_in_a_file_are_those_of_its_lower_triangle(tmp_path, monkeypatch):
    K, y, rng = problem(n=53)
    rough = K + 1e-9 * rng.standard_normal(K.shape)
    np.save(tmp_path / "K.npy", rough)
    system = as_system(np.load(tmp_path / "K.npy", mmap_mode="r"))
    lower = np.tril(rough) + np.tril(rough, -1).T
    for block in (1, 7 * 53, 53 * 53, 10**6):
        monkeypatch.setattr("kernelmem.kernel_machines.solvers.linear_system.BLOCK", block)
        assert np.abs((system @ torch.from_numpy(y)).numpy() - lower @ y).max() < 1e-13


def test_the_diagonal_is_read_in_parts(tmp_path, monkeypatch):
    K = np.random.default_rng(0).standard_normal((23, 23))
    np.save(tmp_path / "K.npy", K)
    monkeypatch.setattr("kernelmem.kernel_machines.solvers.linear_system.TILE", 5)
    for kernel in (K, np.load(tmp_path / "K.npy", mmap_mode="r"), torch.from_numpy(K)):
        diagonal = as_system(kernel).diagonal()
        assert diagonal is not None
        assert np.array_equal(diagonal.numpy(), K.diagonal())


def test_modified_pages_of_a_private_map_are_not_released(tmp_path):
    K, y, _ = problem()
    np.save(tmp_path / "K.npy", np.zeros_like(K))
    for mode, kept in (("c", None), ("r+", "a mapping")):
        mapped = np.load(tmp_path / "K.npy", mmap_mode=mode)
        mapped[:] = K
        assert (as_system(mapped).mapping is None) == (kept is None)
        assert solve(mapped, y, 1e-2, solver="cg", tolerance=1e-12).code is Code.solved
        assert np.array_equal(mapped, K)


def test_a_small_memory_mapped_kernel_is_factorized(tmp_path):
    K, y, _ = problem()
    np.save(tmp_path / "K.npy", K)
    assert solve(np.load(tmp_path / "K.npy", mmap_mode="r"), y, 1e-2).solver == "cholesky"


@pytest.mark.parametrize("solver", ["cholesky", "eigen"])
def test_a_direct_solve_of_an_operator_takes_its_columns(solver):
    K, y, _ = problem()
    got = solve(aslinearoperator(K), y, 0.1, solver=solver)
    assert got.solver == solver
    assert got.residual < 1e-12
    assert np.abs(got.coefficients.numpy() - dense(K, y, 0.1)).max() < 1e-10
    K[0, 1] += 1.0
    assert solve(aslinearoperator(K), y, 0.1, solver=solver).code is Code.asymmetric


def test_operators_are_solved_without_their_entries():
    K, y, _ = problem()
    got = solve(aslinearoperator(K), y, 0.1, tolerance=1e-12)
    assert got.solver == "cg"
    assert np.abs(got.coefficients.numpy() - dense(K, y, 0.1)).max() < 1e-8
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    x = torch.randn(30, 3, dtype=torch.float64)
    y = torch.randn(30, 2, dtype=torch.float64)
    got = solve(ntk_operator(model, x), y, 0.1, tolerance=1e-12)
    want = dense(ntk(model, x).numpy(), y.numpy(), 0.1)
    assert np.abs(got.coefficients.numpy() - want).max() < 1e-8


def test_the_preconditioner_saves_iterations():
    K, y, _ = problem(n=200)
    many = solve(K, y, 1e-4, solver="cg", rank=0, max_iter=3000, tolerance=1e-6)
    few = solve(K, y, 1e-4, solver="cg", rank=100, tolerance=1e-6)
    assert many.code is few.code is Code.solved
    assert few.iterations < many.iterations / 4


def test_missing_convergence_is_reported():
    K, y, _ = problem(n=100)
    got = solve(K, y, 1e-9, solver="cg", rank=0, max_iter=3)
    assert got.code is Code.not_converged
    assert got.residual > 1e-10
    assert got.iterations <= 3 + 1
    with pytest.raises(NumericalError, match="max_iter"):
        got.require()


def test_cg_meets_negative_curvature():
    _, y, rng = problem()
    assert (
        solve(kernel_with_spectrum(rng.uniform(-1, 1, 40), rng), y[:40], 1e-3, solver="cg", rank=0).code
        is Code.indefinite
    )


def test_nystroem_over_all_rows_is_the_solution_and_over_few_is_near():
    K, _, _ = problem(n=80)
    rng = np.random.default_rng(1)
    smooth = K @ rng.standard_normal((80, 2))
    whole = solve(K, smooth, 0.1, solver="nystroem", rank=80)
    assert whole.code is Code.approximate
    assert np.abs(K @ whole.coefficients.numpy() - K @ dense(K, smooth, 0.1)).max() < 1e-8
    few = solve(K, smooth, 0.1, solver="nystroem", rank=40)
    assert int((few.coefficients != 0).any(1).sum()) == 40
    gap = K @ few.coefficients.numpy() - K @ dense(K, smooth, 0.1)
    assert np.linalg.norm(gap) < 0.02 * np.linalg.norm(smooth)
    weights = np.arange(80) % 3.0
    whole = solve(K, smooth, 0.1, solver="nystroem", rank=80, sample_weight=weights)
    assert np.abs(K @ whole.coefficients.numpy() - K @ dense(K, smooth, 0.1, weights)).max() < 1e-8


def test_jitter_only_where_it_is_allowed_and_no_more_than_that():
    K, y, _ = problem()
    K[5], K[:, 5] = K[3], K[:, 3]
    K[5, 5] = K[3, 3]
    without = solve(K, y, 0.0)
    assert without.code is Code.singular
    assert without.jitter == 0
    assert "(3, 5)" in without.detail
    with_it = solve(K, y, 0.0, jitter=1e-6)
    assert with_it.code is Code.jittered
    assert 0 < with_it.jitter <= 1e-6 * np.trace(K) / len(K)
    assert (
        np.abs(with_it.coefficients.numpy() - dense(K, y, with_it.jitter)).max()
        < 1e-2 * np.abs(with_it.coefficients.numpy()).max()
    )
    assert solve(K, y, 0.0, jitter=1e-17).code is Code.singular
    assert solve(K, y, 0.1, jitter=1e-6).jitter == 0
    rng = np.random.default_rng(0)
    assert solve(kernel_with_spectrum(np.linspace(-1, 1, 20), rng), y[:20], 0.1, jitter=100.0).code is Code.indefinite


@pytest.mark.parametrize("solver", ["cholesky", "eigen"])
def test_a_singular_system_gets_the_least_norm_solution(solver):
    rng = np.random.default_rng(0)
    phi = rng.standard_normal((30, 6))
    K, y = phi @ phi.T, rng.standard_normal((30, 2))
    got = solve(K, y, 0.0, solver=solver)
    assert got.code is Code.singular
    assert np.abs(got.coefficients.numpy() - np.linalg.pinv(K, rcond=1e-10) @ y).max() < 1e-10
    assert "6 of 30" in got.detail


@pytest.mark.parametrize("solver", ["cholesky", "eigen"])
def test_a_kernel_positive_on_zero_sum_vectors_is_solved_as_given(solver):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((25, 2))
    K = -np.sqrt(((x[:, None] - x) ** 2).sum(-1))
    y = rng.standard_normal((25, 2))
    got = solve(K, y, 0.1, solver=solver)
    assert got.code == "conditionally_positive"
    assert got.solver == "ldl"
    assert got.residual < 1e-12
    assert np.abs(got.coefficients.numpy() - dense(K, y, 0.1)).max() < 1e-10
    assert got.condition == pytest.approx(np.linalg.cond(K + 0.1 * np.eye(25)), rel=1e-6)
    # As interpolation with a constant: zero-sum coefficients solve the bordered system, whatever is added to K.
    assert solve(K - 7.0, y, 0.1, solver=solver).code == "conditionally_positive"


@pytest.mark.parametrize("kind", ["asymmetric", "indefinite", "nan", "condition"])
def test_bad_systems_are_noticed(kind):
    codes = {"asymmetric": "asymmetric", "indefinite": "indefinite", "nan": "not_finite", "condition": "singular"}
    for seed in range(50):
        K, y, ridge = invalid_system(kind, seed)
        got = solve(K, y, ridge)
        assert got.code == codes[kind], seed
        assert got.code.usable == (kind == "condition")
        assert bool(got.coefficients.isnan().all()) == (kind != "condition")


@pytest.mark.parametrize("kind", ["conditioned", "duplicates"])
def test_good_systems_are_solved_to_condition_times_rounding(kind):
    from mpmath import matrix, mp

    with mp.workdps(50):
        for seed in range(50):
            K, y, ridge = solvable_system(kind, seed)
            got = solve(K, y, ridge)
            assert got.code is Code.solved, seed
            A = K + ridge * np.eye(len(K))
            assert got.residual < 1e-15 * len(K) * np.abs(got.coefficients.numpy()).max() * np.linalg.norm(A) * 10
            if len(K) <= 25:
                exact = mp.lu_solve(matrix(K.tolist()) + mp.mpf(ridge) * mp.eye(len(K)), matrix(y[:, :1].tolist()))
                want = np.array([float(v) for v in exact])
                error = np.linalg.norm(got.coefficients[:, 0].numpy() - want) / np.linalg.norm(want)
                assert error < 10 * np.linalg.cond(A) * EPS, seed


def test_permuting_rows_permutes_coefficients_and_joint_scaling_divides_them():
    K, y, rng = problem()
    order = rng.permutation(len(K))
    want = solve(K, y, 0.1).coefficients
    assert torch.allclose(solve(K[np.ix_(order, order)], y[order], 0.1).coefficients, want[order], atol=1e-12)
    for scale in (2.0**-20, 3.7, 1e5):
        assert torch.allclose(scale * solve(scale * K, y, scale * 0.1).coefficients, want, atol=1e-11)


def test_the_solution_is_frozen_and_the_code_has_a_meaning():
    got = solve(*problem()[:2], 0.1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        got.residual = 0.0
    assert all(code.meaning for code in Code)
    assert got.require() is got


@pytest.mark.parametrize(
    "arguments",
    [
        {"kernel": np.zeros((2, 3))},
        {"kernel": np.zeros((0, 0))},
        {"kernel": np.eye(3) * 1j},
        {"kernel": np.array([["a"]])},
        {"targets": np.ones(4)},
        {"targets": np.ones((3, 0))},
        {"targets": [1.0, np.nan, 0.0]},
        {"ridge": -1.0},
        {"ridge": float("nan")},
        {"ridge": True},
        {"ridge": "loo"},
        {"solver": "lu"},
        {"sample_weight": [1.0, -1.0, 1.0]},
        {"sample_weight": [0.0, 0.0, 0.0]},
        {"sample_weight": [1.0, 1.0]},
    ],
)
def test_invalid_systems_are_refused(arguments):
    given = {"kernel": np.eye(3), "targets": np.ones(3), "ridge": 0.1} | arguments
    with pytest.raises(InputError):
        solve(given.pop("kernel"), given.pop("targets"), given.pop("ridge"), **given)


def test_a_singular_kernel_is_not_called_indefinite_by_cg():
    rng = np.random.default_rng(0)
    phi = rng.standard_normal((40, 5))
    got = solve(phi @ phi.T, rng.standard_normal((40, 2)), 0.0, solver="cg")
    assert got.code is Code.not_converged  # targets out of reach: no residual is small
    reachable = phi @ rng.standard_normal((5, 2))
    got = solve(phi @ phi.T, reachable, 0.0, solver="cg")
    assert got.code is Code.solved
    assert got.residual < 1e-9


def test_a_ridge_regularizes_a_float32_kernel_below_its_own_rounding():
    K = np.diag([1.0, 1.0, 0.0]).astype(np.float32)
    got = solve(K, [1.0, 1.0, 1.0], 1e-7, solver="eigen")
    assert got.code is Code.solved
    assert got.coefficients[2].item() == pytest.approx(1e7)
    assert solve(K, [1.0, 1.0, 1.0], 0.0, solver="eigen").code is Code.singular


def test_cg_ends_where_rounding_allows_no_smaller_residual():
    K, y, _ = problem()
    got = solve(K, y, 1e-3, solver="cg", tolerance=1e-17, max_iter=100_000)
    assert got.code is Code.not_converged
    assert got.residual < 1e-11
    assert got.iterations < 5000


def test_small_asymmetry_is_averaged_away():
    K, y, rng = problem()
    noise = 1e-8 * rng.standard_normal(K.shape)
    got, want = solve(K + noise, y, 0.1), solve(K + (noise + noise.T) / 2, y, 0.1)
    assert torch.allclose(got.coefficients, want.coefficients, rtol=1e-12, atol=1e-12)
    other = solve((K + noise).T, y, 0.1)
    assert torch.equal(got.coefficients, other.coefficients)


def test_kernels_larger_than_a_tile_are_made_symmetric(monkeypatch):
    monkeypatch.setattr("kernelmem.core.symmetry.TILE", 7)
    K, _, rng = problem()
    rough = K + 1e-3 * rng.standard_normal(K.shape)
    got = as_system(rough).symmetric()
    assert torch.equal(got, got.T)
    assert np.allclose(got.numpy(), (rough + rough.T) / 2, rtol=1e-15, atol=1e-16)
    assert np.shares_memory(as_system(rough).entries, rough)
    assert not np.shares_memory(got.numpy(), rough)


def test_the_condition_without_a_preconditioner_is_that_of_the_ritz_values():
    K, y, _ = problem()
    got = solve(K, y, 0.1, solver="cg", rank=0, tolerance=1e-12)
    assert got.condition == pytest.approx(np.linalg.cond(K + 0.1 * np.eye(len(K))), rel=0.02)


def test_the_most_negative_eigenvalue_shows_the_size_of_rounding():
    K = kernel_with_spectrum(np.array([1.0, 0.5, 1e-9, -1e-8]), np.random.default_rng(0))
    got = solve(K, np.ones(4), 1e-12)
    assert got.code is Code.singular
    assert "2 of 4" in got.detail
    assert got.coefficients.norm() < 10
