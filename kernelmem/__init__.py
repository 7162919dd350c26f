"""kernelmem accounts for what a trained network remembers.

::

    model + data ─► recording ─► tangents ─► kernels ─► trajectory ─► kernel_machines ─► label_noise ─┬► memorization ──┐
                    (steps of    (df/dθ per  (NTK,      (ledger,      (ridge, SVM, GP,   (corrupt,    │  (retraining,   │
                     training)    example)    spectra)   influence,    leave-one-out,     detect)     │   membership)   │
                                                         path kernel)  linearized nets)               ├► compression ───┤
                                                                                                      │  (bits)         │
                                                                                                      └► double_descent │
                                                                                                         (sweeps)       │
                                                                                  cli ◄─ auditing ◄─ text ◄─────────────┘
                                                                                         (one        (language
                                                                                          report)     models)

A package imports only from packages to its left (checked by import-linter). Below all of them: ``core`` (errors, checks
of what users pass in, result files, the only import of torch.func), ``statistics`` (intervals, ranks, corrections),
``training`` (data sets, losses, many networks in one batch) and ``plotting`` (figures from plain arrays, imported only when
a result is drawn). ``testing`` has networks and hypothesis strategies for users' own tests; nothing imports it.

Rules: a folder has about ten entries; a file has one noun and at most 400 lines; a package exports its public names, and
files are private. The names below are the main interface; the rest is exported by the packages.
"""

import importlib
from typing import TYPE_CHECKING

from kernelmem.version import __version__ as __version__

if TYPE_CHECKING:
    from kernelmem.auditing import Audit as Audit
    from kernelmem.auditing import AuditOptions as AuditOptions
    from kernelmem.auditing import TextAudit as TextAudit
    from kernelmem.auditing import TextAuditOptions as TextAuditOptions
    from kernelmem.auditing import audit as audit
    from kernelmem.auditing import text_audit as text_audit
    from kernelmem.compression import Account as Account
    from kernelmem.compression import OnlineCode as OnlineCode
    from kernelmem.compression import OnlineOptions as OnlineOptions
    from kernelmem.compression import Verification as Verification
    from kernelmem.compression import account as account
    from kernelmem.compression import online_code as online_code
    from kernelmem.compression import verify_code as verify_code
    from kernelmem.core import FileCorruptError as FileCorruptError
    from kernelmem.core import InputError as InputError
    from kernelmem.core import KernelmemError as KernelmemError
    from kernelmem.core import NumericalError as NumericalError
    from kernelmem.core import SubmititExecutor as SubmititExecutor
    from kernelmem.core import TaskError as TaskError
    from kernelmem.core import UnsupportedModelError as UnsupportedModelError
    from kernelmem.core import VerificationError as VerificationError
    from kernelmem.kernel_machines import KernelMachineClassifier as KernelMachineClassifier
    from kernelmem.kernel_machines import KernelMachineGP as KernelMachineGP
    from kernelmem.kernel_machines import KernelMachineRegressor as KernelMachineRegressor
    from kernelmem.kernel_machines import KernelMachineSVC as KernelMachineSVC
    from kernelmem.kernel_machines import TangentKernel as TangentKernel
    from kernelmem.kernel_machines import choose_ridge as choose_ridge
    from kernelmem.kernel_machines import compare_kernel_machines as compare_kernel_machines
    from kernelmem.kernel_machines import fidelity as fidelity
    from kernelmem.kernel_machines import leave_one_out as leave_one_out
    from kernelmem.kernels import KernelStore as KernelStore
    from kernelmem.kernels import StoreOptions as StoreOptions
    from kernelmem.kernels import alignment as alignment
    from kernelmem.kernels import centered_alignment as centered_alignment
    from kernelmem.kernels import infinite_nngp as infinite_nngp
    from kernelmem.kernels import infinite_ntk as infinite_ntk
    from kernelmem.kernels import kernel_distance as kernel_distance
    from kernelmem.kernels import ntk as ntk
    from kernelmem.kernels import ntk_operator as ntk_operator
    from kernelmem.kernels import ntk_plan as ntk_plan
    from kernelmem.kernels import ntk_store as ntk_store
    from kernelmem.kernels import ntk_store_plan as ntk_store_plan
    from kernelmem.kernels import spectrum as spectrum
    from kernelmem.kernels import target_alignment as target_alignment
    from kernelmem.label_noise import corrupt_labels as corrupt_labels
    from kernelmem.label_noise import detect as detect
    from kernelmem.memorization import LDS as LDS
    from kernelmem.memorization import QLD as QLD
    from kernelmem.memorization import EnsembleTraining as EnsembleTraining
    from kernelmem.memorization import HistoryRecorder as HistoryRecorder
    from kernelmem.memorization import LabelIssues as LabelIssues
    from kernelmem.memorization import LabelNoiseEstimate as LabelNoiseEstimate
    from kernelmem.memorization import Retraining as Retraining
    from kernelmem.memorization import Score as Score
    from kernelmem.memorization import ScoreTable as ScoreTable
    from kernelmem.memorization import ShadowEnsemble as ShadowEnsemble
    from kernelmem.memorization import ShadowOptions as ShadowOptions
    from kernelmem.memorization import TrainingHistory as TrainingHistory
    from kernelmem.memorization import c_score as c_score
    from kernelmem.memorization import estimate_label_noise as estimate_label_noise
    from kernelmem.memorization import exposure as exposure
    from kernelmem.memorization import feldman_zhang as feldman_zhang
    from kernelmem.memorization import find_label_issues as find_label_issues
    from kernelmem.memorization import lds as lds
    from kernelmem.memorization import memorization_scores as memorization_scores
    from kernelmem.memorization import qld as qld
    from kernelmem.memorization import shadow_ensemble as shadow_ensemble
    from kernelmem.memorization import to_pred_probs as to_pred_probs
    from kernelmem.memorization import training_history as training_history
    from kernelmem.memorization.membership import Membership as Membership
    from kernelmem.memorization.membership import MembershipOptions as MembershipOptions
    from kernelmem.memorization.membership import blind_baseline as blind_baseline
    from kernelmem.memorization.membership import membership as membership
    from kernelmem.recording import FitOptions as FitOptions
    from kernelmem.recording import Recorder as Recorder
    from kernelmem.recording import Run as Run
    from kernelmem.recording import fit as fit
    from kernelmem.recording import logits as logits
    from kernelmem.tangents import tangent_features as tangent_features
    from kernelmem.trajectory import InfluenceOptions as InfluenceOptions
    from kernelmem.trajectory import Ledger as Ledger
    from kernelmem.trajectory import LedgerOptions as LedgerOptions
    from kernelmem.trajectory import PathKernelOptions as PathKernelOptions
    from kernelmem.trajectory import exact_kernel_machine as exact_kernel_machine
    from kernelmem.trajectory import influence as influence
    from kernelmem.trajectory import ledger as ledger
    from kernelmem.trajectory import path_kernel as path_kernel

