"""scikit-learn's own conformance suite on the ridge machines, with named and with precomputed kernels."""

from sklearn.utils.estimator_checks import parametrize_with_checks

from kernelmem.machines.ridge import KernelMachineClassifier, KernelMachineRegressor


@parametrize_with_checks(
    [
        KernelMachineRegressor(),
        KernelMachineRegressor(kernel="precomputed"),
        KernelMachineRegressor(ridge="gcv"),
        KernelMachineRegressor(ridge="loo"),
        KernelMachineClassifier(),
        KernelMachineClassifier(kernel="precomputed"),
        KernelMachineClassifier(ridge="loo"),
    ]
)
def test_conforms(estimator, check):
    check(estimator)
