"""Weights from and to files: safetensors, and .pt archives through weights_only loading. No file runs code here."""

import pickle
import re
import warnings
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from kernelmem.core.atomic_files import array_sha256
from kernelmem.core.errors import FileCorruptError, InputError

__all__ = ["fit_weights", "load_weights", "weights_bytes", "weights_sha256"]


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from a .safetensors file, or from .pt/.pth by ``torch.load(weights_only=True)``.

    There is no fallback to unpickling: a file that needs it is refused.

    Raises:
        InputError: no such file, unknown extension, not a flat mapping of names to tensors.
        FileCorruptError: truncated or altered, or a .pt file that holds more than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"weights file {path}", expected="an existing file", hint="check the path")
    if path.suffix not in (".safetensors", ".pt", ".pth"):
        raise InputError(
            f"weights file {path}",
            expected="a .safetensors file, or .pt/.pth",
            hint="save with safetensors.torch.save_file(model.state_dict(), path)",
        )
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with warnings.catch_warnings():  # old pickle protocols only warn there; here they load or are refused
            warnings.simplefilter("ignore", UserWarning)
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # altered bytes can end in any exception of the unpickler
        raise FileCorruptError(
            f"weights file {path} ({_reason(error)})",
            expected="a whole file that holds tensors only",
            hint="save again with safetensors.torch.save_file(model.state_dict(), path)",
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(
            f"weights file {path} that holds a {type(state).__name__} with more than tensors",
            expected="a flat state dict: parameter names to tensors",
            hint="save model.state_dict() itself, not a checkpoint around it",
        )
    return state


def _reason(error: Exception) -> str:
    """Say why in one line. Not in torch's words, which tell how to run the code in the file all the same."""
    if isinstance(error, pickle.UnpicklingError):
        needed = re.search(r"GLOBAL ([\w.]+)", str(error))
        return f"it calls {needed[1]}" if needed else "no pickle of tensors"
    return (str(error).splitlines() or [type(error).__name__])[0]


def fit_weights(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Put ``state`` into ``model``; every name, shape and kind of number must fit.

    Raises:
        InputError: names missing or left over, shapes that differ, integers (a quantized network), complex or sparse
            values for real numbers; the first of each is named.
    """
    own = model.state_dict()
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    wrong = [
        f"{name} {tuple(state[name].shape)} for {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    strange = [
        f"{name} {state[name].layout} {state[name].dtype} for {own[name].layout} {own[name].dtype}".replace(
            "torch.", ""
        )
        for name in own
        if name in state and _kind(state[name]) != _kind(own[name])
    ]
    problems = [
        f"{len(names)} {what} (e.g. {names[0]})"
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", wrong),
            ("of another kind", strange),
        )
        if names
    ]
    if problems:
        raise InputError(
            f"{source} for a {type(model).__name__}: {', '.join(problems)}",
            expected=f"the {len(own)} tensors of model.state_dict()",
            hint="check that weights and model factory belong together",
        )
    bad = [name for name, value in state.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if bad:
        raise InputError(f"{source} with NaN or infinite values in {bad[0]}", expected="finite weights", hint="retrain")
    model.load_state_dict(state)


def _kind(value: Tensor) -> tuple[bool, bool, torch.layout]:
    return value.is_floating_point(), value.is_complex(), value.layout


def weights_bytes(model: nn.Module) -> bytes:
    """Serialize the state dict as safetensors (tied tensors are written once for each name)."""
    state = model.state_dict().items()  # contiguous: safetensors has no other layout, e.g. channels_last
    return safetensors.torch.save(
        {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in state}
    )


def weights_sha256(model: nn.Module) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of the state dict, sorted by name."""
    state = {name: value.detach().cpu() for name, value in sorted(model.state_dict().items())}
    return array_sha256({name: _numpy(value) for name, value in state.items()})


def _numpy(value: Tensor) -> np.ndarray:
    if value.dtype == torch.bfloat16:  # NumPy has none: hash its bits
        return value.view(torch.int16).numpy()
    return value.numpy()
