r"""The exact kernel machine that a trained network is: its atoms are pairs (example, step).

With the cotangent A_s(x) of the optimizer's recursion (:mod:`kernelmem.trajectory.optimizers`),

    f_T(x) = f_0(x) + Σ_{(i, s)} K(x, (i, s)) a_{i,s} + decay(x) + rounding(x) + residual(x),
    K(x, (i, s)) = −A_s(x) J(x_i; w_s)ᵀ,    a_{i,s} = −(weight · clip factor / batch size) ∂ℓ_i/∂f at w_s.

The coefficients do not depend on x. The kernel is no inner product: its arguments are of two kinds, a row and an atom. For
plain gradient descent K = h_s J̄_s(x) J(x_i; w_s)ᵀ. To have one atom an example, coefficients must depend on x
(:mod:`kernelmem.trajectory.path_kernel.domingos_kernel_machine`).

Source: Domingos 2020; Bell et al. 2023 (an ensemble of one machine a step, for gradient descent); through momentum and
adaptive denominators: here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kernelmem.core.batches import Rows, as_rows
from kernelmem.core.checks import as_labels
from kernelmem.core.errors import InputError
from kernelmem.core.result_files import Result
from kernelmem.kernels.ntk import as_bytes
from kernelmem.recording.run import Run
from kernelmem.recording.verify_model import verify_model
from kernelmem.trajectory.argument_checks import check_quadrature, check_run
from kernelmem.trajectory.integration.step_integral import whole_tangents
from kernelmem.trajectory.network.network import Network, every_output
from kernelmem.trajectory.network.weight_blocks import Segments
from kernelmem.trajectory.optimizers import Moved, filter_of
from kernelmem.trajectory.path_kernel.example_gradients import StepExamples
from kernelmem.trajectory.path_kernel.path_kernel import moved_parameters
from kernelmem.trajectory.targets import Explained, explained
from kernelmem.trajectory.trace import Tracing

if TYPE_CHECKING:
    import pandas

__all__ = ["ExactKernelMachine", "exact_kernel_machine"]


@dataclass(frozen=True, eq=False, repr=False)
class ExactKernelMachine(Result):
    """The machine on m rows: float64."""

    kernel: Tensor  # (m, atoms, k, C)
    coefficients: Tensor  # (atoms, C): do not depend on x
    examples: Tensor  # (atoms,)
    steps: Tensor  # (atoms,)
    initial: Tensor  # (m, k): before training
    final: Tensor  # (m, k): after it
    decay: Tensor  # (m, k)
    rounding: Tensor  # (m, k)
    names: tuple[str, ...]  # of the k

    @property
    def predictions(self) -> Tensor:
        """f_0 + K a + decay + rounding: (m, k)."""
        return self.initial + self.contributions().sum(1) + self.decay + self.rounding

    @property
    def residual(self) -> Tensor:
        """What the machine leaves of the network: (m, k)."""
        return self.final - self.predictions

    def contributions(self, n: int | None = None) -> Tensor:
        """Σ_s K(x, (i, s)) a_{i,s} for each of n examples (None: those that were met): (m, n, k).

        Raises:
            InputError: fewer than there are.
        """
        met = int(self.examples.max()) + 1
        if n is not None and n < met:
            raise InputError(f"n={n}", expected=f"at least {met}, the examples that were met", hint="leave n out")
        own = torch.einsum("makc,ac->mak", self.kernel, self.coefficients)
        total = own.new_zeros(len(own), n or met, own.shape[2])
        return total.index_add_(1, self.examples, own)

    def to_frame(self) -> "pandas.DataFrame":
        """One line for each row, atom and output: the example and step of the atom, and what it contributes."""
        import pandas  # slow to import

        own = torch.einsum("makc,ac->mak", self.kernel, self.coefficients)
        index = pandas.MultiIndex.from_product(
            [range(len(own)), range(own.shape[1]), self.names], names=["row", "atom", "output"]
        )
        frame = pandas.DataFrame({"contribution": own.flatten().numpy()}, index=index).reset_index()
        frame.insert(2, "example", self.examples.numpy()[frame["atom"]])
        frame.insert(3, "step", self.steps.numpy()[frame["atom"]])
        return frame

    def __str__(self) -> str:
        m, atoms, k, _ = self.kernel.shape
        return (
            f"lifted kernel machine on {m} rows, {k} output{'s' * (k != 1)}: {atoms:,} atoms"
            f" ({len(set(self.examples.tolist())):,} examples, {len(set(self.steps.tolist())):,} steps);"
            f" largest residual {float(self.residual.abs().max()):.1g}"
        )


def exact_kernel_machine(
    run: Run,
    model: nn.Module,
    *,
    x: Any,
    labels: Any = None,
    target: Any = None,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    forward: Callable[[nn.Module, Any], Tensor] | None = None,
    order: int = 3,
    tolerance: float = 1e-12,
    memory: int | str = "1GiB",
    progress: Callable[[int, int], None] | None = None,
) -> ExactKernelMachine:
    """Write a small recorded run as the kernel machine that it is, on the rows of x.

    Args:
        run: what :class:`Recorder` wrote.
        model: the module that was trained, in any state; never changed.
        x: m rows.
        labels: (m,) integers, where ``target`` needs them.
        target: None (every output), "margin", "loss", "log_probability", ("logit", c), or a callable; k is 1 but for None.
        loss: the per-example loss, where the run was recorded with a callable.
        forward: maps (model, batch) to (n, C) outputs.
        order: nodes on a panel to begin with.
        tolerance: on the residual of the whole run; 0: as small as rounding lets it be.
        memory: bytes for kernel, weights and tangents.
        progress: called with (steps done, steps in all), 2 T of them.

    Returns:
        ExactKernelMachine: kernel (m, atoms, k, C) and coefficients (atoms, C) in float64, and the other lines.

    Raises:
        InputError: more than ``memory``, with the figure; arguments that mean nothing; a model, loss or forward that is not
            the recorded one; an optimizer without a filter; rows that the model does not take.
        UnsupportedModelError: steps with dropout or batch statistics, in which an example has no outputs of its own.
        VerificationError, NumericalError: as in :func:`kernelmem.ledger`.

    Cost: as :func:`kernelmem.ledger` with C tangents of every example; memory m·k·C numbers an atom, and about 4 P a step.

    Source: Domingos 2020; Bell et al. 2023; through momentum and adaptive optimizers: derived here.
    """
    check_run(run, model)
    check_quadrature(tolerance, order)
    T = len(run)
    rows = as_rows(x, "x").to(dtype=torch.float64, device=torch.device("cpu"))
    verify_model(run, model, loss=loss, forward=forward)
    steps = list(run.steps)
    parameters = moved_parameters(run, steps)
    trained = StepExamples(run, model, parameters=parameters, loss=loss, forward=forward)
    tested = Network(model, rows, parameters=parameters, forward=forward)
    what = explained(target, None if labels is None else as_labels(labels, "labels", n=rows.n), tested.n_outputs)
    m, k, C, P = rows.n, len(what.names), tested.n_outputs, tested.n_parameters
    sizes = [len(step.examples) for step in steps]
    needed = 8 * (m * k * C * sum(sizes) + 4 * T * P + 2 * (m * k + max(sizes) * C) * P)
    if needed > as_bytes(memory):
        raise InputError(
            f"a machine of {sum(sizes):,} atoms on {m} rows, which takes {needed / 2**20:,.0f} MiB",
            expected=f"at most memory={memory!r}",
            hint="take fewer rows, a target= (k = 1), raise memory=, or use km.ledger: the sums over steps alone",
        )
    states: list[Mapping[str, Tensor]] = []
    moved: list[dict[str, Moved]] = []
    rounded: list[Tensor] = []
    coefficients, examples = [], []
    tracing = Tracing(run, model, trained.network, trained.loss, loss, forward)
    for stretch in tracing.in_order():
        states = [*states[:-1], *stretch.states]
        moved += stretch.moved
        rounded += stretch.rounding
        for t in range(stretch.start, stretch.start + len(stretch.steps)):
            own, index = trained.derivatives(steps[t], states[t])
            coefficients.append(-own)
            examples.append(index)
            _report(progress, t + 1, 2 * T)
    kind = filter_of(run.optimizer)
    filters = {name: kind() for name in tested.selected}
    kernel = torch.empty(m, sum(sizes), k, C, dtype=torch.float64)
    decay, rounding = torch.zeros(m, k, dtype=torch.float64), torch.zeros(m, k, dtype=torch.float64)
    stop = sum(sizes)
    for t in reversed(range(T)):
        tested.set_state(states[t])
        segment = Segments.of(states[t : t + 2], list(tested.selected))
        along = whole_tangents(tested, rows, segment, what, order=order, tolerance=tolerance / T)
        rounding += along @ rounded[t]
        carried = torch.zeros_like(along)
        for name, of_step in moved[t].items():
            where = tested.slices[name]
            carried[..., where], of_decay = filters[name].backward(along[..., where], of_step)
            decay += 0.0 if of_decay is None else of_decay
        tangents = trained.tangents(steps[t], states[t], every_output)
        kernel[:, stop - sizes[t] : stop] = -torch.einsum("mkp,bcp->mbkc", carried, tangents)
        stop -= sizes[t]
        _report(progress, 2 * T - t, 2 * T)
    atoms = torch.arange(T).repeat_interleave(torch.tensor(sizes))
    initial, final = (_values(tested, state, rows, what) for state in (states[0], states[-1]))
    parts = torch.cat(coefficients), torch.cat(examples), atoms
    return ExactKernelMachine(kernel, *parts, initial, final, decay, rounding, what.names)


def _values(network: Network, state: Mapping[str, Tensor], rows: Rows, what: Explained) -> Tensor:
    network.set_state(state)
    return what.values(network.outputs(rows), torch.arange(rows.n))


def _report(progress: Callable[[int, int], None] | None, done: int, total: int) -> None:
    if progress is not None:
        progress(done, total)
