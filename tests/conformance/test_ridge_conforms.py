"""scikit-learn's conformance suite on the kernel ridge estimators: named and precomputed kernels, fixed and chosen ridges.

Every kernel with every ridge in `make test`, in one of the two classes where that has no part in it; the rest in `make soak`.
"""

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from kernelmem.kernel_machines.estimators.ridge import KernelMachineClassifier, KernelMachineRegressor


@parametrize_with_checks(
    [
        KernelMachineRegressor(),
        KernelMachineRegressor(kernel="precomputed"),
        KernelMachineRegressor(ridge="gcv"),
        KernelMachineRegressor(kernel="precomputed", ridge="loo"),
        KernelMachineClassifier(),
        KernelMachineClassifier(ridge="loo"),
        KernelMachineClassifier(kernel="precomputed", ridge="gcv"),
    ]
)
def test_conforms(estimator, check):
    check(estimator)


@pytest.mark.soak
@parametrize_with_checks(
    [
        KernelMachineRegressor(ridge="loo"),
        KernelMachineRegressor(kernel="precomputed", ridge="gcv"),
        KernelMachineClassifier(kernel="precomputed"),
        KernelMachineClassifier(ridge="gcv"),
        KernelMachineClassifier(kernel="precomputed", ridge="loo"),
    ]
)
def test_the_other_combinations_conform(estimator, check):
    check(estimator)
