"""kernelmem accounts for what a trained network remembers.

::

    model + data ─► recording ─► tangents ─► kernels ─► trajectory ─► kernel_machines ─► label_noise ─► double_descent
                    (steps of    (df/dθ per  (NTK,      (ledger,      (ridge, SVM, GP,   (corrupt,      (sweeps, theory,
                     training)    example)    spectra)   influence,    leave-one-out,     detect)        predictions)
                                                         path kernel)  linearized nets)
                                                                                               all ─► auditing ─► cli
                                                                                                      (one report)

A package imports only from packages to its left (checked by import-linter). Below all of them: ``core`` (errors, checks
of what users pass in, result files, the only import of torch.func), ``training`` (data sets, losses, many networks in one
batch) and ``plotting`` (figures from plain arrays, imported only when a result is drawn). ``testing`` has networks and
hypothesis strategies for users' own tests; nothing imports it.

Rules: a folder has about ten entries; a file has one noun and at most 400 lines; a package exports its public names, and
files are private. The names below are the main interface; the rest is exported by the packages.
"""

from kernelmem.auditing import Audit as Audit
from kernelmem.auditing import audit as audit
from kernelmem.core.errors import FileCorruptError as FileCorruptError
from kernelmem.core.errors import InputError as InputError
from kernelmem.core.errors import KernelmemError as KernelmemError
from kernelmem.core.errors import NumericalError as NumericalError
from kernelmem.core.errors import UnsupportedModelError as UnsupportedModelError
from kernelmem.core.errors import VerificationError as VerificationError
from kernelmem.kernel_machines.equivalence.compare import compare_kernel_machines as compare_kernel_machines
from kernelmem.kernel_machines.equivalence.fidelity import fidelity as fidelity
from kernelmem.kernel_machines.estimators.tangent_kernel import TangentKernel as TangentKernel
from kernelmem.kernel_machines.model_selection.leave_one_out import leave_one_out as leave_one_out
from kernelmem.kernel_machines.model_selection.ridge_selection import choose_ridge as choose_ridge
from kernelmem.kernels.alignment import alignment as alignment
from kernelmem.kernels.alignment import centered_alignment as centered_alignment
from kernelmem.kernels.alignment import kernel_distance as kernel_distance
from kernelmem.kernels.alignment import target_alignment as target_alignment
from kernelmem.kernels.infinite import infinite_nngp as infinite_nngp
from kernelmem.kernels.infinite import infinite_ntk as infinite_ntk
from kernelmem.kernels.ntk import ntk as ntk
from kernelmem.kernels.ntk import ntk_plan as ntk_plan
from kernelmem.kernels.operator import ntk_operator as ntk_operator
from kernelmem.kernels.spectrum import spectrum as spectrum
from kernelmem.label_noise.corrupt import corrupt_labels as corrupt_labels
from kernelmem.label_noise.detection import detect as detect
from kernelmem.recording.recorder import Recorder as Recorder
from kernelmem.recording.run import Run as Run
from kernelmem.recording.trainers.fit import FitOptions as FitOptions
from kernelmem.recording.trainers.fit import fit as fit
from kernelmem.recording.trainers.huggingface import logits as logits
from kernelmem.tangents.sketch import tangent_features as tangent_features
from kernelmem.trajectory import InfluenceOptions as InfluenceOptions
from kernelmem.trajectory import Ledger as Ledger
from kernelmem.trajectory import LedgerOptions as LedgerOptions
from kernelmem.trajectory import PathKernelOptions as PathKernelOptions
from kernelmem.trajectory import exact_kernel_machine as exact_kernel_machine
from kernelmem.trajectory import influence as influence
from kernelmem.trajectory import ledger as ledger
from kernelmem.trajectory import path_kernel as path_kernel

__version__ = "0.2.0"

# Imported on first use, because scikit-learn is slow to import.
_ESTIMATORS = {
    "KernelMachineClassifier": "ridge",
    "KernelMachineGP": "gaussian_process",
    "KernelMachineRegressor": "ridge",
    "KernelMachineSVC": "svm",
}


def __getattr__(name: str) -> object:
    if name not in _ESTIMATORS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.kernel_machines.estimators.{_ESTIMATORS[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_ESTIMATORS])
