"""Tests of a path kernel as ``kernel=`` of the estimators: X are row numbers, results equal those of its array."""

import copy
import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score

from kernelmem.core.errors import InputError
from kernelmem.kernel_machines.estimators.gaussian_process import KernelMachineGP
from kernelmem.kernel_machines.estimators.precomputed_kernel import StoredKernel
from kernelmem.kernel_machines.estimators.ridge import KernelMachineClassifier, KernelMachineRegressor
from kernelmem.kernel_machines.estimators.svm import KernelMachineSVC
from kernelmem.trajectory.path_kernel.path_kernel import PathKernel, path_kernel
from tests.trajectory.recorded import digits, mlp, record

N, M = 40, 12
TRAIN, TEST = np.arange(N), np.arange(N, N + M)
MACHINES = [KernelMachineRegressor, KernelMachineClassifier, KernelMachineSVC, KernelMachineGP]


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """Run, model, rows and labels of 40 training and 12 test digits, and the path kernel of them all."""
    x, y = digits(N + M)
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = record(tmp_path_factory.mktemp("path") / "run", model, optimizer, x[:N], y[:N], steps=5)
    return run, model, x, y.numpy(), path_kernel(run, model, x)


def scores(machine, rows):
    return getattr(machine, "decision_function", machine.predict)(rows)


def targets_of(make, y):
    return y if make in (KernelMachineClassifier, KernelMachineSVC) else np.eye(10)[y] - 0.1


def near(a, b):
    return a.shape == b.shape and np.abs(a - b).max() <= 1e-12 * np.abs(b).max()


@pytest.mark.parametrize("make", MACHINES)
@pytest.mark.parametrize("column", [True, False])
def test_row_numbers_give_the_machine_of_the_square(setting, make, column):
    *_, y, kernel = setting
    K = np.asarray(kernel)
    train, test = (TRAIN[:, None], TEST[:, None]) if column else (TRAIN, TEST)
    machine = make(kernel=kernel).fit(train, targets_of(make, y[:N]))
    square = make(kernel="precomputed").fit(K[:N, :N], targets_of(make, y[:N]))
    assert near(scores(machine, test), scores(square, K[N:, :N]))
    few = make(kernel=kernel).fit(train[5:30][::-1], targets_of(make, y[5:30][::-1]))
    rows = np.arange(5, 30)[::-1]
    square = make(kernel="precomputed").fit(K[np.ix_(rows, rows)], targets_of(make, y[rows]))
    assert near(scores(few, test), scores(square, K[N:, rows]))


def test_it_knows_the_digits_and_the_ridge_can_be_chosen(setting):
    *_, y, kernel = setting
    for ridge in ("loo", "gcv"):
        machine = KernelMachineClassifier(kernel=kernel, ridge=ridge).fit(TRAIN, y[:N])
        assert machine.score(TEST, y[N:]) > 0.5
        assert machine.ridge_ == machine.ridge_choice_.ridge


def test_the_variance_of_test_rows_comes_from_the_same_array(setting):
    *_, y, kernel = setting
    K = np.asarray(kernel)
    machine = KernelMachineGP(kernel=kernel, ridge=0.1).fit(TRAIN, np.eye(10)[y[:N]])
    mean, std = machine.predict(TEST, return_std=True)
    square = KernelMachineGP(kernel="precomputed", ridge=0.1).fit(K[:N, :N], np.eye(10)[y[:N]])
    want = square.predict(K[N:, :N], return_std=True, K_test_diag=np.diagonal(K)[N:])
    assert near(mean, want[0])
    assert np.allclose(std, want[1], rtol=1e-9)
    assert machine.predict(TEST, return_cov=True)[1].shape == (M, M)


