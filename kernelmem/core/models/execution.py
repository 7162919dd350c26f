"""Plain execution of a model: checkpointed segments run once, and autocast and compiled code are switched off."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor
from torch.overrides import TorchFunctionMode

from kernelmem.core.errors import UnsupportedModelError
from kernelmem.core.models.torch_func import is_transformed

_Segment = Callable[..., Any]  # the checkpointed part of a forward pass

_CHECKPOINT_FUNCTION = torch.utils.checkpoint.CheckpointFunction
_CHECKPOINT_GENERATOR = torch.utils.checkpoint._checkpoint_without_reentrant_generator

_thread = threading.local()


@contextmanager
def plain_execution(device: torch.device) -> Iterator[None]:
    """Run the operations of a forward pass as they stand, in full precision, inside a ``with`` block.

    Checkpointed segments run as in :func:`without_checkpointing`. Autocast is ignored: every operation computes in the
    dtype of the model. Compiled functions run as written. Other threads are not affected, except that compiled
    functions run as written there too.
    """
    uses_autocast = torch.is_autocast_enabled(device.type)
    torch.set_autocast_enabled(device.type, False)
    try:
        with without_checkpointing(), _compiled_code_as_written, _PlainOperations(device.type):
            yield
    finally:
        torch.set_autocast_enabled(device.type, uses_autocast)


@contextmanager
def without_checkpointing() -> Iterator[None]:
    """Run checkpointed segments of a forward pass once, and keep their activations, inside a ``with`` block.

    Activation checkpointing runs a segment again in the backward pass, where its operations cannot be intercepted, and
    with ``use_reentrant=True`` it does not support ``torch.autograd.grad``. The outputs and gradients are the same.
    """
    with _checkpoints_replaced:
        _thread.depth = getattr(_thread, "depth", 0) + 1
        try:
            yield
        finally:
            _thread.depth -= 1


@contextmanager
def refuse_detached_segments() -> Iterator[None]:
    """Refuse, inside a ``with`` block, checkpointed segments to whose parameters torch would give no gradients.

    With ``use_reentrant=True`` these are the segments of whose inputs none requires a gradient.

    Raises:
        UnsupportedModelError: there is such a segment.
    """
    _thread.refuses_detached = True
    try:
        yield
    finally:
        _thread.refuses_detached = False


def ignored_autocast() -> bool:
    """Return True if a pass of this thread ignored autocast since the last call of this function."""
    result = getattr(_thread, "ignored_autocast", False)
    _thread.ignored_autocast = False
    return result


class _PlainOperations(TorchFunctionMode):
    """Switches autocast off, and makes the gradients of normalization layers contiguous.

    torch 2.13 is wrong on the CPU for some other strides of these gradients.
    """

    def __init__(self, device_type: str) -> None:
        super().__init__()
        self.device_type = device_type

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if torch.is_autocast_enabled(self.device_type):  # entered by the model: leaving its context restores the state
            torch.set_autocast_enabled(self.device_type, False)
            _thread.ignored_autocast = True
        output = func(*args, **(kwargs or {}))
        if func in (F.batch_norm, F.instance_norm) and output.requires_grad and not is_transformed(output):
            node = output.grad_fn
            if func is F.instance_norm or (node is not None and "BatchNorm" in node.name()):  # not rewritten by a rule
                output.register_hook(lambda gradient: gradient.contiguous())
        return output


class PassObserver(TorchFunctionMode):
    """Observes a forward pass: whether it computes derivatives itself, and in which precision it computes.

    Attributes:
        differentiates: whether the pass calls torch.autograd, as models of forces do.
        precision: the dtype with the largest epsilon of results that depend on parameters; None if there are none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.differentiates = False
        self.precision: torch.dtype | None = None

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.autograd.grad, torch.autograd.backward, Tensor.backward):
            outputs = args[0] if args else next(iter(kwargs.values()))
            outputs = [outputs] if isinstance(outputs, Tensor) else outputs
            self.differentiates |= not any(is_transformed(output) for output in outputs)  # torch.func needs no graph
        result = func(*args, **kwargs)
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, Tensor) and value.requires_grad:
                dtype = value.dtype.to_real()
                if self.precision is None or torch.finfo(dtype).eps > torch.finfo(self.precision).eps:
                    self.precision = dtype
        return result


class _DirectCheckpointFunction:
    """Replacement of torch's CheckpointFunction (``use_reentrant=True``)."""

    @staticmethod
    def apply(segment: _Segment, preserve_random_state: bool, *args: Any) -> object:
        """Return ``segment(*args)``; threads that are not in :func:`without_checkpointing` run the original function."""
        if getattr(_thread, "depth", 0):
            outputs = segment(*args)
            if getattr(_thread, "refuses_detached", False) and not _requires_grad(args) and _requires_grad(outputs):
                raise UnsupportedModelError(
                    "a checkpoint with use_reentrant=True of whose inputs none requires a gradient: torch gives the"
                    " parameters inside no gradients",
                    expected="checkpointed parameters that can be trained",
                    hint="pass use_reentrant=False to torch.utils.checkpoint.checkpoint",
                )
            return outputs
        return _CHECKPOINT_FUNCTION.apply(segment, preserve_random_state, *args)


def _requires_grad(values: object) -> bool:
    values = values if isinstance(values, tuple | list) else [values]
    return any(isinstance(value, Tensor) and value.requires_grad for value in values)


def _direct_checkpoint_generator(*args: Any, **kwargs: Any) -> Iterator[None]:
    """Replacement of the generator that torch enters and leaves around a segment (``use_reentrant=False``)."""
    if getattr(_thread, "depth", 0):
        yield
    else:
        yield from _CHECKPOINT_GENERATOR(*args, **kwargs)


class _Shared:
    """Context that changes global state: entered by the first of several users in all threads, left by the last."""

    def __init__(self, enter: Callable[[ExitStack], None]) -> None:
        self.enter, self.stack, self.lock, self.users = enter, ExitStack(), threading.Lock(), 0

    def __enter__(self) -> None:
        with self.lock:
            if self.users == 0:
                self.enter(self.stack)
            self.users += 1

    def __exit__(self, *exception: object) -> None:
        with self.lock:
            self.users -= 1
            if self.users == 0:
                self.stack.close()


def _replace_checkpoints(stack: ExitStack) -> None:
    """Replace torch's checkpoint functions, in all modules that have imported ``checkpoint``."""
    replacements = {
        "CheckpointFunction": _DirectCheckpointFunction,
        "_checkpoint_without_reentrant_generator": _direct_checkpoint_generator,
    }
    for name, replacement in replacements.items():
        stack.callback(setattr, torch.utils.checkpoint, name, getattr(torch.utils.checkpoint, name))
        setattr(torch.utils.checkpoint, name, replacement)


def _run_compiled_code_as_written(stack: ExitStack) -> None:
    if "torch._dynamo" in sys.modules:  # otherwise nothing was compiled
        stack.enter_context(torch.compiler.set_stance("force_eager"))


_checkpoints_replaced = _Shared(_replace_checkpoints)
_compiled_code_as_written = _Shared(_run_compiled_code_as_written)
