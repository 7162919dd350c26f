r"""Exact ledger of a training run: f_T(x) − f_0(x) as a sum over training examples.

For weights w_0, ..., w_T with steps d_t = w_{t+1} − w_t, the fundamental theorem of calculus gives, with no assumption on the
learning rate,

    f_T(x) − f_0(x) = Σ_t J̄_t(x) d_t,    J̄_t(x) = ∫₀¹ J(x; w_t + s d_t) ds.

Given its realized statistics, the optimizer makes d_t a linear map of the gradients of all examples used so far
(:mod:`kernelmem.trajectory.optimizers`), so that a sweep from the last step to the first splits the change exactly:

    f_T(x) − f_0(x) = Σ_i c_i(x) + decay(x) + rounding(x) + buffers(x) + residual(x),
    c_i(x) = Σ_{s: i in batch s} (weight · clip factor / batch size) A_s(x) J(x_i; w_s)ᵀ ∂ℓ_i/∂f.

``rounding`` is the effect of the difference between the recorded steps and the optimizer's formula in float64; ``buffers`` the
effect of running statistics; ``residual`` the error of the quadrature, known for every x, output and step.

Contributions describe the recorded run; for counterfactuals (training without an example) use :func:`kernelmem.influence`.

Source: Domingos 2020 (the path kernel in the limit of small steps); Bell et al. 2023 (finite steps); the recursion through
momentum and adaptive optimizers, rounding and buffers: derived here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from kernelmem.core.batches import Batch, as_rows
from kernelmem.core.checks import ArrayLike, as_flag, as_pair, check_choice, check_instance
from kernelmem.core.errors import InputError
from kernelmem.core.models.torch_func import exclusive
from kernelmem.core.options import Progress
from kernelmem.recording.averaging import average_coefficients
from kernelmem.recording.gradient_check import Forward
from kernelmem.recording.run import Run
from kernelmem.recording.verify_model import verify_model
from kernelmem.training.losses import Loss, per_example_loss
from kernelmem.trajectory.argument_checks import check_run, number_of_examples, read_steps, step_counter
from kernelmem.trajectory.integration.quadrature import Quadrature
from kernelmem.trajectory.ledger.backward_sweep import BackwardSweep
from kernelmem.trajectory.ledger.closure import check_gradients_add_up, dtype_name, training_dtype
from kernelmem.trajectory.ledger.grouped_sweep import GroupedSweep, read_groups
from kernelmem.trajectory.ledger.result import Ledger
from kernelmem.trajectory.ledger.sweep_setup import SweepSetup
from kernelmem.trajectory.network.network import Network
from kernelmem.trajectory.network.precision import reachable_tolerance
from kernelmem.trajectory.network.shared_passes import with_separate_passes_if_needed
from kernelmem.trajectory.targets import TargetLike, as_target_functions
from kernelmem.trajectory.trace import RunTracer, TracedSteps, load_batch

MAX_HISTORY = 2**31  # bytes


@dataclass(frozen=True)
class LedgerOptions(Quadrature):
    """Options of :func:`ledger`; ``n_nodes`` and ``tolerance`` are those of :class:`Quadrature`."""

    data: tuple[Batch, ArrayLike] | None = None
    """(x, y) of all training examples, for their number; None: the examples that the run used."""
    steps: tuple[int, int] | None = None
    """Explain f_b − f_a, the change from after step a to after step b, instead of the whole run. Gradients of steps before
    a contribute through momentum."""
    final_weights: Literal["last", "average"] = "last"
    """Outputs that are explained: of the weights after the last step, or of the averaged weights (EMA, SWA) that the run
    recorded."""
    history: bool = False
    """With by="example": keep the contribution of every example in every step, (m, T, n, k) numbers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data is not None:
            as_pair(self.data, "data")
        check_choice(self.final_weights, "final_weights", ("last", "average"))
        as_flag(self.history, "history")


