"""Memory that autograd keeps for the backward pass of a computation."""

from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from kernelmem.core.models.torch_func import unwrapped

T = TypeVar("T")


def saved_storages(run: Callable[[], T]) -> tuple[T, dict[int, tuple[int, int]]]:
    """Return run(), and {address: (bytes, bytes per number)} of the storages that autograd saves meanwhile.

    torch.func.grad (and vjp, jacrev, hessian) inside a model supports no observer of saved tensors; the results of all
    operations are counted then, which are at least what is saved.
    """
    storages: dict[int, tuple[int, int]] = {}
    alive: list[torch.UntypedStorage] = []  # an address would be used again

    def add(tensor: Tensor) -> None:
        try:
            base = unwrapped(tensor)
            storage = base.untyped_storage()
            if storages.setdefault(storage.data_ptr(), size := (storage.nbytes(), base.element_size())) is size:
                alive.append(storage)
        except RuntimeError:  # a tensor without storage, such as the zero tangent of a dual number
            pass

    def pack(tensor: Tensor) -> Tensor:
        add(tensor)
        return tensor.detach()  # an output holds its node: a node that saves its output would never be freed

    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            return run(), storages
    except RuntimeError as error:
        if "saved tensor hooks" not in str(error):
            raise
        storages.clear()
        alive.clear()
        with _Results(add):
            return run(), storages


class _Results(TorchFunctionMode):
    """Calls a function with the tensors that operations return."""

    def __init__(self, add: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.add = add

    def __torch_function__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        for value in output if isinstance(output, Iterable) and not isinstance(output, Tensor | str) else [output]:
            if isinstance(value, Tensor):
                self.add(value)
        return output
