"""Verification of a kernel: a few rows, compared with the definition before a long computation."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from kernelmem.core.batches import Rows
from kernelmem.core.errors import VerificationError
from kernelmem.kernels.reference import jacobian_of
from kernelmem.tangents.engine.engine import Engine, LabeledRows
from kernelmem.tangents.engine.plan import Plan

BYTES = 2**24  # of tangents held at a time
PAIRS = 16  # outputs of a full kernel that are compared, all pairs of them
FAINT = 1e-6  # relative to the kernel along another direction
NUMBERS = 2**28  # in all tangents, about one second of work; for more, only some outputs are compared


def verify(engine: Engine, left: LabeledRows, right: LabeledRows | None, plan: Plan) -> None:
    """Compare the first, middle and last rows, in one batch, with the definition, each row in a batch of its own.

    If the tangents of all outputs are more than NUMBERS, only some outputs are compared: those entries of the diagonal
    and the full kernel, and the trace of a model that has these outputs only.

    Cost: one backward pass of one row per row and direction compared.

    Raises:
        VerificationError: they differ; names the layer whose term differs most.
    """
    left, right = _first_middle_last(left), None if right is None else _first_middle_last(right)
    n, m = left.rows.n, (right or left).rows.n
    directions, memory = engine.directions, max(plan.memory, 2**30)
    picks = _picks(directions.k, max(2, NUMBERS // (n * engine.prepared.n_parameters)))
    if directions.combine == "sum" and len(picks) < directions.k:
        engine = _with_outputs(engine, picks, left.rows)
        small = plan = engine.plan(n, m, symmetric=right is None, memory=memory)
    else:
        small = engine.plan(n, m, symmetric=right is None, memory=memory)
        # Use the methods of the long computation.
        small = replace(small, groups=plan.groups, streamed=plan.streamed and small.streamed)
    kernel = engine.kernel(left, right, small)[""]
    definition = _Definition(
        engine, left, right or left, range(engine.directions.k) if engine.directions.combine == "sum" else picks
    )
    expected, scale = definition.kernel()
    gap = float((definition.compared(kernel) - expected).abs().max() / scale)
    tolerance = 1e-3 if engine.prepared.dtype == torch.float32 else 1e-9
    if not gap <= tolerance:
        by_layer = engine.kernel(left, right, small, by_layer=True)
        raise VerificationError(
            f"a model whose kernel on {n} rows in one batch differs from the row-by-row definition by {gap:.2g}"
            f" (relative); {definition.worst(by_layer, plan)}",
            expected=f"a difference of at most {tolerance:g}",
            hint="check that no operation mixes the rows of a batch (batch statistics, shuffling, attention over rows);"
            " or leave that parameter out with parameters=",
        )


class _Definition:
    """Kernel of a few rows from the row-by-row Jacobian, a few directions at a time."""

    def __init__(self, engine: Engine, left: LabeledRows, right: LabeledRows, directions: Sequence[int]) -> None:
        self.engine, self.left, self.right = engine, left, right
        full = engine.directions.combine == "full"
        self.directions = [directions[i] for i in _picks(len(directions), PAIRS)] if full else directions

    def compared(self, kernel: Tensor) -> Tensor:
        """Return the entries of a kernel, in public axis order, that are compared."""
        if self.engine.directions.combine == "sum":
            return kernel
        picks = torch.tensor(list(self.directions), device=kernel.device)
        entries = kernel.index_select(2, picks)
        return entries.index_select(3, picks) if self.engine.directions.combine == "full" else entries

    def kernel(self, parameters: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Return the compared entries, and their scale: the product of the largest tangent norms on the two sides."""
        combine, prepared = self.engine.directions.combine, self.engine.prepared
        step = max(1, BYTES // (3 * prepared.n_parameters * torch.finfo(prepared.dtype).bits // 8))
        blocks = [self.directions] if combine == "full" else torch.tensor(list(self.directions)).split(step)
        kernels, norms_left, norms_right = [], [], []
        for block in blocks:
            a = self._tangents(self.left, [int(c) for c in block])[..., parameters]
            b = a if self.right is self.left else self._tangents(self.right, [int(c) for c in block])[..., parameters]
            norms_left.append(a.norm(dim=2))
            norms_right.append(b.norm(dim=2))
            if combine == "full":
                kernels.append(torch.einsum("nkp,mlp->nmkl", a, b))
            else:
                diagonal = torch.einsum("nkp,mkp->nmk", a, b)
                kernels.append(diagonal if combine == "diagonal" else diagonal.sum(2, keepdim=True))
        kernel, left, right = torch.cat(kernels, 2), torch.cat(norms_left, 1), torch.cat(norms_right, 1)
        if combine == "sum":
            scale = _nonzero(left.norm(dim=1).max() * right.norm(dim=1).max())
            return kernel.sum(2), scale.clamp_min(self._rounding())
        return kernel, _nonzero(left.max() * right.max())

    def _tangents(self, side: LabeledRows, block: list[int]) -> Tensor:
        prepared, rows = self.engine.prepared, side.rows
        with torch.no_grad():
            outputs = prepared.outputs(rows.slice(0, rows.n), rows.n)
        return jacobian_of(prepared, rows, self.engine.directions.cotangents(outputs, block, side.labels))

    def _rounding(self) -> float:
        """Scale below which a kernel is rounding: outputs that sum to a constant have a pseudo kernel of zero."""
        if self.engine.directions.k == self.engine.prepared.n_outputs:
            return 0.0
        prepared = self.engine.prepared
        signs = 1.0 - 2.0 * (torch.arange(prepared.n_outputs, device=prepared.device) % 2).to(prepared.dtype)
        alternating = (signs * prepared.n_outputs**-0.5).expand(self.left.rows.n, 1, -1)
        return FAINT * float(jacobian_of(prepared, self.left.rows, alternating).norm(dim=2).max()) ** 2

    def worst(self, by_layer: dict[str, Tensor], plan: Plan) -> str:
        """Name the layer whose term differs most."""
        owners = {name: group.layer for group in plan.groups for name in group.names}
        expected: dict[str, Tensor] = {}
        start = 0
        for name, parameter in self.engine.prepared.parameters.items():
            layer = owners.get(name, name.rpartition(".")[0] or name)
            term = self.kernel(slice(start, start + parameter.numel()))[0]
            expected[layer] = expected[layer] + term if layer in expected else term
            start += parameter.numel()
        gaps = {
            layer: float((self.compared(by_layer[layer]) - term).abs().max())
            for layer, term in expected.items()
            if layer in by_layer
        }
        return f"most of it in {max(gaps, key=lambda layer: gaps[layer])!r}" if gaps else "in no layer alone"


def _picks(k: int, most: int) -> list[int]:
    """Choose at most ``most`` of k indices, including the first and the last."""
    return list(range(k)) if k <= most else sorted({round(i * (k - 1) / (most - 1)) for i in range(most)})


def _with_outputs(engine: Engine, picks: list[int], rows: Rows) -> Engine:
    """Build the engine of the model with only the outputs ``picks``."""
    prepared = engine.prepared
    forward = prepared.forward
    fewer = replace(prepared, forward=lambda module, batch: forward(module, batch)[:, picks], n_outputs=len(picks))
    return Engine.build(fewer, rows, replace(engine.directions, n_outputs=len(picks)))


def _nonzero(scale: Tensor) -> Tensor:
    return scale.clamp_min(torch.finfo(scale.dtype).tiny)


def _first_middle_last(side: LabeledRows) -> LabeledRows:
    picks = sorted({0, side.rows.n // 2, side.rows.n - 1})
    rows = Rows(side.rows.take(picks), len(picks))
    return LabeledRows(rows, None if side.labels is None else side.labels[picks])
