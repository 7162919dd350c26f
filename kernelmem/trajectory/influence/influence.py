r"""Influence of training examples: derivative of the trained network with respect to the weight of an example's loss.

Give the loss of example i the weight 1 + ε in every batch that it is in, the divisor of the batch unchanged, and train again:
the same first weights, batches, masks and hyper-parameters. Then

    influence_i(x) = d φ(f(x; w_T)) / dε at ε = 0,

φ the target. It is the exact derivative of the recorded program, through momentum, moments and clipping
(:mod:`kernelmem.trajectory.influence.unrolled`), in float64 at the recorded weights. ε = −1 leaves the example out; to first
order its effect is −influence_i.

Batch statistics and running statistics of batch normalization move with the weights. Held constant: batches and their
order, inputs, hyper-parameters, loss weights, dropout masks, and all other buffers.

Source: Hara, Nitanda and Maehara 2019.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from textwrap import fill
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, nn

from kernelmem.core.batches import Batch, Rows, as_rows
from kernelmem.core.checks import ArrayLike, as_count, check_choice, check_instance
from kernelmem.core.errors import InputError
from kernelmem.core.files.result_files import Result
from kernelmem.core.models.torch_func import exclusive
from kernelmem.core.options import Progress
from kernelmem.recording.gradient_check import Forward
from kernelmem.recording.run import Run
from kernelmem.training.losses import Loss
from kernelmem.trajectory.argument_checks import check_row_and_output, number_of_examples, step_counter
from kernelmem.trajectory.influence.baselines import last_checkpoint, tracin, tracin_of_itself
from kernelmem.trajectory.influence.finite_difference import check_influences, random_directions
from kernelmem.trajectory.influence.replay_check import ReplayCheck, check_by_replays
from kernelmem.trajectory.influence.replayed import Replay
from kernelmem.trajectory.influence.training_program import TrainingProgram, load_program
from kernelmem.trajectory.influence.unrolled import CLIPS, OptimizerTrace, trace_states, unroll
from kernelmem.trajectory.network.shared_passes import with_separate_passes_if_needed
from kernelmem.trajectory.targets import TargetFunctions, TargetLike, as_target_functions

if TYPE_CHECKING:
    import pandas as pd

MIN_REPLAYS, MAX_REPLAYS = 3, 1000
Method = Literal["unrolled", "tracin", "last"]
QUESTIONS: dict[str, str] = {
    "unrolled": "exact derivative of the recorded training with respect to an example's weight: what would change if it"
    " weighed more (what it contributed to the training as recorded: km.ledger)",
    "tracin": "baseline (TracIn): gradient products along the run times learning rates; every optimizer is treated as"
    " plain gradient descent, and the effect of later steps on a change is left out",
    "last": "baseline: gradient products at the last weights, in units without a learning rate",
}


@dataclass(frozen=True, eq=False, repr=False)
class Influence(Result):
    """Influence of n training examples on k functions φ of m rows: float64; positive if more of the example raises φ."""

    influence: Tensor  # (m, n, k): dφ/dε
    names: tuple[str, ...]  # names of the k functions
    method: str  # "unrolled", or a baseline: "tracin", "last"
    tape: str = ""  # hash of the recorded run
    derivative_error: float | None = None  # relative, against a finite difference of the training; None: a baseline
    replays: ReplayCheck | None = None  # agreement with replays without examples; None: not computed, or a baseline

    shapes: ClassVar[Mapping[str, str]] = {"influence": "mnk", "names": "k"}

    @property
    def leave_one_out(self) -> Tensor:
        """Change of φ without the example, to first order: −influence, (m, n, k).

        Leaving an example out is a large step, and a training that is not smooth does not follow its derivative at all:
        ``replays`` says how well it does (:attr:`trusted`).
        """
        return -self.influence

    @property
    def trusted(self) -> bool | None:
        """True if replays without examples agree with the influences (:class:`ReplayCheck`); None: not computed."""
        return None if self.replays is None else self.replays.trusted

    @property
    def question(self) -> str:
        """Description of the quantity that the method computes."""
        return QUESTIONS[self.method]

    def top(self, row: int, n: int = 10, *, output: int = 0) -> list[tuple[int, float]]:
        """Return the n examples with the largest |influence| on one output of a row, largest first: (example, influence).

        Raises:
            InputError: ``row`` or ``output`` is out of range, or ``n`` is below 1.
        """
        check_row_and_output(row, output, len(self.influence), len(self.names))
        n = as_count(n, "n")
        values = self.influence[row, :, output]
        return [(int(i), float(values[i])) for i in values.abs().argsort(descending=True, stable=True)[:n]]

    def to_frame(self) -> "pd.DataFrame":
        """Return one row per row of x, example and output."""
        import pandas as pd  # slow to import

        m, n, _ = self.influence.shape
        index = pd.MultiIndex.from_product([range(m), range(n), self.names], names=["row", "example", "output"])
        return pd.DataFrame({"influence": self.influence.flatten().numpy()}, index=index).reset_index()

    def __str__(self) -> str:
        """Return a text that names the numbers of examples, rows and outputs, the method, and the largest influence."""
        m, n, k = self.influence.shape
        size = self.influence.abs()
        return "\n".join(
            [
                f"influence of {n:,} training examples on {m} row{'s' * (m != 1)}, {k} output{'s' * (k != 1)}"
                f" (method: {self.method})",
                f"largest |influence| {float(size.max()):.3g}, median {float(size.median()):.3g}",
                fill(self.question, 80),
                *(
                    []
                    if self.derivative_error is None
                    else [
                        "finite difference of the training along a random direction: relative error"
                        f" {self.derivative_error:.1g}"
                    ]
                ),
                *([] if self.replays is None else [str(self.replays)]),
            ]
        )

    @exclusive()
    @with_separate_passes_if_needed
    def check(
        self,
        run: Run,
        model: nn.Module,
        x: Batch,
        *,
        target: TargetLike = None,
        labels: ArrayLike | None = None,
        loss: Loss | None = None,
        forward: Forward | None = None,
        options: "InfluenceOptions | None" = None,
        progress: Progress = None,
    ) -> ReplayCheck:
        """Replay the recorded training without examples, and compare the changes of the outputs with these influences.

        Arguments are those of the call of :func:`influence` that gave this result; ``options.replays`` (32 if no options
        are passed) is the number of replays of each kind. Baselines can be checked too; their sizes have no unit.

        Raises:
            InputError: another run, other rows or another target than those of the influences, or fewer than three replays.

        Cost: 2 · replays + 1 times a gradient of every batch.
        """
        options = InfluenceOptions(replays=32) if options is None else options
        check_instance(options, "options", InfluenceOptions)
        as_count(options.replays, "replays", minimum=MIN_REPLAYS)
        rows = as_rows(x, "x").to(dtype=torch.float64, device=torch.device("cpu"))
        program = load_program(run, model, rows, loss=loss, forward=forward)
        target_functions = as_target_functions(target, labels, rows.n, program.prepared.n_outputs)
        found = (program.tape, rows.n, target_functions.names)
        if found != (self.tape, len(self.influence), self.names):
            raise InputError(
                f"run, rows and target {found} for influences of {(self.tape, len(self.influence), self.names)}",
                expected="the run, the rows and the target that the influences were computed for",
                hint="pass the arguments of the call of km.influence",
            )
        advance = step_counter(progress, "replays", (2 * options.replays + 1) * len(program))
        replay = Replay(program, rows, target_functions, clip=options.clip)
        return check_by_replays(replay, self.influence, options.replays, advance)


@dataclass(frozen=True)
class InfluenceOptions:
    """Options of :func:`influence` and :func:`self_influence`.

    Raises:
        InputError: an unknown ``clip``, a ``chunk`` below 1.
    """

    data: tuple[Batch, ArrayLike] | None = None
    """(x, y) of all training examples, for their number; None: the examples that the run used."""
    clip: Literal["norm", "fixed"] | None = None
    """Meaning of a recorded gradient factor below 1. "norm": that of ``clip_grad_norm_`` over all gradients, which moves
    with them. "fixed": a number that does not depend on them (loss scaling), or a clipping factor to be kept constant.
    None: read from the run: clipping if these steps had gradients of one norm, fixed if they had one factor, refused
    otherwise."""
    chunk: int | None = None
    """Number of rows that are carried back together; None: all rows."""
    replays: int = 8
    """Number of replays without one example, and as many without half of the examples, which are compared with the
    influences; 0: no comparison, otherwise 3 to 1000. Baselines are compared by :meth:`Influence.check` only, and
    :func:`self_influence`, which returns a tensor, is not compared."""

    def __post_init__(self) -> None:
        check_choice(self.clip, "clip", CLIPS, hint="leave clip out")
        if self.chunk is not None:
            as_count(self.chunk, "chunk")
        if as_count(self.replays, "replays", minimum=0, maximum=MAX_REPLAYS) in range(1, MIN_REPLAYS):
            raise InputError(
                f"replays={self.replays}",
                expected=f"0, or at least {MIN_REPLAYS}: fewer have no rank correlation",
                hint="leave replays out, or pass replays=0 for no comparison",
            )


@exclusive()
@with_separate_passes_if_needed
def influence(
    run: Run,
    model: nn.Module,
    x: Batch,
    *,
    target: TargetLike = None,
    labels: ArrayLike | None = None,
    method: Method = "unrolled",
    loss: Loss | None = None,
    forward: Forward | None = None,
    options: InfluenceOptions = InfluenceOptions(),
    progress: Progress = None,
) -> Influence:
    r"""Compute d φ(f(x; w_T)) / dε for the weight 1 + ε of every training example's loss in the recorded run.

    Args:
        run: written by :class:`Recorder`.
        model: the module that was trained, in any state; never changed.
        x: m rows; evaluated in eval mode.
        target: φ: None (every output), "margin", "loss", "log_probability", ("logit", c), or a callable (outputs, labels)
            -> (m,). k = 1 except for None.
        labels: (m,) integers, if ``target`` needs them.
        method: "unrolled", the derivative itself; or a baseline with the same sign: "tracin" (Pruthi et al. 2020, every
            recorded step a checkpoint) or "last" (gradient products at the last weights).
        loss: the per-example loss, if the run was recorded with a callable.
        forward: maps (model, batch) to (n, C) outputs.
        options: number of examples, gradient clipping, and chunks.
        progress: called with (steps done, steps in all).

    Returns:
        Influence: (m, n, k) in float64.

    Raises:
        InputError: a model, loss or forward other than the recorded one, an optimizer whose update is not known, rows
            that the model does not take, examples beyond ``data``, gradient factors that ``clip=None`` cannot classify.
        UnsupportedModelError, VerificationError: an operation without a second derivative; rows that are mixed in
            eval mode; influences that differ from a finite difference of the training along a random direction.

    The derivative is exact, and says nothing of finite changes if the training is not smooth: with large learning rates or
    Adam's small eps, kinks and curvature turn a small change of weights into a large one. The result is therefore compared
    with replays of the training without examples (``result.replays``, ``result.trusted``; more by :meth:`Influence.check`).

    Cost: with D = m·k directions, T · D Hessian-vector products of a batch (each about two gradients of it), and for each
    chunk of rows a gradient of every batch; memory D·P numbers per chunk for the weights and for each tensor of the
    optimizer's state, and T·P for the run itself and for each of these. Never n·P. The replays add 17 gradients of every
    batch (``options.replays``).

    Source: Hara, Nitanda and Maehara 2019; state of adaptive optimizers and clipping: derived here.
    """
    rows = as_rows(x, "x").to(dtype=torch.float64, device=torch.device("cpu"))
    check_instance(options, "options", InfluenceOptions)
    check_choice(method, "method", tuple(QUESTIONS))
    program = load_program(run, model, rows, loss=loss, forward=forward)
    target_functions = as_target_functions(target, labels, rows.n, program.prepared.n_outputs)
    n = number_of_examples(options.data, program.n_recorded)
    values = torch.empty(rows.n, n, len(target_functions.names), dtype=torch.float64)
    check: float | None = None
    n_replays = options.replays if method == "unrolled" else 0
    n_sweeps = _n_sweeps(method, rows.n, options) + (2 * n_replays + 1 if n_replays else 0)
    advance = step_counter(progress, "influence", n_sweeps * len(program))
    for row_indices, influence_block, error in _influence_by_chunk(
        program, rows, target_functions, n, method, options, advance
    ):
        values[row_indices], check = influence_block, error
    replays = None
    if n_replays:
        replay = Replay(program, rows, target_functions, clip=options.clip)
        replays = check_by_replays(replay, values, options.replays, advance)
    return Influence(values, target_functions.names, method, program.tape, check, replays)


@exclusive()
@with_separate_passes_if_needed
def self_influence(
    run: Run,
    model: nn.Module,
    x: Batch,
    *,
    target: TargetLike = None,
    labels: ArrayLike | None = None,
    method: Method = "unrolled",
    loss: Loss | None = None,
    forward: Forward | None = None,
    options: InfluenceOptions = InfluenceOptions(chunk=64),
    progress: Progress = None,
) -> Tensor:
    """Compute the influence of every training example on itself, (n, k) in float64: the diagonal of :func:`influence`.

    x are all training examples in the order of the recorded indices (``options.data`` is not used), ``labels`` those of
    ``target``. By default 64 rows are carried back together. Other arguments, errors and source are those of
    :func:`influence`.

    Cost: that of n rows, T · n · k Hessian-vector products, in n / chunk sweeps; memory chunk · k · P numbers. "tracin": k
    derivatives for each row and step that uses it.
    """
    rows = as_rows(x, "x").to(dtype=torch.float64, device=torch.device("cpu"))
    check_instance(options, "options", InfluenceOptions)
    check_choice(method, "method", tuple(QUESTIONS))
    program = load_program(run, model, rows, loss=loss, forward=forward)
    target_functions = as_target_functions(target, labels, rows.n, program.prepared.n_outputs)
    n = number_of_examples((rows, range(rows.n)), program.n_recorded)
    if method == "tracin":
        advance = step_counter(progress, "influence", len(program))
        return tracin_of_itself(program, rows, target_functions, advance=advance)
    values = torch.empty(n, len(target_functions.names), dtype=torch.float64)
    advance = step_counter(progress, "influence", _n_sweeps(method, rows.n, options) * len(program))
    for row_indices, influence_block, _ in _influence_by_chunk(
        program, rows, target_functions, n, method, options, advance
    ):
        values[row_indices] = influence_block[torch.arange(len(row_indices)), row_indices]
    return values


def _n_sweeps(method: str, n_rows: int, options: InfluenceOptions) -> int:
    """Return how many times :func:`_influence_by_chunk` goes through the steps of the run."""
    n_chunks = math.ceil(n_rows / (options.chunk or n_rows))
    return {"unrolled": 2 + n_chunks, "tracin": n_chunks, "last": 0}[method]


def _influence_by_chunk(
    program: TrainingProgram,
    rows: Rows,
    target_functions: TargetFunctions,
    n: int,
    method: str,
    options: InfluenceOptions,
    advance: Callable[[int], None],
) -> Iterator[tuple[Tensor, Tensor, float | None]]:
    """Yield, for each chunk of rows, their indices, the influence of n examples on k functions (rows, n, k), and the check.

    The check is that of the last chunk, None before: the error against a finite difference (:func:`check_influences`).
    """
    chunks = torch.arange(rows.n).split(options.chunk or rows.n)
    trace: OptimizerTrace | None = None
    if method == "unrolled":
        trace = trace_states(program, clip=options.clip, advance=advance)
    directions = random_directions(n)
    predicted = torch.empty(rows.n, len(target_functions.names), directions.shape[1], dtype=torch.float64)
    check = None
    for row_indices in chunks:
        if trace is not None:
            tangents, statistics = program.tangents(len(program), rows, target_functions, row_indices)
            values = unroll(program, trace, tangents, statistics, n_examples=n, advance=advance)
        elif method == "tracin":
            values = tracin(program, rows, target_functions, row_indices, n_examples=n, advance=advance)
        else:
            values = last_checkpoint(program, rows, target_functions, row_indices, n_examples=n)
        predicted[row_indices] = (values @ directions).unflatten(0, (len(row_indices), -1))
        if trace is not None and int(row_indices[-1]) == rows.n - 1:
            check = check_influences(program, trace, rows, target_functions, directions, predicted, advance)
        yield row_indices, values.unflatten(0, (len(row_indices), -1)).transpose(1, 2), check
