"""Kernel machines: kernel ridge, SVM, Gaussian processes, exact leave-one-out, linearized networks, comparison with a run.

- ``targets``: labels, one-hot rows or real numbers as one target matrix
- ``solvers``: (K + ridge I) a = y

  - ``solve``: the function :func:`solve`: Cholesky, eigendecomposition, conjugate gradients, Nyström
  - ``solution``: its result: coefficients, status code, residual, condition number
  - ``linear_system``: a kernel as array, memory-mapped array or operator
  - ``diagnosis``: NaN, asymmetry, negative eigenvalues, duplicate rows
  - ``factorization``: Cholesky and eigenvalue factors for leave-one-out
  - ``conjugate_gradient``: preconditioned CG
  - ``nystroem``: landmarks, preconditioner, solve over landmarks

- ``model_selection``

  - ``leave_one_out``: leave-one-out predictions, margins and memorization of kernel ridge in closed form
  - ``ridge_selection``: the ridge with the smallest leave-one-out error
  - ``gcv``: the same with sample weights, and generalized cross-validation

- ``estimators``: scikit-learn estimators and kernels for them

  - ``base``: parameters and checks that they share
  - ``ridge``, ``gaussian_process``, ``svm``: the estimators
  - ``tangent_kernel``, ``precomputed_kernel``: callable kernels, of a network or of an array
  - ``neighbors``: k-nearest neighbors and Nadaraya-Watson

- ``linearized``: training of the linearized network in function space

  - ``function_space``: its inputs and its result
  - ``gradient_flow``: closed form of gradient flow and full-batch gradient descent
  - ``eigenmodes``: powers of the map that trains one eigenmode
  - ``minibatch_sgd``: minibatches, cross-entropy, schedules, step by step
  - ``sgd_step``, ``sgd_config``: one step; hyperparameters and stability limit
  - ``recorded_sgd``: the steps of a recorded run with a frozen kernel

- ``equivalence``: which kernel machine a trained network is

  - ``compare``: the function :func:`compare_kernel_machines`
  - ``options``, ``result``: its options and its result
  - ``fits``: kernel machines of the initial, final and path kernel
  - ``trajectory``: one pass along the run; movement of the kernel
  - ``fidelity``: agreement and relative error of two sets of outputs
"""

from typing import TYPE_CHECKING

from kernelmem.kernel_machines.equivalence.compare import compare_kernel_machines as compare_kernel_machines
from kernelmem.kernel_machines.equivalence.fidelity import Fidelity as Fidelity
from kernelmem.kernel_machines.equivalence.fidelity import centered as centered
from kernelmem.kernel_machines.equivalence.fidelity import fidelity as fidelity
from kernelmem.kernel_machines.equivalence.fidelity import margin as margin
from kernelmem.kernel_machines.equivalence.options import ComparisonOptions as ComparisonOptions
from kernelmem.kernel_machines.equivalence.result import METHODS as METHODS
from kernelmem.kernel_machines.equivalence.result import KernelMachineComparison as KernelMachineComparison
from kernelmem.kernel_machines.equivalence.result import MachineFit as MachineFit
from kernelmem.kernel_machines.equivalence.trajectory import KernelMovement as KernelMovement
from kernelmem.kernel_machines.estimators.neighbors import kernel_distances as kernel_distances
from kernelmem.kernel_machines.estimators.neighbors import nadaraya_watson as nadaraya_watson
from kernelmem.kernel_machines.estimators.neighbors import nearest_neighbors as nearest_neighbors
from kernelmem.kernel_machines.estimators.precomputed_kernel import StoredKernel as StoredKernel
from kernelmem.kernel_machines.estimators.tangent_kernel import TangentKernel as TangentKernel
from kernelmem.kernel_machines.linearized.function_space import Linearization as Linearization
from kernelmem.kernel_machines.linearized.function_space import LinearizedTraining as LinearizedTraining
from kernelmem.kernel_machines.linearized.gradient_flow import gradient_descent as gradient_descent
from kernelmem.kernel_machines.linearized.gradient_flow import gradient_flow as gradient_flow
from kernelmem.kernel_machines.linearized.minibatch_sgd import minibatch_sgd as minibatch_sgd
from kernelmem.kernel_machines.linearized.sgd_config import SGDConfig as SGDConfig
from kernelmem.kernel_machines.model_selection.leave_one_out import LeaveOneOut as LeaveOneOut
from kernelmem.kernel_machines.model_selection.leave_one_out import leave_one_out as leave_one_out
from kernelmem.kernel_machines.model_selection.ridge_selection import RidgeChoice as RidgeChoice
from kernelmem.kernel_machines.model_selection.ridge_selection import choose_ridge as choose_ridge
from kernelmem.kernel_machines.solvers.solution import Code as Code
from kernelmem.kernel_machines.solvers.solution import Solution as Solution
from kernelmem.kernel_machines.solvers.solve import solve as solve

if TYPE_CHECKING:
    from kernelmem.kernel_machines.estimators.gaussian_process import KernelMachineGP as KernelMachineGP
    from kernelmem.kernel_machines.estimators.ridge import KernelMachineClassifier as KernelMachineClassifier
    from kernelmem.kernel_machines.estimators.ridge import KernelMachineRegressor as KernelMachineRegressor
    from kernelmem.kernel_machines.estimators.svm import KernelMachineSVC as KernelMachineSVC

# Imported on first use, because scikit-learn is slow to import.
_ESTIMATORS = {
    "KernelMachineClassifier": "ridge",
    "KernelMachineGP": "gaussian_process",
    "KernelMachineRegressor": "ridge",
    "KernelMachineSVC": "svm",
}


def __getattr__(name: str) -> object:
    """Import a scikit-learn estimator or kernel class when it is first used, because scikit-learn is slow to import."""
    if name not in _ESTIMATORS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.estimators.{_ESTIMATORS[name]}"), name)


def __dir__() -> list[str]:
    """Return the sorted names of this module, including the estimator classes that are imported on first use."""
    return sorted([*globals(), *_ESTIMATORS])