@exclusive()
@with_separate_passes_if_needed
def ledger(
    run: Run,
    model: nn.Module,
    x: Batch,
    *,
    by: str | ArrayLike | Sequence[str] = "example",
    target: TargetLike = None,
    labels: ArrayLike | None = None,
    loss: Loss | None = None,
    forward: Forward | None = None,
    options: LedgerOptions = LedgerOptions(),
    progress: Progress = None,
) -> Ledger:
    """Compute the ledger of a recorded run on the rows of x.

    Outputs and gradients are those of the model in float64, on the CPU, wherever and in whatever precision it was trained;
    ``rounding`` is what that precision (float32, TF32, autocast) did to the steps. Random numbers of the forward pass
    (dropout) can be drawn again for runs that were recorded on the CPU only.

    Args:
        run: written by :class:`Recorder`.
        model: the module that was trained, in any state; never changed.
        x: m rows.
        by: sources of the change. "example": n contributions, of each example in all steps; "step": T, of all examples in
            each step (the effect of its gradients, then and later through momentum); "layer": one for each module, of the
            movement of its parameters; or (n,) integers 0..G−1 or names: G, of groups of the training examples. Layers
            and groups take one forward pass along the run and memory for the groups only.
        target: what is explained: None (every output), "margin", "loss", "log_probability", ("logit", c), or a
            callable (outputs, labels) -> (m,). k = 1 except for None.
        labels: (m,) integers, if ``target`` needs them.
        loss: the per-example loss, if the run was recorded with a callable.
        forward: maps (model, batch) to (n, C) outputs.
        options: accuracy, part of the run, final weights, history.
        progress: called with (steps done, 2 T).

    Returns:
        Ledger: contributions (m, n, k) in float64, and the other terms.

    Raises:
        InputError: invalid arguments; a model, loss or forward other than the recorded one; an optimizer
            without a filter; rows that the model does not take.
        UnsupportedModelError: a model that mixes its rows in eval mode.
        VerificationError: derivatives that differ from the change of the outputs (detach, custom gradients); gradients
            of examples that do not add up to those of their batches; weights that replay does not reproduce.
        NumericalError: NaN outputs or targets.
        FileCorruptError: a file of the run is missing or altered.

    Cost: for each step, tangents of m rows at some nodes (1 to 3 for most steps) and one of every example in the batch.
    Plain gradient descent: products of factors, m·k·B·(units) operations. Otherwise m·k·P·B operations and memory for
    m·k·P numbers; up to 1 GiB of weights and denominators is kept, a longer run is traced a second time. Groups and layers:
    G + 2 dual passes of m rows per node for any number of outputs; memory for G·P numbers.

    Source: Domingos 2020; Bell et al. 2023.
    """
    check_run(run, model)
    check_instance(options, "options", LedgerOptions)
    rows = as_rows(x, "x").to(dtype=torch.float64, device=torch.device("cpu"))
    if isinstance(by, str):
        check_choice(by, "by", ("example", "step", "layer"), hint="pass by=labels for one group per training example")
    T = len(run)
    start, stop = read_steps(options.steps, T)
    verify_model(run, model, loss=loss, forward=forward)
    coefficients, averaged = None, {}
    if options.final_weights == "average" and (start, stop) == (0, T):
        coefficients, averaged = average_coefficients(run), run.averaged()
    elif options.final_weights != "last":
        raise InputError(
            f"final_weights={options.final_weights!r}, steps={options.steps}",
            expected='"last", or "average" for the whole run',
            hint="leave steps out, or explain the last weights",
        )
    first = run.steps[0]
    moved_names, autocasts = set(), set()
    for step in run.steps:
        moved_names.update(name for group in step.groups for name in group["parameters"])
        autocasts.add(step.autocast)
    parameters = [name for name in run.parameters if name in moved_names]
    eval_network = Network(model, rows, parameters=parameters, forward=forward)
    train_network = Network(
        model, load_batch(run, first).rows, parameters=parameters, forward=forward, evaluating=first.evaluating
    )
    target_functions = as_target_functions(target, labels, rows.n, eval_network.n_outputs)
    kept_states = [run.checkpoint(t).model for t in dict.fromkeys((run.kept[0], run.kept[-1]))] if run.kept else []
    tolerance, inner_dtype = reachable_tolerance(eval_network, rows, kept_states, options.tolerance, T)
    per_example = per_example_loss(run.loss if loss is None else loss)
    n = number_of_examples(options.data, 1 + max(int(step.examples.max()) for step in run.steps))
    history = _empty_history(by, (rows.n, T, n, len(target_functions.names))) if options.history else None
    advance = step_counter(progress, "ledger", 2 * T)
    tracer = RunTracer(run, model, train_network, per_example, loss, forward, advance)
    setup = SweepSetup(
        run.optimizer,
        T,
        range(start, stop),
        train_network,
        eval_network,
        rows,
        target_functions,
        per_example,
        replace(options, tolerance=tolerance),
        coefficients,
        advance,
    )
    target_values = _TargetValues(setup, averaged)
    sources: tuple[str, ...] = ()
    if isinstance(by, str) and by != "layer":
        backward_sweep = BackwardSweep(
            setup, n_sources=n if by == "example" else T, by_step=by == "step", history=history
        )
        for traced in tracer.trace_backward():
            if coefficients is not None and traced.stop == T:
                backward_sweep.start_from_average(traced.states[-1], averaged, coefficients)
            backward_sweep.sweep(traced)
            target_values.add(traced)
        entries = backward_sweep.finish()
    else:
        groups = read_groups(by, parameters, n)
        by, sources = "layer" if groups.example_groups is None else "group", groups.names
        grouped_sweep = GroupedSweep(setup, groups)
        for traced in tracer.trace_forward():
            grouped_sweep.add_steps(traced)
            target_values.add(traced)
            if coefficients is not None and traced.stop == T:
                grouped_sweep.add_average(traced.states[-1], averaged)
        entries = grouped_sweep.entries
    initial, final = target_values.values_by_step[start], target_values.values_by_step[stop]
    sum_of_terms = entries.contributions.sum(1) + entries.decay + entries.rounding + target_values.buffers
    training_state = (
        {name: value for name, value in kept_states[0].items() if name in parameters} if kept_states else {}
    )
    result = Ledger(
        entries.contributions,
        initial,
        final,
        entries.decay,
        entries.rounding,
        target_values.buffers,
        final - initial - sum_of_terms,
        entries.residuals,
        entries.evaluations,
        target_functions.names,
        run.tape.head,
        by,
        sources,
        history,
        tolerance,
        dtype_name(inner_dtype),
        training_dtype(training_state, autocasts),
    )
    check_gradients_add_up(result.residual - result.residuals.sum(0), result.residual_limit)
    return result


