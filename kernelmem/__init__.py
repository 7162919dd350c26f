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

import importlib

TYPE_CHECKING = False  # True for type checkers
if TYPE_CHECKING:
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

# module -> public names, imported on first use: torch and scikit-learn take seconds to import, `kernelmem --help` needs neither
_MODULES = {
    "auditing": "Audit audit",
    "core.errors": "FileCorruptError InputError KernelmemError NumericalError UnsupportedModelError VerificationError",
    "kernel_machines.equivalence.compare": "compare_kernel_machines",
    "kernel_machines.equivalence.fidelity": "fidelity",
    "kernel_machines.estimators.tangent_kernel": "TangentKernel",
    "kernel_machines.model_selection.leave_one_out": "leave_one_out",
    "kernel_machines.model_selection.ridge_selection": "choose_ridge",
    "kernels.alignment": "alignment centered_alignment kernel_distance target_alignment",
    "kernels.infinite": "infinite_nngp infinite_ntk",
    "kernels.ntk": "ntk ntk_plan",
    "kernels.operator": "ntk_operator",
    "kernels.spectrum": "spectrum",
    "label_noise.corrupt": "corrupt_labels",
    "label_noise.detection": "detect",
    "recording.recorder": "Recorder",
    "recording.run": "Run",
    "recording.trainers.fit": "FitOptions fit",
    "recording.trainers.huggingface": "logits",
    "tangents.sketch": "tangent_features",
    "trajectory": "InfluenceOptions Ledger LedgerOptions PathKernelOptions exact_kernel_machine influence ledger path_kernel",
    "kernel_machines.estimators.gaussian_process": "KernelMachineGP",
    "kernel_machines.estimators.ridge": "KernelMachineClassifier KernelMachineRegressor",
    "kernel_machines.estimators.svm": "KernelMachineSVC",
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names.split()}
_PACKAGES = (
    "auditing", "cli", "core", "double_descent", "kernel_machines", "kernels", "label_noise", "plotting", "recording",
    "tangents", "testing", "training", "trajectory",
)  # fmt: skip


def __getattr__(name: str) -> object:
    if name in _PACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE_OF, *_PACKAGES])
