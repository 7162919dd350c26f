"""Many MLPs of different widths in one batch, forward and backward by hand (see :mod:`kernelmem.training.ensemble.ragged_layout`).

Padding is exact: where the weights and biases of a unit are zero, the unit gives act(0) = 0, its gradient is zero, and
Adam, AdamW and SGD leave it at zero. It holds for relu, tanh and gelu.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from kernelmem.training.batching import BatchOrder
from kernelmem.training.ensemble.members import EnsembleTask
from kernelmem.training.ensemble.ragged_layout import BatchGroup, PaddedStack, hidden_widths, padded_stacks
from kernelmem.training.mlp import mlp

__all__ = ["RaggedMLPs"]

aten = torch.ops.aten
AHEAD = 32  # steps whose batches are drawn at once
ROWS = 1024  # rows of one product when outputs are computed


class RaggedMLPs:
    """The networks of one chunk: ``parameters`` (flat, of all of them), ``gradient()``, ``outputs``, ``state``."""

    def __init__(self, task: EnsembleTask, blocks: Sequence[BatchGroup]) -> None:
        self.task = task
        x, d, C = task.x.flatten(1), task.x[0].numel(), task.C
        shapes = padded_stacks(blocks, d, C)
        sizes = [_numbers(family, d, C) for family in shapes]
        flat = torch.zeros(sum(sizes), dtype=x.dtype, device=x.device)
        flat.grad = torch.zeros_like(flat)
        self.parameters = [flat]
        self.families = [
            _FamilyMLPs(task, family, x, values, gradients)
            for family, values, gradients in zip(shapes, flat.split(sizes), flat.grad.split(sizes), strict=True)
        ]
        self.members = [k for family in self.families for k in family.members]

    def gradient(self) -> None:
        """Put the gradient of every member's loss on its next batch into ``grad`` of the parameters."""
        for family in self.families:
            family.gradient()

    def test_outputs(self) -> dict[int, Tensor]:
        """The test outputs (m, C) of each member."""
        x = self.task.x_test.flatten(1)
        found: dict[int, Tensor] = {}
        for family in self.families:
            outputs = family.outputs(x.unsqueeze(0), slice(None))
            for s, g, k in family.places:
                found[k] = outputs[s, g]
        return found

    def train_outputs(self) -> dict[int, Tensor]:
        """The outputs (n_k, C) of each member on its own training rows."""
        found: dict[int, Tensor] = {}
        for family in self.families:
            for g, block in enumerate(family.family.blocks):
                rows = self.task.rows[block.members[0]]
                outputs = family.outputs(family.x[rows].unsqueeze(0), slice(g, g + 1))
                found |= {k: outputs[s, 0] for s, k in enumerate(block.members)}
        return found

    def state(self) -> dict[int, dict[str, Tensor]]:
        """The state dict of each member, with the keys of :func:`kernelmem.training.mlp.mlp`, on the CPU."""
        return {k: part for family in self.families for k, part in family.state().items()}


def _numbers(family: PaddedStack, d: int, C: int) -> int:
    sizes = [(d, *slot, C) for slot in family.widths]
    return len(family.blocks) * sum(b * (a + 1) for slot in sizes for a, b in pairwise(slot))


