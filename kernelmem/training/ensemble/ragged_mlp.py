"""Many MLPs of different widths in one batch, with hand-written forward and backward passes.

For groups, slots and stacks see :mod:`kernelmem.training.ensemble.ragged_layout`. Padding is exact: a unit with zero
weights and biases has activation act(0) = 0 and zero gradient, and Adam, AdamW and SGD keep it at zero (relu, tanh, gelu).
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

aten = torch.ops.aten
STEPS_AHEAD = 32  # steps whose batches are drawn at once
EVALUATION_ROWS = 1024  # rows per product when outputs are evaluated


class RaggedMLPs:
    """MLPs of different widths that are trained together, with all their parameters in one flat tensor."""

    def __init__(self, task: EnsembleTask, groups: Sequence[BatchGroup]) -> None:
        """Arrange the members of ``groups`` in padded stacks, and initialize their parameters."""
        self.task = task
        x, d, C = task.x.flatten(1), task.x[0].numel(), task.C
        layouts = padded_stacks(groups, d, C)
        sizes = [_padded_parameters(layout, d, C) for layout in layouts]
        flat = torch.zeros(sum(sizes), dtype=x.dtype, device=x.device)
        flat.grad = torch.zeros_like(flat)
        self.parameters = [flat]
        self.stacks = [
            _StackedMLPs(task, layout, x, values, gradients)
            for layout, values, gradients in zip(layouts, flat.split(sizes), flat.grad.split(sizes), strict=True)
        ]
        self.members = [k for stack in self.stacks for k in stack.members]

    def gradient(self) -> None:
        """Compute the gradient of each member's mean loss on its next batch; write it to ``.grad`` of the flat tensor."""
        for stack in self.stacks:
            stack.gradient()

    def test_outputs(self) -> dict[int, Tensor]:
        """Return a dict from member number to the outputs (m, C) of that member on the m test rows."""
        x = self.task.x_test.flatten(1)
        by_member: dict[int, Tensor] = {}
        for stack in self.stacks:
            outputs = stack.outputs(x.unsqueeze(0), slice(None))
            by_member |= {k: outputs[s, g] for s, g, k in stack.slot_positions}
        return by_member

    def train_outputs(self) -> dict[int, Tensor]:
        """Return a dict from member number k to the outputs (n_k, C) of that member on its own n_k training rows."""
        by_member: dict[int, Tensor] = {}
        for stack in self.stacks:
            for g, group in enumerate(stack.layout.groups):
                rows = self.task.rows[group.members[0]]
                outputs = stack.outputs(stack.x[rows].unsqueeze(0), slice(g, g + 1))
                by_member |= {k: outputs[s, 0] for s, k in enumerate(group.members)}
        return by_member

    def state(self) -> dict[int, dict[str, Tensor]]:
        """Return a dict from member number to the state dict of that member on the CPU.

        The keys of a state dict are those of the module that :func:`kernelmem.training.mlp` builds.
        """
        return {k: state for stack in self.stacks for k, state in stack.state().items()}


def _padded_parameters(layout: PaddedStack, d: int, C: int) -> int:
    """Return the number of parameters of a stack, padding included, for networks with d inputs and C outputs."""
    sizes = [(d, *slot, C) for slot in layout.widths]
    return len(layout.groups) * sum(b * (a + 1) for slot in sizes for a, b in pairwise(slot))


