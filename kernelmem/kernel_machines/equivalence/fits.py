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
from kernelmem.trajectory.path_kernel.path_kernel import (
    PathKernelOptions,
    moved_parameters,
    path_kernel,
    step_learning_rate,
)

KINDS = ("initial", "final", "path")
PLAIN_ONLY = "this form requires plain gradient descent: SGD without momentum and weight decay, with one learning rate"


class RunOptions(TypedDict):
    """Options of every function that replays the run."""

    loss: Callable[[Tensor, Tensor], Tensor] | None
    forward: Forward | None


@dataclass(eq=False)
class KernelFits:
    """A run, one pass along it, and the outputs on test rows of the methods that were computed so far.

    Attributes:
        examples: the n training rows.
        all_rows: training rows followed by test rows.
        trajectory: outputs and states of one pass along the run, on ``all_rows``.
        predictions: outputs on test rows, by method.
        failures: (status, reason) of each method without outputs.
        diagnostics: further fields of the MachineFit of each method.
    """

    run: Run
    model: nn.Module
    examples: Rows
    all_rows: Rows
    trajectory: TrajectoryPass
    outputs: Literal["full", "trace"]
    memory: int
    methods: tuple[str, ...]
    run_options: RunOptions

    def __post_init__(self) -> None:
        self.parameters = moved_parameters(self.run, list(self.run.steps))
        self.recorded = read_recorded_sgd(self.run, self.run_options["loss"], self.trajectory.final_outputs.shape[1])
        self.predictions: dict[str, Tensor] = {}
        self.failures: dict[str, tuple[str, str]] = {}
        self.diagnostics: dict[str, dict[str, float]] = {}
        self.kernel_change = self.kernel_distance = self.path_error = math.nan

    def kernel_at_weights(self, x: Rows, y: Rows | None, outputs: str) -> KernelAtWeights:
        """Return the tangent kernel of x and y (None: x) with respect to the parameters that the optimizer held."""
        return KernelAtWeights(
            self.model,
            x,
            y,
            outputs=outputs,
            target=None,
            labels=None,
            parameters=self.parameters,
            forward=self.run_options["forward"],
            dtype=torch.float64,
            device="cpu",
        )

    def fit_kernels(self, options: ComparisonOptions) -> None:
        """Compute the methods of each kernel in turn; the initial kernel is kept only until the final one is computed."""
        methods_by_kind = {kind: [name for name in self.methods if name in _methods_of_kind(kind)] for kind in KINDS}
        self._check_memory(sum(bool(method_names) for method_names in methods_by_kind.values()))
        K_initial: Tensor | None = None
        for kind in KINDS:
            method_names = methods_by_kind[kind]
            if not method_names:
                continue
            space = self._function_space(kind, options)
            if kind == "initial":
                K_initial = space.matrix
            if kind == "final" and K_initial is not None:
                self.kernel_change = relative_distance(space.matrix, K_initial)
                self.kernel_distance = kernel_distance(self._trace_kernel(space.matrix), self._trace_kernel(K_initial))
                K_initial = None
            kappa_max = largest_eigenvalue(space.matrix)
            if f"sgd_{kind}" in method_names:
                self._fit_sgd(kind, space, kappa_max)
            if f"ridge_{kind}" in method_names:
                self._fit_ridge(f"ridge_{kind}", space, kappa_max, options.ridge, None)
            if "null" in method_names:
                permutation = torch.randperm(space.n, generator=torch.Generator().manual_seed(options.seed))
                self._fit_ridge("null", space, kappa_max, options.ridge, permutation)
            if "domingos_constant" in method_names:
                self._fit_domingos_constant(space)
            del space

    def fit_domingos(self, x: Batch, data: tuple[Batch, Tensor]) -> None:
        """Compute Domingos' kernel machine, whose coefficients depend on x, on the rows x."""
        if not _is_plain_gradient_descent(self.run):
            self.failures["domingos"] = ("undefined", PLAIN_ONLY)
            return
        try:
            machine = domingos_kernel_machine(
                self.run, self.model, x, data=data, n_nodes=2, memory=self.memory, **self.run_options
            )
        except UnsupportedModelError as error:
            self.failures["domingos"] = ("undefined", error.given)
            return
        self.predictions["domingos"] = machine.predictions
        self.diagnostics["domingos"] = {"residual": float(machine.residual.abs().max())}

    def _function_space(self, kind: str, options: ComparisonOptions) -> FunctionSpace:
        """Compute the initial, final or path kernel and arrange it with the outputs at w_0 as a linear system."""
        n, C = self.examples.n, self.trajectory.final_outputs.shape[1]
        if kind == "path":
            path = path_kernel(
                self.run,
                self.model,
                self.all_rows,
                self._second_rows,
                outputs=self.outputs,
                forward=self.run_options["forward"],
                options=PathKernelOptions(
                    weighting=self._path_weighting(),
                    n_nodes=options.n_nodes,
                    stride=options.stride,
                    loss=self.run_options["loss"],
                    dtype=torch.float64,
                    device="cpu",
                    memory=self.memory,
                ),
            )
            self.path_error = path.error
            kernel = path.values / path.total_weight
        else:
            at_weights = self.kernel_at_weights(self.all_rows, self._second_rows, self.outputs)
            state = self.trajectory.first_state if kind == "initial" else self.trajectory.last_state
            kernel = at_weights.evaluate(state, at_weights.plan(self.memory), check=True)
        kernel, is_full = kernel[:, :n], self.outputs == "full"
        if is_full:
            K_test = kernel[n:].transpose(1, 2).reshape(-1, n * C)  # axes (i, j, c, d) -> (i, c, j, d)
            K_train = as_matrix(kernel[:n], n, C)
        else:
            kernel = kernel / C
            K_train, K_test = as_matrix(kernel[:n], n, C), kernel[n:]
        initial, Jw0 = self.trajectory.initial_outputs, self._tangent_times_initial_weights(kind)
        return FunctionSpace(K_train, initial[:n], initial[:n], Jw0[:n], K_test, initial[n:], Jw0[n:], is_full)

    @property
    def _second_rows(self) -> Rows | None:
        """Second argument of the kernels: None (all rows, half the work by symmetry) unless most rows are test rows."""
        return None if self.all_rows.n <= 2 * self.examples.n else self.examples

    def _path_weighting(self) -> Literal["time", "mean"]:
        """Return "time" (weights are learning rates) if each step has one positive rate, otherwise "mean"."""
        try:
            rates = [step_learning_rate(step) for step in self.run.steps]
        except InputError:  # parameter groups with different learning rates
            return "mean"
        return "time" if min(rates) > 0 else "mean"

    def _tangent_times_initial_weights(self, kind: str) -> Tensor:
        """Return J w_0 at the weights of the kernel; zeros without weight decay."""
        if kind == "path" or not (isinstance(self.recorded, RecordedSGD) and self.recorded.decays):
            return torch.zeros_like(self.trajectory.initial_outputs)
        prepared = prepare(
            self.model,
            self.all_rows,
            forward=self.run_options["forward"],
            parameters=self.parameters,
            dtype=torch.float64,
            device="cpu",
            evaluation=True,
        )
        state = self.trajectory.first_state if kind == "initial" else self.trajectory.last_state
        return tangent_times_weights(prepared, state, self.trajectory.first_state, self.all_rows)

    def _fit_sgd(self, kind: str, space: FunctionSpace, kappa_max: float) -> None:
        """Replay the recorded SGD steps with a frozen kernel, or store why that is undefined or diverges."""
        name = f"sgd_{kind}"
        if isinstance(self.recorded, str):
            self.failures[name] = ("undefined", self.recorded)
            return
        if kind == "path" and self.recorded.decays:
            self.failures[name] = ("undefined", "weight decay requires J w_0, which a mean kernel does not determine")
            return
        stability = self.recorded.stability(kappa_max, space.n)
        self.diagnostics[name] = {"stability": stability}
        if self.recorded.quadratic and stability >= self.recorded.limit:
            self.failures[name] = ("diverges", f"lr times curvature {stability:.4g}, limit {self.recorded.limit:.4g}")
            return
        try:
            a, s_minus_1 = replay_with_kernel(self.recorded, space)
        except NumericalError as error:
            self.failures[name] = ("diverges", error.given)
            return
        self._store_predictions(name, space, a, s_minus_1)

    def _fit_ridge(
        self, name: str, space: FunctionSpace, kappa_max: float, ridge: float | str, permutation: Tensor | None
    ) -> None:
        """Fit kernel ridge regression to the change of the network's outputs on the training rows."""
        output_change = self.trajectory.final_outputs[: space.n] - self.trajectory.initial_outputs[: space.n]
        targets = space.fold(output_change if permutation is None else output_change[permutation])
        ridge_value = choose_ridge(space.matrix, targets).ridge if ridge == "loo" else float(ridge) * kappa_max
        factor = factorize(space.matrix, targets, ridge_value)
        alpha = factor.alpha()
        residual = (space.matrix @ alpha + ridge_value * alpha - targets).norm() / targets.norm().clamp_min(1e-300)
        self.diagnostics[name] = {"ridge": ridge_value, "condition": factor.condition(), "residual": float(residual)}
        self._store_predictions(name, space, alpha, alpha.new_zeros(()))

    def _fit_domingos_constant(self, space: FunctionSpace) -> None:
        derivative_sum = _summed_derivatives(self.run, self.model, self.parameters, space, self.run_options)
        if isinstance(derivative_sum, str):
            self.failures["domingos_constant"] = ("undefined", derivative_sum)
            return
        self._store_predictions("domingos_constant", space, -space.fold(derivative_sum), derivative_sum.new_zeros(()))

    def _store_predictions(self, name: str, space: FunctionSpace, a: Tensor, s_minus_1: Tensor) -> None:
        test_outputs = space.outputs(a[None], s_minus_1[None])[1]
        assert test_outputs is not None
        self.predictions[name] = test_outputs[0]

    def _trace_kernel(self, matrix: Tensor) -> Tensor:
        """Return the sum over outputs of a full kernel, (n, n); a kernel (n, n) is returned unchanged."""
        n = self.examples.n
        if len(matrix) == n:
            return matrix
        C = len(matrix) // n
        return matrix.view(n, C, n, C).diagonal(dim1=1, dim2=3).sum(-1)

    def _check_memory(self, n_kernels: int) -> None:
        """Raise an error if the kernels do not fit into the memory of the options."""
        n_outputs = self.trajectory.final_outputs.shape[1] if self.outputs == "full" else 1
        n_rows, n_columns = self.all_rows.n, (self._second_rows or self.all_rows).n
        kernel_bytes = 8 * n_rows * n_columns * n_outputs**2
        if n_kernels and (n_kernels + 4) * kernel_bytes > self.memory:
            raise InputError(
                f"kernels of {n_rows:,} by {n_columns:,} rows and {n_outputs} outputs, {kernel_bytes / 2**30:.3g} GiB each,"
                f" memory={self.memory / 2**30:.3g} GiB",
                expected=f"memory for {n_kernels + 4} such kernels",
                hint='raise options.memory, pass outputs="trace", fewer rows, or methods without kernels ("first_order_ledger")',
            )