class _FamilyMLPs:
    """G blocks of S slots. First layers: one (G, H, d); the others: a chain for each slot; outputs: (S, G, n, C)."""

    def __init__(self, task: EnsembleTask, family: PaddedStack, x: Tensor, flat: Tensor, grad: Tensor) -> None:
        self.task, self.family, self.x = task, family, x
        self.d, self.C = x.shape[1], task.C
        self.G, self.S = len(family.blocks), len(family.widths)
        firsts = [slot[0] for slot in family.widths]
        ends = torch.tensor(firsts).cumsum(0).tolist()
        self.H = ends[-1]
        self.columns = [slice(end - first, end) for first, end in zip(firsts, ends, strict=True)]
        self.places = [(s, g, k) for g, block in enumerate(family.blocks) for s, k in enumerate(block.members)]
        self.members = [k for _, _, k in self.places]
        self.value, self.grad = self._views(flat), self._views(grad)
        self._initialize()
        self._prepare()

    def _views(self, flat: Tensor) -> "_Weights":
        G, d, C, H = self.G, self.d, self.C, self.H
        cursor = 0

        def view(*shape: int) -> Tensor:
            nonlocal cursor
            size = torch.Size(shape).numel()
            cursor += size
            return flat[cursor - size : cursor].view(shape)

        first = view(G, H, d), view(G, H)
        hidden = [[(view(G, b, a), view(G, b)) for a, b in pairwise(slot)] for slot in self.family.widths]
        last = [view(G, C, slot[-1]) for slot in self.family.widths]
        return _Weights(*first, hidden, last, view(self.S, G, C))

    def _layers(self, weights: "_Weights", s: int, g: int, widths: tuple[int, ...]) -> list[tuple[Tensor, Tensor]]:
        """Views of the layers of one member, without padding."""
        first = slice(self.columns[s].start, self.columns[s].start + widths[0])
        layers = [(weights.first[g, first], weights.first_bias[g, first])]
        for (W, b), fan_in, fan_out in zip(weights.hidden[s], widths, widths[1:], strict=False):
            layers.append((W[g, :fan_out, :fan_in], b[g, :fan_out]))
        return [*layers, (weights.last[s][g, :, : widths[-1]], weights.last_bias[s, g])]

    def _initialize(self) -> None:
        for s, g, k in self.places:
            widths = self._own_widths(k)
            own = mlp(self.d, widths, self.C, self.task.recipe.activation, seed=self.task.members[k].init_seed)
            numbers = [p.detach() for p in own.parameters()]  # weight, bias of each layer
            for layer, (W, b) in enumerate(self._layers(self.value, s, g, widths)):
                W.copy_(numbers[2 * layer])
                b.copy_(numbers[2 * layer + 1])

    def _own_widths(self, k: int) -> tuple[int, ...]:
        return hidden_widths(self.task.members[k].width, self.task.recipe.depth, k)

    def state(self) -> dict[int, dict[str, Tensor]]:
        found = {}
        for s, g, k in self.places:
            layers = self._layers(self.value, s, g, self._own_widths(k))
            found[k] = {
                f"{2 * depth}.{name}": part.to("cpu", copy=True)
                for depth, pair in enumerate(layers)
                for name, part in zip(("weight", "bias"), pair, strict=True)
            }
        return found

    def _prepare(self) -> None:
        """Tables of rows and targets of the blocks, padded to the longest, and buffers of a step."""
        task, blocks, batch = self.task, self.family.blocks, self.family.batch
        G, S, device = self.G, self.S, self.x.device
        longest = max(block.n for block in blocks)
        self.rows = torch.zeros(G, longest, dtype=torch.int64, device=device)
        like = task.targets[self.members[0]]
        self.targets = torch.zeros(S, G, longest, *like.shape[1:], dtype=like.dtype, device=device)
        for s, g, k in self.places:
            self.rows[g, : len(task.rows[k])] = task.rows[k]
            self.targets[s, g, : len(task.rows[k])] = task.targets[k]
        seeds = [task.members[block.members[0]].order_seed for block in blocks]
        self.orders = [BatchOrder(seed, b.n, task.recipe.batch_size) for seed, b in zip(seeds, blocks, strict=True)]
        weights = torch.zeros(G, 1, batch, dtype=self.x.dtype, device=device)  # 0 on the rows that are padding
        for g, block in enumerate(blocks):
            weights[g, :, : block.batch] = 1 / block.batch
        self.row_weights, self.minus = weights, (-weights).expand(S, G, 1, batch)
        empty = partial(torch.empty, dtype=self.x.dtype, device=device)
        self.batch_x, self.z, self.dz = empty(G, batch, self.d), empty(G, batch, self.H), empty(G, batch, self.H)
        self.a = self.z if task.recipe.activation != "gelu" else empty(G, batch, self.H)
        self.f = empty(S, G, self.C, batch)  # rows last: a softmax over a short last axis is ten times slower
        self.slots = [
            _Slot(self.a[:, :, c], self.dz[:, :, c], self.f[s], self.value.last[s], self.grad.last[s])
            for s, c in enumerate(self.columns)
        ]
        self.drawn = 0
        if self.family.full:
            self.batch_x.copy_(self.x[self.rows])
            self.batch_targets = self.targets.unsqueeze(2) if like.ndim == 1 else self.targets.mT.contiguous()

    def _next_batch(self) -> None:
        if self.family.full:
            return
        at = self.drawn % AHEAD
        if at == 0:
            positions = torch.stack([order.take(AHEAD) for order in self.orders], 1).to(self.x.device)  # (T, G, b)
            self.ahead_rows = self.rows.expand(AHEAD, -1, -1).gather(2, positions)
            spread = positions.unsqueeze(1).expand(-1, self.S, -1, -1)
            table = self.targets.expand(AHEAD, *self.targets.shape)
            if self.targets.ndim == 4:
                self.ahead_targets = table.gather(3, spread.unsqueeze(-1).expand(-1, -1, -1, -1, self.C)).mT
            else:
                self.ahead_targets = table.gather(3, spread).unsqueeze(3)
        self.drawn += 1
        torch.index_select(self.x, 0, self.ahead_rows[at].flatten(), out=self.batch_x.view(-1, self.d))
        self.batch_targets = self.ahead_targets[at]

    def gradient(self) -> None:
        """Forward and backward on the next batch; losses are means over the rows of a member's batch."""
        self._next_batch()
        value, grad, X = self.value, self.grad, self.batch_x
        torch.baddbmm(value.first_bias.unsqueeze(1), X, value.first.mT, out=self.z)
        self._activate(self.z, self.a)
        ends = [self._hidden_forward(s, slot.a) for s, slot in enumerate(self.slots)]
        for slot, (_, a) in zip(self.slots, ends, strict=True):
            torch.bmm(slot.W, a.mT, out=slot.f)
        self.f.add_(value.last_bias.unsqueeze(3))
        self._loss_gradient()
        torch.sum(self.f, 3, out=grad.last_bias)
        for s, (slot, (chain, a)) in enumerate(zip(self.slots, ends, strict=True)):
            torch.bmm(slot.f, a, out=slot.W_gradient)
            if chain:
                self._hidden_backward(s, chain, a, torch.bmm(slot.f.mT, slot.W))
            else:
                torch.bmm(slot.f.mT, slot.W, out=slot.da)
        self._activation_gradient(self.dz, self.z, self.a)
        torch.bmm(self.dz.mT, X, out=grad.first)
        torch.sum(self.dz, 1, out=grad.first_bias)

    def _hidden_forward(self, s: int, a: Tensor) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        """The input and the sum z of each further hidden layer, and the last activation."""
        chain = []
        for W, b in self.value.hidden[s]:
            z = torch.baddbmm(b.unsqueeze(1), a, W.mT)
            chain.append((a, z))
            a = self._activate(z, z if self.a is self.z else torch.empty_like(z))
        return chain, a

    def _hidden_backward(self, s: int, chain: list[tuple[Tensor, Tensor]], a: Tensor, da: Tensor) -> None:
        for layer in reversed(range(len(chain))):
            before, z = chain[layer]
            dW, db = self.grad.hidden[s][layer]
            self._activation_gradient(da, z, a)
            torch.bmm(da.mT, before, out=dW)
            torch.sum(da, 1, out=db)
            W, a = self.value.hidden[s][layer][0], before
            da = torch.bmm(da, W) if layer else torch.bmm(da, W, out=self.slots[s].da)

    def _loss_gradient(self) -> None:
        """Overwrite the outputs with the gradient of the mean losses with respect to them."""
        f = self.f
        if self.task.recipe.loss == "mse":
            f.sub_(self.batch_targets).mul_(self.row_weights)
            return
        f.sub_(f.amax(2, keepdim=True)).exp_()
        f.mul_(self.row_weights / f.sum(2, keepdim=True))
        f.scatter_add_(2, self.batch_targets, self.minus)

    def _activate(self, z: Tensor, out: Tensor) -> Tensor:
        match self.task.recipe.activation:
            case "relu":
                return torch.clamp(z, min=0, out=out)
            case "tanh":
                return torch.tanh(z, out=out)
            case _:
                return aten.gelu.out(z, out=out)

    def _activation_gradient(self, da: Tensor, z: Tensor, a: Tensor) -> None:
        match self.task.recipe.activation:
            case "relu":
                aten.threshold_backward.grad_input(da, a, 0, grad_input=da)
            case "tanh":
                aten.tanh_backward.grad_input(da, a, grad_input=da)
            case _:
                da.copy_(aten.gelu_backward(da, z))

    def outputs(self, x: Tensor, blocks: slice) -> Tensor:
        """The outputs (S, blocks, n, C) of some blocks on rows x (1, n, d) or (blocks, n, d)."""
        value = self.value
        first, bias = value.first[blocks], value.first_bias[blocks]
        found = torch.empty(self.S, len(first), x.shape[1], self.C, dtype=x.dtype, device=x.device)
        for start in range(0, x.shape[1], ROWS):
            piece = x[:, start : start + ROWS].expand(len(first), -1, -1)
            z = torch.baddbmm(bias.unsqueeze(1), piece, first.mT)
            hidden = self._activate(z, torch.empty_like(z))
            for s, columns in enumerate(self.columns):
                a = hidden[:, :, columns]
                for W, b in value.hidden[s]:
                    z = torch.baddbmm(b[blocks].unsqueeze(1), a, W[blocks].mT)
                    a = self._activate(z, torch.empty_like(z))
                torch.bmm(a, value.last[s][blocks].mT, out=found[s][:, start : start + ROWS])
        return found.add_(value.last_bias[:, blocks].unsqueeze(2))


@dataclass(frozen=True)
class _Weights:
    """Views into one flat tensor: the values of the parameters, or their gradient."""

    first: Tensor  # (G, H, d)
    first_bias: Tensor  # (G, H)
    hidden: list[list[tuple[Tensor, Tensor]]]  # for each slot: (G, out, in), (G, out)
    last: list[Tensor]  # for each slot: (G, C, in)
    last_bias: Tensor  # (S, G, C)


@dataclass(frozen=True)
class _Slot:
    """Views of one slot into the tensors of a step, made once: a step is many small products."""

    a: Tensor  # (G, b, w), of the first layer
    da: Tensor  # (G, b, w)
    f: Tensor  # (G, C, b), outputs, then their gradient
    W: Tensor  # (G, C, w) of the last layer
    W_gradient: Tensor  # (G, C, w)
