"""Checkpoints: weights, buffers, optimizer state and random state after a step, in one safetensors file each."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from kernelmem.core.errors import FileCorruptError, InputError, UnsupportedModelError
from kernelmem.core.files.atomic_files import array_sha256, write_file
from kernelmem.core.files.hashed_files import READ_ERRORS, load_safetensors, read_bytes, reason

PREFIXES = ("model.", "averaged.")  # prefixes of tensor names in a checkpoint, in addition to "optimizer."


@dataclass(frozen=True, eq=False, repr=False)
class Checkpoint:
    """The state of model, optimizer, averaged model and random numbers from which the next training step starts."""

    model: dict[str, Tensor]  # parameters, then buffers
    optimizer: dict[str, dict[str, Tensor]]  # parameter name -> state name -> tensor
    random: Tensor  # the state of torch's generators, that of the CPU first, uint8
    averaged: dict[str, Tensor] = field(default_factory=dict)  # parameters and buffers of the averaged model, if any
    updates: int = 0  # number of updates of the averaged model

    def __repr__(self) -> str:
        averaged = f", averaged model after {self.updates} updates" if self.updates else ""
        return f"Checkpoint({len(self.model)} tensors, optimizer state of {len(self.optimizer)} parameters{averaged})"


def is_kept(step: int, keep: str | int) -> bool:
    """Return True if the weights after ``step`` steps are kept; the rule does not depend on the total number of steps.

    ``"all"`` keeps every step, and a number k every k-th one. ``"sqrt"`` keeps step t if it is a multiple of
    2^floor(log2(t)/2), which is at most sqrt(t): of T steps about 3 sqrt(T) or fewer are kept, and replay recomputes fewer
    than sqrt(T) steps to reach any other.

    >>> [t for t in range(1, 40) if is_kept(t, "sqrt")]
    [1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 36]
    """
    if step == 0 or keep == "all":
        return True
    spacing = 1 << (step.bit_length() - 1) // 2 if keep == "sqrt" else int(keep)
    return step % spacing == 0


def model_state(model: nn.Module) -> dict[str, Tensor]:
    """Return a dict from name to a copy of each parameter and buffer, including buffers that are not persistent.

    A parameter with several names (tied weights) occurs once, under its first name.
    """
    return {name: _detached_copy(value) for name, value in _named_tensors(model).items()}


def on_cpu(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the dict ``state`` with its tensors on the CPU; those that are there are not copied."""
    return {name: value.cpu() for name, value in state.items()}


def buffer_state(model: nn.Module) -> dict[str, Tensor]:
    """Return a dict from name to a copy of each buffer, including buffers that are not persistent."""
    return {name: _detached_copy(value) for name, value in model.named_buffers()}


def _named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters, then the buffers of the model by name, not copied."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _detached_copy(value: Tensor) -> Tensor:
    return value.detach().clone(memory_format=torch.contiguous_format)


def load_model_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy ``state`` into the model's parameters and buffers, in place.

    Raises:
        InputError: names, shapes or dtypes differ; nothing is then copied.
        UnsupportedModelError: a lazy model, which has no weights yet.
    """
    if any(is_lazy(parameter) for parameter in model.parameters()):
        raise UnsupportedModelError("a lazy model", expected="weights", hint="call the model once on a batch")
    current = _named_tensors(model)
    for name in {**current, **state}:
        current_layout, recorded_layout = _shape_and_dtype(current.get(name)), _shape_and_dtype(state.get(name))
        if current_layout != recorded_layout:
            raise InputError(
                f"a model {_with(current_layout, name)}, while the recorded one is {_with(recorded_layout, name)}",
                expected="the parameters and buffers of the recorded model",
                hint="build the model as for the recording",
            )
    with torch.no_grad():
        for name, value in current.items():
            value.copy_(state[name])


def _shape_and_dtype(value: Tensor | None) -> str:
    return "" if value is None else f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"


def _with(layout: str, name: str) -> str:
    return f"with {name} of shape and dtype {layout}" if layout else f"without {name}"


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256, in hexadecimal, of the names, dtypes, shapes and bytes of the tensors in ``state``.

    ``state`` maps names of parameters and buffers to tensors; the order of its entries does not matter.
    """
    return array_sha256({name: _as_numpy(state[name]) for name in sorted(state)})


def _as_numpy(value: Tensor) -> np.ndarray:
    value = value.cpu()
    return (value.view(torch.int16) if value.dtype == torch.bfloat16 else value).numpy()  # NumPy has no bfloat16


def optimizer_state(
    optimizer: torch.optim.Optimizer,
    names: Mapping[nn.Parameter, str],
) -> dict[str, dict[str, Tensor]]:
    """Return a dict from parameter name to a dict from state name ("exp_avg", ...) to a copy of that tensor.

    ``names`` maps parameters to their names. Entries that are None, because they are not yet set, are omitted.
    """
    return {
        names[cast(nn.Parameter, parameter)]: {
            key: _detached_copy(torch.as_tensor(value)) for key, value in state.items() if value is not None
        }
        for parameter, state in optimizer.state.items()
    }


