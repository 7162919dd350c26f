"""The machines of the three kernels of a run, at its start, at its end and along its path: frozen, fitted, summed."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kernelmem.core.batches import Rows
from kernelmem.core.errors import InputError, NumericalError, UnsupportedModelError
from kernelmem.kernel_machines.equivalence.trajectory import TrajectoryPass, pull_at
from kernelmem.kernel_machines.linearized.function_space import FunctionSpace, as_matrix
from kernelmem.kernel_machines.linearized.recorded_sgd import Recorded, recorded_descent, same_descent
from kernelmem.kernel_machines.linearized.sgd_step import largest_eigenvalue
from kernelmem.kernel_machines.model_selection.ridge_selection import choose_ridge
from kernelmem.kernel_machines.solvers.factorization import factorize
from kernelmem.kernels.alignment import kernel_distance, relative_distance
from kernelmem.recording.replay import replay
from kernelmem.recording.run import Run
from kernelmem.tangents.prepare import prepare
from kernelmem.trajectory.path_kernel.domingos_kernel_machine import domingos_kernel_machine
from kernelmem.trajectory.path_kernel.example_gradients import StepExamples
from kernelmem.trajectory.path_kernel.kernel_at_weights import KernelAtWeights
from kernelmem.trajectory.path_kernel.path_kernel import moved_parameters, path_kernel, step_rate

__all__ = ["KernelFits"]

KINDS = ("initial", "final", "path")
PLAIN = "only plain gradient descent has this form: SGD without momentum and weight decay, one learning rate"


@dataclass(eq=False)
class KernelFits:
    """A run, what was read of it, and the outputs on test rows of the machines that were computed so far."""

    run: Run
    model: nn.Module
    examples: Rows
    both: Rows
    own: TrajectoryPass
    outputs: str
    memory: int
    wanted: tuple[str, ...]
    common: dict[str, Any]

    def __post_init__(self) -> None:
        self.parameters = moved_parameters(self.run, list(self.run.steps))
        self.recorded = recorded_descent(self.run, self.common["loss"], self.own.final.shape[1])
        self.predictions: dict[str, Tensor] = {}
        self.without: dict[str, tuple[str, str]] = {}
        self.more: dict[str, dict[str, Any]] = {}
        self.change = self.distance = self.path_error = math.nan

    def moving(self, x: Rows, y: Rows | None, outputs: str) -> KernelAtWeights:
        """The tangent kernel of x (and y) by the parameters that the optimizer held."""
        return KernelAtWeights(
            self.model,
            x,
            y,
            outputs=outputs,
            target=None,
            labels=None,
            parameters=self.parameters,
            forward=self.common["forward"],
            dtype=torch.float64,
            device="cpu",
        )

    def frozen_and_fitted(self, ridge: float | str, order: int, every: int, seed: int) -> None:
        """The machines of each kernel in turn; of the first kernel its training rows are kept until the last is there."""
        needed = {kind: [n for n in self.wanted if n in _of_kernel(kind)] for kind in KINDS}
        self._refuse_too_much(sum(bool(own) for own in needed.values()))
        firsts: Tensor | None = None
        for kind in KINDS:
            if not needed[kind]:
                continue
            space = self._space(kind, order, every)
            if kind == "initial":
                firsts = space.matrix
            if kind == "final" and firsts is not None:
                self.change = relative_distance(space.matrix, firsts)
                self.distance = kernel_distance(self._trace(space.matrix), self._trace(firsts))
                firsts = None
            largest = largest_eigenvalue(space.matrix)
            if f"descent_{kind}" in needed[kind]:
                self._descend(kind, space, largest)
            if f"ridge_{kind}" in needed[kind]:
                self._fit(f"ridge_{kind}", space, largest, ridge, None)
            if "null" in needed[kind]:
                order_of_rows = torch.randperm(space.n, generator=torch.Generator().manual_seed(seed))
                self._fit("null", space, largest, ridge, order_of_rows)
            if "domingos_constant" in needed[kind]:
                self._constant(space)
            del space

    def domingos(self, x: Any, data: tuple[Any, Any]) -> None:
        """Domingos' form with coefficients that depend on x, on the rows x."""
        if not _is_plain(self.run):
            self.without["domingos"] = ("undefined", PLAIN)
            return
        try:
            form = domingos_kernel_machine(
                self.run, self.model, x, data=data, order=2, memory=self.memory, **self.common
            )
        except UnsupportedModelError as error:
            self.without["domingos"] = ("undefined", error.given)
            return
        self.predictions["domingos"] = form.predictions
        self.more["domingos"] = {"residual": float(form.residual.abs().max())}

    def _space(self, kind: str, order: int, every: int) -> FunctionSpace:
        n, C = self.examples.n, self.own.final.shape[1]
        if kind == "path":
            path = path_kernel(
                self.run,
                self.model,
                self.both,
                self._others,
                outputs=self.outputs,  # type: ignore[arg-type]
                weighting=self._weighting(),
                order=order,
                every=every,
                dtype=torch.float64,
                device="cpu",
                memory=self.memory,
                **self.common,
            )
            self.path_error = path.error
            kernel = path.values / path.total_weight
        else:
            moving = self.moving(self.both, self._others, self.outputs)
            state = self.own.first if kind == "initial" else self.own.last
            kernel = moving.at(state, moving.plan(self.memory), check=True)
        kernel, full = kernel[:, :n], self.outputs == "full"
        if full:
            cross = kernel[n:].transpose(1, 2).reshape(-1, n * C)
            matrix = as_matrix(kernel[:n], n, C)
        else:
            kernel = kernel / C
            matrix, cross = as_matrix(kernel[:n], n, C), kernel[n:]
        pull = self._pull(kind)
        initial = self.own.initial
        return FunctionSpace(matrix, initial[:n], initial[:n], pull[:n], cross, initial[n:], pull[n:], full)

    @property
    def _others(self) -> Rows | None:
        """With which rows kernels are computed: all, by symmetry half the work, unless most of them are test rows."""
        return None if self.both.n <= 2 * self.examples.n else self.examples

    def _weighting(self) -> Literal["time", "mean"]:
        try:
            rates = [step_rate(step) for step in self.run.steps]
        except InputError:  # groups of parameters with rates of their own
            return "mean"
        return "time" if min(rates) > 0 else "mean"

    def _pull(self, kind: str) -> Tensor:
        """J w_0 at the weights of the kernel; zeros where nothing decays."""
        if kind == "path" or not (isinstance(self.recorded, Recorded) and self.recorded.decays):
            return torch.zeros_like(self.own.initial)
        prepared = prepare(
            self.model,
            self.both,
            forward=self.common["forward"],
            parameters=self.parameters,
            dtype=torch.float64,
            device="cpu",
            evaluation=True,
        )
        state = self.own.first if kind == "initial" else self.own.last
        return pull_at(prepared, state, self.own.first, self.both)

    def _descend(self, kind: str, space: FunctionSpace, largest: float) -> None:
        name = f"descent_{kind}"
        if isinstance(self.recorded, str):
            self.without[name] = ("undefined", self.recorded)
            return
        if kind == "path" and self.recorded.decays:
            self.without[name] = ("undefined", "a mean kernel does not say where weight decay pulls the outputs")
            return
        stability = self.recorded.stability(largest, space.n)
        self.more[name] = {"stability": stability}
        if self.recorded.quadratic and stability >= self.recorded.limit:
            self.without[name] = ("diverges", f"lr times curvature {stability:.4g}, limit {self.recorded.limit:.4g}")
            return
        try:
            a, away = same_descent(self.recorded, space)
        except NumericalError as error:
            self.without[name] = ("diverges", error.given)
            return
        self._keep(name, space, a, away)

    def _fit(self, name: str, space: FunctionSpace, largest: float, ridge: float | str, order: Tensor | None) -> None:
        """Kernel ridge regression on the change of the network's outputs on the training rows."""
        change = self.own.final[: space.n] - self.own.initial[: space.n]
        targets = space.fold(change if order is None else change[order])
        value = choose_ridge(space.matrix, targets).ridge if ridge == "loo" else float(ridge) * largest
        system = factorize(space.matrix, targets, value)
        alpha = system.alpha()
        gap = (space.matrix @ alpha + value * alpha - targets).norm() / targets.norm().clamp_min(1e-300)
        self.more[name] = {"ridge": value, "condition": system.condition(), "residual": float(gap)}
        self._keep(name, space, alpha, alpha.new_zeros(()))

    def _constant(self, space: FunctionSpace) -> None:
        summed = _summed_derivatives(self.run, self.model, self.parameters, space, self.common)
        if isinstance(summed, str):
            self.without["domingos_constant"] = ("undefined", summed)
            return
        self._keep("domingos_constant", space, -space.fold(summed), summed.new_zeros(()))

    def _keep(self, name: str, space: FunctionSpace, a: Tensor, away: Tensor) -> None:
        found = space.outputs(a[None], away[None])[1]
        assert found is not None
        self.predictions[name] = found[0]

    def _trace(self, matrix: Tensor) -> Tensor:
        n = self.examples.n
        if len(matrix) == n:
            return matrix
        C = len(matrix) // n
        return matrix.view(n, C, n, C).diagonal(dim1=1, dim2=3).sum(-1)

    def _refuse_too_much(self, kernels: int) -> None:
        C = self.own.final.shape[1] if self.outputs == "full" else 1
        n, m = self.both.n, (self._others or self.both).n
        size = 8 * n * m * C**2
        if kernels and (kernels + 4) * size > self.memory:
            raise InputError(
                f"kernels of {n:,} by {m:,} rows and {C} outputs, {size / 2**30:.3g} GiB each,"
                f" memory={self.memory / 2**30:.3g} GiB",
                expected=f"room for {kernels + 4} of them",
                hint='raise memory=, pass outputs="trace", fewer rows, or machines= without kernels ("left_ledger")',
            )


