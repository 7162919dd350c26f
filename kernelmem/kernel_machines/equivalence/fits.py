"""Kernel machines of the initial, final and path kernel of a run: frozen-kernel SGD, ridge fits, Domingos' sums."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypedDict

import torch
from torch import Tensor, nn

from kernelmem.core.batches import Batch, Forward, Rows
from kernelmem.core.errors import InputError, NumericalError, UnsupportedModelError
from kernelmem.kernel_machines.equivalence.options import ComparisonOptions
from kernelmem.kernel_machines.equivalence.trajectory import TrajectoryPass, tangent_times_weights
from kernelmem.kernel_machines.linearized.function_space import FunctionSpace, as_matrix
from kernelmem.kernel_machines.linearized.recorded_sgd import RecordedSGD, read_recorded_sgd, replay_with_kernel
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
from kernelmem.trajectory.path_kernel.path_kernel import PathKernelOptions, moved_parameters, path_kernel, step_rate

KINDS = ("initial", "final", "path")
PLAIN_ONLY = "only plain gradient descent has this form: SGD without momentum and weight decay, one learning rate"


class RunOptions(TypedDict):
    """Options of every function that replays the run."""

    loss: Callable[[Tensor, Tensor], Tensor] | None
    forward: Forward | None


@dataclass(eq=False)
class KernelFits:
    """A run, one pass along it, and the outputs on test rows of the methods that were computed so far.

    Attributes:
        examples: the n training rows.
        both: training rows followed by test rows.
        passed: outputs and states of one pass along the run, on ``both``.
        predictions: by method, outputs on test rows.
        failures: by method, (status, reason) where there are no outputs.
        diagnostics: by method, further fields of its MachineFit.
    """

    run: Run
    model: nn.Module
    examples: Rows
    both: Rows
    passed: TrajectoryPass
    outputs: Literal["full", "trace"]
    memory: int
    methods: tuple[str, ...]
    common: RunOptions

    def __post_init__(self) -> None:
        self.parameters = moved_parameters(self.run, list(self.run.steps))
        self.recorded = read_recorded_sgd(self.run, self.common["loss"], self.passed.final.shape[1])
        self.predictions: dict[str, Tensor] = {}
        self.failures: dict[str, tuple[str, str]] = {}
        self.diagnostics: dict[str, dict[str, float]] = {}
        self.kernel_change = self.kernel_distance = self.path_error = math.nan

    def kernel_at_weights(self, x: Rows, y: Rows | None, outputs: str) -> KernelAtWeights:
        """Return the tangent kernel of x (and y) with respect to the parameters that the optimizer held."""
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

    def fit_kernels(self, options: ComparisonOptions) -> None:
        """Compute the methods of each kernel in turn; the initial kernel is kept only until the final one is there."""
        needed = {kind: [name for name in self.methods if name in _methods_of(kind)] for kind in KINDS}
        self._check_memory(sum(bool(names) for names in needed.values()))
        K_initial: Tensor | None = None
        for kind in KINDS:
            names = needed[kind]
            if not names:
                continue
            space = self._space(kind, options)
            if kind == "initial":
                K_initial = space.matrix
            if kind == "final" and K_initial is not None:
                self.kernel_change = relative_distance(space.matrix, K_initial)
                self.kernel_distance = kernel_distance(self._trace(space.matrix), self._trace(K_initial))
                K_initial = None
            largest = largest_eigenvalue(space.matrix)
            if f"sgd_{kind}" in names:
                self._fit_sgd(kind, space, largest)
            if f"ridge_{kind}" in names:
                self._fit_ridge(f"ridge_{kind}", space, largest, options.ridge, None)
            if "null" in names:
                permutation = torch.randperm(space.n, generator=torch.Generator().manual_seed(options.seed))
                self._fit_ridge("null", space, largest, options.ridge, permutation)
            if "domingos_constant" in names:
                self._fit_domingos_constant(space)
            del space

    def fit_domingos(self, x: Batch, data: tuple[Batch, Tensor]) -> None:
        """Compute Domingos' kernel machine, whose coefficients depend on x, on the rows x."""
        if not _is_plain(self.run):
            self.failures["domingos"] = ("undefined", PLAIN_ONLY)
            return
        try:
            machine = domingos_kernel_machine(
                self.run, self.model, x, data=data, n_nodes=2, memory=self.memory, **self.common
            )
        except UnsupportedModelError as error:
            self.failures["domingos"] = ("undefined", error.given)
            return
        self.predictions["domingos"] = machine.predictions
        self.diagnostics["domingos"] = {"residual": float(machine.residual.abs().max())}

    def _space(self, kind: str, options: ComparisonOptions) -> FunctionSpace:
        n, C = self.examples.n, self.passed.final.shape[1]
        if kind == "path":
            path = path_kernel(
                self.run,
                self.model,
                self.both,
                self._second_rows,
                outputs=self.outputs,
                forward=self.common["forward"],
                options=PathKernelOptions(
                    weighting=self._weighting(),
                    n_nodes=options.n_nodes,
                    stride=options.stride,
                    loss=self.common["loss"],
                    dtype=torch.float64,
                    device="cpu",
                    memory=self.memory,
                ),
            )
            self.path_error = path.error
            kernel = path.values / path.total_weight
        else:
            at_weights = self.kernel_at_weights(self.both, self._second_rows, self.outputs)
            state = self.passed.first if kind == "initial" else self.passed.last
            kernel = at_weights.at(state, at_weights.plan(self.memory), check=True)
        kernel, full = kernel[:, :n], self.outputs == "full"
        if full:
            K_test = kernel[n:].transpose(1, 2).reshape(-1, n * C)  # axes (i, j, c, d) -> (i, c, j, d)
            K = as_matrix(kernel[:n], n, C)
        else:
            kernel = kernel / C
            K, K_test = as_matrix(kernel[:n], n, C), kernel[n:]
        initial, Jw0 = self.passed.initial, self._Jw0(kind)
        return FunctionSpace(K, initial[:n], initial[:n], Jw0[:n], K_test, initial[n:], Jw0[n:], full)

    @property
    def _second_rows(self) -> Rows | None:
        """Second argument of the kernels: None (all rows, half the work by symmetry) unless most rows are test rows."""
        return None if self.both.n <= 2 * self.examples.n else self.examples

    def _weighting(self) -> Literal["time", "mean"]:
        try:
            rates = [step_rate(step) for step in self.run.steps]
        except InputError:  # parameter groups with different learning rates
            return "mean"
        return "time" if min(rates) > 0 else "mean"

    def _Jw0(self, kind: str) -> Tensor:
        """Return J w_0 at the weights of the kernel; zeros without weight decay."""
        if kind == "path" or not (isinstance(self.recorded, RecordedSGD) and self.recorded.decays):
            return torch.zeros_like(self.passed.initial)
        prepared = prepare(
            self.model,
            self.both,
            forward=self.common["forward"],
            parameters=self.parameters,
            dtype=torch.float64,
            device="cpu",
            evaluation=True,
        )
        state = self.passed.first if kind == "initial" else self.passed.last
        return tangent_times_weights(prepared, state, self.passed.first, self.both)

    def _fit_sgd(self, kind: str, space: FunctionSpace, largest: float) -> None:
        name = f"sgd_{kind}"
        if isinstance(self.recorded, str):
            self.failures[name] = ("undefined", self.recorded)
            return
        if kind == "path" and self.recorded.decays:
            self.failures[name] = ("undefined", "weight decay needs J w_0, which a mean kernel does not determine")
            return
        stability = self.recorded.stability(largest, space.n)
        self.diagnostics[name] = {"stability": stability}
        if self.recorded.quadratic and stability >= self.recorded.limit:
            self.failures[name] = ("diverges", f"lr times curvature {stability:.4g}, limit {self.recorded.limit:.4g}")
            return
        try:
            a, s_minus_1 = replay_with_kernel(self.recorded, space)
        except NumericalError as error:
            self.failures[name] = ("diverges", error.given)
            return
        self._predict(name, space, a, s_minus_1)

    def _fit_ridge(
        self, name: str, space: FunctionSpace, largest: float, ridge: float | str, permutation: Tensor | None
    ) -> None:
        """Fit kernel ridge regression to the change of the network's outputs on the training rows."""
        change = self.passed.final[: space.n] - self.passed.initial[: space.n]
        targets = space.fold(change if permutation is None else change[permutation])
        value = choose_ridge(space.matrix, targets).ridge if ridge == "loo" else float(ridge) * largest
        system = factorize(space.matrix, targets, value)
        alpha = system.alpha()
        residual = (space.matrix @ alpha + value * alpha - targets).norm() / targets.norm().clamp_min(1e-300)
        self.diagnostics[name] = {"ridge": value, "condition": system.condition(), "residual": float(residual)}
        self._predict(name, space, alpha, alpha.new_zeros(()))

    def _fit_domingos_constant(self, space: FunctionSpace) -> None:
        total = _summed_derivatives(self.run, self.model, self.parameters, space, self.common)
        if isinstance(total, str):
            self.failures["domingos_constant"] = ("undefined", total)
            return
        self._predict("domingos_constant", space, -space.fold(total), total.new_zeros(()))

    def _predict(self, name: str, space: FunctionSpace, a: Tensor, s_minus_1: Tensor) -> None:
        test = space.outputs(a[None], s_minus_1[None])[1]
        assert test is not None
        self.predictions[name] = test[0]

    def _trace(self, matrix: Tensor) -> Tensor:
        n = self.examples.n
        if len(matrix) == n:
            return matrix
        C = len(matrix) // n
        return matrix.view(n, C, n, C).diagonal(dim1=1, dim2=3).sum(-1)

    def _check_memory(self, n_kernels: int) -> None:
        C = self.passed.final.shape[1] if self.outputs == "full" else 1
        n, m = self.both.n, (self._second_rows or self.both).n
        size = 8 * n * m * C**2
        if n_kernels and (n_kernels + 4) * size > self.memory:
            raise InputError(
                f"kernels of {n:,} by {m:,} rows and {C} outputs, {size / 2**30:.3g} GiB each,"
                f" memory={self.memory / 2**30:.3g} GiB",
                expected=f"memory for {n_kernels + 4} such kernels",
                hint='raise options.memory, pass outputs="trace", fewer rows, or methods without kernels ("first_order_ledger")',
            )