def set_optimizer_state(
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Mapping[str, Tensor]],
    parameters: Mapping[str, nn.Parameter],
) -> None:
    """Replace the optimizer's state by a copy of ``state``, a dict as :func:`optimizer_state` returns it.

    ``parameters`` maps names to the parameters of the optimizer. The copy is where the optimizer expects it: on the
    device of the parameter, but the number of steps on the CPU, unless the optimizer is fused.
    """
    optimizer.state.clear()
    fused = {parameter for group in optimizer.param_groups if group.get("fused") for parameter in group["params"]}
    for name, values in state.items():
        parameter = parameters[name]
        optimizer.state[parameter] = {
            key: value.to("cpu" if key == "step" and parameter not in fused else parameter.device, copy=True)
            for key, value in values.items()
        }


def write_checkpoint(directory: Path, step: int, checkpoint: Checkpoint) -> str:
    """Write the checkpoint after ``step`` steps to ``weights/<step>.safetensors`` in the run's directory.

    The file appears complete or not at all. Returns its SHA-256.

    Raises:
        OSError: the disk is full or not writable.
    """
    tensors = {f"model.{name}": value for name, value in checkpoint.model.items()}
    for name, state in checkpoint.optimizer.items():
        tensors |= {f"optimizer.{name}.{key}": value for key, value in state.items()}
    if checkpoint.updates:
        tensors |= {f"averaged.{name}": value for name, value in checkpoint.averaged.items()}
        tensors["updates"] = torch.tensor(checkpoint.updates)
    content = safetensors.torch.save(on_cpu({**tensors, "random": checkpoint.random}))
    write_file(_checkpoint_path(directory, step), content)
    return hashlib.sha256(content).hexdigest()


def read_checkpoint(directory: Path, step: int, sha256: str) -> Checkpoint:
    """Return the checkpoint in ``weights/<step>.safetensors`` of the run's directory, after checking its SHA-256.

    Raises:
        FileCorruptError: the file is missing, unreadable or altered.
    """
    path = _checkpoint_path(directory, step)
    try:
        tensors = _read_verified(path, sha256)
        model, averaged = ({k.removeprefix(p): v for k, v in tensors.items() if k.startswith(p)} for p in PREFIXES)
        optimizer: dict[str, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                parameter, key = name.removeprefix("optimizer.").rsplit(".", 1)
                optimizer.setdefault(parameter, {})[key] = value
        updates = int(tensors["updates"]) if averaged else 0
        if tensors["random"].dtype != torch.uint8 or tensors["random"].ndim != 1:
            raise ValueError("a random state that is not one")
        return Checkpoint(model, optimizer, tensors["random"], averaged, updates)
    except (*READ_ERRORS, RuntimeError) as error:
        raise FileCorruptError(
            f"checkpoint {path} of step {step} ({reason(error)})",
            expected="the file that the recorder wrote",
            hint="restore the file from a copy; the steps before it can still be replayed",
        ) from error


def write_averaged(directory: Path, state: Mapping[str, Tensor]) -> str:
    """Write the averaged model's parameters and buffers to the weights folder, and return the SHA-256 of the file.

    The name of the file contains this hash, so an earlier file with other content is never overwritten.

    Raises:
        OSError: the disk is full or not writable.
    """
    content = safetensors.torch.save(on_cpu(state))
    sha256 = hashlib.sha256(content).hexdigest()
    write_file(averaged_path(directory, sha256), content)
    return sha256


def read_averaged(directory: Path, sha256: str) -> dict[str, Tensor]:
    """Return the averaged parameters and buffers by name that :func:`write_averaged` wrote, after checking their SHA-256.

    Raises:
        FileCorruptError: the file is missing, unreadable or altered.
    """
    path = averaged_path(directory, sha256)
    try:
        return _read_verified(path, sha256)
    except READ_ERRORS as error:
        raise FileCorruptError(
            f"averaged weights {path} ({reason(error)})",
            expected="the file that the recorder wrote",
            hint="restore the file from a copy; the run itself can still be read",
        ) from error


def averaged_path(directory: Path, sha256: str) -> Path:
    """Return the path, in the run's directory, of the file of averaged weights with this SHA-256.

    Raises:
        FileCorruptError: ``sha256``, which a tape may contain, is not one.
    """
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        raise FileCorruptError(
            f"a tape in {directory} that names averaged weights by {sha256[:20]!r}",
            expected="a SHA-256",
            hint="restore the tape from a copy",
        )
    return directory / "weights" / f"averaged-{sha256[:16]}.safetensors"


def _read_verified(path: Path, sha256: str) -> dict[str, Tensor]:
    """Return the tensors in a safetensors file by name, after checking its SHA-256.

    Raises:
        ValueError: the SHA-256 differs.
    """
    content = read_bytes(path)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError("its sha256 differs from the recorded one")
    return load_safetensors(content)[0]


def _checkpoint_path(directory: Path, step: int) -> Path:
    return directory / "weights" / f"{step:08d}.safetensors"
