"""Running statistics of batch normalization as part of what training computes: they follow the weights and act at the end."""

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["RunningStatistics"]

SIGNATURE = inspect.signature(F.batch_norm)


class RunningStatistics(TorchFunctionMode):
    """Inside, batch normalization can be differentiated by its running statistics, and they by what it was given.

    ``before``: the statistics that were met, as leaves; ``after``: those of layers in train mode, as functions of them and
    of the inputs.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.names = {id(buffer): name for name, buffer in module.named_buffers()}
        self.before: dict[str, Tensor] = {}
        self.after: dict[str, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.batch_norm:
            return func(*args, **kwargs)
        bound = SIGNATURE.bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        mean, var = (self.names.get(id(given[key])) for key in ("running_mean", "running_var"))
        if mean is None or var is None:  # it keeps none
            return func(*args, **kwargs)
        old = [self._now(name, given[key]) for name, key in ((mean, "running_mean"), (var, "running_var"))]
        x: Tensor = given["input"]
        if given["training"]:
            axes = [axis for axis in range(x.ndim) if axis != 1]
            factor = given["momentum"]
            for name, was, now in zip((mean, var), old, (x.mean(axes), x.var(axes)), strict=True):
                self.after[name] = (1 - factor) * was + factor * now
            return func(*args, **kwargs)
        shape = [1, -1] + [1] * (x.ndim - 2)
        normal = (x - old[0].view(shape)) * (old[1].view(shape) + given["eps"]).rsqrt()
        if given["weight"] is not None:
            normal = normal * given["weight"].view(shape)
        return normal if given["bias"] is None else normal + given["bias"].view(shape)

    def _now(self, name: str, buffer: Tensor) -> Tensor:
        if name not in self.before:
            with torch.enable_grad():
                self.before[name] = buffer.detach().clone().requires_grad_()
        return self.after.get(name, self.before[name])
