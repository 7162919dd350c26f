r"""Kernel machine that equals a trained network exactly; its atoms are pairs (example, step).

With the cotangent A_s(x) of the optimizer's recursion (:mod:`kernelmem.trajectory.optimizers`),

    f_T(x) = f_0(x) + Σ_{(i, s)} K(x, (i, s)) a_{i,s} + decay(x) + rounding(x) + residual(x),
    K(x, (i, s)) = −A_s(x) J(x_i; w_s)ᵀ,    a_{i,s} = −(weight · clip factor / batch size) ∂ℓ_i/∂f at w_s.

The coefficients do not depend on x. The kernel is not an inner product: its arguments are a row and an atom. For plain
gradient descent K = h_s J̄_s(x) J(x_i; w_s)ᵀ. One atom per example requires coefficients that depend on x
(:mod:`kernelmem.trajectory.path_kernel.domingos_kernel_machine`).

Source: Domingos 2020; Bell et al. 2023 (an ensemble of one machine per step, for gradient descent); momentum and
adaptive denominators: derived here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kernelmem.core.batches import Batch, Rows, as_rows
from kernelmem.core.checks import ArrayLike, as_count, check_instance
from kernelmem.core.errors import InputError
from kernelmem.core.files.result_files import Result
from kernelmem.core.models.torch_func import exclusive
from kernelmem.core.options import MEMORY, Progress, as_bytes
from kernelmem.recording.gradient_check import Forward
from kernelmem.recording.run import Run
from kernelmem.recording.verify_model import verify_model
from kernelmem.training.losses import Loss
from kernelmem.trajectory.argument_checks import check_run, step_counter
from kernelmem.trajectory.integration.quadrature import DEFAULT_QUADRATURE, Quadrature
from kernelmem.trajectory.integration.step_integral import Integrand, dense_mean_tangents
from kernelmem.trajectory.network.network import Network, each_output
from kernelmem.trajectory.network.shared_passes import with_separate_passes_if_needed
from kernelmem.trajectory.network.weight_blocks import Segments
from kernelmem.trajectory.optimizers import ParameterStep, filter_class
from kernelmem.trajectory.path_kernel.example_gradients import StepExamples
from kernelmem.trajectory.path_kernel.path_kernel import moved_parameters
from kernelmem.trajectory.targets import TargetFunctions, TargetLike, as_target_functions
from kernelmem.trajectory.trace import RunTracer

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, eq=False, repr=False)
class ExactKernelMachine(Result):
    """Exact kernel machine of a run, evaluated on m rows: float64."""

    kernel: Tensor  # (m, atoms, k, C)
    coefficients: Tensor  # (atoms, C), the same for all rows
    examples: Tensor  # (atoms,): index of each atom's example
    steps: Tensor  # (atoms,): index of each atom's step
    initial: Tensor  # (m, k): before training
    final: Tensor  # (m, k): after training
    decay: Tensor  # (m, k)
    rounding: Tensor  # (m, k)
    names: tuple[str, ...]  # of the k functions

    @property
    def predictions(self) -> Tensor:
        """Outputs of the machine, f_0 + K a + decay + rounding, (m, k), for k functions of m rows.

        f_0 are the values before the run, K is the kernel and a the coefficients.
        """
        return self.initial + self.contributions().sum(1) + self.decay + self.rounding

    @property
    def residual(self) -> Tensor:
        """Network minus machine: (m, k)."""
        return self.final - self.predictions

    def contributions(self, n: int | None = None) -> Tensor:
        """Return Σ_s K(x, (i, s)) a_{i,s} for each of n examples (None: those that the run used): (m, n, k).

        Raises:
            InputError: ``n`` is below the number of examples used.
        """
        n_used = int(self.examples.max()) + 1
        n = n_used if n is None else as_count(n, "n", minimum=n_used)
        per_atom = torch.einsum("makc,ac->mak", self.kernel, self.coefficients)
        total = per_atom.new_zeros(len(per_atom), n, per_atom.shape[2])
        return total.index_add_(1, self.examples, per_atom)

    def to_frame(self) -> "pandas.DataFrame":
        """Return one row per row of x, atom and output: the atom's example and step, and its contribution."""
        import pandas  # slow to import

        per_atom = torch.einsum("makc,ac->mak", self.kernel, self.coefficients)
        levels = [range(len(per_atom)), range(per_atom.shape[1]), self.names]
        index = pandas.MultiIndex.from_product(levels, names=["row", "atom", "output"])
        frame = pandas.DataFrame({"contribution": per_atom.flatten().numpy()}, index=index).reset_index()
        frame.insert(2, "example", self.examples.numpy()[frame["atom"]])
        frame.insert(3, "step", self.steps.numpy()[frame["atom"]])
        return frame

    def __str__(self) -> str:
        m, atoms, k, _ = self.kernel.shape
        return (
            f"exact kernel machine on {m} rows, {k} output{'s' * (k != 1)}: {atoms:,} atoms"
            f" ({len(set(self.examples.tolist())):,} examples, {len(set(self.steps.tolist())):,} steps);"
            f" largest residual {float(self.residual.abs().max()):.1g}"
        )


