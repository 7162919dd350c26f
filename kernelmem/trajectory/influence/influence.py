r"""Influence of training examples: what the network would be if an example had weighed more in its training.

Give the loss of example i the weight 1 + ε in every batch that it is in, the divisor of the batch unchanged, and train again:
the same first weights, batches, masks and hyper-parameters. Then

    influence_i(x) = d φ(f(x; w_T)) / dε at ε = 0,

φ the target. It is the exact derivative of the recorded program, through momentum, moments and clipping
(:mod:`kernelmem.trajectory.influence.unrolled`), in float64 at the recorded weights. ε = −1 leaves the example out, of which −influence_i is
the estimate to first order.

Batch statistics and running statistics of batch normalization move with the weights. What is held fixed: batches and their
order, inputs, hyper-parameters, loss weights, dropout masks, and all other buffers.

Source: Hara, Nitanda and Maehara 2019.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from kernelmem.core.atomic_files import write_file
from kernelmem.core.batches import Rows, as_rows
from kernelmem.core.checks import as_labels
from kernelmem.core.errors import FileCorruptError, InputError
from kernelmem.recording.run import Run
from kernelmem.trajectory.argument_checks import check_place, number_of_examples
from kernelmem.trajectory.influence.baselines import last_checkpoint, tracin
from kernelmem.trajectory.influence.training_program import Program, load_program
from kernelmem.trajectory.influence.unrolled import CLIPS, Unrolled, trace_states, unroll
from kernelmem.trajectory.targets import Explained, explained

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Influence", "influence", "self_influence"]

FORMAT = "kernelmem influence 1"
QUESTIONS = {
    "unrolled": "what would change if this example weighed more: the exact derivative of the recorded training by its"
    " weight; the ledger answers another question: what this example did in the training that took place",
    "tracin": "a baseline (TracIn): products of gradients along the run times learning rates, which take every optimizer for"
    " plain gradient descent and leave out what later steps made of a change",
    "last": "a baseline: products of gradients at the last weights, in units without a learning rate",
}


@dataclass(frozen=True)
class Influence:
    """Influence of n training examples on k functions of m rows: float64; positive where more of the example raises φ."""

    influence: Tensor  # (m, n, k): dφ/dε
    names: tuple[str, ...]  # of the k
    method: str  # "unrolled", or a baseline: "tracin", "last"
    tape: str = ""  # the hash that the recorded run ends with

    @property
    def leave_one_out(self) -> Tensor:
        """The change of φ without the example, to first order: −influence, (m, n, k).

        Leaving an example out is a large step: ranks survive it better than sizes.
        """
        return -self.influence

    @property
    def question(self) -> str:
        """Which question the numbers answer."""
        return QUESTIONS[self.method]

    def top(self, row: int, n: int = 10, *, output: int = 0) -> list[tuple[int, float]]:
        """The n examples with the largest |influence| on one row's output: (example, influence), largest first.

        Raises:
            InputError: no such row or output.
        """
        check_place(row, output, len(self.influence), len(self.names))
        own = self.influence[row, :, output]
        return [(int(i), float(own[i])) for i in own.abs().argsort(descending=True, stable=True)[:n]]

    def to_frame(self) -> "pd.DataFrame":
        """One line for each row, output and example."""
        import pandas as pd  # slow to import

        m, n, _ = self.influence.shape
        index = pd.MultiIndex.from_product([range(m), range(n), self.names], names=["row", "example", "output"])
        return pd.DataFrame({"influence": self.influence.flatten().numpy()}, index=index).reset_index()

    def save(self, path: str | Path) -> Path:
        """Write a .safetensors file, with the method and the hash of the run."""
        metadata = {"names": json.dumps(self.names), "method": self.method, "tape": self.tape, "format": FORMAT}
        return write_file(path, safetensors.torch.save({"influence": self.influence.contiguous()}, metadata))

    @classmethod
    def load(cls, path: str | Path) -> "Influence":
        """Read what :meth:`save` wrote.

        Raises:
            FileCorruptError: truncated, altered beyond reading, or something else.
        """
        try:
            with safetensors.safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT or metadata.get("method") not in QUESTIONS:
                    raise ValueError(f"format {metadata.get('format')}, method {metadata.get('method')}")
                found = file.get_tensor("influence")
            names = tuple(json.loads(metadata["names"]))
            if found.ndim != 3 or found.shape[2] != len(names):
                raise ValueError(f"shape {tuple(found.shape)} for {len(names)} names")
            return cls(found, names, metadata["method"], metadata["tape"])
        except (safetensors.SafetensorError, OSError, KeyError, ValueError) as error:
            raise FileCorruptError(
                f"influence file {path} ({error})",
                expected="what Influence.save wrote",
                hint="compute and save it again",
            ) from error

    def __str__(self) -> str:
        m, n, k = self.influence.shape
        size = self.influence.abs()
        return "\n".join(
            [
                f"influence of {n:,} training examples on {m} row{'s' * (m != 1)}, {k} output{'s' * (k != 1)}"
                f" (method: {self.method})",
                f"largest |influence| {float(size.max()):.3g}, median {float(size.median()):.3g}",
                self.question,
            ]
        )


def influence(
    run: Run,
    model: nn.Module,
    *,
    x: Any,
    labels: Any = None,
    target: Any = None,
    method: str = "unrolled",
    data: tuple[Any, Any] | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    forward: Callable[[nn.Module, Any], Tensor] | None = None,
    clip: str | None = None,
    chunk: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Influence:
    r"""Compute d φ(f(x; w_T)) / dε for the weight 1 + ε of every training example's loss in the recorded run.

    Args:
        run: what :class:`Recorder` wrote.
        model: the module that was trained, in any state; never changed.
        x: m rows; evaluated in eval mode.
        labels: (m,) integers, where ``target`` needs them.
        target: φ: None (every output), "margin", "loss", "log_probability", ("logit", c), or a callable (outputs, labels)
            -> (m,). k is 1 but for None.
        method: "unrolled", the derivative itself; or a baseline with the same sign, labelled as such: "tracin" (Pruthi et
            al. 2020, every recorded step a checkpoint) or "last" (the product of gradients at the last weights).
        data: (x, y) of all training examples, for their number; None: the examples that the run met.
        loss: the per-example loss, where the run was recorded with a callable.
        forward: maps (model, batch) to (n, C) outputs.
        clip: what a recorded factor below 1 on the gradients is. "norm": that of ``clip_grad_norm_`` over all gradients,
            which moves with them; "fixed": a number that does not depend on them (loss scaling), or a clipping factor to be
            held fixed. None: read from the run: clipping where these steps had gradients of one norm, fixed where they
            had one factor, refused where neither.
        chunk: rows that are carried back together; None: all.
        progress: called with (steps done, steps in all).

    Returns:
        Influence: (m, n, k) in float64.

    Raises:
        InputError: a model, loss or forward that is not the recorded one, an optimizer whose update is not known, rows
            that the model does not take, examples beyond ``data``, a factor that ``clip=None`` cannot tell.
        UnsupportedModelError, VerificationError: an operation that cannot be differentiated twice; rows that are mixed in
            eval mode.

    Cost: with D = m·k directions, T · D Hessian-vector products of a batch (each about two gradients of it), and for each
    chunk of rows a gradient of every batch; memory D·P numbers of a chunk for the weights and for each tensor of the
    optimizer's state, and T·P for the run itself and for each of these. Never n·P.

    Source: Hara, Nitanda and Maehara 2019; state of adaptive optimizers and clipping: derived here.
    """
    rows = as_rows(x, "x").to(dtype=torch.float64, device=torch.device("cpu"))
    _check(method, clip, chunk)
    program = load_program(run, model, rows, loss=loss, forward=forward)
    what = explained(
        target, None if labels is None else as_labels(labels, "labels", n=rows.n), program.prepared.n_outputs
    )
    n = number_of_examples(data, program.met)
    found = torch.empty(rows.n, n, len(what.names), dtype=torch.float64)
    for index, own in _swept(program, rows, what, n, method, clip, chunk, progress):
        found[index] = own
    return Influence(found, what.names, method, program.tape)


def self_influence(
    run: Run,
    model: nn.Module,
    *,
    data: tuple[Any, Any],
    target: Any = None,
    method: str = "unrolled",
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    forward: Callable[[nn.Module, Any], Tensor] | None = None,
    clip: str | None = None,
    chunk: int | None = 64,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Influence of every training example on itself, (n, k) in float64: the diagonal of :func:`influence` at x = data.

    ``data`` is (x, y) of all training examples in the order of the recorded indices; y are the labels of ``target`` where they
    are whole numbers. ``chunk`` rows are carried back together. The other arguments, the errors and the source are those of
    :func:`influence`.

    Cost: that of n rows, T · n · k Hessian-vector products, in n / chunk sweeps; memory chunk · k · P numbers.
    """
    rows = as_rows(data[0], "data[0]").to(dtype=torch.float64, device=torch.device("cpu"))
    _check(method, clip, chunk)
    program = load_program(run, model, rows, loss=loss, forward=forward)
    y = torch.as_tensor(data[1])
    labels = as_labels(y, "data[1]", n=rows.n) if y.ndim == 1 and not y.is_floating_point() else None
    what = explained(target, labels, program.prepared.n_outputs)
    n = number_of_examples((rows, data[1]), program.met)
    found = torch.empty(rows.n, len(what.names), dtype=torch.float64)
    for index, own in _swept(program, rows, what, n, method, clip, chunk, progress):
        found[index] = own[torch.arange(len(index)), index]
    return found


