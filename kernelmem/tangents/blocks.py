"""The engine: tangents of two sets of rows, tile by tile, contracted into a kernel within a memory limit."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from kernelmem.ground.batches import Rows
from kernelmem.ground.errors import InputError
from kernelmem.tangents.capture import Capture, capture
from kernelmem.tangents.dense import rowwise_jacobian, vectorized_jacobian
from kernelmem.tangents.features import Combine, ExplicitFeature, Feature
from kernelmem.tangents.linear import LinearRule
from kernelmem.tangents.prepare import Prepared

__all__ = ["RULES", "Engine", "Outputs"]

Outputs = Literal["trace", "diagonal", "full", "pseudo"]

RULES = (LinearRule(),)


@dataclass(frozen=True)
class Engine:
    """A planned computation: which parameters each way covers, and how many rows a tile holds."""

    prepared: Prepared
    declined: tuple[str, ...]  # parameters left to the dense Jacobian
    outputs: Outputs
    tile: int  # rows
    vectorized: bool  # the dense Jacobian by torch.func; otherwise row by row

    @classmethod
    def plan(cls, prepared: Prepared, rows: Rows, outputs: Outputs, memory: int, *, n: int, m: int) -> "Engine":
        """Probe the model on batches of 2 and 3 rows and choose the tile size."""
        declined: set[str] = set()
        probe: Capture | None = None
        for size in (2, 3):  # an axis that happens to equal one batch size does not follow the other
            batch = rows.take([i % rows.n for i in range(size)])
            probe = capture(prepared, batch, size, RULES, declined)
            declined |= set(probe.uncovered)
        assert probe is not None
        dense = [name for name in prepared.parameters if name in declined]
        vectorized = bool(dense) and _vectorizes(prepared, rows, dense)
        directions = 1 if outputs == "pseudo" else prepared.n_outputs
        kept = sum(prepared.parameters[name].numel() for name in dense) * prepared.n_outputs
        for use in probe.uses:
            inputs = use.slots["input"].numel() // 3
            # activations, the graph's copies of them, and the stacked output gradients
            kept += 4 * inputs + (directions + 3) * (use.output_shape.numel() // 3)
        itemsize = torch.finfo(prepared.dtype).bits // 8
        entries = {"trace": 1, "pseudo": 1, "diagonal": prepared.n_outputs, "full": prepared.n_outputs**2}[outputs]
        result = n * m * entries * itemsize
        spare = memory - result
        # two sets of features, and the temporary blocks of one pair of tiles (at most three of them at a time)
        tile = min(max(n, m), _largest_tile(spare / itemsize, 2 * kept + 8, 3 * entries))
        if tile < 1:
            raise InputError(
                f"memory of {memory / 2**20:.0f} MiB for a kernel of {result / 2**20:.0f} MiB with"
                f" {kept * itemsize / 2**20:.1f} MiB of tangents a row",
                expected="room for the kernel and for the tangents of one row on each side",
                do='raise memory=, choose fewer parameters=, or take outputs="trace"',
            )
        return cls(prepared, tuple(dense), outputs, tile, vectorized)

    @property
    def combine(self) -> Combine:
        """How directions enter the kernel blocks."""
        return "sum" if self.outputs in ("trace", "pseudo") else self.outputs

    def kernel(self, left: Rows, right: Rows | None, progress: Callable[[int, int], None] | None) -> Tensor:
        """Compute K(left, right), or the symmetric K(left, left) with half the tiles."""
        symmetric = right is None
        other = left if right is None else right
        C = self.prepared.n_outputs
        shape = {"trace": (), "pseudo": (), "diagonal": (C,), "full": (C, C)}[self.outputs]
        result = torch.zeros(left.n, other.n, *shape, dtype=self.prepared.dtype, device=self.prepared.device)
        starts = [range(0, rows.n, self.tile) for rows in (left, other)]
        pairs = [(i, j) for i in starts[0] for j in starts[1] if not symmetric or j >= i]
        done = 0
        for i in starts[0]:
            mine = self._features(left, i)
            for j in (j for first, j in pairs if first == i):
                theirs = mine if symmetric and j == i else self._features(other, j)
                block = result[i : i + self.tile, j : j + self.tile]
                for a, b in zip(mine, theirs, strict=True):
                    block += a.block(b, self.combine)
                if symmetric and j == i:
                    _mirror(block)
                elif symmetric:
                    mirrored = block.transpose(0, 1)
                    result[j : j + self.tile, i : i + self.tile] = mirrored.mT if self.outputs == "full" else mirrored
                done += 1
                if progress is not None:
                    progress(done, len(pairs))
        return result

    def _features(self, rows: Rows, start: int) -> list[Feature]:
        stop = min(start + self.tile, rows.n)
        batch, n = rows.slice(start, stop), stop - start
        features: list[Feature] = []
        if len(self.declined) < len(self.prepared.parameters):
            captured = capture(self.prepared, batch, n, RULES, self.declined)
            C = self.prepared.n_outputs
            if self.outputs == "pseudo":
                cotangents = [torch.full_like(captured.outputs, C**-0.5)]
            else:
                one_hot = torch.eye(C, dtype=self.prepared.dtype, device=self.prepared.device)
                cotangents = [one_hot[c].expand(n, C) for c in range(C)]
            for use, gradients in zip(captured.uses, captured.sweep(cotangents), strict=True):
                if gradients is None:  # the outputs do not depend on this use
                    gradients = torch.zeros(n, len(cotangents), *use.output_shape[1:], dtype=self.prepared.dtype)
                features.append(use.rule.feature(use, gradients))
        if self.declined:
            tangents = self._dense(batch, n)
            if self.outputs == "pseudo":
                tangents = tangents.sum(1, keepdim=True) * self.prepared.n_outputs**-0.5
            features.append(ExplicitFeature(tangents))
        return features

    def _dense(self, batch: Any, n: int) -> Tensor:
        names = list(self.declined)
        if self.vectorized:
            return vectorized_jacobian(self.prepared, batch, names)
        one_row = Rows(batch, n)
        return rowwise_jacobian(self.prepared, [one_row.slice(i, i + 1) for i in range(n)], names)


def _vectorizes(prepared: Prepared, rows: Rows, names: list[str]) -> bool:
    """Whether torch.func follows this model, and agrees with plain autograd on one row."""
    try:
        found = vectorized_jacobian(prepared, rows.slice(0, 1), names)
    except Exception:  # vmap and jacrev raise many types, from inside the user's module
        return False
    expected = rowwise_jacobian(prepared, [rows.slice(0, 1)], names)
    tolerance = 1e-3 if prepared.dtype == torch.float32 else 1e-9
    return bool((found - expected).norm() <= tolerance * expected.norm())


def _largest_tile(spare: float, a_row: float, a_pair: float) -> int:
    """The largest t with a_row·t + a_pair·t² <= spare."""
    if spare <= 0:
        return 0
    return int((-a_row + (a_row**2 + 4 * a_pair * spare) ** 0.5) / (2 * a_pair))


def _mirror(block: Tensor) -> None:
    """Copy the upper triangle to the lower one, so that the kernel is symmetric to the bit."""
    upper = torch.ones(block.shape[:2], dtype=torch.bool, device=block.device).triu()
    other = block.transpose(0, 1)
    if block.ndim == 4:
        other = other.mT
        diagonal = torch.arange(len(block), device=block.device)
        own = block[diagonal, diagonal]
        block[diagonal, diagonal] = (own + own.mT) / 2
    mask = upper.reshape(*upper.shape, *(1,) * (block.ndim - 2))
    block.copy_(torch.where(mask, block, other))