def _methods_of_kind(kind: str) -> tuple[str, ...]:
    path_methods = ("null", "domingos_constant") if kind == "path" else ()
    return (f"sgd_{kind}", f"ridge_{kind}", *path_methods)


def _summed_derivatives(
    run: Run, model: nn.Module, parameters: list[str], space: FunctionSpace, run_options: RunOptions
) -> Tensor | str:
    """Return Σ_t h_t (1/B_t) ∂ℓ_i/∂f, (n, C), or the reason why it is undefined."""
    if not _is_plain_gradient_descent(run):
        return PLAIN_ONLY
    try:
        examples = StepExamples(
            run, model, parameters=parameters, loss=run_options["loss"], forward=run_options["forward"]
        )
    except UnsupportedModelError as error:
        return error.given
    learning_rates = [step_learning_rate(step) for step in run.steps]
    derivative_sum = torch.zeros_like(space.initial)
    for t, state in replay(run, model, stop=len(run) - 1, **run_options):
        derivatives, example_ids = examples.derivatives(run.steps[t], state)
        derivative_sum.index_add_(0, example_ids, learning_rates[t] * derivatives)
    return derivative_sum


def _is_plain_gradient_descent(run: Run) -> bool:
    """Return True if every step was plain gradient descent with one learning rate."""
    groups = [group for step in run.steps for group in step.groups]
    has_other_terms = any(group.get(name) for group in groups for name in ("momentum", "weight_decay", "maximize"))
    has_one_rate = all(len({float(group["lr"]) for group in step.groups}) == 1 for step in run.steps)
    return run.optimizer == "SGD" and not has_other_terms and has_one_rate