# Public names by package, imported on first use: torch takes seconds to import, and `kernelmem --help` does not need it.
_NAMES = {
    "auditing": "Audit AuditOptions TextAudit TextAuditOptions audit text_audit",
    "compression": "Account OnlineCode OnlineOptions Verification account online_code verify_code",
    "core": "FileCorruptError InputError KernelmemError NumericalError SubmititExecutor TaskError UnsupportedModelError "
    "VerificationError",
    "kernel_machines": "KernelMachineClassifier KernelMachineGP KernelMachineRegressor KernelMachineSVC "
    "TangentKernel choose_ridge compare_kernel_machines fidelity leave_one_out",
    "kernels": "KernelStore StoreOptions alignment centered_alignment infinite_nngp infinite_ntk kernel_distance "
    "ntk ntk_operator ntk_plan ntk_store ntk_store_plan spectrum target_alignment",
    "label_noise": "corrupt_labels detect",
    "memorization": "EnsembleTraining HistoryRecorder LDS LabelIssues LabelNoiseEstimate QLD Retraining Score "
    "ScoreTable ShadowEnsemble ShadowOptions TrainingHistory c_score estimate_label_noise "
    "exposure feldman_zhang find_label_issues lds memorization_scores qld shadow_ensemble "
    "to_pred_probs training_history",
    "memorization.membership": "Membership MembershipOptions blind_baseline membership",
    "recording": "FitOptions Recorder Run fit logits",
    "tangents": "tangent_features",
    "trajectory": "InfluenceOptions Ledger LedgerOptions PathKernelOptions "
    "exact_kernel_machine influence ledger path_kernel",
}
_PACKAGE_OF = {name: package for package, names in _NAMES.items() for name in names.split()}
_PACKAGES = {name for name in _NAMES if "." not in name}
_PACKAGES |= {"cli", "double_descent", "plotting", "statistics", "testing", "text", "training"}


def __getattr__(name: str) -> object:
    if name in _PACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _PACKAGE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_PACKAGE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PACKAGE_OF, *_PACKAGES})
