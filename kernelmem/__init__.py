"""kernelmem accounts for what a trained network remembers.

::

    model + data ─► runs ─► tangents ─► kernels ─► machines ─► memorization ─► descent ─► audit
                    (how it   (df/dθ,     (NTK,      (ridge,      (label noise,    (sweeps,    (one report)
                    trained)  factored,   infinite   exact        detection)       theory)
                              planned)    width,     leave-one-out)
                                          spectrum)
                              path = runs × tangents: the exact ledger of a recorded run

Data moves from left to right, and a package imports only what stands to its left. Below them all: ``ground`` (errors,
checks, the one door to torch.func) and ``store`` (whole files, weights without code). ``testing`` is for users' own
tests; nothing imports it. The names below are the public interface.
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
from kernelmem.recording.trainers.fit import fit as fit
from kernelmem.recording.trainers.huggingface import logits as logits
from kernelmem.tangents.sketch import tangent_features as tangent_features
from kernelmem.trajectory.influence.influence import influence as influence
from kernelmem.trajectory.ledger.ledger import Ledger as Ledger
from kernelmem.trajectory.ledger.ledger import ledger as ledger
from kernelmem.trajectory.path_kernel.exact_kernel_machine import exact_kernel_machine as exact_kernel_machine
from kernelmem.trajectory.path_kernel.path_kernel import path_kernel as path_kernel

__version__ = "0.1.0"

# scikit-learn is slow to import: estimators are read when they are asked for.
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
