"""Differentiable running statistics of batch normalization: functions of the weights that act on the final network."""

import inspect
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

BATCH_NORM_SIGNATURE = inspect.signature(F.batch_norm)


class RunningStatistics(TorchFunctionMode):
    """Makes batch normalization differentiable with respect to its running statistics, and these to its inputs.

    ``before``: the statistics that were used, as leaves; ``after``: those of layers in train mode, as functions of them and
    of the inputs.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.names = {id(buffer): name for name, buffer in module.named_buffers()}
        self.before: dict[str, Tensor] = {}
        self.after: dict[str, Tensor] = {}

    def __torch_function__(
        self, func: Callable[..., object], types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        """Call ``func``; evaluate F.batch_norm so that it can be differentiated with respect to its running statistics.

        In train mode the updated statistics are stored in ``after`` as functions of the input and of the old
        statistics.
        """
        kwargs = kwargs or {}
        if func is not F.batch_norm:
            return func(*args, **kwargs)
        bound = BATCH_NORM_SIGNATURE.bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = bound.arguments
        mean, var = (self.names.get(id(arguments[key])) for key in ("running_mean", "running_var"))
        if mean is None or var is None:  # no running statistics
            return func(*args, **kwargs)
        statistics = [
            self._current_statistic(name, arguments[key])
            for name, key in ((mean, "running_mean"), (var, "running_var"))
        ]
        x: Tensor = arguments["input"]
        if arguments["training"]:
            axes = [axis for axis in range(x.ndim) if axis != 1]
            factor = arguments["momentum"]
            for name, old_value, batch_value in zip((mean, var), statistics, (x.mean(axes), x.var(axes)), strict=True):
                self.after[name] = (1 - factor) * old_value + factor * batch_value
            return func(*args, **kwargs)
        shape = [1, -1] + [1] * (x.ndim - 2)
        normalized = (x - statistics[0].view(shape)) * (statistics[1].view(shape) + arguments["eps"]).rsqrt()
        if arguments["weight"] is not None:
            normalized = normalized * arguments["weight"].view(shape)
        return normalized if arguments["bias"] is None else normalized + arguments["bias"].view(shape)

    def _current_statistic(self, name: str, buffer: Tensor) -> Tensor:
        if name not in self.before:
            with torch.enable_grad():
                self.before[name] = buffer.detach().clone().requires_grad_()
        return self.after.get(name, self.before[name])
