"""The header of a run: what is being trained and how it is recorded, checked before the first step."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kernelmem.core.errors import InputError, UnsupportedModelError
from kernelmem.recording.storage.checkpoints import state_sha256
from kernelmem.recording.storage.param_groups import plain_defaults
from kernelmem.training.losses import REDUCTIONS, Loss, loss_name

__all__ = ["check_model", "check_options", "check_same_run", "run_header"]

SAME_ON_RESUME = ("optimizer", "loss", "forward", "reduction", "parameters", "buffers", "keep")


def run_header(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Tensor],
    *,
    loss: Loss,
    forward: Callable[..., Tensor] | None,
    reduction: str,
    keep: str | int,
) -> dict[str, Any]:
    """What the tape says of the whole run, as JSON values; ``state`` are the initial parameters and buffers."""
    parameters = {name for name, _ in model.named_parameters()}
    described = [[name, list(value.shape), str(value.dtype).removeprefix("torch.")] for name, value in state.items()]
    return {
        "optimizer": type(optimizer).__name__,
        "defaults": plain_defaults(optimizer),
        "loss": loss_name(loss),
        "forward": None if forward is None else loss_name(forward),
        "reduction": reduction,
        "parameters": [row for row in described if row[0] in parameters],
        "buffers": [row for row in described if row[0] not in parameters],
        "keep": keep,
        "training": model.training,
        "initial": state_sha256(state),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def check_same_run(own: Mapping[str, Any], recorded: Mapping[str, Any], directory: Path) -> None:
    """Refuse to resume a run with another model, optimizer or options.

    Raises:
        InputError: names the first entry that differs.
    """
    for key in SAME_ON_RESUME:
        if own[key] != recorded.get(key):  # an older header has no forward
            raise InputError(
                f"{key} {own[key]} for the run in {directory}",
                expected=f"{key} {recorded.get(key)}, as recorded",
                hint="resume with the model, optimizer and options of the run",
            )


def check_options(reduction: str, keep: str | int, tolerance: float | None) -> None:
    """Refuse options that mean nothing.

    Raises:
        InputError: names the option.
    """
    if reduction not in REDUCTIONS:
        raise InputError(f"reduction={reduction!r}", expected='"mean" or "sum"', hint="name that of the training loop")
    if keep not in ("all", "sqrt") and (isinstance(keep, bool) or not isinstance(keep, int) or keep < 1):
        raise InputError(f"keep={keep!r}", expected='"all", "sqrt" or a whole number >= 1', hint='pass keep="sqrt"')
    if tolerance is not None and not 0 <= tolerance < 1:
        raise InputError(f"tolerance={tolerance!r}", expected="a number >= 0 and < 1", hint="leave it out")


def check_model(model: nn.Module) -> None:
    """Refuse models whose steps cannot be recomputed.

    Raises:
        UnsupportedModelError: scripted or data-parallel, or with parameters that are lazy, complex or not on the CPU.
    """
    if isinstance(model, torch.jit.ScriptModule | nn.DataParallel):
        raise UnsupportedModelError(
            f"a {type(model).__name__}", expected="a plain nn.Module", hint="record the module inside it"
        )
    for name, parameter in model.named_parameters():
        if nn.parameter.is_lazy(parameter):
            raise UnsupportedModelError(
                f"parameter {name}, not yet initialized", expected="weights", hint="call the model once on a batch"
            )
        if parameter.device.type != "cpu" or not parameter.is_floating_point():
            raise UnsupportedModelError(
                f"parameter {name} of dtype {parameter.dtype} on {parameter.device}".replace("torch.", ""),
                expected="real parameters on the CPU, where replay is to the bit",
                hint="train on the CPU",
            )
