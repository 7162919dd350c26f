"""Weight files: .safetensors, and .pt through ``weights_only`` loading, so that no file can run code."""

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


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from a .safetensors file, or from .pt/.pth by ``torch.load(weights_only=True)``.

    A file that needs unpickling of other objects is refused.

    Raises:
        InputError: the file does not exist, has an unknown extension, or is not a flat mapping of names to tensors.
        FileCorruptError: the file is truncated or altered, or is a .pt file that contains more than tensors.
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
            f"weights file {path} ({_one_line_reason(error)})",
            expected="a whole file that holds tensors only",
            hint="save again with safetensors.torch.save_file(model.state_dict(), path)",
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(
            f"weights file {path} that contains a {type(state).__name__} with values other than tensors",
            expected="a flat state dict: parameter names to tensors",
            hint="save model.state_dict() itself, not a checkpoint around it",
        )
    return state


def _one_line_reason(error: Exception) -> str:
    """Return one line that explains why a file of weights could not be read.

    torch's own message is not used, since it tells how to execute the code in the file.
    """
    if isinstance(error, pickle.UnpicklingError):
        call = re.search(r"GLOBAL ([\w.]+)", str(error))
        return f"it calls {call[1]}" if call else "not a pickle of tensors"
    return (str(error).splitlines() or [type(error).__name__])[0]


def fit_weights(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load ``state`` into ``model``, where every name, shape and kind of number must match.

    Raises:
        InputError: missing or unexpected names, different shapes, integers (a quantized network), complex or sparse
            values instead of real numbers, NaN; the first of each is named.
    """
    expected = model.state_dict()
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    wrong_shape = [
        f"{name} {tuple(state[name].shape)}, in the model {tuple(expected[name].shape)}"
        for name in expected
        if name in state and state[name].shape != expected[name].shape
    ]
    wrong_type = [
        f"{name} {state[name].layout} {state[name].dtype}, in the model {expected[name].layout} {expected[name].dtype}".replace(
            "torch.", ""
        )
        for name in expected
        if name in state and _number_kind(state[name]) != _number_kind(expected[name])
    ]
    mismatches = [
        f"{len(entries)} {mismatch} (e.g. {entries[0]})"
        for mismatch, entries in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of a different shape", wrong_shape),
            ("of a different type", wrong_type),
        )
        if entries
    ]
    if mismatches:
        raise InputError(
            f"{source} for a {type(model).__name__}: {', '.join(mismatches)}",
            expected=f"the {len(expected)} tensors of model.state_dict()",
            hint="check that weights and model factory belong together",
        )
    not_finite = [
        name for name, value in state.items() if value.is_floating_point() and not bool(value.isfinite().all())
    ]
    if not_finite:
        raise InputError(
            f"{source} with NaN or infinite values in {not_finite[0]}", expected="finite weights", hint="retrain"
        )
    model.load_state_dict(state)


def _number_kind(value: Tensor) -> tuple[bool, bool, torch.layout]:
    return value.is_floating_point(), value.is_complex(), value.layout


def weights_bytes(model: nn.Module) -> bytes:
    """Return the state dict of ``model`` as the content of a .safetensors file.

    A tensor that has several names is written once per name.
    """
    named_tensors = model.state_dict().items()  # safetensors has no other layout than contiguous
    return safetensors.torch.save(
        {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in named_tensors}
    )


def weights_sha256(model: nn.Module) -> str:
    """Return the SHA-256 of the names, dtypes, shapes and bytes in the state dict of ``model``, sorted by name."""
    state = {name: value.detach().cpu() for name, value in sorted(model.state_dict().items())}
    return array_sha256({name: _as_numpy(value) for name, value in state.items()})


def _as_numpy(value: Tensor) -> np.ndarray:
    if value.dtype == torch.bfloat16:  # NumPy has no bfloat16: hash its bits
        return value.view(torch.int16).numpy()
    return value.numpy()
