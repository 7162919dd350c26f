"""A stored kernel gives the solutions, leave-one-out fits, ridges and spectra of the array of which it was made."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import kernelmem as km
from kernelmem import InputError, KernelStore, NumericalError, kernel_machines
from tests import tolerances
from tests.kernels.store.stores import FACTS, stored
from tests.profiles import examples

N = 30
X = torch.randn(N, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
K = torch.exp(-torch.cdist(X, X).square() / 4)
K = (K + K.T) / 2
Y = (X[:, 0] > 0).long()
RIDGE = 0.1


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with stored(tmp_path_factory.mktemp("store") / "k", K, tile=7, symmetric=True) as store:
        yield store


@examples(0.2)
@given(n=st.integers(2, 12), tile=st.integers(1, 13), ridge=st.sampled_from([1e-3, 0.1, 10.0]), single=st.booleans())
def test_leave_one_out_of_a_store_is_that_of_the_array(tmp_path_factory, n, tile, ridge, single):
    kernel = K[:n, :n].float() if single else K[:n, :n]
    targets = X[:n, :2]
    with stored(tmp_path_factory.mktemp("store") / "k", kernel, tile=tile, symmetric=True) as small:
        loo, expected = km.leave_one_out(small, targets, ridge), km.leave_one_out(kernel, targets, ridge)
    bound = tolerances.solving(kernel.double(), ridge=ridge) * max(1.0, float(expected.predictions.abs().max()))
    for name in ("predictions", "fitted", "leverage"):
        assert float((getattr(loo, name) - getattr(expected, name)).abs().max()) <= bound
    rows = kernel[:2].double()
    assert float((loo.influence(rows) - expected.influence(rows)).abs().max()) <= bound
    assert float((loo.block([0]) - expected.block([0])).abs().max()) <= bound
    assert loo.condition == pytest.approx(expected.condition, rel=1e-6)
    assert loo.residual < 1e-12


def test_a_saved_leave_one_out_fit_of_a_store_is_read(store, tmp_path):
    loo = km.leave_one_out(store, Y, RIDGE)
    loaded = type(loo).load(loo.save(tmp_path / "loo.safetensors"))
    assert torch.equal(loaded.block([1, 2]), loo.block([1, 2]))


def test_at_ridge_zero_and_with_too_little_memory(store):
    expected = km.leave_one_out(K, Y, 0.0)
    assert torch.equal(km.leave_one_out(store, Y, 0.0).errors, expected.errors)
    for ridge in (0.0, RIDGE):
        with pytest.raises(InputError, match="memory of") as error:
            km.leave_one_out(store, Y, ridge, memory="1KiB")
        assert 'memory="' in error.value.hint


def test_an_indefinite_stored_kernel_is_refused(tmp_path):
    with (
        stored(tmp_path / "k", torch.diag(torch.tensor([1.0, 1.0, -1.0])), symmetric=True) as bad,
        pytest.raises(NumericalError, match=r"ridge 0\.5"),
    ):
        km.leave_one_out(bad, [0, 1, 1], 0.5)


@pytest.mark.parametrize("solver", ["auto", "cholesky", "eigen", "cg", "nystroem"])
def test_every_solver_takes_a_store(store, solver):
    solution, expected = (kernel_machines.solve(k, X, RIDGE, solver=solver) for k in (store, K))
    assert solution.code is expected.code
    bound = 2e-10 / RIDGE * float(X.norm()) if solver == "cg" else 1e3 * tolerances.solving(K, ridge=RIDGE)
    assert float((solution.coefficients - expected.coefficients).abs().max()) <= bound


def test_a_store_that_is_too_large_to_factorize_is_solved_by_products(store, monkeypatch):
    monkeypatch.setattr(kernel_machines.solvers.solve, "MAX_DIRECT_BYTES", 100)
    assert kernel_machines.solve(store, X, RIDGE).solver == "cg"


def test_the_choice_of_the_ridge(store):
    grid = [1e-3, 0.1, 1.0, 10.0]
    for options in ({}, {"grid": grid}, {"grid": grid, "memory": 20_000}):
        choice = km.choose_ridge(store, Y, **options)
        expected = km.choose_ridge(K, Y, grid=options.get("grid"))
        assert choice.ridge == expected.ridge
        finite = ~torch.isinf(expected.errors)
        assert torch.allclose(choice.errors[finite], expected.errors[finite], rtol=1e-8)
    with pytest.raises(InputError, match="memory of") as error:
        km.choose_ridge(store, Y, memory=20_000)
    assert "grid=[...]" in error.value.hint


@examples(0.2)
@given(n=st.integers(2, 12), tile=st.integers(1, 13), block=st.integers(1, 5), single=st.booleans())
def test_the_ridge_by_a_tridiagonal_form_is_that_by_eigenvalues(tmp_path_factory, n, tile, block, single):
    kernel = K[:n, :n].float() if single else K[:n, :n]
    grid = torch.logspace(-4, 2, 7, dtype=torch.float64)
    with (
        pytest.MonkeyPatch.context() as patch,
        stored(tmp_path_factory.mktemp("store") / "k", kernel, tile=tile, symmetric=True) as small,
    ):
        patch.setattr(kernel_machines.solvers.tridiagonal, "BLOCK", block)
        factor = kernel_machines.solvers.tridiagonal.tridiagonalize(small)
        bound = n * tolerances.summing(n) * float(kernel.trace())
        assert float((factor.eigenvalues() - torch.linalg.eigvalsh(kernel.double())).abs().max()) <= bound
        errors = factor.squared_errors(grid, X[:n, :2])
        for ridge, error in zip(grid.tolist(), errors, strict=True):
            expected = km.leave_one_out(kernel, X[:n, :2], ridge).errors
            scale = max(1.0, float(expected.abs().max())) ** 2
            assert float((error - expected.square().mean(0)).abs().max()) <= scale * tolerances.solving(
                kernel.double(), ridge=ridge
            )


def test_the_ridges_of_several_targets_within_the_memory_of_one_matrix(store, monkeypatch):
    from kernelmem.kernel_machines.model_selection.ridge_selection import choose_ridges

    monkeypatch.setattr(kernel_machines.solvers.tridiagonal, "BLOCK", 5)
    choices = choose_ridges(store, [Y, X], memory=20_000)
    for choice, y in zip(choices, (Y, X), strict=True):
        assert choice.ridge == km.choose_ridge(K, y).ridge
    with pytest.raises(InputError, match=r"a matrix in float64|memory of"):
        choose_ridges(store, [Y], memory=10_000)


def test_an_indefinite_stored_kernel_has_no_ridge(tmp_path, monkeypatch):
    monkeypatch.setattr(kernel_machines.solvers.tridiagonal, "BLOCK", 1)
    signs = torch.ones(12).index_fill(0, torch.tensor([11]), -1.0)
    with stored(tmp_path / "k", torch.diag(signs), tile=1, symmetric=True) as bad:
        for memory in (2000, 4000):
            with pytest.raises(NumericalError, match="smallest eigenvalue -1"):
                km.choose_ridge(bad, [0, 1] * 6, memory=memory)


def test_spectrum_and_alignment(store):
    assert torch.equal(km.spectrum(store).eigenvalues, km.spectrum(K).eigenvalues)
    assert km.alignment(store, K) == pytest.approx(1)


@pytest.mark.parametrize(
    "name", ["KernelMachineClassifier", "KernelMachineRegressor", "KernelMachineGP", "KernelMachineSVC"]
)
def test_estimators_take_a_store(store, name):
    estimator = getattr(km, name)
    y = X[:, 0].numpy() if name in ("KernelMachineRegressor", "KernelMachineGP") else Y.numpy()
    expected = estimator(kernel="precomputed").fit(K.numpy(), y).predict(K.numpy())
    assert np.allclose(estimator(kernel="precomputed").fit(store, y).predict(K.numpy()), expected)
    rows = np.arange(N)
    by_number = estimator(kernel=store)
    assert np.allclose(by_number.fit(rows, y).predict(rows), expected)
    assert by_number.fit(rows[::2], y[::2]).predict(rows[:3]).shape == (3,)


def test_a_store_is_not_read_into_an_array(store, monkeypatch):
    monkeypatch.setattr(KernelStore, "__array__", None)
    km.leave_one_out(store, Y, RIDGE)
    kernel_machines.solve(store, X, RIDGE, solver="cg")
    km.KernelMachineRegressor(kernel="precomputed", ridge=RIDGE, solver="cg").fit(store, X[:, 0].numpy())
    km.KernelMachineRegressor(kernel=store, ridge=RIDGE, solver="cg").fit(np.arange(N), X[:, 0].numpy())


def test_other_stores_are_refused(tmp_path, store):
    with KernelStore.create(tmp_path / "a", FACTS, 4, tile=2) as incomplete:
        for call in (
            lambda: km.leave_one_out(incomplete, [0, 1, 0, 1], 0.1),
            lambda: kernel_machines.solve(incomplete, X[:4], 0.1),
        ):
            with pytest.raises(InputError, match="without 3 of its tiles"):
                call()
    with stored(tmp_path / "b", K[:3, :2]) as rectangular:
        for function in (km.leave_one_out, kernel_machines.solve, km.choose_ridge):
            with pytest.raises(InputError, match="shape"):
                function(rectangular, X[:3, 0], **({} if function is km.choose_ridge else {"ridge": 0.1}))
    with pytest.raises(InputError, match="30 rows and 3 targets"):
        km.KernelMachineRegressor(kernel="precomputed").fit(store, np.ones(3))


def test_an_asymmetric_store_is_found(tmp_path):
    with stored(tmp_path / "k", K + torch.triu(K, 1), tile=7) as asymmetric:
        assert kernel_machines.solve(asymmetric, X, RIDGE).code is kernel_machines.Code.asymmetric
        with pytest.raises(NumericalError, match="asymmetry"):
            km.leave_one_out(asymmetric, Y, RIDGE)
    with stored(tmp_path / "l", K, tile=7) as symmetric:  # all tiles stored
        assert kernel_machines.solve(symmetric, X, RIDGE).code is kernel_machines.Code.solved
