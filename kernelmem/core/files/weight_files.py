"""Weight files: .safetensors, and .pt through ``weights_only`` loading, so that no file can run code."""

import io
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TypeGuard

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from kernelmem.core.checks import as_path, as_text, check_instance, check_model
from kernelmem.core.errors import FileCorruptError, InputError
from kernelmem.core.files.atomic_files import array_sha256
from kernelmem.core.files.hashed_files import WRITER, hashed_safetensors, load_safetensors, read_bytes, reason


def load_weights(path: str | Path, *, key: str | None = None) -> dict[str, Tensor]:
    """Read a state dict from a .safetensors file, or from .pt/.pth by ``torch.load(weights_only=True)``.

    A file that needs unpickling of other objects is refused.

    Args:
        path: path of the file.
        key: name of the entry that holds the state dict in a checkpoint such as {"model": ..., "epoch": 3}; dots separate
            the names of nested entries, as in "state.model". None: the file is the state dict itself.

    Raises:
        InputError: the file does not exist, has an unknown extension, has no such entry, or the entry is not a flat mapping
            of names to tensors.
        FileCorruptError: the file is truncated or altered, or is a .pt file that contains more than tensors.
    """
    path = as_path(path, "path")
    key = None if key is None else as_text(key, "key")
    if path.suffix not in (".safetensors", ".pt", ".pth"):
        raise InputError(
            f"weights file {path}",
            expected="a .safetensors file, or .pt/.pth",
            hint="save with safetensors.torch.save_file(model.state_dict(), path)",
        )
    try:
        content = read_bytes(path)
    except (OSError, ValueError) as error:
        raise InputError(
            f"weights file {path} ({reason(error)})", expected="an existing file", hint="check the path"
        ) from error
    try:
        state = load_safetensors(content)[0] if Path(path).suffix == ".safetensors" else _unpickle(content)
        entry = state if key is None else _checkpoint_entry(state, key, path)
    except InputError:
        raise
    except Exception as error:  # altered bytes can end in any exception of the unpickler
        raise FileCorruptError(
            f"weights file {path} ({_unpickling_reason(error)})",
            expected="a whole file that holds tensors only",
            hint="save again with safetensors.torch.save_file(model.state_dict(), path)",
        ) from error
    if not _is_state_dict(entry):
        nested = [name for name, value in entry.items() if _is_state_dict(value)] if isinstance(entry, dict) else []
        raise InputError(
            f"weights file {path} that contains a {type(entry).__name__} with values other than tensors",
            expected="a flat state dict: parameter names to tensors",
            hint=f"pass key={nested[0]!r} (on the command line --weights-key {nested[0]})"
            if nested
            else "save model.state_dict() itself, not a checkpoint around it",
        )
    return entry


def _is_state_dict(value: object) -> TypeGuard[dict[str, Tensor]]:
    """Return True for a dict with names as keys and tensors as values."""
    return isinstance(value, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())


def _checkpoint_entry(state: object, key: str, path: Path) -> object:
    """Return the entry ``key`` of a checkpoint, after a check that its tensors are not larger than the file."""
    for name in [key] if isinstance(state, dict) and key in state else key.split("."):
        if not isinstance(state, dict) or name not in state:
            names = ", ".join(str(known)[:40] for known in list(state)[:8]) if isinstance(state, dict) else ""
            raise InputError(
                f"key {key!r} for the weights file {path}, which has no entry {name!r}"
                + (f" (it has {names})" if names else ""),
                expected="the name of the entry that holds the state dict",
                hint="pass one of its names, with dots between the names of nested entries",
            )
        state = state[name]
    _check_dense(state)
    return state


def without_prefix(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return ``state`` without a prefix such as "module." that wrappers put before all names, if then the names fit.

    The state is returned as it is if some of its names are those of ``model``, or if no prefix makes all names fit.

    Example:
        >>> list(without_prefix({"module.weight": torch.zeros(1, 1), "module.bias": torch.zeros(1)}, nn.Linear(1, 1)))
        ['weight', 'bias']
    """
    expected = model.state_dict().keys()
    first = next(iter(state), "")
    prefixes = [first[: end + 1] for end, letter in enumerate(first) if letter == "."]
    for prefix in prefixes if not any(name in expected for name in state) else ():
        if all(name.startswith(prefix) for name in state):
            stripped = {name.removeprefix(prefix): value for name, value in state.items()}
            if stripped.keys() == expected:
                return stripped
    return dict(state)


def _unpickle(content: bytes) -> object:
    """Return the tensors in the content of a .pt file, on the CPU, without executing code in it.

    Raises:
        Any exception: the content is not that of a file of tensors.
    """
    if zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > len(content):  # torch compresses nothing
                raise ValueError("its entries are larger than the file")
    with warnings.catch_warnings():  # old pickle protocols only warn there; here they load or are refused
        warnings.simplefilter("ignore")
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    _check_dense(state)
    return state


def _check_dense(state: object) -> None:
    """Raise a ValueError if an entry of a dict is a tensor that is larger than its data, or is on another device."""
    for name, value in state.items() if isinstance(state, dict) else ():
        is_dense = isinstance(value, Tensor) and value.layout == torch.strided
        if is_dense and (
            value.device.type != "cpu" or value.numel() * value.element_size() > value.untyped_storage().nbytes()
        ):
            raise ValueError(f"{name} of shape {tuple(value.shape)} is larger than its data")


def _unpickling_reason(error: Exception) -> str:
    """Return one line that explains why a file of weights could not be read.

    torch's own message is not used, since it tells how to execute the code in the file.
    """
    if isinstance(error, pickle.UnpicklingError):
        call = re.search(r"GLOBAL ([\w.]+)", str(error))
        return f"it calls {call[1]}" if call else "not a pickle of tensors"
    return reason(error)


def fit_weights(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load ``state`` into ``model``, where every name, shape and kind of number must match.

    Raises:
        InputError: missing or unexpected names, different shapes, integers (a quantized network), complex or sparse
            values instead of real numbers, NaN; the first of each is named.
    """
    check_model(model)
    if any(is_lazy(parameter) for parameter in model.parameters()):
        raise InputError("a lazy model", expected="a model with weights", hint="call the model once on a batch")
    check_instance(state, "state", Mapping, hint="pass state=load_weights(path)")
    for name, value in state.items():
        check_instance(value, f"state[{name!r}]", Tensor, hint="pass a state dict, whose values are tensors")
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
    """Return the state dict of ``model`` as the content of a .safetensors file, with a SHA-256 of its bytes.

    A tensor that has several names is written once per name.
    """
    return hashed_safetensors(model.state_dict(), {"format": "pt", "writer": f"{WRITER} weights 1"})


def weights_sha256(model: nn.Module) -> str:
    """Return the SHA-256 of the names, dtypes, shapes and bytes in the state dict of ``model``, sorted by name."""
    state = {name: value.detach().cpu() for name, value in sorted(model.state_dict().items())}
    return array_sha256({name: _as_numpy(value) for name, value in state.items()})


def _as_numpy(value: Tensor) -> np.ndarray:
    if value.dtype == torch.bfloat16:  # NumPy has no bfloat16: hash its bits
        return value.view(torch.int16).numpy()
    return value.numpy()
