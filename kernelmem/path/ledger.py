r"""The exact ledger of a training run: f_T(x) − f_0(x) as a sum over training examples.

For weights w_0, ..., w_T with steps d_t = w_{t+1} − w_t, the fundamental theorem of calculus gives, with no assumption on the
learning rate,

    f_T(x) − f_0(x) = Σ_t J̄_t(x) d_t,    J̄_t(x) = ∫₀¹ J(x; w_t + s d_t) ds.

The optimizer makes d_t a linear map of the gradients of all examples met so far, given its realized statistics
(:mod:`kernelmem.path.optimizers`), so that a sweep from the last step to the first splits the change exactly:

    f_T(x) − f_0(x) = Σ_i c_i(x) + decay(x) + rounding(x) + buffers(x) + residual(x),
    c_i(x) = Σ_{s: i in batch s} (weight · clip factor / batch size) A_s(x) J(x_i; w_s)ᵀ ∂ℓ_i/∂f.

``rounding`` is what the recorded steps differ from the optimizer's formula evaluated in float64; ``buffers`` what running
statistics changed; ``residual`` what quadrature left, known for every x, output and step.

This accounts for the training that took place. What the network would have been without an example is another question.

Source: Domingos 2020 (the path kernel in the limit of small steps); Bell et al. 2023 (finite steps); the recursion through
momentum and adaptive optimizers, rounding and buffers: derived here.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from kernelmem.ground.batches import Rows, as_rows
from kernelmem.ground.checks import as_labels
from kernelmem.ground.errors import FileCorruptError, InputError
from kernelmem.path.backward import Sweep
from kernelmem.path.forward import Stretch, batch_of, stretches
from kernelmem.path.network import Network
from kernelmem.path.targets import Explained, explained
from kernelmem.runs.losses import per_example_loss
from kernelmem.runs.run import Run
from kernelmem.store.files import write_file

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Ledger", "ledger"]

TENSORS = ("contributions", "initial", "final", "decay", "rounding", "buffers", "residual", "residuals", "evaluations")


@dataclass(frozen=True)
class Ledger:
    """The change of a network's outputs on m rows in its training, line by line: float64, (m, k) but where it says."""

    contributions: Tensor  # (m, n, k): of each training example
    initial: Tensor  # before training
    final: Tensor
    decay: Tensor  # of weight decay
    rounding: Tensor  # recorded steps less the optimizer's formula
    buffers: Tensor  # of running statistics
    residual: Tensor  # what all lines together leave
    residuals: Tensor  # (T, m, k): of the quadrature of every step
    evaluations: Tensor  # (T,): tangents of a row that the quadrature took
    names: tuple[str, ...]  # of the k
    tape: str = ""  # the hash that the recorded run ends with

    @property
    def largest_residual(self) -> float:
        """The certificate: max over rows and outputs of |residual|."""
        return float(self.residual.abs().max())

    @property
    def mass(self) -> Tensor:
        """Σ_i |c_i|, (m, k)."""
        return self.contributions.abs().sum(1)

    @property
    def cancellation(self) -> Tensor:
        """Σ_i |c_i| / |Σ_i c_i|, (m, k): 1 where all examples pull one way."""
        return self.mass / self.contributions.sum(1).abs()

    def top(self, row: int, n: int = 10, *, output: int = 0) -> list[tuple[int, float]]:
        """The n examples with the largest contributions to one row's output: (example, contribution), largest first."""
        own = self.contributions[row, :, output]
        order = own.abs().argsort(descending=True)[:n]
        return [(int(i), float(own[i])) for i in order]

    def by_group(self, groups: Any) -> Tensor:
        """Contributions summed over groups of examples: (m, G, k) for groups (n,) of integers 0..G-1.

        Raises:
            InputError: not one group for each example.
        """
        groups = as_labels(groups, "groups", n=self.contributions.shape[1])
        m, _, k = self.contributions.shape
        total = torch.zeros(m, int(groups.max()) + 1, k, dtype=torch.float64)
        return total.index_add_(1, groups, self.contributions)

    def to_frame(self) -> "pd.DataFrame":
        """One line a row, output and kind: examples, decay, rounding, buffers, residual, and the change they make up."""
        import pandas as pd  # slow to import

        lines = {
            "change": self.final - self.initial,
            "examples": self.contributions.sum(1),
            "decay": self.decay,
            "rounding": self.rounding,
            "buffers": self.buffers,
            "residual": self.residual,
            "mass": self.mass,
        }
        m, k = self.initial.shape
        frame = pd.DataFrame({name: value.flatten().numpy() for name, value in lines.items()})
        frame.insert(0, "output", list(self.names) * m)
        frame.insert(0, "row", [row for row in range(m) for _ in range(k)])
        return frame

    def save(self, path: str | Path) -> Path:
        """Write all lines to a .safetensors file, with the hash of the run that they account for."""
        tensors = {name: getattr(self, name).contiguous() for name in TENSORS}
        metadata = {"names": json.dumps(self.names), "tape": self.tape, "format": "kernelmem ledger 1"}
        return write_file(path, safetensors.torch.save(tensors, metadata))

    @classmethod
    def load(cls, path: str | Path) -> "Ledger":
        """Read what :meth:`save` wrote.

        Raises:
            FileCorruptError: truncated, altered beyond reading, or no ledger.
        """
        try:
            with safetensors.safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in TENSORS}
            return cls(**tensors, names=tuple(json.loads(metadata["names"])), tape=metadata["tape"])
        except (safetensors.SafetensorError, OSError, KeyError, ValueError) as error:
            raise FileCorruptError(
                f"ledger file {path} ({error})", expected="what Ledger.save wrote", do="compute and save it again"
            ) from error

    def recomputed_residual(self) -> float:
        """The largest residual, from the lines alone: what a reader of the file can check.

        Raises:
            FileCorruptError: it is not the residual that the ledger states.
        """
        lines = self.contributions.sum(1) + self.decay + self.rounding + self.buffers
        found = self.final - self.initial - lines
        size = float(self.mass.max() + self.final.abs().max() + self.initial.abs().max())
        gap = float((found - self.residual).abs().max())
        if not gap <= 1e-12 * max(size, 1.0):
            raise FileCorruptError(
                f"a ledger whose lines leave another residual than it states, by {gap:.2g}",
                expected="lines that add up to the change",
                do="compute the ledger again",
            )
        return float(found.abs().max())

    def __str__(self) -> str:
        m, n, k = self.contributions.shape
        change = self.final - self.initial
        rows = [
            f"ledger of {m} rows, {k} output{'s' * (k != 1)}, {n:,} training examples, {len(self.residuals):,} steps",
            f"{'line':<14}{'largest |value|':>18}",
        ]
        for name, value in (
            ("change", change),
            ("examples", self.contributions.sum(1)),
            ("decay", self.decay),
            ("rounding", self.rounding),
            ("buffers", self.buffers),
            ("residual", self.residual),
        ):
            rows.append(f"{name:<14}{float(value.abs().max()):>18.3g}")
        rows.append(f"mass / |sum| of the examples: {float(self.cancellation.median()):.1f} (median)")
        rows.append("an account of the training that took place; what another training would give is another question")
        return "\n".join(rows)


