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
    """The loss and the forward function, which every function that replays the recorded run needs."""

    loss: Callable[[Tensor, Tensor], Tensor] | None
    forward: Forward | None


@dataclass(eq=False)
class KernelFits:
    """State of a comparison: the run, one pass along it, and the results on test rows of the methods computed so far.

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
        """Read the optimizer steps of the run and start with empty predictions, failures and diagnostics."""
        self.parameters = moved_parameters(self.run, list(self.run.steps))
        self.recorded = read_recorded_sgd(self.run, self.run_options["loss"], self.trajectory.final_outputs.shape[1])
        self.predictions: dict[str, Tensor] = {}
        self.failures: dict[str, tuple[str, str]] = {}
        self.diagnostics: dict[str, dict[str, float]] = {}
        self.kernel_change = self.kernel_distance = self.path_error = math.nan

    def kernel_at_weights(self, x: Rows, y: Rows | None, outputs: str) -> KernelAtWeights:
        """Return an object that evaluates the tangent kernel between rows x and rows y at given weights.

        If y is None, it is the kernel of x with itself. Only parameters that the optimizer updated are differentiated, and
        ``outputs`` is "full" or "trace".
        """
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
        """Compute all selected methods that use the initial, the final or the path kernel, and store their results.

        At most one kernel is kept at a time, except that the initial kernel is kept until it has been compared with the
        final one.
        """
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
        """Compute and store the predictions of Domingos' kernel machine on the rows x.

        If it is undefined for this run, the reason is stored instead. The coefficients of this machine depend on x. ``data``
        holds the inputs and the targets of all training examples.
        """
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
        """Compute the "initial", "final" or "path" kernel (``kind``) of all rows and split it into training and test blocks.

        The returned system combines the blocks with the outputs f_0 of the network at the initial weights w_0. With
        ``outputs="trace"`` the kernel is the mean over the C outputs.
        """
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
        """Second argument of the kernels of all rows.

        It is None (all rows, computed by symmetry with half the work) if at most half of the rows are test rows, otherwise
        the training rows.
        """
        return None if self.all_rows.n <= 2 * self.examples.n else self.examples

    def _path_weighting(self) -> Literal["time", "mean"]:
        """Return how the path kernel weights the steps of the run.

        The result is "time" (weights are learning rates) if every step has one positive learning rate, otherwise "mean"
        (equal weights).
        """
        try:
            rates = [step_learning_rate(step) for step in self.run.steps]
        except InputError:  # parameter groups with different learning rates
            return "mean"
        return "time" if min(rates) > 0 else "mean"

    def _tangent_times_initial_weights(self, kind: str) -> Tensor:
        """Return J w_0 of all rows, (rows, C), with the Jacobian J at the initial or final weights (``kind``).

        Here w_0 are the initial weights. The result is zero for the path kernel and for runs without weight decay, where it
        is not needed.
        """
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
        """Replay the recorded SGD steps with the kernel in ``space`` held fixed, and store the predictions on test rows.

        If the replay is undefined or diverges, the status and the reason are stored instead. ``kappa_max`` is the largest
        eigenvalue of the kernel of the training rows.
        """
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
        """Fit kernel ridge regression to the change of the network's outputs on the training rows; store the predictions.

        ``ridge`` is a multiple of the largest eigenvalue ``kappa_max``, or "loo" for the choice by leave-one-out.
        ``permutation`` (n,), if given, reorders the training targets as a null control.
        """
        output_change = self.trajectory.final_outputs[: space.n] - self.trajectory.initial_outputs[: space.n]
        targets = space.fold(output_change if permutation is None else output_change[permutation])
        ridge_value = choose_ridge(space.matrix, targets).ridge if ridge == "loo" else float(ridge) * kappa_max
        factor = factorize(space.matrix, targets, ridge_value)
        alpha = factor.alpha()
        residual = (space.matrix @ alpha + ridge_value * alpha - targets).norm() / targets.norm().clamp_min(1e-300)
        self.diagnostics[name] = {"ridge": ridge_value, "condition": factor.condition(), "residual": float(residual)}
        self._store_predictions(name, space, alpha, alpha.new_zeros(()))

    def _fit_domingos_constant(self, space: FunctionSpace) -> None:
        """Store the predictions of Domingos' kernel machine with coefficients that do not depend on the test row.

        If the run admits no such machine, the status "undefined" and the reason are stored instead.
        """
        derivative_sum = _summed_derivatives(self.run, self.model, self.parameters, space, self.run_options)
        if isinstance(derivative_sum, str):
            self.failures["domingos_constant"] = ("undefined", derivative_sum)
            return
        self._store_predictions("domingos_constant", space, -space.fold(derivative_sum), derivative_sum.new_zeros(()))

    def _store_predictions(self, name: str, space: FunctionSpace, a: Tensor, s_minus_1: Tensor) -> None:
        """Store the outputs on test rows under the name of the method.

        ``a`` are the coefficients, shaped as in ``space``, and ``s_minus_1`` is s − 1, where s is the factor that weight
        decay leaves of the initial weights.
        """
        test_outputs = space.outputs(a[None], s_minus_1[None])[1]
        assert test_outputs is not None
        self.predictions[name] = test_outputs[0]

    def _trace_kernel(self, matrix: Tensor) -> Tensor:
        """Return the trace over outputs, (n, n), of a full kernel (nC, nC) of n rows and C outputs.

        A kernel that is already (n, n) is returned unchanged.
        """
        n = self.examples.n
        if len(matrix) == n:
            return matrix
        C = len(matrix) // n
        return matrix.view(n, C, n, C).diagonal(dim1=1, dim2=3).sum(-1)

    def _check_memory(self, n_kernels: int) -> None:
        """Check that ``n_kernels`` kernels, and four more during the computation, fit into the memory limit.

        Raises:
            InputError: the kernels take more bytes than the limit.
        """
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
    """Return the names of the methods that use the "initial", "final" or "path" kernel."""
    path_methods = ("null", "domingos_constant") if kind == "path" else ()
    return (f"sgd_{kind}", f"ridge_{kind}", *path_methods)


def _summed_derivatives(
    run: Run, model: nn.Module, parameters: list[str], space: FunctionSpace, run_options: RunOptions
) -> Tensor | str:
    """Return the sum over steps t of h_t / B_t times the loss derivatives with respect to the outputs, (n, C).

    Here h_t is the learning rate and B_t the batch size of step t; row i sums the steps whose batch contains example i. If
    the sum is undefined for this run, the reason is returned as a string.
    """
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
    """Return True if every step was plain SGD: no momentum, no weight decay, no maximization, and one learning rate."""
    groups = [group for step in run.steps for group in step.groups]
    has_other_terms = any(group.get(name) for group in groups for name in ("momentum", "weight_decay", "maximize"))
    has_one_rate = all(len({float(group["lr"]) for group in step.groups}) == 1 for step in run.steps)
    return run.optimizer == "SGD" and not has_other_terms and has_one_rate
