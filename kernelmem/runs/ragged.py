"""Many MLPs of different widths in one batch, forward and backward by hand (see :mod:`kernelmem.runs.ragged_layout`).

Padding is exact: where the weights and biases of a unit are zero, the unit gives act(0) = 0, its gradient is zero, and
Adam, AdamW and SGD leave it at zero. It holds for relu, tanh and gelu.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from kernelmem.runs.member_batches import BatchOrder
from kernelmem.runs.members import Task
from kernelmem.runs.perceptron import mlp
from kernelmem.runs.ragged_layout import Block, Family, families, hidden_widths

__all__ = ["RaggedMLPs"]

aten = torch.ops.aten
AHEAD = 32  # steps whose batches are drawn at once
ROWS = 1024  # rows of one product when outputs are computed


class RaggedMLPs:
    """The networks of one chunk: ``parameters`` (flat, of all of them), ``gradient()``, ``outputs``, ``state``."""

    def __init__(self, task: Task, blocks: Sequence[Block]) -> None:
        self.task = task
        x, d, C = task.x.flatten(1), task.x[0].numel(), task.C
        shapes = families(blocks, d, C)
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
        """The state dict of each member, with the keys of :func:`kernelmem.runs.perceptron.mlp`, on the CPU."""
        return {k: part for family in self.families for k, part in family.state().items()}


def _numbers(family: Family, d: int, C: int) -> int:
    sizes = [(d, *slot, C) for slot in family.widths]
    return len(family.blocks) * sum(b * (a + 1) for slot in sizes for a, b in pairwise(slot))


class _FamilyMLPs:
    """G blocks of S slots. First layers: one (G, H, d); the others: a chain for each slot; outputs: (S, G, n, C)."""

    def __init__(self, task: Task, family: Family, x: Tensor, flat: Tensor, grad: Tensor) -> None:
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
            module = mlp(self.d, widths, self.C, self.task.recipe.activation, seed=self.task.members[k].init_seed)
            layers = self._layers(self.value, s, g, widths)
            for layer, (W, b) in zip(module[::2], layers, strict=True):
                W.copy_(layer.weight.detach())
                b.copy_(layer.bias.detach())

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
        weights = torch.zeros(G, batch, 1, dtype=self.x.dtype, device=device)  # 0 on the rows that are padding
        for g, block in enumerate(blocks):
            weights[g, : block.batch] = 1 / block.batch
        even = all(block.batch == batch for block in blocks)
        self.row_weights: Tensor | float = 1 / batch if even else weights
        empty = lambda *shape: torch.empty(shape, dtype=self.x.dtype, device=device)  # noqa: E731
        self.batch_x, self.z, self.dz = empty(G, batch, self.d), empty(G, batch, self.H), empty(G, batch, self.H)
        self.a = self.z if task.recipe.activation != "gelu" else empty(G, batch, self.H)
        self.f = empty(S, G, batch, self.C)
        self.drawn = 0
        if self.family.full:
            self.batch_x.copy_(self.x[self.rows])
            self.batch_targets = self.targets.unsqueeze(-1) if like.ndim == 1 else self.targets

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
                self.ahead_targets = table.gather(3, spread.unsqueeze(-1).expand(-1, -1, -1, -1, self.C))
            else:
                self.ahead_targets = table.gather(3, spread).unsqueeze(-1)
        self.drawn += 1
        torch.index_select(self.x, 0, self.ahead_rows[at].flatten(), out=self.batch_x.view(-1, self.d))
        self.batch_targets = self.ahead_targets[at]

    def gradient(self) -> None:
        """Forward and backward on the next batch; losses are means over the rows of a member's batch."""
        self._next_batch()
        value, grad, X = self.value, self.grad, self.batch_x
        torch.baddbmm(value.first_bias.unsqueeze(1), X, value.first.mT, out=self.z)
        self._activate(self.z, self.a)
        chains = []
        for s, columns in enumerate(self.columns):
            a = self.a[:, :, columns]
            chain = []
            for W, b in value.hidden[s]:
                z = torch.baddbmm(b.unsqueeze(1), a, W.mT)
                chain.append((a, z))
                a = self._activate(z, z if self.a is self.z else torch.empty_like(z))
            chains.append((chain, a))
            torch.bmm(a, value.last[s].mT, out=self.f[s])
        self.f.add_(value.last_bias.unsqueeze(2))
        df = self._loss_gradient()
        torch.sum(df, 2, out=grad.last_bias)
        for s, (columns, (chain, a)) in enumerate(zip(self.columns, chains, strict=True)):
            torch.bmm(df[s].mT, a, out=grad.last[s])
            W = value.last[s]
            da = df[s]
            for layer in reversed(range(len(chain))):
                before, z = chain[layer]
                da = torch.bmm(da, W)
                self._activation_gradient(da, z, a)
                torch.bmm(da.mT, before, out=grad.hidden[s][layer][0])
                torch.sum(da, 1, out=grad.hidden[s][layer][1])
                W, a = value.hidden[s][layer][0], before
            torch.bmm(da, W, out=self.dz[:, :, columns])
        self._activation_gradient(self.dz, self.z, self.a)
        torch.bmm(self.dz.mT, X, out=grad.first)
        torch.sum(self.dz, 1, out=grad.first_bias)

    def _loss_gradient(self) -> Tensor:
        if self.task.recipe.loss == "mse":
            df = self.f.sub_(self.batch_targets)
        else:
            df = torch.softmax(self.f, -1, out=self.f)
            df.scatter_add_(3, self.batch_targets, self._minus_one(self.batch_targets))
        return df.mul_(self.row_weights)

    def _minus_one(self, like: Tensor) -> Tensor:
        return torch.full((), -1.0, dtype=self.f.dtype, device=self.f.device).expand(like.shape)

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


class _Weights:
    """Views into one flat tensor: the values of the parameters, or their gradient."""

    def __init__(
        self,
        first: Tensor,  # (G, H, d)
        first_bias: Tensor,  # (G, H)
        hidden: list[list[tuple[Tensor, Tensor]]],  # for each slot: (G, out, in), (G, out)
        last: list[Tensor],  # for each slot: (G, C, in)
        last_bias: Tensor,  # (S, G, C)
    ) -> None:
        self.first, self.first_bias, self.hidden, self.last, self.last_bias = first, first_bias, hidden, last, last_bias