@pytest.mark.parametrize("make", MACHINES)
def test_clones_share_it_and_pickles_hold_it(setting, make):
    *_, y, kernel = setting
    machine = make(kernel=kernel)
    assert clone(machine).kernel is kernel
    assert "tensor" not in repr(machine)
    fitted = machine.fit(TRAIN, targets_of(make, y[:N]))
    for twin in (pickle.loads(pickle.dumps(fitted)), copy.deepcopy(fitted)):
        assert (scores(twin, TEST) == scores(fitted, TEST)).all()


@pytest.mark.parametrize("column", [True, False])
def test_cross_validation_and_search_split_row_numbers(setting, column):
    *_, y, kernel = setting
    rows = TRAIN[:, None] if column else TRAIN
    K = np.asarray(kernel)[:N, :N]
    machine, square = KernelMachineClassifier(kernel=kernel), KernelMachineClassifier(kernel="precomputed")
    assert (cross_val_score(machine, rows, y[:N], cv=3) == cross_val_score(square, K, y[:N], cv=3)).all()
    ours, theirs = (
        cross_val_predict(own, x, y[:N], cv=3, method="decision_function") for own, x in ((machine, rows), (square, K))
    )
    assert near(ours, theirs)
    grid = {"ridge": [1e-3, 1.0, "loo"]}
    found, want = (GridSearchCV(own, grid, cv=3).fit(x, y[:N]) for own, x in ((machine, rows), (square, K)))
    assert (found.cv_results_["mean_test_score"] == want.cv_results_["mean_test_score"]).all()
    assert found.best_params_ == want.best_params_
    assert found.best_estimator_.kernel is kernel


def test_the_kernel_itself_serves_as_precomputed(setting):
    *_, y, kernel = setting
    machine = KernelMachineClassifier(kernel="precomputed").fit(kernel, y)
    assert near(machine.decision_function(kernel), machine.decision_function(np.asarray(kernel)))
    assert cross_val_score(machine, kernel, y, cv=3).shape == (3,)


def test_a_float32_kernel_of_a_float32_run(tmp_path):
    x, y = digits(N + M, dtype=torch.float32)
    model = mlp(dtype=torch.float32)
    run = record(tmp_path / "run", model, torch.optim.SGD(model.parameters(), lr=0.1), x[:N], y[:N], steps=3)
    kernel = path_kernel(run, model, x)
    assert kernel.values.dtype == torch.float32
    machine = KernelMachineClassifier(kernel=kernel).fit(TRAIN, y[:N])
    K = np.asarray(kernel, dtype=np.float64)
    square = KernelMachineClassifier(kernel="precomputed").fit(K[:N, :N], y[:N].numpy())
    assert np.allclose(machine.decision_function(TEST), square.decision_function(K[N:, :N]), rtol=1e-9, atol=1e-9)


def test_kernels_that_are_not_square_and_invalid_row_numbers_are_refused(setting):
    run, model, x, y, kernel = setting
    Y = np.eye(10)[y]
    with pytest.raises(InputError, match=r"\(40, 12\).*without y"):
        KernelMachineRegressor(kernel=path_kernel(run, model, x[:N], x[N:])).fit(TRAIN, Y[:N])
    with pytest.raises(InputError, match=r"\(4, 4, 10, 10\).*trace"):
        KernelMachineRegressor(kernel=path_kernel(run, model, x[:4], outputs="full")).fit(TRAIN[:4], Y[:4])
    with pytest.raises(InputError, match=r"row numbers in 0\.\.51"):
        KernelMachineRegressor(kernel=kernel).fit(x[:N], Y[:N])  # the rows themselves
    machine = KernelMachineRegressor(kernel=kernel).fit(TRAIN, Y[:N])
    for wrong in ([N + M], [-1], [0.5], [[0, 1]], np.ones((N + M, 1), dtype=bool)):
        with pytest.raises((InputError, ValueError), match=r"row numbers|features"):
            machine.predict(wrong)


def test_a_path_kernel_equals_its_stored_kernel(setting):
    kernel: PathKernel = setting[-1]
    assert np.shares_memory(StoredKernel(kernel)(np.arange(N + M)), kernel.values.numpy())
