r"""The linear smoother that a network trained with squared loss is, read off its recorded run.

Along the run f_{t+1}(x) − f_t(x) = J̄_t(x)(w_{t+1} − w_t), J̄_t the tangent averaged over the step (exact), and with squared
loss the gradient of a batch is Σ_b v_b J_t(x_b)ᵀ (f_t(x_b) − y_b). Optimizers are linear filters of gradients, given their
realized statistics. Hold all tangents, statistics and clip factors as recorded: then weights and outputs after every step are
affine functions of the labels,

    w_t = a_t + B_t y,    f_t(x) = o_t(x) + S_t(x) y,

by one recursion from the first step to the last, through momentum and decay. At the recorded labels they are the network's:
f_T(x) = o_T(x) + S_T(x) y. At other labels the network would have had other tangents: S is no derivative of training (but for
a model that is linear in its weights).

Source: the sum over steps: Jeffares, Curth and van der Schaar 2024, with tangents at the start of each step; tangents
averaged over it, momentum, decay and adaptive optimizers: derived here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from kernelmem.core.batches import Rows, as_rows, named_leaves
from kernelmem.core.errors import InputError
from kernelmem.core.result_files import Result
from kernelmem.double_descent.variance.effective_parameters import EffectiveParameters, effective_parameters
from kernelmem.kernels.ntk import as_bytes
from kernelmem.recording.run import Run
from kernelmem.recording.verify_model import verify_model
from kernelmem.training.losses import per_example_loss
from kernelmem.trajectory.argument_checks import check_quadrature, check_run, number_of_examples
from kernelmem.trajectory.integration.step_integral import whole_tangents
from kernelmem.trajectory.network.network import Network, every_output
from kernelmem.trajectory.network.weight_blocks import Segments
from kernelmem.trajectory.optimizers import filter_of
from kernelmem.trajectory.path_kernel.example_gradients import StepExamples
from kernelmem.trajectory.path_kernel.path_kernel import moved_parameters
from kernelmem.trajectory.targets import explained
from kernelmem.trajectory.trace import StepBatch, Stretch, Tracing

__all__ = ["RunSmoother", "run_smoother"]

SQUARED = ("mse", "mse_mean")


@dataclass(frozen=True, eq=False, repr=False)
class RunSmoother(Result):
    """f_T = offset + S y of n training rows and m others: float64."""

    train: Tensor = field(repr=False)  # (n, C, n, C)
    rows: Tensor = field(repr=False)  # (m, C, n, C)
    targets: Tensor = field(repr=False)  # (n, C): y; zeros for examples that no batch held
    offsets: Tensor = field(repr=False)  # (n + m, C): training rows first
    final: Tensor = field(repr=False)  # (n + m, C): the network's own outputs after training

    @property
    def residual(self) -> Tensor:
        """What offset + S y leaves of the network's outputs: (n + m, C)."""
        both = torch.cat([self.train, self.rows])
        return self.final - self.offsets - torch.einsum("rcnd,nd->rc", both, self.targets)

    @property
    def p_eff_train(self) -> EffectiveParameters:
        """Effective parameters on the training rows."""
        return effective_parameters(self.train)

    @property
    def p_eff(self) -> EffectiveParameters:
        """Effective parameters on the other rows.

        Raises:
            InputError: there are none.
        """
        return effective_parameters(self.rows)

    def __str__(self) -> str:
        n, C, m = len(self.train), self.targets.shape[1], len(self.rows)
        lines = [f"smoother of a run: {n:,} training rows, {m:,} others, {C} output{'s' * (C != 1)}"]
        lines.append(f"training rows: {self.p_eff_train}")
        if m:
            lines.append(f"others:        {self.p_eff}")
        return "\n".join([*lines, f"largest residual {float(self.residual.abs().max()):.1g}"])


