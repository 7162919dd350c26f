"""scikit-learn's conformance suite on the support vector classifier and the Gaussian process."""

from sklearn.utils.estimator_checks import parametrize_with_checks

from kernelmem.kernel_machines.estimators.gaussian_process import KernelMachineGP
from kernelmem.kernel_machines.estimators.svm import KernelMachineSVC


@parametrize_with_checks(
    [
        KernelMachineSVC(),
        KernelMachineSVC(kernel="precomputed"),
        KernelMachineGP(),
        KernelMachineGP(kernel="precomputed"),
    ]
)
def test_conforms(estimator, check):
    check(estimator)
