"""The network of an account: a copy in eval mode, its rows, its logits and its tangent kernel."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kernelmem.core.batches import Batch, Forward, Rows, as_rows
from kernelmem.core.checks import check_callable, check_finite, check_model
from kernelmem.core.models import private_copy
from kernelmem.kernels import ntk
from kernelmem.tangents import prepare
from kernelmem.training.losses import class_forward

ROWS_PER_PASS = 256  # rows per forward pass


@dataclass(frozen=True)
class Network:
    """A network and the rows that it is asked about.

    Attributes:
        module: copy of the network in eval mode, in its own dtype.
        rows: n input rows.
        forward: maps (model, batch) to (n, C); one logit is two outputs.
        logits: (n, C) outputs, float64 on the CPU.
        memory: limit of kernel computations.
    """

    module: nn.Module
    rows: Rows
    forward: Forward
    logits: Tensor
    memory: int | str

    def tangent_kernel(self, module: nn.Module, rows: Rows | None = None) -> Tensor:
        """Return the NTK of a module of this shape, summed over outputs, (n, n) float64 on the CPU."""
        inputs = (self.rows if rows is None else rows).tree
        return ntk(module, inputs, forward=self.forward, dtype=torch.float64, memory=self.memory, progress=False).cpu()

    def outputs_of(self, module: nn.Module, rows: Rows | None = None, name: str = "the model") -> Tensor:
        """Return the outputs (n, C) of a module on the rows, as :func:`class_logits` does."""
        return class_logits(module, self.rows if rows is None else rows, self.forward, name)


def read_network(model: nn.Module, x: Batch, forward: Forward | None, memory: int | str) -> Network:
    """Return the network with its outputs.

    Raises:
        InputError: rows that the model does not accept.
        UnsupportedModelError: outputs that are not (n, C), a module that cannot be copied.
    """
    check_model(model)
    if forward is not None:
        check_callable(forward, "forward", ("model", "batch"))
    rows, forward, module = as_rows(x, "x"), class_forward(forward), trainable_copy(model)
    return Network(module, rows, forward, class_logits(module, rows, forward, "the model"), memory)


def trainable_copy(model: nn.Module) -> nn.Module:
    """Return a copy in eval mode; if all parameters are frozen, as some are after training, none of the copy is."""
    module = private_copy(model).eval()
    if not any(parameter.requires_grad for parameter in module.parameters()):
        for parameter in module.parameters():
            parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
    return module


def class_logits(model: nn.Module, rows: Rows, forward: Forward, name: str) -> Tensor:
    """Return the outputs of a model in eval mode, (n, C) float64 on the CPU.

    Raises:
        InputError: infinite outputs; UnsupportedModelError: outputs that are not (n, C).
        NumericalError: NaN.
    """
    prepared = prepare(model, rows, forward=forward, dtype=torch.float64, evaluation=True)
    on_device = rows.to(dtype=torch.float64, device=prepared.device)
    with torch.no_grad():
        batches = [
            prepared.outputs(on_device.slice(start, stop), stop - start)
            for start in range(0, rows.n, ROWS_PER_PASS)
            for stop in (min(start + ROWS_PER_PASS, rows.n),)
        ]
    return check_finite(torch.cat(batches).cpu(), f"the outputs of {name}")
