"""Tests of TangentKernel: equality with ntk, use in estimators."""

import copy
import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.kernel_ridge import KernelRidge
from sklearn.svm import SVC
from torch import nn

from kernelmem.core.errors import InputError
from kernelmem.kernel_machines.estimators.gaussian_process import KernelMachineGP
from kernelmem.kernel_machines.estimators.ridge import KernelMachineClassifier, KernelMachineRegressor
from kernelmem.kernel_machines.estimators.tangent_kernel import TangentKernel
from kernelmem.kernels.ntk import ntk


def network(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)


RNG = np.random.default_rng(0)
X, X_TEST, Y = RNG.standard_normal((20, 4)), RNG.standard_normal((5, 4)), RNG.standard_normal((20, 2))


@pytest.mark.parametrize("outputs", ["trace", "pseudo"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_arrays_and_tensors_give_the_kernel(outputs, dtype):
    model = network(dtype)
    kernel = TangentKernel(model, outputs=outputs)
    a, b = torch.tensor(X, dtype=dtype), torch.tensor(X_TEST, dtype=dtype)
    want = ntk(model, b, a, outputs=outputs)
    assert torch.equal(kernel(b, a), want)
    got = kernel(X_TEST, X)
    assert isinstance(got, np.ndarray)
    assert got.dtype == np.float64
    assert (got == want.numpy()).all()
    assert (kernel(X) == ntk(model, a, outputs=outputs).numpy()).all()
    assert np.allclose(kernel.diagonal(X), np.diagonal(kernel(X)), rtol=1e-5)
    assert torch.allclose(kernel.diagonal(a), kernel(a).diagonal(), rtol=1e-5)


def test_training_the_model_does_not_alter_it_nor_does_it_alter_the_model():
    model = network()
    before = copy.deepcopy(model.state_dict())
    kernel = TangentKernel(model)
    want = kernel(X)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    with torch.no_grad():
        model[0].weight.add_(1.0)
    assert (kernel(X) == want).all()
    assert not np.allclose(TangentKernel(model)(X), want)


def test_it_is_shared_by_clones_and_survives_copies_and_pickles():
    kernel = TangentKernel(network(), parameters=["0.weight", "2.bias"])
    assert clone(KernelMachineRegressor(kernel=kernel)).kernel is kernel
    want = kernel(X)
    assert (want == ntk(network(), torch.tensor(X), parameters=["0.weight", "2.bias"]).numpy()).all()
    for twin in (pickle.loads(pickle.dumps(kernel)), copy.deepcopy(kernel)):
        assert (twin(X) == want).all()
    fitted = KernelMachineRegressor(kernel=kernel).fit(X, Y)
    assert (pickle.loads(pickle.dumps(fitted)).predict(X_TEST) == fitted.predict(X_TEST)).all()


def test_flat_rows_take_the_shape_of_the_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(2, 2)).double()
    images = torch.tensor(X).reshape(-1, 1, 2, 2)
    assert (TangentKernel(model, shape=(1, 2, 2))(X) == ntk(model, images).numpy()).all()
    assert (TangentKernel(model)(images.numpy()) == ntk(model, images).numpy()).all()
    machine = KernelMachineRegressor(kernel=TangentKernel(model)).fit(images.numpy(), Y)
    flat = KernelMachineRegressor(kernel=TangentKernel(model, shape=(1, 2, 2))).fit(X, Y)
    assert np.allclose(machine.predict(images.numpy()[:3]), flat.predict(X[:3]))


def test_it_serves_any_estimator():
    model, labels = network(), (X[:, 0] > 0).astype(int)
    kernel = TangentKernel(model)
    K, K_test = ntk(model, torch.tensor(X)).numpy(), ntk(model, torch.tensor(X_TEST), torch.tensor(X)).numpy()
    want = K_test @ np.linalg.solve(K + 0.1 * np.eye(20), Y)
    assert np.allclose(KernelMachineRegressor(kernel=kernel, ridge=0.1).fit(X, Y).predict(X_TEST), want, atol=1e-9)
    mean, std = KernelMachineGP(kernel=kernel, ridge=0.1).fit(X, Y).predict(X_TEST, return_std=True)
    assert np.allclose(mean, want, atol=1e-9)
    own = np.diagonal(ntk(model, torch.tensor(X_TEST)).numpy())
    variance = own - np.einsum("mn,nk,mk->m", K_test, np.linalg.inv(K + 0.1 * np.eye(20)), K_test)
    assert np.allclose(std**2, variance, atol=1e-9)
    assert KernelMachineClassifier(kernel=kernel).fit(X, labels).score(X, labels) > 0.9
    svc = SVC(kernel=kernel, tol=1e-10).fit(X, labels)
    table = SVC(kernel="precomputed", tol=1e-10).fit(K, labels)
    assert np.allclose(svc.decision_function(X_TEST), table.decision_function(K_test), atol=1e-8)
    few = KernelRidge(alpha=0.1, kernel=kernel).fit(X[:4], Y[:4])  # calls it with pairs of rows
    again = KernelMachineRegressor(kernel=kernel, ridge=0.1).fit(X[:4], Y[:4])
    assert np.allclose(few.predict(X_TEST), again.predict(X_TEST), atol=1e-8)


def test_kernels_that_are_no_matrix_are_refused():
    with pytest.raises(InputError, match="pseudo"):
        TangentKernel(network(), outputs="diagonal")
