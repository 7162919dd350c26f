r"""The exact ledger of a training run: f_T(x) − f_0(x) as a sum over training examples.

For weights w_0, ..., w_T with steps d_t = w_{t+1} − w_t, the fundamental theorem of calculus gives, with no assumption on the
learning rate,

    f_T(x) − f_0(x) = Σ_t J̄_t(x) d_t,    J̄_t(x) = ∫₀¹ J(x; w_t + s d_t) ds.

The optimizer makes d_t a linear map of the gradients of all examples met so far, given its realized statistics
(:mod:`kernelmem.trajectory.optimizers`), so that a sweep from the last step to the first splits the change exactly:

    f_T(x) − f_0(x) = Σ_i c_i(x) + decay(x) + rounding(x) + buffers(x) + residual(x),
    c_i(x) = Σ_{s: i in batch s} (weight · clip factor / batch size) A_s(x) J(x_i; w_s)ᵀ ∂ℓ_i/∂f.

``rounding`` is what the recorded steps differ from the optimizer's formula evaluated in float64; ``buffers`` what running
statistics changed; ``residual`` what quadrature left, known for every x, output and step.

This accounts for the training that took place. What the network would have been without an example is another question.

Source: Domingos 2020 (the path kernel in the limit of small steps); Bell et al. 2023 (finite steps); the recursion through
momentum and adaptive optimizers, rounding and buffers: derived here.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kernelmem.core.batches import Rows, as_rows
from kernelmem.core.checks import as_labels
from kernelmem.core.errors import InputError
from kernelmem.recording.averaging import average_coefficients
from kernelmem.recording.run import Run
from kernelmem.recording.verify_model import verify_model
from kernelmem.training.losses import per_example_loss
from kernelmem.trajectory.argument_checks import check_quadrature, check_run, number_of_examples, read_between
from kernelmem.trajectory.ledger.backward_sweep import BackwardSweep
from kernelmem.trajectory.ledger.grouped_sweep import GroupedSweep, groups_of
from kernelmem.trajectory.ledger.result import Ledger
from kernelmem.trajectory.network.network import Network
from kernelmem.trajectory.targets import Explained, explained
from kernelmem.trajectory.trace import Stretch, Tracing, batch_of

__all__ = ["Ledger", "ledger"]

LARGEST = 2**31  # bytes of a history


def ledger(
    run: Run,
    model: nn.Module,
    *,
    x: Any,
    data: tuple[Any, Any] | None = None,
    by: Literal["example", "group", "step"] = "example",
    groups: Any = None,
    between: tuple[int, int] | None = None,
    weights: Literal["last", "average"] = "last",
    history: bool = False,
    labels: Any = None,
    target: Any = None,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    forward: Callable[[nn.Module, Any], Tensor] | None = None,
    tolerance: float = 1e-12,
    order: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Ledger:
    """Compute the ledger of a recorded run on the rows of x.

    Args:
        run: what :class:`Recorder` wrote.
        model: the module that was trained, in any state; never changed.
        x: m rows.
        data: (x, y) of all training examples, for their number; None: the examples that the run met.
        by: "example": n contributions, of each example in all steps; "step": T of them, of all examples in each step
            (what its gradients did, then and later through momentum);
            "group": G of them, in one pass forward that keeps nothing but the groups.
        groups: for by="group": (n,) integers 0..G−1 or names, one for each training example; or "layer", to split what
            all examples did by the module whose parameters they moved.
        between: explain f_b − f_a, the change from after a steps to after b, in place of that of the whole run; gradients
            of steps before a have a part in it through momentum.
        weights: "last": of the last step; "average": the averaged ones (EMA, SWA) of a run that recorded them.
        history: with by="example", keep what every example did in every step, (m, T, n, k) numbers, for pictures.
        labels: (m,) integers, where ``target`` needs them.
        target: what is explained: None (every output), "margin", "loss", "log_probability", ("logit", c), or a
            callable (outputs, labels) -> (m,). k is 1 but for None.
        loss: the per-example loss, where the run was recorded with a callable.
        forward: maps (model, batch) to (n, C) outputs.
        tolerance: on the residual of the whole run; the quadrature is refined until every step has its share of it, or
            is down to rounding (0: always that).
        order: nodes on a panel to begin with, 1..32; None: as many as were enough before. More are taken where the
            residual asks for them.
        progress: called with (steps done, steps in all), 2 T of them.

    Returns:
        Ledger: contributions (m, n, k) in float64, and the other lines.

    Raises:
        InputError: arguments that mean nothing, a model, loss or forward that is not the recorded one, an optimizer
            without a filter, rows that the model does not take. UnsupportedModelError: a model that mixes its rows in
            eval mode. VerificationError: derivatives that are not those of the outputs (detach, gradients of its own);
            weights that replay does not find again. NumericalError: outputs or targets that are NaN. FileCorruptError:
            a file of the run is missing or altered.

    Cost: for each step, nodes (1 to 3 for most) tangents of m rows and one of every example in the batch. Plain gradient
    descent: products of factors, m·k·B·(units) operations. Otherwise m·k·P·B operations, memory for m·k·P numbers; 1 GiB
    of weights and denominators are held, a longer run is traced a second time. By group: G + 2 dual passes of m rows for
    each node, whatever the number of outputs; memory for G·P numbers.

    Source: Domingos 2020; Bell et al. 2023.
    """
    check_run(run, model)
    check_quadrature(tolerance, order)
    rows = as_rows(x, "x").to(dtype=torch.float64, device=torch.device("cpu"))
    if by not in ("example", "group", "step") or (groups is None) == (by == "group"):
        raise InputError(
            f"by={by!r} with groups={'None' if groups is None else 'given'}",
            expected='"example" or "step" without groups, "group" with groups=',
            hint='pass by="group", groups=labels (one for each training example), or groups="layer"',
        )
    start, stop = between = read_between(between, len(run))
    verify_model(run, model, loss=loss, forward=forward)
    coefficients = None
    if weights == "average" and (start, stop) == (0, len(run)):
        coefficients = average_coefficients(run)
    elif weights != "last":
        raise InputError(
            f"weights={weights!r}, between={between}",
            expected='"last", or "average" of the whole run',
            hint="leave between out, or explain the last weights",
        )
    first, last = run.steps[0], run.steps[-1]
    batch = batch_of(run, first)
    moved = {name for step in (first, last) for group in step.groups for name in group["parameters"]}
    parameters = [name for name in run.parameters if name in moved]
    tested = Network(model, rows, parameters=parameters, forward=forward)
    trained = Network(model, batch.rows, parameters=parameters, forward=forward, evaluating=first.evaluating)
    what = explained(target, None if labels is None else as_labels(labels, "labels", n=rows.n), tested.n_outputs)
    per_example = per_example_loss(loss or run.loss)
    n = number_of_examples(data, 1 + max(int(step.examples.max()) for step in run.steps))
    kept = None
    if history:
        kept = _history(by, (rows.n, len(run), n, len(what.names)))
    advance = _counter(progress, 2 * len(run))
    tracing = Tracing(run, model, trained, per_example, loss, forward, advance)
    common = (run, trained, tested, rows, what, per_example)
    every = torch.arange(rows.n)
    buffers = torch.zeros(rows.n, len(what.names), dtype=torch.float64)
    averaged = {} if coefficients is None else run.averaged()
    sources: tuple[str, ...] = ()
    ends: dict[int, Tensor] = {}

    def note(stretch: Stretch) -> None:
        buffers.add_(_buffers(stretch, range(start, stop), tested, rows, what, every))
        for t, state in enumerate(stretch.states, stretch.start):
            if t in between:
                ends[t] = _values(tested, state, rows, what, every)
            if averaged and t == len(run):
                mixed = {name: (averaged if name in tested.selected else state)[name] for name in state}
                buffers.add_(_values(tested, averaged, rows, what, every) - _values(tested, mixed, rows, what, every))

    if by == "group":
        split = groups_of(groups, parameters, n)
        forth = GroupedSweep(
            *common,
            split,
            tolerance=tolerance,
            order=order,
            between=between,
            coefficients=coefficients,
            progress=advance,
        )
        for stretch in tracing.in_order():
            forth.along(stretch)
            note(stretch)
            if coefficients is not None and stretch.start + len(stretch.steps) == len(run):
                forth.to_average(stretch.states[-1], averaged)
        lines, sources = forth.lines, split.names
    else:
        size = n if by == "example" else len(run)
        back = BackwardSweep(
            *common,
            sources=size,
            by_step=by == "step",
            averaged=coefficients is not None,
            history=kept,
            tolerance=tolerance,
            order=order,
            between=between,
            progress=advance,
        )
        for stretch in tracing.backward():
            if coefficients is not None and stretch.start + len(stretch.steps) == len(run):
                back.from_average(stretch.states[-1], averaged, coefficients)
            back.back(stretch)
            note(stretch)
        lines = back.finish()
    initial, final = ends[start], ends[stop]
    if coefficients is not None:
        final = _values(tested, averaged, rows, what, every)
    explained_lines = lines.contributions.sum(1) + lines.decay + lines.rounding + buffers
    return Ledger(
        lines.contributions,
        initial,
        final,
        lines.decay,
        lines.rounding,
        buffers,
        final - initial - explained_lines,
        lines.residuals,
        lines.evaluations,
        what.names,
        run.tape.head,
        by,
        sources,
        kept,
    )


def _history(by: str, shape: tuple[int, int, int, int]) -> Tensor:
    size = 8 * math.prod(shape)
    if by != "example" or size > LARGEST:
        raise InputError(
            f"history=True of (rows, steps, examples, outputs) = {shape}, {size / 2**20:,.0f} MiB, by={by!r}",
            expected=f'by="example", and at most {LARGEST // 2**20:,} MiB',
            hint="take fewer rows, or a target= (one output)",
        )
    return torch.zeros(shape, dtype=torch.float64)


def _counter(progress: Callable[[int, int], None] | None, total: int) -> Callable[[int], None]:
    done = 0

    def advance(steps: int) -> None:
        nonlocal done
        done += steps
        if progress is not None:
            progress(done, total)

    return advance


def _values(network: Network, state: dict[str, Tensor], rows: Rows, what: Explained, every: Tensor) -> Tensor:
    network.set_state(state)
    return what.values(network.outputs(rows), every)


def _buffers(stretch: Stretch, between: range, network: Network, rows: Rows, what: Explained, every: Tensor) -> Tensor:
    """Σ_t of what the change of buffers did, at the weights after the step."""
    total = torch.zeros(rows.n, len(what.names), dtype=torch.float64)
    names = set(network.selected)
    for t, (step, (before, after)) in enumerate(
        zip(stretch.steps, pairwise(stretch.states), strict=True), stretch.start
    ):
        if step.buffers_changed and t in between:
            mixed = {name: (after if name in names else before)[name] for name in after}
            total += _values(network, after, rows, what, every) - _values(network, mixed, rows, what, every)
    return total
