"""scikit-learn's own conformance suite on every estimator, with named and with precomputed kernels."""

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from kernelmem.machines.gaussian_process import KernelMachineGP
from kernelmem.machines.ridge import KernelMachineClassifier, KernelMachineRegressor
from kernelmem.machines.svm import KernelMachineSVC

ESTIMATORS = [
    KernelMachineRegressor(),
    KernelMachineRegressor(kernel="precomputed"),
    KernelMachineRegressor(ridge="gcv"),
    KernelMachineClassifier(),
    KernelMachineClassifier(kernel="precomputed"),
    KernelMachineClassifier(ridge="gcv"),
    KernelMachineSVC(),
    KernelMachineSVC(kernel="precomputed"),
    KernelMachineGP(),
    KernelMachineGP(kernel="precomputed"),
]


@parametrize_with_checks(ESTIMATORS)
def test_conforms(estimator, check):
    check(estimator)
