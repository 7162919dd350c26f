"""Laws of kernel machines on random kernels: order, scale, repeated rows, interpolation, agreement of the solvers."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics.pairwise import rbf_kernel

from kernelmem.kernel_machines.estimators.ridge import KernelMachineRegressor
from kernelmem.kernel_machines.solvers.solve import solve
from tests.profiles import examples
from tests.tolerances import backward_stable_residual, solving

TOLERANCE = 1e-11  # of the iterations


@st.composite
def problems(draw):
    """Rows, test rows, targets, weights 1 to 3, a ridge and a width: from a drawn seed."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, d, C = draw(st.integers(1, 25)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    x, x_test = rng.standard_normal((n, d)), rng.standard_normal((4, d))
    ridge = 10.0 ** draw(st.floats(-4, 2))
    return x, x_test, rng.standard_normal((n, C)), rng.integers(1, 4, n), ridge, 10.0 ** draw(st.floats(-1, 1)), rng


def bound(x, gamma, ridge, weights=1):
    """Rounding of a solution for the rows x, each repeated as often as its weight says."""
    return solving(torch.from_numpy(rbf_kernel(np.repeat(x, weights, axis=0), gamma=gamma)), ridge=ridge)


def close(a, b, tol):
    assert np.abs(a - b).max() <= tol * max(1.0, np.abs(b).max())


@given(problems())
def test_order_scale_and_repetition(problem):
    x, x_test, y, weights, ridge, gamma, rng = problem
    machine, tol = KernelMachineRegressor(gamma=gamma, ridge=ridge), bound(x, gamma, ridge, weights)
    want = machine.fit(x, y).predict(x_test)
    order = rng.permutation(len(x))
    close(machine.fit(x[order], y[order]).predict(x_test), want, tol)
    weighted = machine.fit(x, y, weights).predict(x_test)
    close(machine.fit(np.repeat(x, weights, axis=0), np.repeat(y, weights, axis=0)).predict(x_test), weighted, tol)
    close(machine.set_params(ridge=3 * ridge).fit(x, y, 3.0 * weights).predict(x_test), weighted, tol)
    close(machine.set_params(ridge=ridge).fit(x, 2 * y).predict(x_test), 2 * want, tol)


@given(problems())
def test_fitted_values_leave_ridge_times_the_coefficients(problem):
    x, _, y, weights, ridge, gamma, _ = problem
    machine = KernelMachineRegressor(gamma=gamma, ridge=ridge).fit(x, y, weights)
    close(y - machine.predict(x), ridge * machine.dual_coef_ / weights[:, None], bound(x, gamma, ridge, weights))


@examples(0.5)
@given(problems(), st.floats(0.5, 3.0))
def test_the_solvers_agree(problem, power):
    x, _, y, weights, ridge, _, _ = problem
    K = np.exp(-(np.abs(x[:, None] - x) ** min(power, 2.0)).sum(-1))
    want = solve(K, y, ridge, sample_weight=weights)
    system = K + np.diag(ridge / weights)
    residual = TOLERANCE + 2 * backward_stable_residual(system, want.coefficients, y)
    for solver in ("eigen", "cg"):
        got = solve(K, y, ridge, sample_weight=weights, solver=solver, tolerance=TOLERANCE)
        assert got.code.usable
        assert got.residual < residual
        # |a - b| = |A⁻¹ (A a - A b)|; the residual is that of the system scaled by the roots of the weights, 1 to 3
        error = np.linalg.norm(got.coefficients.numpy() - want.coefficients.numpy())
        assert error <= 3 * residual * np.linalg.norm(y) * np.linalg.norm(np.linalg.inv(system), 2)
