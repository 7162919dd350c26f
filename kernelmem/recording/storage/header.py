"""Header of a run: model, optimizer, loss and options, checked before the first step."""

from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from kernelmem.core.batches import Forward
from kernelmem.core.checks import as_flag, as_number, check_callable, check_choice, check_instance, describe
from kernelmem.core.errors import InputError, UnsupportedModelError
from kernelmem.core.files.result_files import decode
from kernelmem.core.models import float32_products
from kernelmem.recording.storage.checkpoints import state_sha256
from kernelmem.recording.storage.param_groups import plain_defaults
from kernelmem.training.losses import REDUCTIONS, Loss, loss_name

Header: TypeAlias = dict[str, Any]
"""JSON values that describe the whole run."""

Products: TypeAlias = Literal["ieee", "tf32", "bf16", "none"]
HEADER_TYPES = {
    "reduction": Literal["mean", "sum"],
    "defaults": dict[str, Any],
    "forward": str | None,
    "keep": str | int,
    "training": bool,
    "threads": int,
    "device": str,
    "device_name": str,
    "float32_products": tuple[Products, Products, Products],
    **dict.fromkeys(("optimizer", "loss", "initial", "torch"), str),
    **dict.fromkeys(("parameters", "buffers"), list[tuple[str, list[int], str]]),
}
ADDED_LATER = ("forward", "threads", "device", "device_name", "float32_products")
NO_DEVICES = ("meta", "mps")  # without values; without float64, in which gradients are compared
FIXED_ON_RESUME = ("device", "optimizer", "loss", "forward", "reduction", "parameters", "buffers", "keep")


def run_header(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Tensor],
    *,
    loss: Loss,
    forward: Callable[..., Tensor] | None,
    reduction: str,
    keep: str | int,
) -> Header:
    """Return the header of a run, a dict of JSON values, from model, optimizer and options.

    ``state`` maps the names of parameters and buffers to their initial values; the header holds its SHA-256.
    """
    device = model_device(model)
    parameter_names = {name for name, _ in model.named_parameters()}
    layout = [[name, list(value.shape), str(value.dtype).removeprefix("torch.")] for name, value in state.items()]
    return {
        "optimizer": type(optimizer).__name__,
        "defaults": plain_defaults(optimizer),
        "loss": loss_name(loss),
        "forward": None if forward is None else loss_name(forward),
        "reduction": reduction,
        "parameters": [entry for entry in layout if entry[0] in parameter_names],
        "buffers": [entry for entry in layout if entry[0] not in parameter_names],
        "keep": keep,
        "training": model.training,
        "initial": state_sha256(state),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": device.type,
        "device_name": _device_name(device),
        "float32_products": float32_products(),
    }


def check_header(header: Header) -> None:
    """Check the types of the entries of a header that was read.

    Raises:
        TypeError, ValueError, KeyError: an entry is missing or of another type; the message names it.
    """
    for key, annotation in HEADER_TYPES.items():
        if key in header or key not in ADDED_LATER:
            decode(header[key], annotation, key)


def check_same_run(header: Header, recorded: Header, directory: Path) -> None:
    """Check that model, optimizer and options in ``header`` are those in ``recorded``, the header of the run to resume.

    Raises:
        InputError: an entry of ``header`` differs; the message names the first one.
    """
    for key in FIXED_ON_RESUME:
        if header[key] != recorded.get(key, "cpu" if key == "device" else None):  # an older header has no forward
            raise InputError(
                f"{key} {header[key]}, which differs from the {key} of the run in {directory}",
                expected=f"{key} {recorded.get(key)}, as recorded",
                hint="resume with the model, optimizer and options of the run",
            )


def check_options(
    reduction: str, keep: str | int, tolerance: float | None, resume: bool, forward: Forward | None
) -> None:
    """Check the options of a recorder.

    Raises:
        InputError: an option is invalid; the message names it.
    """
    as_flag(resume, "resume")
    if forward is not None:
        check_callable(forward, "forward", ("model", "x"))
    check_choice(reduction, "reduction", REDUCTIONS, hint="pass that of your loss")
    check_keep(keep)
    if tolerance is not None and as_number(tolerance, "tolerance") >= 1:
        raise InputError(f"tolerance={tolerance!r}", expected="a number >= 0 and < 1", hint="omit it")


def check_model(model: nn.Module) -> None:
    """Check that the steps of the model can be recomputed.

    Raises:
        InputError: ``model`` is not a module.
        UnsupportedModelError: the model is scripted, data-parallel or on several devices, or a parameter is lazy, complex or
            on a device that cannot be used.
    """
    check_instance(model, "model", nn.Module, hint="pass the module that is trained")
    if isinstance(model, torch.jit.ScriptModule | nn.DataParallel):
        raise UnsupportedModelError(
            f"a {type(model).__name__}", expected="a plain nn.Module", hint="record the module inside it"
        )
    for name, parameter in model.named_parameters():
        if nn.parameter.is_lazy(parameter):
            raise UnsupportedModelError(
                f"parameter {name}, not yet initialized", expected="weights", hint="call the model once on a batch"
            )
        if parameter.device.type in NO_DEVICES or not parameter.is_floating_point():
            raise UnsupportedModelError(
                f"parameter {name} of dtype {parameter.dtype} on {parameter.device}".replace("torch.", ""),
                expected="real parameters with values, on a device that computes in float64",
                hint="train on the CPU" if parameter.is_floating_point() else "train with real parameters",
            )
    devices = sorted({str(tensor.device) for tensor in [*model.parameters(), *model.buffers()]})
    if len(devices) > 1:
        raise UnsupportedModelError(
            f"a model on {len(devices)} devices ({', '.join(devices)})",
            expected="all parameters and buffers on one device",
            hint=f"call model.to({devices[-1]!r}) before recording",
        )


def model_device(model: nn.Module) -> torch.device:
    """Return the device of the model's parameters and buffers, the CPU if it has none."""
    return next((tensor.device for tensor in chain(model.parameters(), model.buffers())), torch.device("cpu"))


def _device_name(device: torch.device) -> str:
    """Return the name that an accelerator has (of the graphics card); "" for the CPU."""
    get_name = None if device.type == "cpu" else getattr(torch.get_device_module(device), "get_device_name", None)
    return "" if get_name is None else str(get_name(device))


def check_keep(keep: object) -> None:
    """Check the rule for the steps whose weights are kept.

    Raises:
        InputError: neither "all" nor "sqrt" nor a whole number >= 1.
    """
    if not (isinstance(keep, str) and keep in ("all", "sqrt")) and (
        isinstance(keep, bool) or not isinstance(keep, int) or keep < 1
    ):
        raise InputError(
            f"keep={describe(keep)}", expected='"all", "sqrt" or a whole number >= 1', hint='pass keep="sqrt"'
        )
