"""Tests of TangentKernel: equality with ntk, use in estimators."""

import copy
import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.decomposition import KernelPCA
from sklearn.kernel_ridge import KernelRidge
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.svm import SVC
from torch import nn
from torch.utils.data import DataLoader, StackDataset

from kernelmem.core.errors import InputError
from kernelmem.kernel_machines.estimators.gaussian_process import KernelMachineGP
from kernelmem.kernel_machines.estimators.ridge import KernelMachineClassifier, KernelMachineRegressor
from kernelmem.kernel_machines.estimators.svm import KernelMachineSVC
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
    assert clone(KernelMachineRegressor(kernel=kernel)).kernel.model is kernel.model
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


@pytest.mark.parametrize("estimator", [KernelRidge(alpha=0.1), KernelPCA(2)])
def test_an_estimator_that_calls_it_for_each_pair_of_rows_is_refused_with_a_way_that_works(estimator):
    kernel = TangentKernel(network())
    with pytest.raises(InputError, match="precomputed"):
        clone(estimator).set_params(kernel=kernel).fit(X, Y)
    fitted = clone(estimator).set_params(kernel="precomputed").fit(kernel(X, X), Y)
    if isinstance(estimator, KernelRidge):
        ours = KernelMachineRegressor(kernel=kernel, ridge=0.1).fit(X, Y)
        assert np.allclose(fitted.predict(kernel(X_TEST, X)), ours.predict(X_TEST), atol=1e-8)


def test_a_grid_search_sets_its_parameters():
    kernel = TangentKernel(network())
    search = GridSearchCV(
        KernelMachineRegressor(kernel=kernel, ridge=0.1),
        {"kernel__outputs": ["trace", "pseudo"], "kernel__parameters": [None, ["0.weight"]]},
        cv=2,
    ).fit(X, Y)
    scores = {
        tuple(map(str, p.values())): s
        for p, s in zip(search.cv_results_["params"], search.cv_results_["mean_test_score"], strict=True)
    }
    assert len(set(scores.values())) == 4
    assert (kernel.outputs, kernel.parameters) == ("trace", None)  # only clones were changed
    for (outputs, parameters), score in scores.items():
        own = TangentKernel(network(), outputs=outputs, parameters=None if parameters == "None" else ["0.weight"])
        by_hand = cross_val_score(KernelMachineRegressor(kernel=own, ridge=0.1), X, Y, cv=2)
        assert score == pytest.approx(by_hand.mean(), rel=1e-12)


def test_parameters_are_set_all_or_none():
    kernel = TangentKernel(network())
    twin = clone(kernel)
    assert twin is not kernel
    assert twin.model is kernel.model
    assert list(kernel.get_params()) == [
        "model",
        "outputs",
        "shape",
        "parameters",
        "forward",
        "dtype",
        "device",
        "memory",
    ]
    for parameters in ({"outputs": "full"}, {"memory": "1GiB", "width": 3}, {"memory": "1GiB", "outputs": "full"}):
        with pytest.raises(InputError):
            kernel.set_params(**parameters)
        assert kernel.get_params() == twin.get_params()
    assert kernel.set_params(outputs="pseudo", dtype=torch.float32) is kernel
    assert (kernel(X) == TangentKernel(network(), outputs="pseudo", dtype=torch.float32)(X)).all()
    assert twin.outputs == "trace"


class TwoInputs(nn.Module):
    """A network of two inputs, called with keywords."""

    def __init__(self):
        super().__init__()
        self.inner = network()

    def forward(self, left, right):
        return self.inner(torch.cat([left, right], 1))


def test_rows_that_are_dicts_tuples_or_datasets():
    labels = (X[:, 0] > 0).astype(int)
    a, b = torch.tensor(X[:, :1]), torch.tensor(X[:, 1:])
    model = TwoInputs()
    by_name = TangentKernel(model, forward=lambda m, batch: m(**batch))
    by_position = TangentKernel(model, forward=lambda m, batch: m(*batch))
    plain = TangentKernel(network())
    forms = [
        ({"left": a, "right": b}, by_name),
        ((a, b), by_position),
        (StackDataset(left=a, right=b), by_name),
        (DataLoader(StackDataset(left=a, right=b), batch_size=7), by_name),
    ]
    weights = np.arange(len(X)) % 3
    for rows, kernel in forms:
        assert np.array_equal(kernel(rows), plain(X))
        for machine, targets, options in (
            (KernelMachineRegressor(ridge=0.1), Y, {"sample_weight": weights}),
            (KernelMachineClassifier(), labels, {"sample_weight": weights}),
            (KernelMachineSVC(), labels, {"sample_weight": weights}),
            (KernelMachineGP(ridge=0.1), Y, {}),
        ):
            fitted = clone(machine).set_params(kernel=kernel).fit(rows, targets, **options)
            expected = clone(machine).set_params(kernel=plain).fit(X, targets, **options)
            assert np.allclose(fitted.predict(rows), expected.predict(X), rtol=1e-12, atol=1e-12)
    machine = KernelMachineGP(kernel=by_name, ridge=0.1).fit(forms[0][0], Y)
    expected = KernelMachineGP(kernel=plain, ridge=0.1).fit(X, Y)
    assert np.allclose(
        machine.predict(forms[0][0], return_std=True)[1], expected.predict(X, return_std=True)[1], atol=1e-7
    )
    prior = KernelMachineRegressor(kernel=by_position, prior=lambda batch: batch[0] * torch.ones(2)).fit((a, b), Y)
    expected = KernelMachineRegressor(kernel=plain, prior=lambda x: x[:, :1] * np.ones(2)).fit(X, Y)
    assert np.allclose(prior.predict((a, b)), expected.predict(X))
    for wrong in (KernelMachineRegressor(kernel="rbf"), KernelMachineRegressor(kernel=np.eye(20))):
        with pytest.raises(InputError, match="TangentKernel"):
            wrong.fit(forms[0][0], Y)
    with pytest.raises(ValueError, match="inconsistent"):
        KernelMachineRegressor(kernel=by_name).fit(forms[0][0], Y[:3])
    with pytest.raises(InputError, match="RandomSampler"):
        KernelMachineRegressor(kernel=by_name).fit(DataLoader(forms[2][0], shuffle=True), Y)


def test_kernels_that_are_no_matrix_are_refused():
    with pytest.raises(InputError, match="pseudo"):
        TangentKernel(network(), outputs="diagonal")