@exclusive()
@with_separate_passes_if_needed
def exact_kernel_machine(
    run: Run,
    model: nn.Module,
    x: Batch,
    *,
    target: TargetLike = None,
    labels: ArrayLike | None = None,
    loss: Loss | None = None,
    forward: Forward | None = None,
    quadrature: Quadrature = DEFAULT_QUADRATURE,
    memory: int | str = MEMORY,
    progress: Progress = None,
) -> ExactKernelMachine:
    """Write a small recorded run as the exact kernel machine, on the rows of x.

    Args:
        run: written by :class:`Recorder`.
        model: the module that was trained, in any state; never changed.
        x: m rows.
        target: None (every output), "margin", "loss", "log_probability", ("logit", c), or a callable; k = 1 except for None.
        labels: (m,) integers, if ``target`` needs them.
        loss: the per-example loss, if the run was recorded with a callable.
        forward: maps (model, batch) to (n, C) outputs.
        quadrature: accuracy of the integrals along the steps.
        memory: bytes for kernel, weights and tangents.
        progress: called with (steps done, 2 T).

    Returns:
        ExactKernelMachine: kernel (m, atoms, k, C) and coefficients (atoms, C) in float64, and the other terms.

    Raises:
        InputError: more than ``memory`` is needed (with the number); invalid arguments; a model, loss or forward other than
            the recorded one; an optimizer without a filter; rows that the model does not take.
        UnsupportedModelError: steps with dropout or batch statistics (outputs that depend on other examples or on chance).
        VerificationError, NumericalError: as in :func:`kernelmem.ledger`.

    Cost: as :func:`kernelmem.ledger` with C tangents of every example; memory m·k·C numbers per atom, and about 4 P per step.

    Source: Domingos 2020; Bell et al. 2023; momentum and adaptive optimizers: derived here.
    """
    check_run(run, model)
    check_instance(quadrature, "quadrature", Quadrature)
    T, max_bytes = len(run), as_bytes(memory)
    rows = as_rows(x, "x").to(dtype=torch.float64, device=torch.device("cpu"))
    verify_model(run, model, loss=loss, forward=forward)
    steps = list(run.steps)
    parameters = moved_parameters(run, steps)
    step_examples = StepExamples(run, model, parameters=parameters, loss=loss, forward=forward)
    eval_network = Network(model, rows, parameters=parameters, forward=forward)
    target_functions = as_target_functions(target, labels, rows.n, eval_network.n_outputs)
    m, k, C, P = rows.n, len(target_functions.names), eval_network.n_outputs, eval_network.n_parameters
    batch_sizes = [len(step.examples) for step in steps]
    n_atoms = sum(batch_sizes)
    n_bytes = 8 * (m * k * C * n_atoms + 4 * T * P + 2 * (m * k + max(batch_sizes) * C) * P)
    if n_bytes > max_bytes:
        raise InputError(
            f"a machine of {n_atoms:,} atoms on {m} rows, which takes {n_bytes / 2**20:,.0f} MiB",
            expected=f"at most memory={memory!r}",
            hint="take fewer rows, a target= (k = 1), raise memory=, or use km.ledger: the sums over steps alone",
        )
    advance = step_counter(progress, "exact kernel machine", 2 * T)
    states: list[Mapping[str, Tensor]] = []
    parameter_steps: list[dict[str, ParameterStep]] = []
    rounding_steps: list[Tensor] = []
    coefficients, examples = [], []
    tracer = RunTracer(run, model, step_examples.network, step_examples.loss, loss, forward)
    for traced in tracer.trace_forward():
        states = [*states[:-1], *traced.states]
        parameter_steps += traced.parameter_steps
        rounding_steps += traced.rounding
        for t in range(traced.start, traced.stop):
            derivatives, indices = step_examples.derivatives(steps[t], states[t])
            coefficients.append(-derivatives)
            examples.append(indices)
            advance(1)
    new_filter = filter_class(run.optimizer)
    filters = {name: new_filter() for name in eval_network.parameters}
    kernel = torch.empty(m, n_atoms, k, C, dtype=torch.float64)
    decay, rounding = torch.zeros(m, k, dtype=torch.float64), torch.zeros(m, k, dtype=torch.float64)
    stop = n_atoms
    for t in reversed(range(T)):
        eval_network.set_state(states[t])
        segment = Segments.from_states(states[t : t + 2], list(eval_network.parameters))
        integrand = Integrand(eval_network, rows, segment, target_functions)
        mean_tangents = dense_mean_tangents(integrand, n_nodes=quadrature.n_nodes, tolerance=quadrature.tolerance / T)
        rounding += mean_tangents @ rounding_steps[t]
        A = torch.zeros_like(mean_tangents)  # A_t(x), (m, k, P)
        for name, step in parameter_steps[t].items():
            parameter_slice = eval_network.slices[name]
            A[..., parameter_slice], step_decay = filters[name].backward(mean_tangents[..., parameter_slice], step)
            decay += 0.0 if step_decay is None else step_decay
        tangents = step_examples.tangents(steps[t], states[t], each_output)
        kernel[:, stop - batch_sizes[t] : stop] = -torch.einsum("mkp,bcp->mbkc", A, tangents)
        stop -= batch_sizes[t]
        advance(1)
    atom_steps = torch.arange(T).repeat_interleave(torch.tensor(batch_sizes))
    initial, final = (_values(eval_network, state, rows, target_functions) for state in (states[0], states[-1]))
    return ExactKernelMachine(
        kernel,
        torch.cat(coefficients),
        torch.cat(examples),
        atom_steps,
        initial,
        final,
        decay,
        rounding,
        target_functions.names,
    )


def _values(network: Network, state: Mapping[str, Tensor], rows: Rows, target_functions: TargetFunctions) -> Tensor:
    network.set_state(state)
    return target_functions.values(network.outputs(rows), torch.arange(rows.n))
