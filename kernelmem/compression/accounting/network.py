"""The network of an account: a copy in eval mode, its rows, its logits and its tangent kernel."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from kernelmem.core.batches import Batch, Forward, Rows, as_rows
from kernelmem.core.checks import check_callable, check_finite, check_model
from kernelmem.core.errors import InputError
from kernelmem.core.models import private_copy
from kernelmem.kernels import KernelStore, ntk, ntk_plan
from kernelmem.kernels.large.temporary_store import temporary_ntk_store, temporary_store_plan
from kernelmem.tangents import prepare
from kernelmem.training.losses import class_forward

ROWS_PER_PASS = 256  # rows per forward pass
TILE = 512  # largest number of rows that are read from a file at once
SUM_TOLERANCE = 1e-4  # of probabilities of a row, in any dtype


@dataclass(frozen=True)
class Network:
    """A network and the rows that it is asked about.

    Attributes:
        module: copy of the network in eval mode, in its own dtype.
        rows: n input rows.
        forward: maps (model, batch) to (n, C); one logit is two outputs.
        logits: (n, C) outputs, float64 on the CPU.
        memory: limit of kernel computations.
        folder: directory for kernels of all rows as files; None: they are in memory.
    """

    module: nn.Module
    rows: Rows
    forward: Forward
    logits: Tensor
    memory: int | str
    folder: Path | None = None

    def tangent_kernel(self, module: nn.Module) -> Tensor | KernelStore:
        """Return the NTK of a module of this shape, summed over outputs, (n, n) float64 on the CPU or in a file."""
        if self.folder is None:
            return self.kernel_of_rows(module, self.rows)
        path = self.folder / f"kernel{len(list(self.folder.iterdir()))}"
        return temporary_ntk_store(
            module, self.rows.tree, path, tile=TILE, forward=self.forward, memory=self.memory, progress=False
        )

    def kernel_of_rows(self, module: nn.Module, rows: Rows) -> Tensor:
        """Return the NTK of other rows, (m, m) float64 on the CPU."""
        return ntk(
            module, rows.tree, forward=self.forward, dtype=torch.float64, memory=self.memory, progress=False
        ).cpu()

    def kernel_operations(self, module: nn.Module) -> float:
        """Return the number of operations of :meth:`tangent_kernel`."""
        if self.folder is not None:
            path = self.folder / "kernel"
            plan = temporary_store_plan(
                module, self.rows.tree, path, tile=TILE, forward=self.forward, memory=self.memory
            )
            return plan.operations
        plan = ntk_plan(module, self.rows.tree, forward=self.forward, dtype=torch.float64, memory=self.memory)
        return sum(cost.operations for cost in plan.costs)

    def outputs_of(self, module: nn.Module, rows: Rows | None = None, name: str = "the model") -> Tensor:
        """Return the outputs (n, C) of a module on the rows, as :func:`class_logits` does."""
        return class_logits(module, self.rows if rows is None else rows, self.forward, name)


def read_network(model: nn.Module, x: Batch, forward: Forward | None, memory: int | str) -> Network:
    """Return the network with its outputs.

    Raises:
        InputError: rows that the model does not accept, or outputs that are probabilities.
        UnsupportedModelError: outputs that are not (n, C), a module that cannot be copied.
    """
    check_model(model)
    if forward is not None:
        check_callable(forward, "forward", ("model", "batch"))
    rows, forward, module = as_rows(x, "x"), class_forward(forward), trainable_copy(model)
    logits = class_logits(module, rows, forward, "the model")
    _refuse_probabilities(logits)
    return Network(module, rows, forward, logits, memory)


def _refuse_probabilities(outputs: Tensor) -> None:
    """Raise an InputError if outputs (n, C) are probabilities, or those of one sigmoid next to a zero."""
    smallest, largest = float(outputs.min()), float(outputs.max())
    if smallest < 0 or largest > 1 + SUM_TOLERANCE:
        return
    is_softmax = float((outputs.sum(1) - 1).abs().max()) <= SUM_TOLERANCE
    last = outputs[:, -1]
    is_sigmoid = not bool(outputs[:, :-1].any()) and float(last.min()) < 0.1 and float(last.max()) > 0.9
    if is_softmax or is_sigmoid:
        inverse = "model(x).clamp_min(1e-12).log()" if is_softmax else "torch.logit(model(x), eps=1e-12)"
        raise InputError(
            f"model with outputs from {smallest:.3g} to {largest:.3g}, which are probabilities",
            expected="logits, the outputs before the softmax or sigmoid",
            hint=f"pass the model without its last operation, or forward=lambda model, x: {inverse}",
        )


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
    return check_finite(torch.cat(batches).detach().cpu(), f"the outputs of {name}")