def run_smoother(
    run: Run,
    model: nn.Module,
    *,
    data: tuple[Any, Any],
    x: Any = None,
    forward: Callable[[nn.Module, Any], Tensor] | None = None,
    order: int = 3,
    tolerance: float = 1e-10,
    memory: int | str = "1GiB",
    progress: Callable[[int, int], None] | None = None,
) -> RunSmoother:
    """Compute the map from labels to outputs of a small recorded run with squared loss: f_T(x) = offset(x) + S(x) y.

    ::

        G_t = Σ_b v_b J_t(x_b)ᵀ (F_t(x_b) − [y_b]),   ΔW_t = filter(G_t + λ W_t),   F_{t+1}(x) = F_t(x) + J̄_t(x) ΔW_t

    with W_t (P, nC + 1) and F_t (rows, C, nC + 1) the weights and outputs as functions of the nC targets and 1.

    Args:
        run: what :class:`Recorder` wrote, with loss "mse" or "mse_mean"; SGD (momentum, dampening, Nesterov), Adam, AdamW,
            RMSprop or Adagrad, of which the realized denominators are held fixed, as are clip factors.
        model: the module that was trained, in any state; never changed.
        data: (x, y) of all n training examples, in the order of the recorded indices. The targets are those on the tape.
        x: m other rows; None: none.
        forward: maps (model, batch) to (n, C) outputs.
        order: nodes on a panel to begin with, for the tangents averaged over a step.
        tolerance: on the residual of the whole run; 0: as small as rounding lets it be.
        memory: bytes for W, F, and tangents.
        progress: called with (steps done, steps in all).

    Returns:
        RunSmoother: S of training rows (n, C, n, C) and of x (m, C, n, C), offsets, final outputs; float64.

    Raises:
        InputError: another loss, examples whose inputs or targets change from step to step, more than ``memory`` (with the
            figure), what :func:`kernelmem.ledger` refuses.
        UnsupportedModelError: steps with dropout or batch statistics.

    Cost: for each of T steps, with N = n + m rows and batches of B: (N + B) C · nC · P multiplications, and tangents of N
    rows at some nodes. A network of P = 1,000 weights on 100 rows of 10 classes: about 0.1 s a step.

    Source: Jeffares, Curth and van der Schaar 2024; exact form: derived here.
    """
    check_run(run, model)
    check_quadrature(tolerance, order)
    if run.loss not in SQUARED:
        raise InputError(
            f"a run with the loss {run.loss.removeprefix('callable:')}",
            expected=f"squared loss by name, {' or '.join(SQUARED)}: of another the gradient is not linear in outputs and"
            " labels, and the network is no linear smoother",
            hint='train with Recorder(..., loss="mse"), or take km.influence for the effect of labels',
        )
    verify_model(run, model, forward=forward)
    steps = list(run.steps)
    n = number_of_examples(data, 1 + max(int(step.examples.max()) for step in steps))
    trained_rows, rows = _together(data[0], x, n)
    parameters = moved_parameters(run, steps)
    examples = StepExamples(run, model, parameters=parameters, loss=None, forward=forward)
    network = Network(model, rows, parameters=parameters, forward=forward)
    _check_memory(memory, rows.n, n, network, max(len(step.examples) for step in steps))
    tracing = Tracing(run, model, examples.network, examples.loss, None, forward)
    affine: _Affine | None = None
    last: Mapping[str, Tensor] = {}
    for stretch in tracing.in_order():
        affine = affine or _Affine(run, network, rows, n, stretch.states[0])
        last = stretch.states[-1]
        for i, batch in enumerate(stretch.batches):
            t = stretch.start + i
            _check_inputs(batch, trained_rows, t)
            segment = Segments.of(stretch.states[i : i + 2], list(network.selected))
            tangents = examples.tangents(stretch.steps[i], stretch.states[i], every_output)
            gradient = affine.gradient(batch, tangents, t)
            moved = affine.step(gradient, stretch, i)
            network.set_state(stretch.states[i])
            mean = whole_tangents(network, rows, segment, affine.what, order=order, tolerance=tolerance / len(steps))
            affine.outputs += torch.einsum("rcp,dp->rcd", mean, moved)
            if progress is not None:
                progress(t + 1, len(steps))
    assert affine is not None
    network.set_state(last)
    smoother = affine.outputs[..., :-1].unflatten(2, (n, network.n_outputs)).clone()
    return RunSmoother(
        train=smoother[:n].clone(),
        rows=smoother[n:].clone(),
        targets=affine.targets,
        offsets=affine.outputs[..., -1].clone(),
        final=network.outputs(rows),
    )