def _methods_of(kind: str) -> tuple[str, ...]:
    more = ("null", "domingos_constant") if kind == "path" else ()
    return (f"sgd_{kind}", f"ridge_{kind}", *more)


def _summed_derivatives(
    run: Run, model: nn.Module, parameters: list[str], space: FunctionSpace, common: RunOptions
) -> Tensor | str:
    """Return Σ_t h_t (1/B_t) ∂ℓ_i/∂f, (n, C), or the reason why it is undefined."""
    if not _is_plain(run):
        return PLAIN_ONLY
    try:
        examples = StepExamples(run, model, parameters=parameters, loss=common["loss"], forward=common["forward"])
    except UnsupportedModelError as error:
        return error.given
    rates = [step_rate(step) for step in run.steps]
    total = torch.zeros_like(space.initial)
    for t, state in replay(run, model, stop=len(run) - 1, **common):
        derivatives, index = examples.derivatives(run.steps[t], state)
        total.index_add_(0, index, rates[t] * derivatives)
    return total


def _is_plain(run: Run) -> bool:
    """Return True if every step was plain gradient descent with one learning rate."""
    groups = [group for step in run.steps for group in step.groups]
    other = any(group.get(name) for group in groups for name in ("momentum", "weight_decay", "maximize"))
    one_rate = all(len({float(group["lr"]) for group in step.groups}) == 1 for step in run.steps)
    return run.optimizer == "SGD" and not other and one_rate
