"""torch.func as kernelmem uses it, and the modes of torch that the caller may be in. No other file imports torch.func."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor
from torch._C import _functorch  # pyright: ignore[reportAttributeAccessIssue]
from torch.func import functional_call, jacrev, jvp, vjp, vmap

from kernelmem.core.models.float32 import full_float32

__all__ = [
    "GLOBAL_STATE",
    "exclusive",
    "functional_call",
    "is_transformed",
    "jacrev",
    "jvp",
    "standard_modes",
    "unwrapped",
    "vjp",
    "vmap",
]

GLOBAL_STATE = threading.RLock()
"""Lock of what torch has once per process: its random generator, its flags, and the level of forward differentiation."""


def is_transformed(tensor: Tensor) -> bool:
    """Return True if ``tensor`` is wrapped by torch.func: inside vmap, grad or jvp."""
    return _functorch.is_functorch_wrapped_tensor(tensor)


def unwrapped(tensor: Tensor) -> Tensor:
    """Return the tensor inside all wrappers of torch.func."""
    while is_transformed(tensor):
        tensor = _functorch.get_unwrapped(tensor)
    return tensor


@contextmanager
def standard_modes() -> Iterator[None]:
    """Leave the caller's inference mode and autocast inside a ``with`` block or a decorated function.

    In inference mode nothing can be differentiated; autocast would compute products in half precision, and TF32 (which
    torch allows in convolutions on CUDA) with errors of 1e-3.
    """
    accelerator = torch.accelerator.current_accelerator()
    with ExitStack() as stack:
        stack.enter_context(full_float32)
        stack.enter_context(torch.inference_mode(False))
        for device_type in {"cpu", "cpu" if accelerator is None else accelerator.type}:
            if torch.is_autocast_enabled(device_type):
                stack.enter_context(torch.autocast(device_type, enabled=False))
        yield


@contextmanager
def exclusive() -> Iterator[None]:
    """Run one thread at a time, in the modes of :func:`standard_modes`: for analyses that use torch's global state."""
    with GLOBAL_STATE, standard_modes():
        yield