class _Affine:
    """Weights, what the optimizer carries, and outputs, each as an affine function of the labels (D = nC + 1 columns)."""

    def __init__(self, run: Run, network: Network, rows: Rows, n: int, first: Mapping[str, Tensor]) -> None:
        self.network, self.n, self.C = network, n, network.n_outputs
        self.what = explained(None, None, network.n_outputs)
        self.columns = n * self.C + 1
        kind = filter_of(run.optimizer)
        self.filters = {name: kind() for name in network.selected}
        self.carried: dict[str, dict[str, Tensor]] = {name: {} for name in network.selected}
        network.set_state(first)
        self.weights = torch.zeros(self.columns, network.n_parameters, dtype=torch.float64)
        self.weights[-1] = network.flat(first)
        self.outputs = torch.zeros(rows.n, self.C, self.columns, dtype=torch.float64)
        self.outputs[..., -1] = network.outputs(rows)
        self.targets = torch.zeros(n, self.C, dtype=torch.float64)
        self.met = torch.zeros(n, dtype=torch.bool)
        self.scale = 1.0 if run.loss == "mse" else 2 / self.C

    def gradient(self, batch: StepBatch, tangents: Tensor, t: int) -> Tensor:
        """Σ_b v_b J(x_b)ᵀ (F(x_b) − [y_b]): (D, P)."""
        index = batch.examples
        self._meet(index, batch.targets, t)
        residual = self.outputs[index]  # (B, C, D), a copy
        place = index[:, None] * self.C + torch.arange(self.C)
        residual.scatter_add_(2, place[:, :, None], -torch.ones(*place.shape, 1, dtype=torch.float64))
        weighted = residual * (self.scale * batch.weights)[:, None, None]
        return torch.einsum("bcd,bcp->dp", weighted, tangents)

    def step(self, gradient: Tensor, stretch: Stretch, i: int) -> Tensor:
        """w_{t+1} − w_t as a function of the labels, (D, P); what rounding did is part of the constant."""
        change = torch.zeros_like(gradient)
        change[-1] = stretch.rounding[i]
        for name, moved in stretch.moved[i].items():
            where, options = self.network.slices[name], moved.options
            own = -gradient[:, where] if options.get("maximize") else gradient[:, where]
            decay, decoupled = options.get("weight_decay", 0.0), self.filters[name].decoupled(options)
            if decay and not decoupled:
                own = own + decay * self.weights[:, where]
            change[:, where] += self.filters[name].linear(own, moved, self.carried[name])
            if decay and decoupled:
                change[:, where] -= options["lr"] * decay * self.weights[:, where]
        self.weights += change
        return change

    def _meet(self, index: Tensor, targets: Tensor, t: int) -> None:
        """Take down the targets; the loss at outputs 0 has the gradient −y, whatever the form of the targets."""
        zero = torch.zeros(len(index), self.C, dtype=torch.float64, requires_grad=True)
        total = per_example_loss("mse")(zero, targets).sum()
        y = -torch.autograd.grad(total, zero)[0]
        before = self.met[index]
        if not torch.equal(self.targets[index][before], y[before]):
            raise InputError(
                f"a run whose step {t} has other targets for an example than a step before it",
                expected="one target for each example, all along the run",
                hint="record a run without mixed or redrawn targets",
            )
        self.targets[index], self.met[index] = y, True


def _together(x_train: Any, x: Any, n: int) -> tuple[Rows, Rows]:
    """Training rows, and these with the others after them."""
    cpu = {"dtype": torch.float64, "device": torch.device("cpu")}
    train = as_rows(x_train, "data[0]").to(**cpu)
    if train.n != n:
        raise InputError(
            f"data of {train.n} rows and {n} targets",
            expected="one target for each row",
            hint="pass data=(x_train, y_train)",
        )
    if x is None:
        return train, train
    others = as_rows(x, "x").to(**cpu)
    columns = [[leaf for _, leaf in named_leaves(own.tree, "x")] for own in (train, others)]
    shapes = [[tuple(leaf.shape[1:]) for leaf in own] for own in columns]
    if shapes[0] != shapes[1]:
        raise InputError(
            f"training rows of shape {shapes[0]} and rows x of shape {shapes[1]}", expected="the same", hint="check x"
        )
    joined = iter([torch.cat(pair) for pair in zip(*columns, strict=True)])
    return train, Rows(train.map(lambda _: next(joined)), train.n + others.n)


def _check_inputs(batch: StepBatch, train: Rows, t: int) -> None:
    own, given = named_leaves(batch.rows.tree, "x"), named_leaves(train.take(batch.examples), "x")
    same = len(own) == len(given) and all(torch.equal(a, b) for (_, a), (_, b) in zip(own, given, strict=True))
    if not same:
        raise InputError(
            f"a run whose step {t} was taken on other inputs than data[0] has for its examples",
            expected="the same inputs for an example, all along the run",
            hint="pass the training rows in the order of the recorded indices; a run with augmentation has no smoother",
        )


def _check_memory(memory: int | str, rows: int, n: int, network: Network, batch: int) -> None:
    C, P = network.n_outputs, network.n_parameters
    D = n * C + 1
    needed = 8 * (4 * D * P + 2 * (rows + batch) * C * P + 2 * rows * C * D)
    if needed > as_bytes(memory):
        raise InputError(
            f"{n} training rows, {rows - n} others, {C} outputs and {P:,} weights, which take {needed / 2**20:,.0f} MiB",
            expected=f"at most memory={memory!r}",
            hint="take fewer rows or a smaller network, or raise memory=",
        )
