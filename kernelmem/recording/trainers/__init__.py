"""Recording behind a ready-made training loop.

- ``fit``: train and record in one call.
- ``indexed_dataset``: a dataset whose items carry their positions, for loaders of other libraries.
- ``optimizer_hook``: record the steps of an optimizer that another library calls.
- ``huggingface``: ``forward=`` for models of the transformers library.
- ``lightning``: :class:`LightningRecorder`; needs ``kernelmem[lightning]``.
- ``skorch``: :class:`Recorded`; needs ``kernelmem[skorch]``.
"""

from typing import TYPE_CHECKING

from kernelmem.recording.trainers.fit import FitOptions as FitOptions
from kernelmem.recording.trainers.fit import fit as fit
from kernelmem.recording.trainers.huggingface import logits as logits
from kernelmem.recording.trainers.indexed_dataset import Indexed as Indexed

if TYPE_CHECKING:
    from kernelmem.recording.trainers.lightning import LightningRecorder as LightningRecorder
    from kernelmem.recording.trainers.skorch import Recorded as Recorded
    from kernelmem.recording.trainers.skorch import nll_of_probabilities as nll_of_probabilities

# Optional dependencies, imported on first use.
_OPTIONAL = {"LightningRecorder": "lightning", "Recorded": "skorch", "nll_of_probabilities": "skorch"}


def __getattr__(name: str) -> object:
    if name not in _OPTIONAL:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_OPTIONAL[name]}"), name)
