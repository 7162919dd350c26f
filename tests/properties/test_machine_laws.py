"""Laws of kernel machines on random kernels: order, scale, repeated rows, interpolation, agreement of the solvers."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kernelmem.kernel_machines.estimators.ridge import KernelMachineRegressor
from kernelmem.kernel_machines.solvers.solve import solve
from tests.profiles import examples


@st.composite
def problems(draw):
    """Rows, test rows, targets, weights 1 to 3, a ridge and a width: from a drawn seed."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, d, C = draw(st.integers(1, 25)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    x, x_test = rng.standard_normal((n, d)), rng.standard_normal((4, d))
    ridge = 10.0 ** draw(st.floats(-4, 2))
    return x, x_test, rng.standard_normal((n, C)), rng.integers(1, 4, n), ridge, 10.0 ** draw(st.floats(-1, 1)), rng


def close(a, b, tol=1e-8):
    assert np.abs(a - b).max() <= tol * max(1.0, np.abs(b).max())


@given(problems())
def test_order_scale_and_repetition(problem):
    x, x_test, y, weights, ridge, gamma, rng = problem
    machine = KernelMachineRegressor(gamma=gamma, ridge=ridge)
    want = machine.fit(x, y).predict(x_test)
    order = rng.permutation(len(x))
    close(machine.fit(x[order], y[order]).predict(x_test), want)
    weighted = machine.fit(x, y, weights).predict(x_test)
    close(machine.fit(np.repeat(x, weights, axis=0), np.repeat(y, weights, axis=0)).predict(x_test), weighted)
    close(machine.set_params(ridge=3 * ridge).fit(x, y, 3.0 * weights).predict(x_test), weighted)
    close(machine.set_params(ridge=ridge).fit(x, 2 * y).predict(x_test), 2 * want)


@given(problems())
def test_fitted_values_leave_ridge_times_the_coefficients(problem):
    x, _, y, weights, ridge, gamma, _ = problem
    machine = KernelMachineRegressor(gamma=gamma, ridge=ridge).fit(x, y, weights)
    close(y - machine.predict(x), ridge * machine.dual_coef_ / weights[:, None])


@examples(0.5)
@given(problems(), st.floats(0.5, 3.0))
def test_the_solvers_agree(problem, power):
    x, _, y, weights, ridge, _, _ = problem
    K = np.exp(-(np.abs(x[:, None] - x) ** min(power, 2.0)).sum(-1))
    want = solve(K, y, ridge, sample_weight=weights)
    for solver in ("eigen", "cg"):
        got = solve(K, y, ridge, sample_weight=weights, solver=solver, tolerance=1e-11)
        assert got.code.usable
        close(got.coefficients.numpy(), want.coefficients.numpy(), 1e-6)
        assert got.residual < 1e-9