def ledger(
    run: Run,
    model: nn.Module,
    *,
    x: Any,
    data: tuple[Any, Any] | None = None,
    by: Literal["example", "step"] = "example",
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
        by: "example": n contributions, of each example in all steps; "step": T of them, of all examples in each step.
        labels: (m,) integers, where ``target`` needs them.
        target: what is explained: None (every output), "margin", "loss", "log_probability", ("logit", c), or a
            callable (outputs, labels) -> (m,). k is 1 but for None.
        loss: the per-example loss, where the run was recorded with a callable.
        forward: maps (model, batch) to (n, C) outputs.
        tolerance: on the residual of the whole run; the quadrature is refined until every step has its share of it.
        order: nodes on a panel; None: chosen step by step.
        progress: called with (steps done, steps in all), 2 T of them.

    Returns:
        Ledger: contributions (m, n, k) in float64, and the other lines.

    Raises:
        InputError: an optimizer without a filter, rows the model does not take, a run without its inputs.

    Cost: for each step, nodes (1 to 3 for most) tangents of m rows and one of every example in the batch. Plain gradient
    descent: products of factors, m·k·B·(units) operations. Otherwise m·k·P·B operations, memory for m·k·P numbers; 1 GiB
    of weights and denominators are held, a longer run is traced a second time.

    Source: Domingos 2020; Bell et al. 2023.
    """
    rows = as_rows(x, "x").to(dtype=torch.float64, device=torch.device("cpu"))
    if by not in ("example", "step"):
        raise InputError(f"by={by!r}", expected='"example" or "step"', do="use one of these")
    if len(run) == 0:
        raise InputError("a run of no step", expected="at least one", do="record a step")
    first, last = run.steps[0], run.steps[-1]
    batch = batch_of(run, first)
    moved = {name for step in (first, last) for group in step.groups for name in group["parameters"]}
    parameters = [name for name in run.parameters if name in moved]
    tested = Network(model, rows, parameters=parameters, forward=forward)
    trained = Network(model, batch.rows, parameters=parameters, forward=forward, evaluating=first.evaluating)
    what = explained(target, None if labels is None else as_labels(labels, "labels", n=rows.n), tested.n_outputs)
    per_example = per_example_loss(loss or run.loss)
    n = len(data[1]) if data is not None else 1 + max(int(step.examples.max()) for step in run.steps)
    advance = _counter(progress, 2 * len(run))
    sweep = Sweep(
        run,
        trained,
        tested,
        rows,
        what,
        per_example,
        sources=n if by == "example" else len(run),
        by_step=by == "step",
        tolerance=tolerance,
        order=order,
        progress=advance,
    )
    every = torch.arange(rows.n)
    final, initial = None, torch.empty(0)
    buffers = torch.zeros(rows.n, len(what.names), dtype=torch.float64)
    for stretch in stretches(run, model, trained, loss, per_example, progress=advance):
        sweep.back(stretch)
        buffers += _buffers(stretch, tested, rows, what, every)
        initial = _values(tested, stretch.states[0], rows, what, every)
        if final is None:
            final = _values(tested, stretch.states[-1], rows, what, every)
    assert final is not None
    lines = sweep.lines
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
    )


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


def _buffers(stretch: Stretch, network: Network, rows: Rows, what: Explained, every: Tensor) -> Tensor:
    """Σ_t of what the change of buffers did, at the weights after the step."""
    total = torch.zeros(rows.n, len(what.names), dtype=torch.float64)
    names = set(network.selected)
    for step, (before, after) in zip(stretch.steps, pairwise(stretch.states), strict=True):
        if step.buffers_changed:
            mixed = {name: (after if name in names else before)[name] for name in after}
            total += _values(network, after, rows, what, every) - _values(network, mixed, rows, what, every)
    return total