class _TargetValues:
    """Values of the target functions before and after the explained steps, and their change caused by buffers."""

    def __init__(self, setup: SweepSetup, averaged: dict[str, Tensor]) -> None:
        self.setup, self.averaged = setup, averaged
        self.values_by_step: dict[int, Tensor] = {}  # number of steps -> (m, k)
        self.buffers = torch.zeros(setup.rows.n, len(setup.target_functions.names), dtype=torch.float64)

    def add(self, traced: TracedSteps) -> None:
        """Add the effect of buffers in these steps, and store the target values at the ends; calls may come in any order."""
        steps = self.setup.steps
        for t, (step, (before, after)) in enumerate(
            zip(traced.steps, pairwise(traced.states), strict=True), traced.start
        ):
            if step.buffers_changed and t in steps:
                self.buffers += self._effect_of_buffers(before, after)
        for t, state in enumerate(traced.states, traced.start):
            if t in (steps.start, steps.stop):
                self.values_by_step[t] = self._values(state)
            if self.averaged and t == self.setup.n_steps:
                self.buffers += self._effect_of_buffers(state, self.averaged)
                self.values_by_step[t] = self._values(self.averaged)

    def _effect_of_buffers(self, before: dict[str, Tensor], after: dict[str, Tensor]) -> Tensor:
        """Return the change of k target functions of m rows, (m, k), if the buffers change at the weights after the step."""
        names = self.setup.eval_network.parameters
        old_buffers_state = {name: (after if name in names else before)[name] for name in before}
        return self._values(after) - self._values(old_buffers_state)

    def _values(self, state: dict[str, Tensor]) -> Tensor:
        self.setup.eval_network.set_state(state)
        return self.setup.target_functions.values(
            self.setup.eval_network.outputs(self.setup.rows), torch.arange(self.setup.rows.n)
        )


def _empty_history(by: str | ArrayLike | Sequence[str], shape: tuple[int, int, int, int]) -> Tensor:
    """Return zeros of shape (rows, steps, examples, outputs) in float64.

    Raises:
        InputError: the sources are not examples, or the history is too large.
    """
    n_bytes = 8 * math.prod(shape)
    if not isinstance(by, str) or by != "example" or n_bytes > MAX_HISTORY:
        raise InputError(
            f"history=True with (rows, steps, examples, outputs) = {shape}, {n_bytes / 2**20:,.0f} MiB,"
            f" by={by if isinstance(by, str) else 'group'!r}",
            expected=f'by="example", and at most {MAX_HISTORY // 2**20:,} MiB',
            hint="take fewer rows, or a target= (one output)",
        )
    return torch.zeros(shape, dtype=torch.float64)
