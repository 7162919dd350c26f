"""scikit-learn's conformance suite on the kernel ridge estimators: named and precomputed kernels, fixed and chosen ridges."""

from sklearn.utils.estimator_checks import parametrize_with_checks

from kernelmem.kernel_machines.estimators.ridge import KernelMachineClassifier, KernelMachineRegressor


@parametrize_with_checks(
    [
        KernelMachineRegressor(),
        KernelMachineRegressor(kernel="precomputed"),
        KernelMachineRegressor(ridge="gcv"),
        KernelMachineRegressor(ridge="loo"),
        KernelMachineRegressor(kernel="precomputed", ridge="gcv"),
        KernelMachineRegressor(kernel="precomputed", ridge="loo"),
        KernelMachineClassifier(),
        KernelMachineClassifier(kernel="precomputed"),
        KernelMachineClassifier(ridge="gcv"),
        KernelMachineClassifier(ridge="loo"),
        KernelMachineClassifier(kernel="precomputed", ridge="gcv"),
        KernelMachineClassifier(kernel="precomputed", ridge="loo"),
    ]
)
def test_conforms(estimator, check):
    check(estimator)
