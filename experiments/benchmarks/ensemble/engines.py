"""Engines that train the same networks on the same batches; each has ``step()`` and ``outputs(x)`` (nets, n, C).

The batches of the alternatives are drawn before the measurement, ours during it.
"""

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from experiments.benchmarks.ensemble.configs import SEEDS, WIDTHS
from kernelmem.training import BatchOrder, EnsembleOptions, Member, Recipe, digits, mlp
from kernelmem.training.ensemble import EnsembleTask, RaggedMLPs, as_task, chunks, make_optimizer

__all__ = ["ENGINES", "problem"]

DRAWN = 64  # steps after which the batches of the alternatives repeat


class Engine(Protocol):
    def step(self) -> None: ...

    def outputs(self, x: Tensor) -> Tensor: ...


def problem(
    rows: int, batch_size: int | None, dtype: torch.dtype, device: torch.device | str | None = None
) -> EnsembleTask:
    """Return WIDTHS times SEEDS networks on the digits; each seed has other rows, labels (20 % wrong), and order."""
    data = digits(n_train=1000, seed=0)
    x, x_test = (data.x_train - 0.3) * 2, (data.x_test - 0.3) * 2
    members = []
    for seed in range(SEEDS):
        chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:rows]
        labels = data.y_train[chosen].clone()
        labels[: rows // 5] = (labels[: rows // 5] + 1) % 10
        members += [Member(width, chosen, labels, 100 + seed, seed) for width in WIDTHS]
    recipe = Recipe(lr=0.01, batch_size=batch_size, steps=10**6)
    options = EnsembleOptions(dtype=dtype, device=device, n_classes=10)
    return as_task(members, x, test=(x_test, data.y_test), recipe=recipe, options=options)


def _batches(task: EnsembleTask) -> list[list[Tensor]]:
    """Return for each member the positions of its rows in each of DRAWN steps."""
    return [
        list(BatchOrder(m.order_seed, len(rows), task.recipe.batch_size).take(DRAWN).to(task.x.device))
        for m, rows in zip(task.members, task.rows, strict=True)
    ]


def _models(task: EnsembleTask) -> list[nn.Module]:
    d = task.x.shape[1]
    return [mlp(d, member.width, task.C, seed=member.init_seed).to(task.x) for member in task.members]


class Loop:
    """nn.Module, autograd, torch.optim.Adam, one network after the other."""

    def __init__(self, task: EnsembleTask, **options: bool) -> None:
        self.models = _models(task)
        self.optimizers = [torch.optim.Adam(model.parameters(), lr=0.01, **options) for model in self.models]
        self.full = task.recipe.batch_size is None
        self.data = [(task.x[rows], target) for rows, target in zip(task.rows, task.targets, strict=True)]
        self.batches, self.t = _batches(task), 0

    def step(self) -> None:
        for model, optimizer, (x, y), batches in zip(
            self.models, self.optimizers, self.data, self.batches, strict=True
        ):
            if not self.full:
                at = batches[self.t % DRAWN]
                x, y = x[at], y[at]
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        self.t += 1

    def outputs(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.stack([model(x) for model in self.models])


class ByWidth:
    """torch.func.vmap(grad) over the networks of one width, one fused Adam per width."""

    def __init__(self, task: EnsembleTask) -> None:
        self.task, models, batches = task, _models(task), _batches(task)
        self.t, self.groups = 0, []
        for width in dict.fromkeys(member.width for member in task.members):
            at = [k for k, member in enumerate(task.members) if member.width == width]
            states = [dict(models[k].named_parameters()) for k in at]
            stacked = {name: torch.stack([state[name].detach() for state in states]) for name in states[0]}
            x = torch.stack([task.x[task.rows[k]] for k in at])
            y = torch.stack([task.targets[k] for k in at])
            positions = [torch.stack(step) for step in zip(*(batches[k] for k in at), strict=True)]
            optimizer = torch.optim.Adam(stacked.values(), lr=0.01, fused=True)
            self.groups.append((at, models[at[0]], stacked, x, y, positions, optimizer))

    def step(self) -> None:
        for at, model, stacked, rows, labels, positions, optimizer in self.groups:
            x, y = rows, labels
            if self.task.recipe.batch_size is not None:
                picked, nets = positions[self.t % DRAWN], torch.arange(len(at), device=rows.device).unsqueeze(1)
                x, y = x[nets, picked], y[nets, picked]

            def loss(values: dict[str, Tensor], x: Tensor, y: Tensor, model: nn.Module = model) -> Tensor:
                return F.cross_entropy(functional_call(model, values, (x,)), y)

            for name, gradient in vmap(grad(loss))(stacked, x, y).items():
                stacked[name].grad = gradient.contiguous()  # required by the fused update
            optimizer.step()
        self.t += 1

    def outputs(self, x: Tensor) -> Tensor:
        outputs = torch.empty(len(self.task.members), len(x), self.task.C, dtype=x.dtype, device=x.device)
        for at, model, stacked, *_ in self.groups:
            outputs[at] = vmap(lambda values, model=model: functional_call(model, values, (x,)))(stacked)
        return outputs


class Padded:
    """Every network padded with zeros to the widest, batched products, autograd, one fused Adam."""

    def __init__(self, task: EnsembleTask) -> None:
        models, width = _models(task), max(WIDTHS)
        M, d, C = len(models), task.x.shape[1], task.C
        options = {"dtype": task.x.dtype, "device": task.x.device}
        self.W1, self.b1 = torch.zeros(M, d, width, **options), torch.zeros(M, 1, width, **options)
        self.W2, self.b2 = torch.zeros(M, width, C, **options), torch.zeros(M, 1, C, **options)
        for k, model in enumerate(models):
            h = task.members[k].width
            self.W1[k, :, :h] = model[0].weight.detach().T
            self.W2[k, :h] = model[2].weight.detach().T
        self.parameters = [p.requires_grad_() for p in (self.W1, self.b1, self.W2, self.b2)]
        self.optimizer = torch.optim.Adam(self.parameters, lr=0.01, fused=True)
        self.x = torch.stack([task.x[rows] for rows in task.rows])
        self.y = torch.stack(task.targets)
        self.positions = [torch.stack(step) for step in zip(*_batches(task), strict=True)]
        self.nets, self.full, self.t = (
            torch.arange(M, device=self.x.device).unsqueeze(1),
            task.recipe.batch_size is None,
            0,
        )

    def _forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.b2, torch.baddbmm(self.b1, x, self.W1).relu(), self.W2)

    def step(self) -> None:
        x, y = self.x, self.y
        if not self.full:
            at = self.positions[self.t % DRAWN]
            x, y = x[self.nets, at], y[self.nets, at]
        self.optimizer.zero_grad()
        losses = F.cross_entropy(self._forward(x).flatten(0, 1), y.flatten(), reduction="sum") / y.shape[1]
        losses.backward()
        self.optimizer.step()
        self.t += 1

    def outputs(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self._forward(x.expand(len(self.nets), *x.shape))


class Ours:
    """One step of kernelmem.training.train_mlps."""

    def __init__(self, task: EnsembleTask) -> None:
        (part,) = chunks(task, 2**31, task.x.element_size())
        self.task, self.engine = task, RaggedMLPs(task, part)
        self.optimizer = make_optimizer(task.recipe, self.engine.parameters, fused=True)

    def step(self) -> None:
        self.engine.gradient()
        self.optimizer.step()

    def outputs(self, x: Tensor) -> Tensor:
        del x  # the test rows of the task
        by_member = self.engine.test_outputs()
        return torch.stack([by_member[k] for k in range(len(self.task.members))])


ENGINES: dict[str, Callable[[EnsembleTask], Engine]] = {
    "loop, Adam": Loop,
    "loop, Adam(fused=True)": lambda task: Loop(task, fused=True),
    "vmap by width": ByWidth,
    "padded to the widest": Padded,
    "train_mlps": Ours,
}