class _StackedMLPs:
    """The networks of one padded stack: G batch groups of S networks (slots) each, with d inputs and C outputs.

    The first layers of all slots form one tensor (G, H, d), where H is the sum of their first hidden widths. The further
    layers are stored for each slot separately. Outputs on n rows have the shape (S, G, n, C).
    """

    def __init__(self, task: EnsembleTask, layout: PaddedStack, x: Tensor, flat: Tensor, grad: Tensor) -> None:
        """Initialize the parameters in ``flat``, whose gradient is ``grad``, for the training rows x (N, d)."""
        self.task, self.layout, self.x = task, layout, x
        self.d, self.C = x.shape[1], task.C
        self.G, self.S = len(layout.groups), len(layout.widths)
        first_widths = [slot[0] for slot in layout.widths]
        ends = torch.tensor(first_widths).cumsum(0).tolist()
        self.H = ends[-1]
        self.columns = [slice(end - width, end) for width, end in zip(first_widths, ends, strict=True)]
        self.slot_positions = [(s, g, k) for g, group in enumerate(layout.groups) for s, k in enumerate(group.members)]
        self.members = [k for _, _, k in self.slot_positions]
        self.value, self.grad = self._parameter_views(flat), self._parameter_views(grad)
        self._initialize()
        self._allocate()

    def _parameter_views(self, flat: Tensor) -> "_ParameterViews":
        """Return views into ``flat``, a 1-D tensor, that have the shapes of the weights and biases of all layers."""
        G, d, C, H = self.G, self.d, self.C, self.H
        cursor = 0

        def view(*shape: int) -> Tensor:
            nonlocal cursor
            size = torch.Size(shape).numel()
            cursor += size
            return flat[cursor - size : cursor].view(shape)

        first = view(G, H, d), view(G, H)
        hidden = [[(view(G, b, a), view(G, b)) for a, b in pairwise(slot)] for slot in self.layout.widths]
        last = [view(G, C, slot[-1]) for slot in self.layout.widths]
        return _ParameterViews(*first, hidden, last, view(self.S, G, C))

    def _member_layers(
        self, views: "_ParameterViews", s: int, g: int, widths: tuple[int, ...]
    ) -> list[tuple[Tensor, Tensor]]:
        """Return the views (weight, bias) of each layer of the member in slot s of group g, without padding.

        ``widths`` are the hidden widths of the member.
        """
        first = slice(self.columns[s].start, self.columns[s].start + widths[0])
        layers = [(views.first[g, first], views.first_bias[g, first])]
        for (W, b), fan_in, fan_out in zip(views.hidden[s], widths, widths[1:], strict=False):
            layers.append((W[g, :fan_out, :fan_in], b[g, :fan_out]))
        return [*layers, (views.last[s][g, :, : widths[-1]], views.last_bias[s, g])]

    def _initialize(self) -> None:
        """Copy the initial weights and biases of every member into the flat tensor of parameters."""
        for s, g, k in self.slot_positions:
            widths = self._hidden_widths(k)
            model = mlp(self.d, widths, self.C, self.task.recipe.activation, seed=self.task.members[k].init_seed)
            initial = [p.detach() for p in model.parameters()]  # weight, bias of each layer
            for layer, (W, b) in enumerate(self._member_layers(self.value, s, g, widths)):
                W.copy_(initial[2 * layer])
                b.copy_(initial[2 * layer + 1])

    def _hidden_widths(self, k: int) -> tuple[int, ...]:
        """Return the hidden widths of member k."""
        return hidden_widths(self.task.members[k].width, self.task.recipe.depth, k)

    def state(self) -> dict[int, dict[str, Tensor]]:
        """Return a dict from member number to the state dict of that member on the CPU, without padding."""
        states = {}
        for s, g, k in self.slot_positions:
            layers = self._member_layers(self.value, s, g, self._hidden_widths(k))
            states[k] = {
                f"{2 * depth}.{name}": value.to("cpu", copy=True)
                for depth, layer in enumerate(layers)
                for name, value in zip(("weight", "bias"), layer, strict=True)
            }
        return states

    def _allocate(self) -> None:
        """Allocate the tensors that hold the row numbers and targets of all groups, and the buffers of one training step.

        Groups with fewer training rows are padded to the largest number of rows in the stack.
        """
        task, groups, batch = self.task, self.layout.groups, self.layout.batch
        G, S, device = self.G, self.S, self.x.device
        max_rows = max(group.n for group in groups)
        self.rows = torch.zeros(G, max_rows, dtype=torch.int64, device=device)
        example_targets = task.targets[self.members[0]]
        self.targets = torch.zeros(
            S, G, max_rows, *example_targets.shape[1:], dtype=example_targets.dtype, device=device
        )
        for s, g, k in self.slot_positions:
            self.rows[g, : len(task.rows[k])] = task.rows[k]
            self.targets[s, g, : len(task.rows[k])] = task.targets[k]
        seeds = [task.members[group.members[0]].order_seed for group in groups]
        self.orders = [
            BatchOrder(seed, group.n, task.recipe.batch_size) for seed, group in zip(seeds, groups, strict=True)
        ]
        weights = torch.zeros(G, 1, batch, dtype=self.x.dtype, device=device)  # 0 for padded rows
        for g, group in enumerate(groups):
            weights[g, :, : group.batch] = 1 / group.batch
        self.row_weights, self.negative_weights = weights, (-weights).expand(S, G, 1, batch)
        empty = partial(torch.empty, dtype=self.x.dtype, device=device)
        self.batch_x, self.z, self.dz = empty(G, batch, self.d), empty(G, batch, self.H), empty(G, batch, self.H)
        self.a = self.z if task.recipe.activation != "gelu" else empty(G, batch, self.H)
        self.f = empty(S, G, self.C, batch)  # rows last, because a softmax over a short last axis is ten times slower
        self.slots = [
            _SlotBuffers(self.a[:, :, c], self.dz[:, :, c], self.f[s], self.value.last[s], self.grad.last[s])
            for s, c in enumerate(self.columns)
        ]
        self.step = 0
        if self.layout.full:
            self.batch_x.copy_(self.x[self.rows])
            self.batch_targets = (
                self.targets.unsqueeze(2) if example_targets.ndim == 1 else self.targets.mT.contiguous()
            )

    def _next_batch(self) -> None:
        """Copy the rows and targets of the next training step to ``batch_x`` and ``batch_targets``.

        The row numbers are drawn for STEPS_AHEAD steps at once. Nothing changes if every step uses all rows.
        """
        if self.layout.full:
            return
        ahead_index = self.step % STEPS_AHEAD
        if ahead_index == 0:
            positions = torch.stack([order.take(STEPS_AHEAD) for order in self.orders], 1)  # (T, G, b)
            positions = positions.to(self.x.device)
            self.ahead_rows = self.rows.expand(STEPS_AHEAD, -1, -1).gather(2, positions)
            position_index = positions.unsqueeze(1).expand(-1, self.S, -1, -1)  # (T, S, G, b)
            targets_by_step = self.targets.expand(STEPS_AHEAD, *self.targets.shape)  # (T, S, G, n) or (T, S, G, n, C)
            if self.targets.ndim == 4:
                position_index = position_index.unsqueeze(-1).expand(-1, -1, -1, -1, self.C)
                self.ahead_targets = targets_by_step.gather(3, position_index).mT
            else:
                self.ahead_targets = targets_by_step.gather(3, position_index).unsqueeze(3)
        self.step += 1
        torch.index_select(self.x, 0, self.ahead_rows[ahead_index].flatten(), out=self.batch_x.view(-1, self.d))
        self.batch_targets = self.ahead_targets[ahead_index]

    def gradient(self) -> None:
        """Run a forward and a backward pass on the next batches, and write the gradients of all parameters.

        The loss of a member is the mean over the rows of its batch.
        """
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
        """Run slot s through its hidden layers after the first, whose activation is ``a`` (G, b, w), for b rows per step.

        Returns a list of (input of the layer, pre-activation z) for each of these layers, and the last activation.
        """
        chain = []
        for W, b in self.value.hidden[s]:
            z = torch.baddbmm(b.unsqueeze(1), a, W.mT)
            chain.append((a, z))
            a = self._activate(z, z if self.a is self.z else torch.empty_like(z))
        return chain, a

    def _hidden_backward(self, s: int, chain: list[tuple[Tensor, Tensor]], a: Tensor, da: Tensor) -> None:
        """Write the gradients of the hidden layers after the first of slot s, and that of the first activation.

        ``chain`` is the list that :meth:`_hidden_forward` returned, ``a`` the last activation, and ``da`` the gradient with
        respect to it, which is overwritten.
        """
        for layer in reversed(range(len(chain))):
            layer_input, z = chain[layer]
            dW, db = self.grad.hidden[s][layer]
            self._activation_gradient(da, z, a)
            torch.bmm(da.mT, layer_input, out=dW)
            torch.sum(da, 1, out=db)
            W, a = self.value.hidden[s][layer][0], layer_input
            da = torch.bmm(da, W) if layer else torch.bmm(da, W, out=self.slots[s].da)

    def _loss_gradient(self) -> None:
        """Overwrite the outputs ``self.f`` (S, G, C, b) with the gradients of the mean losses with respect to them."""
        f = self.f
        if self.task.recipe.loss == "mse":
            f.sub_(self.batch_targets).mul_(self.row_weights)
            return
        f.sub_(f.amax(2, keepdim=True)).exp_()
        f.mul_(self.row_weights / f.sum(2, keepdim=True))
        f.scatter_add_(2, self.batch_targets, self.negative_weights)

    def _activate(self, z: Tensor, out: Tensor) -> Tensor:
        """Write the activation of the pre-activations z to ``out``, which may be z, and return ``out``."""
        match self.task.recipe.activation:
            case "relu":
                return torch.clamp(z, min=0, out=out)
            case "tanh":
                return torch.tanh(z, out=out)
            case _:
                return aten.gelu.out(z, out=out)

    def _activation_gradient(self, da: Tensor, z: Tensor, a: Tensor) -> None:
        """Overwrite ``da``, the gradient with respect to the activation a, with that with respect to z, where a = act(z)."""
        match self.task.recipe.activation:
            case "relu":
                aten.threshold_backward.grad_input(da, a, 0, grad_input=da)
            case "tanh":
                aten.tanh_backward.grad_input(da, a, grad_input=da)
            case _:
                da.copy_(aten.gelu_backward(da, z))

    def outputs(self, x: Tensor, groups: slice) -> Tensor:
        """Return the outputs (S, g, n, C) of the g groups in the slice ``groups`` on n rows.

        x is (1, n, d), the same rows for all groups, or (g, n, d).
        """
        value = self.value
        first, bias = value.first[groups], value.first_bias[groups]
        outputs = torch.empty(self.S, len(first), x.shape[1], self.C, dtype=x.dtype, device=x.device)
        for start in range(0, x.shape[1], EVALUATION_ROWS):
            x_piece = x[:, start : start + EVALUATION_ROWS].expand(len(first), -1, -1)
            z = torch.baddbmm(bias.unsqueeze(1), x_piece, first.mT)
            hidden = self._activate(z, torch.empty_like(z))
            for s, columns in enumerate(self.columns):
                a = hidden[:, :, columns]
                for W, b in value.hidden[s]:
                    z = torch.baddbmm(b[groups].unsqueeze(1), a, W[groups].mT)
                    a = self._activate(z, torch.empty_like(z))
                torch.bmm(a, value.last[s][groups].mT, out=outputs[s][:, start : start + EVALUATION_ROWS])
        return outputs.add_(value.last_bias[:, groups].unsqueeze(2))


@dataclass(frozen=True)
class _ParameterViews:
    """Views into one flat tensor that holds the values of the parameters, or their gradient.

    G groups of S slots, d inputs, H first-layer units of all slots together, C outputs.
    """

    first: Tensor  # (G, H, d)
    first_bias: Tensor  # (G, H)
    hidden: list[list[tuple[Tensor, Tensor]]]  # for each slot: (G, out, in), (G, out)
    last: list[Tensor]  # for each slot: (G, C, in)
    last_bias: Tensor  # (S, G, C)


@dataclass(frozen=True)
class _SlotBuffers:
    """Views of one slot into the buffers of a training step: G groups, b rows, C outputs, w units of a layer.

    They are created once, because a step consists of many small products.
    """

    a: Tensor  # (G, b, w), of the first layer
    da: Tensor  # (G, b, w)
    f: Tensor  # (G, C, b), outputs, then their gradient
    W: Tensor  # (G, C, w) of the last layer
    W_gradient: Tensor  # (G, C, w)
