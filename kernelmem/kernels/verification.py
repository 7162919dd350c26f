"""A few rows of a kernel held against its definition, before a long run."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from kernelmem.core.batches import Rows
from kernelmem.core.errors import VerificationError
from kernelmem.kernels.reference import jacobian_of
from kernelmem.tangents.engine.engine import Engine, LabeledRows
from kernelmem.tangents.engine.plan import Plan

__all__ = ["verify"]

BYTES = 2**24  # of row-by-row tangents held at a time
PAIRS = 16  # of a full kernel no more outputs than this are compared, each with each
FAINT = 1e-6  # of the kernel along another direction
NUMBERS = 2**28  # in row-by-row tangents altogether, about a second's work; beyond, some outputs stand for all


def verify(engine: Engine, left: LabeledRows, right: LabeledRows | None, plan: Plan) -> None:
    """Compare the first, middle and last rows, in one batch, with the definition, each row in a batch of its own.

    Where the tangents of all outputs would be more than NUMBERS, some outputs stand for all: of the diagonal and the full
    kernel as they are, of the trace as the trace of a model with these outputs alone.

    Cost: a backward pass of one row for each of these rows and directions.

    Raises:
        VerificationError: they differ; names the layer whose summand differs most.
    """
    left, right = _few(left), None if right is None else _few(right)
    n, m = left.rows.n, (right or left).rows.n
    directions, memory = engine.directions, max(plan.memory, 2**30)
    picks = _picks(directions.k, max(2, NUMBERS // (n * engine.prepared.n_parameters)))
    if directions.combine == "sum" and len(picks) < directions.k:
        engine = _with_outputs(engine, picks, left.rows)
        small = plan = engine.plan(n, m, symmetric=right is None, memory=memory)
    else:
        small = engine.plan(n, m, symmetric=right is None, memory=memory)
        # The ways that the long run will go.
        small = replace(small, groups=plan.groups, streamed=plan.streamed and small.streamed)
    found = engine.kernel(left, right, small)[""]
    definition = _Definition(
        engine, left, right or left, range(engine.directions.k) if engine.directions.combine == "sum" else picks
    )
    expected, scale = definition.kernel()
    gap = float((definition.compared(found) - expected).abs().max() / scale)
    tolerance = 1e-3 if engine.prepared.dtype == torch.float32 else 1e-9
    if not gap <= tolerance:
        by_layer = engine.kernel(left, right, small, by_layer=True)
        raise VerificationError(
            f"a model whose kernel on {n} rows in one batch differs from the row-by-row definition by {gap:.2g}"
            f" (relative); {definition.worst(by_layer, plan)}",
            expected=f"a difference of at most {tolerance:g}",
            hint="check that no operation mixes the rows of a batch (batch statistics, shuffling, attention over rows);"
            " leave the parameter out with parameters= to go on without it",
        )


class _Definition:
    """The kernel of few rows from tangents row by row, a few directions at a time."""

    def __init__(self, engine: Engine, left: LabeledRows, right: LabeledRows, directions: Sequence[int]) -> None:
        self.engine, self.left, self.right = engine, left, right
        full = engine.directions.combine == "full"
        self.directions = [directions[i] for i in _picks(len(directions), PAIRS)] if full else directions

    def compared(self, kernel: Tensor) -> Tensor:
        """The entries of a kernel as users see it that are compared."""
        if self.engine.directions.combine == "sum":
            return kernel
        picks = torch.tensor(list(self.directions), device=kernel.device)
        some = kernel.index_select(2, picks)
        return some.index_select(3, picks) if self.engine.directions.combine == "full" else some

    def kernel(self, parameters: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """The compared entries, and the scale of all: entries are inner products of tangents, whose norms they scale with."""
        combine, prepared = self.engine.directions.combine, self.engine.prepared
        step = max(1, BYTES // (3 * prepared.n_parameters * torch.finfo(prepared.dtype).bits // 8))
        blocks = [self.directions] if combine == "full" else torch.tensor(list(self.directions)).split(step)
        parts, norms = [], ([], [])
        for block in blocks:
            a = self._tangents(self.left, [int(c) for c in block])[..., parameters]
            b = a if self.right is self.left else self._tangents(self.right, [int(c) for c in block])[..., parameters]
            for found, tangents in zip(norms, (a, b), strict=True):
                found.append(tangents.norm(dim=2))
            if combine == "full":
                parts.append(torch.einsum("nkp,mlp->nmkl", a, b))
            else:
                each = torch.einsum("nkp,mkp->nmk", a, b)
                parts.append(each if combine == "diagonal" else each.sum(2, keepdim=True))
        whole, one, other = torch.cat(parts, 2), *(torch.cat(found, 1) for found in norms)
        if combine == "sum":
            return whole.sum(2), _nonzero(one.norm(dim=1).max() * other.norm(dim=1).max()).clamp_min(self._rounding())
        return whole, _nonzero(one.max() * other.max())

    def _tangents(self, side: LabeledRows, block: list[int]) -> Tensor:
        prepared, rows = self.engine.prepared, side.rows
        with torch.no_grad():
            outputs = prepared.outputs(rows.slice(0, rows.n), rows.n)
        return jacobian_of(prepared, rows, self.engine.directions.cotangents(outputs, block, side.labels))

    def _rounding(self) -> float:
        """Below this scale a kernel is rounding: outputs that sum to a constant have a pseudo kernel of zero."""
        if self.engine.directions.k == self.engine.prepared.n_outputs:
            return 0.0
        prepared = self.engine.prepared
        signs = 1.0 - 2.0 * (torch.arange(prepared.n_outputs, device=prepared.device) % 2).to(prepared.dtype)
        alternating = (signs * prepared.n_outputs**-0.5).expand(self.left.rows.n, 1, -1)
        return FAINT * float(jacobian_of(prepared, self.left.rows, alternating).norm(dim=2).max()) ** 2

    def worst(self, by_layer: dict[str, Tensor], plan: Plan) -> str:
        """Name the layer whose summand differs most."""
        owners = {name: group.layer for group in plan.groups for name in group.names}
        expected: dict[str, Tensor] = {}
        start = 0
        for name, parameter in self.engine.prepared.parameters.items():
            layer = owners.get(name, name.rpartition(".")[0] or name)
            part = self.kernel(slice(start, start + parameter.numel()))[0]
            expected[layer] = expected[layer] + part if layer in expected else part
            start += parameter.numel()
        gaps = {
            layer: float((self.compared(by_layer[layer]) - part).abs().max())
            for layer, part in expected.items()
            if layer in by_layer
        }
        return f"most of it in {max(gaps, key=lambda layer: gaps[layer])!r}" if gaps else "in no layer alone"


def _picks(k: int, most: int) -> list[int]:
    """At most so many of k ordinals, the first and the last among them."""
    return list(range(k)) if k <= most else sorted({round(i * (k - 1) / (most - 1)) for i in range(most)})


def _with_outputs(engine: Engine, picks: list[int], rows: Rows) -> Engine:
    """The same for the model with some of its outputs."""
    prepared = engine.prepared
    forward = prepared.forward
    fewer = replace(prepared, forward=lambda module, batch: forward(module, batch)[:, picks], n_outputs=len(picks))
    return Engine.build(fewer, rows, replace(engine.directions, n_outputs=len(picks)))


def _nonzero(scale: Tensor) -> Tensor:
    return scale.clamp_min(torch.finfo(scale.dtype).tiny)


def _few(side: LabeledRows) -> LabeledRows:
    picks = sorted({0, side.rows.n // 2, side.rows.n - 1})
    rows = Rows(side.rows.take(picks), len(picks))
    return LabeledRows(rows, None if side.labels is None else side.labels[picks])