def _swept(
    program: Program,
    rows: Rows,
    what: Explained,
    n: int,
    method: str,
    clip: str | None,
    chunk: int | None,
    progress: Callable[[int, int], None] | None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Chunk by chunk: the ordinals of some rows, and their influence (rows, n, k)."""
    pieces = torch.arange(rows.n).split(chunk or rows.n)
    sweeps = {"unrolled": 1 + len(pieces), "tracin": len(pieces), "last": 0}[method]
    report = _Report(sweeps * len(program), progress)
    along: Unrolled | None = trace_states(program, clip=clip, progress=report) if method == "unrolled" else None
    for index in pieces:
        if along is not None:
            seeds, statistics = program.tangents(len(program), rows, what, index)
            own = unroll(program, along, seeds, statistics, n_examples=n, progress=report)
        elif method == "tracin":
            own = tracin(program, rows, what, index, n_examples=n, progress=report)
        else:
            own = last_checkpoint(program, rows, what, index, n_examples=n)
        yield index, own.unflatten(0, (len(index), -1)).transpose(1, 2)


class _Report:
    """Counts steps for the caller."""

    def __init__(self, total: int, progress: Callable[[int, int], None] | None) -> None:
        self.done, self.total, self.progress = 0, total, progress

    def __call__(self, more: int) -> None:
        self.done += more
        if self.progress is not None:
            self.progress(self.done, self.total)


def _check(method: str, clip: str | None, chunk: int | None) -> None:
    if method not in QUESTIONS:
        raise InputError(f"method={method!r}", expected=f"one of {', '.join(QUESTIONS)}", hint='pass method="unrolled"')
    if clip not in CLIPS:
        raise InputError(f"clip={clip!r}", expected='"norm", "fixed" or None', hint="leave clip out")
    if chunk is not None and (isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1):
        raise InputError(f"chunk={chunk!r}", expected="a whole number of rows >= 1, or None", hint="pass chunk=64")
