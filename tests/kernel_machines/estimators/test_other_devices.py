"""Tests that estimators move tensors of other devices to the CPU, with a simulated device."""

import numpy as np
import pytest
import torch
from torch import nn

from kernelmem.core.errors import InputError
from kernelmem.kernel_machines.estimators import tangent_kernel
from kernelmem.kernel_machines.estimators.gaussian_process import KernelMachineGP
from kernelmem.kernel_machines.estimators.precomputed_kernel import StoredKernel
from kernelmem.kernel_machines.estimators.ridge import KernelMachineClassifier, KernelMachineRegressor
from kernelmem.kernel_machines.estimators.svm import KernelMachineSVC
from kernelmem.kernel_machines.estimators.tangent_kernel import TangentKernel
from kernelmem.kernels.ntk import ntk
from kernelmem.testing.kernels import gaussian_kernel

RNG = np.random.default_rng(0)
X, X_TEST = RNG.standard_normal((20, 4)), RNG.standard_normal((5, 4))
Y, LABELS, WEIGHTS = RNG.standard_normal((20, 2)), (X[:, 0] > 0).astype(int), RNG.integers(1, 4, 20).astype(float)
MACHINES = [KernelMachineRegressor, KernelMachineClassifier, KernelMachineSVC, KernelMachineGP]


class Elsewhere(torch.Tensor):
    """A tensor that behaves at NumPy's border as one on CUDA does: only ``cpu()`` leads there."""

    def __array__(self, *arguments, **options):
        raise TypeError("not on the CPU")

    def numpy(self, *arguments, **options):
        raise TypeError("not on the CPU")

    def cpu(self, *arguments, **options):
        return self.as_subclass(torch.Tensor)


def elsewhere(array):
    return torch.as_tensor(np.array(array)).as_subclass(Elsewhere)


def outputs(machine, rows):
    return getattr(machine, "decision_function", machine.predict)(rows)


def targets_of(make):
    return LABELS if make in (KernelMachineClassifier, KernelMachineSVC) else Y


def test_the_stand_in_is_as_strict_as_a_device():
    with pytest.raises(TypeError):
        np.asarray(elsewhere(X))
    with pytest.raises(TypeError):
        elsewhere(X).detach().numpy()


@pytest.mark.parametrize("make", MACHINES)
def test_rows_targets_kernels_and_weights_from_another_device(make):
    y, weighted = targets_of(make), make is not KernelMachineGP
    given = (elsewhere(WEIGHTS),) if weighted else ()
    want = outputs(make(gamma=0.3).fit(X, y, *((WEIGHTS,) if weighted else ())), X_TEST)
    machine = make(gamma=0.3).fit(elsewhere(X), elsewhere(y), *given)
    assert np.allclose(outputs(machine, elsewhere(X_TEST)), want, atol=1e-9)
    machine = make(kernel=lambda A, B: elsewhere(gaussian_kernel(A, B))).fit(elsewhere(X), elsewhere(y), *given)
    assert np.allclose(outputs(machine, X_TEST), want, atol=1e-7)
    machine = make(kernel="precomputed").fit(elsewhere(gaussian_kernel(X)), elsewhere(y), *given)
    assert np.allclose(outputs(machine, elsewhere(gaussian_kernel(X_TEST, X))), want, atol=1e-7)
    both = gaussian_kernel(np.concatenate([X, X_TEST]))
    for kernel in (elsewhere(both), StoredKernel(elsewhere(both))):
        machine = make(kernel=kernel).fit(np.arange(20), y, *given)
        assert np.allclose(outputs(machine, np.arange(20, 25)), want, atol=1e-7)


@pytest.mark.parametrize("make", MACHINES)
def test_the_tangent_kernel_of_a_model_on_another_device(make, monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    want = outputs(make(kernel=TangentKernel(model)).fit(X, targets_of(make)), X_TEST)
    monkeypatch.setattr(tangent_kernel, "ntk", lambda *a, **k: ntk(*a, **k).as_subclass(Elsewhere))
    machine = make(kernel=TangentKernel(model)).fit(X, targets_of(make))
    assert np.allclose(outputs(machine, X_TEST), want, atol=1e-9)
    if make is KernelMachineGP:
        assert machine.predict(X_TEST, return_std=True)[1].shape == (5,)
        assert machine.predict(X_TEST, return_cov=True)[1].shape == (5, 5)


def test_a_prior_and_a_test_diagonal_from_another_device():
    prior = lambda rows: elsewhere(np.asarray(rows)[:, :2])  # noqa: E731
    want = KernelMachineRegressor(prior=lambda rows: rows[:, :2]).fit(X, Y).predict(X_TEST)
    assert np.allclose(KernelMachineRegressor(prior=prior).fit(X, Y).predict(X_TEST), want, atol=1e-9)
    machine = KernelMachineGP(kernel="precomputed").fit(gaussian_kernel(X), Y)
    K = gaussian_kernel(X_TEST, X)
    std = machine.predict(elsewhere(K), return_std=True, K_test_diag=elsewhere(np.ones(5)))[1]
    assert np.allclose(std, machine.predict(K, return_std=True, K_test_diag=np.ones(5))[1], atol=1e-9)


def test_kernels_in_bfloat16_and_tensors_that_have_a_gradient():
    K = torch.tensor(gaussian_kernel(X)).to(torch.bfloat16)
    found = StoredKernel(K)(np.arange(20))
    assert found.dtype == np.float32
    assert (found == K.float().numpy()).all()
    rows = torch.tensor(X, requires_grad=True)
    want = KernelMachineRegressor().fit(X, Y).predict(X)
    assert np.allclose(KernelMachineRegressor().fit(rows, Y).predict(rows), want, atol=1e-9)


def test_the_device_of_a_tangent_kernel_is_handed_on(monkeypatch):
    model = nn.Linear(4, 3).double()
    want = TangentKernel(model)(X)
    for device in ("cpu", torch.device("cpu")):
        kernel = TangentKernel(model, device=device)
        assert (kernel(X) == want).all()
        assert kernel(torch.tensor(X)).device.type == "cpu"
        assert KernelMachineRegressor(kernel=kernel).fit(X, Y).predict(X).shape == (20, 2)
    seen = []
    monkeypatch.setattr(tangent_kernel, "ntk", lambda *a, **k: seen.append(k["device"]) or ntk(*a, **k))
    TangentKernel(model, device="cpu")(X)
    TangentKernel(model)(X)
    assert seen == ["cpu", None]


def test_a_device_that_there_is_not_is_refused():
    with pytest.raises((InputError, RuntimeError, AssertionError)):
        TangentKernel(nn.Linear(4, 3), device="nowhere")(X)
