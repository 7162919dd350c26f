"""Verification of a contraction: the kernel of a few rows, compared with the Jacobian before a long computation."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from kernelmem.core.batches import Rows
from kernelmem.core.errors import VerificationError
from kernelmem.tangents.derivatives.jacobian import batch_jacobian
from kernelmem.tangents.engine.engine import Engine, LabeledRows
from kernelmem.tangents.engine.plan import Plan

SMALLEST_MEMORY = 2**27  # bytes allowed for the kernel of a few rows, where less is allowed for the computation
ROW_COPIES = 3  # of the tangents of a row, while they are computed and contracted
TANGENT_BYTES = 2**24  # size of the tangents in memory at a time
MAX_FULL_OUTPUTS = 16  # outputs of a full kernel that are compared, in all pairs
RELATIVE_ROUNDING = 1e-6  # a pseudo kernel below this fraction of the kernel along another direction is rounding
MAX_TANGENT_NUMBERS = 2**28  # size of all tangents, about one second of work; above it only some outputs are compared


def verify(engine: Engine, left: LabeledRows, right: LabeledRows | None, plan: Plan) -> None:
    """Compare the kernel of the first, middle and last rows with their Jacobian, by one backward pass per row and output.

    Fewer rows are compared where the Jacobian of three would exceed the memory of the plan.

    This verifies the contraction; that each pass gives the right tangents is certified pass by pass. If the tangents of
    all outputs have more than MAX_TANGENT_NUMBERS entries, only some outputs are compared: those entries of the diagonal
    and the full kernel, and the trace of a model that has these outputs only.

    Cost: one backward pass per row and direction compared.

    Raises:
        VerificationError: the kernel differs from that of the Jacobian; the message names the layer that differs most.
    """
    n_rows = _n_rows(engine, plan)
    left, right = _some_rows(left, n_rows), None if right is None else _some_rows(right, n_rows)
    n, m = left.rows.n, (right or left).rows.n
    directions, max_bytes = engine.directions, max(plan.memory, SMALLEST_MEMORY)
    output_indices = _spread_indices(directions.k, max(2, MAX_TANGENT_NUMBERS // (n * engine.prepared.n_parameters)))
    if directions.combine == "sum" and len(output_indices) < directions.k:
        engine = _engine_with_outputs(engine, output_indices, left.rows)
        small_plan = plan = engine.plan(n, m, symmetric=right is None, memory=max_bytes)
    else:
        small_plan = engine.plan(n, m, symmetric=right is None, memory=max_bytes)
        # Use the methods of the long computation.
        small_plan = replace(small_plan, groups=plan.groups, streamed=plan.streamed and small_plan.streamed)
    kernel = engine.kernel(left, right, small_plan)[""]
    jacobian_kernel = _JacobianKernel(
        engine,
        left,
        right or left,
        range(engine.directions.k) if engine.directions.combine == "sum" else output_indices,
        plan.memory,
    )
    expected, scale = jacobian_kernel.kernel()
    relative_error = float((jacobian_kernel.select_compared(kernel) - expected).abs().max() / scale)
    tolerance = engine.prepared.tolerance(1e-3, 1e-9)
    if not relative_error <= tolerance:
        layer_kernels = engine.kernel(left, right, small_plan, by_layer=True)
        raise VerificationError(
            f"a model whose kernel on {n} rows differs from that of their Jacobian by {relative_error:.2g}"
            f" (relative); {jacobian_kernel.describe_worst_layer(layer_kernels, plan)}",
            expected=f"a difference of at most {tolerance:g}",
            hint="check that the model is deterministic; or leave that parameter out with parameters=",
        )


def needed_bytes(engine: Engine, plan: Plan) -> int:
    """Return the peak memory of :func:`verify` in bytes: tangents and, for their comparison, a gradient."""
    itemsize = torch.finfo(engine.prepared.dtype).bits // 8
    directions = min(engine.directions.k, max(1, TANGENT_BYTES // (3 * engine.prepared.n_parameters * itemsize)))
    directions = 1 if engine.directions.combine == "full" else directions  # two, which _bytes_per_row counts
    gradient_bytes = engine.prepared.n_parameters * itemsize
    return ROW_COPIES * directions * _n_rows(engine, plan) * _bytes_per_row(engine, plan.symmetric) + gradient_bytes


class _JacobianKernel:
    """Kernel of a few examples, computed from their Jacobian."""

    def __init__(
        self, engine: Engine, left: LabeledRows, right: LabeledRows, directions: Sequence[int], memory: int
    ) -> None:
        self.engine, self.left, self.right = engine, left, right
        is_full = engine.directions.combine == "full"
        itemsize = torch.finfo(engine.prepared.dtype).bits // 8
        output_bytes = (left.rows.n + right.rows.n) * engine.prepared.n_parameters * itemsize
        max_outputs = max(2, min(MAX_FULL_OUTPUTS, memory // (4 * output_bytes)))
        self.directions = (
            [directions[i] for i in _spread_indices(len(directions), max_outputs)] if is_full else directions
        )

    def select_compared(self, kernel: Tensor) -> Tensor:
        """Return the entries of a kernel, with its example axes first, for the output directions that are compared."""
        if self.engine.directions.combine == "sum":
            return kernel
        output_indices = torch.tensor(list(self.directions), device=kernel.device)
        entries = kernel.index_select(2, output_indices)
        return entries.index_select(3, output_indices) if self.engine.directions.combine == "full" else entries

    def kernel(self) -> tuple[Tensor, Tensor]:
        """Return the compared entries of the kernel, and as scale the product of the largest tangent norms of both sides."""
        combine = self.engine.directions.combine
        kernels, left_norms, right_norms = [], [], []
        for left_tangents, right_tangents in self._tangent_blocks():
            left_norms.append(left_tangents.norm(dim=2))
            right_norms.append(right_tangents.norm(dim=2))
            kernels.append(_contract(left_tangents, right_tangents, combine))
        kernel, left_norm, right_norm = torch.cat(kernels, 2), torch.cat(left_norms, 1), torch.cat(right_norms, 1)
        if combine == "sum":
            scale = _clamped_to_positive(left_norm.norm(dim=1).max() * right_norm.norm(dim=1).max())
            return kernel.sum(2), scale.clamp_min(self._rounding_scale())
        return kernel, _clamped_to_positive(left_norm.max() * right_norm.max())

    def _tangent_blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the tangents of both sides, (n or m, directions, P parameters), for blocks of output directions."""
        prepared = self.engine.prepared
        itemsize = torch.finfo(prepared.dtype).bits // 8
        size = max(1, TANGENT_BYTES // (3 * prepared.n_parameters * itemsize))
        is_full = self.engine.directions.combine == "full"
        blocks = [self.directions] if is_full else torch.tensor(list(self.directions)).split(size)
        for block in blocks:
            left_tangents = self._tangents(self.left, [int(c) for c in block])
            is_same = self.right is self.left
            yield left_tangents, left_tangents if is_same else self._tangents(self.right, [int(c) for c in block])

    def _tangents(self, side: LabeledRows, block: list[int]) -> Tensor:
        """Compute the tangents (n examples, k, P parameters) of one side along the k output directions in ``block``."""
        prepared, rows = self.engine.prepared, side.rows
        with torch.no_grad():
            outputs = prepared.outputs(rows.slice(0, rows.n), rows.n)
        return batch_jacobian(prepared, rows, self.engine.directions.cotangents(outputs, block, side.labels))

    def _rounding_scale(self) -> float:
        """Return the scale below which the pseudo kernel is only rounding error, as for outputs that sum to a constant."""
        if self.engine.directions.k == self.engine.prepared.n_outputs:
            return 0.0
        prepared = self.engine.prepared
        signs = 1.0 - 2.0 * (torch.arange(prepared.n_outputs, device=prepared.device) % 2).to(prepared.dtype)
        alternating = (signs * prepared.n_outputs**-0.5).expand(self.left.rows.n, 1, -1)
        return RELATIVE_ROUNDING * float(batch_jacobian(prepared, self.left.rows, alternating).norm(dim=2).max()) ** 2

    def describe_worst_layer(self, layer_kernels: dict[str, Tensor], plan: Plan) -> str:
        """Return words that name the layer whose kernel in ``layer_kernels`` differs most from that of the Jacobian."""
        layer_of_parameter = {name: group.layer for group in plan.groups for name in group.names}
        parameters, combine = self.engine.prepared.parameters, self.engine.directions.combine
        layers = [layer_of_parameter.get(name, name.rpartition(".")[0] or name) for name in parameters]
        sizes = [parameter.numel() for parameter in parameters.values()]
        parts: dict[str, list[Tensor]] = {}  # layer -> kernels of the blocks of directions
        for block, (left_tangents, right_tangents) in enumerate(self._tangent_blocks()):
            pairs = zip(left_tangents.split(sizes, 2), right_tangents.split(sizes, 2), strict=True)
            for layer, (left, right) in zip(layers, pairs, strict=True):
                kernels = parts.setdefault(layer, [])
                kernel = _contract(left, right, combine)
                if len(kernels) > block:
                    kernels[block] = kernels[block] + kernel
                else:
                    kernels.append(kernel)
        expected = {layer: torch.cat(kernels, 2) for layer, kernels in parts.items()}
        if combine == "sum":
            expected = {layer: kernel.sum(2) for layer, kernel in expected.items()}
        errors = {
            layer: float((self.select_compared(layer_kernels[layer]) - layer_kernel).abs().max())
            for layer, layer_kernel in expected.items()
            if layer in layer_kernels
        }
        if not errors:
            return "no layer has a kernel of its own"
        return f"the largest difference is in layer {max(errors, key=lambda layer: errors[layer])!r}"


def _contract(left: Tensor, right: Tensor, combine: str) -> Tensor:
    """Contract tangents (n, k, p) and (m, k, p): (n, m, k, k) for "full", (n, m, k) for "diagonal", (n, m, 1) for "sum"."""
    if combine == "full":
        return torch.einsum("nkp,mlp->nmkl", left, right)
    diagonal = torch.einsum("nkp,mkp->nmk", left, right)
    return diagonal if combine == "diagonal" else diagonal.sum(2, keepdim=True)


def _spread_indices(k: int, max_count: int) -> list[int]:
    """Return at most ``max_count`` of the indices 0..k-1, evenly spread, with the first and the last."""
    if k <= max_count:
        return list(range(k))
    return sorted({round(i * (k - 1) / (max_count - 1)) for i in range(max_count)})


def _engine_with_outputs(engine: Engine, output_indices: list[int], rows: Rows) -> Engine:
    """Return an engine for the same model, restricted to the outputs ``output_indices``."""
    prepared = engine.prepared
    forward = prepared.forward
    restricted = replace(
        prepared, forward=lambda module, batch: forward(module, batch)[:, output_indices], n_outputs=len(output_indices)
    )
    return Engine.build(restricted, rows, replace(engine.directions, n_outputs=len(output_indices)))


def _clamped_to_positive(scale: Tensor) -> Tensor:
    """Replace a scale of 0 by the smallest positive number, so that it can be divided by."""
    return scale.clamp_min(torch.finfo(scale.dtype).tiny)


def _n_rows(engine: Engine, plan: Plan) -> int:
    """Return the number of rows of each side that are compared: three, or fewer if their Jacobian exceeds the memory."""
    return min(3, max(1, plan.memory // (ROW_COPIES * _bytes_per_row(engine, plan.symmetric))))


def _bytes_per_row(engine: Engine, symmetric: bool) -> int:
    """Return the size of the tangents of a row of each side, in the directions that are in memory at a time: at least 1 or 2."""
    directions = 2 if engine.directions.combine == "full" else 1
    row_bytes = engine.prepared.n_parameters * torch.finfo(engine.prepared.dtype).bits // 8
    return directions * row_bytes * (1 if symmetric else 2)


def _some_rows(side: LabeledRows, n_rows: int) -> LabeledRows:
    """Return the first, the last and the middle example of one side, or the first ``n_rows`` of these, with their labels."""
    indices = [0, side.rows.n - 1, side.rows.n // 2][:n_rows]
    return side.take(sorted(set(indices)))