def _of_kernel(kind: str) -> tuple[str, ...]:
    more = ("null", "domingos_constant") if kind == "path" else ()
    return (f"descent_{kind}", f"ridge_{kind}", *more)


def _summed_derivatives(
    run: Run, model: nn.Module, parameters: list[str], space: FunctionSpace, common: dict[str, Any]
) -> Tensor | str:
    """Σ_t h_t (1/B_t) ∂ℓ_i/∂f, (n, C), or why there is none."""
    if not _is_plain(run):
        return PLAIN
    try:
        trained = StepExamples(run, model, parameters=parameters, loss=common["loss"], forward=common["forward"])
    except UnsupportedModelError as error:
        return error.given
    rates = [step_rate(step) for step in run.steps]
    summed = torch.zeros_like(space.initial)
    for t, state in replay(run, model, stop=len(run) - 1, **common):
        own, index = trained.derivatives(run.steps[t], state)
        summed.index_add_(0, index, rates[t] * own)
    return summed


def _is_plain(run: Run) -> bool:
    """Whether every step was one of plain gradient descent with one learning rate."""
    groups = [group for step in run.steps for group in step.groups]
    more = any(group.get(name) for group in groups for name in ("momentum", "weight_decay", "maximize"))
    one = all(len({float(group["lr"]) for group in step.groups}) == 1 for step in run.steps)
    return run.optimizer == "SGD" and not more and one
