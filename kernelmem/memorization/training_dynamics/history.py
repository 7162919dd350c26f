"""TrainingHistory: outputs on the training rows at checkpoints of one or several runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from kernelmem.core.checks import ArrayLike, as_labels, as_list, as_tensor, check_instance
from kernelmem.core.errors import InputError
from kernelmem.core.files.result_files import Result
from kernelmem.memorization.output_statistics import Statistic, label_statistic

MAX_STEP = 2**53


@dataclass(frozen=True, eq=False, repr=False)
class TrainingHistory(Result):
    """Outputs of R runs on the same n training rows at the same T checkpoints, and optional statistics of gradients.

    Build it from a recorded run (:func:`training_history`), in a training loop (:class:`HistoryRecorder`), or from arrays
    (:meth:`from_arrays`); :meth:`join` combines runs with other seeds.

    Attributes:
        logits: (R, T, n, C) outputs; one logit z of two classes is stored as [0, z].
        labels: (n,) int64 labels as given to the training, or (n, C) float64 targets.
        steps: (T,) int64 number of optimizer steps (or epochs) before each checkpoint, increasing.
        learning_rates: (T,) float64 learning rate at each checkpoint, or None.
        gradient_norms: (R, T, n) float64 norm of the gradient of each row's loss with respect to the weights, or None.
        input_gradient_variance: (R, n) float64 variance over checkpoints of ∂z_y/∂x, averaged over the inputs, or None.
    """

    logits: Tensor
    labels: Tensor
    steps: Tensor
    learning_rates: Tensor | None = None
    gradient_norms: Tensor | None = None
    input_gradient_variance: Tensor | None = None

    shapes: ClassVar = {"logits": "RTnC", "steps": "T"}

    def __post_init__(self) -> None:
        shape = tuple(self.logits.shape)
        if len(shape) != 4 or 0 in shape or (shape[3] < 2 and not self.labels.is_floating_point()):
            raise InputError(
                f"logits of shape {shape}",
                expected="(runs, checkpoints, rows, outputs), none of them 0, and two outputs or more for labels",
                hint="call TrainingHistory.from_arrays, which takes (checkpoints, rows, outputs) and one logit too",
            )
        R, T, n, C = shape
        expected = {
            "labels": (n, C) if self.labels.is_floating_point() else (n,),
            "steps": (T,),
            "learning_rates": (T,),
        }
        expected |= {"gradient_norms": (R, T, n), "input_gradient_variance": (R, n)}
        for name, size in expected.items():
            value = getattr(self, name)
            if value is not None and tuple(value.shape) != size:
                raise InputError(
                    f"{name} of shape {tuple(value.shape)} and logits of shape {shape}",
                    expected=f"{name} of shape {size}",
                    hint="pass arrays of the same runs, checkpoints and rows",
                )

    @classmethod
    def from_arrays(
        cls,
        logits: ArrayLike,
        labels: ArrayLike,
        *,
        steps: ArrayLike | None = None,
        learning_rates: ArrayLike | None = None,
        gradient_norms: ArrayLike | None = None,
    ) -> Self:
        """Build a history from outputs that were stored elsewhere, e.g. once per epoch in eval mode.

        Args:
            logits: (T, n, C) outputs of one run at T checkpoints, or (R, T, n, C) of R runs; C = 1 is the logit of class 1.
            labels: (n,) class indices as given to the training, or (n, C) real targets.
            steps: (T,) number of steps or epochs before each checkpoint, increasing whole numbers; None: 1, ..., T.
            learning_rates: (T,) learning rates at the checkpoints.
            gradient_norms: (T, n) or (R, T, n) norms of the gradients of the rows' losses.

        Raises:
            InputError: shapes that do not fit, NaN or infinite values, labels out of range, steps that do not increase.

        >>> history = TrainingHistory.from_arrays([[[2.0, 0.0], [0.0, 1.0]], [[3.0, 0.0], [0.0, 2.0]]], [0, 0])
        >>> tuple(history.logits.shape), history.steps.tolist(), history.statistic("margin").tolist()
        ((1, 2, 2, 2), [1, 2], [[[2.0, -1.0], [3.0, -2.0]]])
        """
        outputs = as_tensor(logits, "logits")
        outputs = outputs[None] if outputs.ndim == 3 else outputs
        if outputs.ndim != 4 or 0 in outputs.shape:
            raise InputError(
                f"logits of shape {tuple(outputs.shape)}",
                expected="(checkpoints, rows, outputs), or (runs, checkpoints, rows, outputs), none of them 0",
                hint="stack the outputs of the checkpoints along the first axis; for one logit append an axis: logits[..., None]",
            )
        outputs = as_outputs(outputs)
        classes = as_history_labels(labels, outputs.shape[2], outputs.shape[3])
        if not classes.is_floating_point():
            outputs = two_columns(outputs)
        T = outputs.shape[1]
        norms = None if gradient_norms is None else as_gradient_norms(gradient_norms)
        return cls(
            outputs,
            classes,
            torch.arange(1, T + 1) if steps is None else as_steps(steps),
            None if learning_rates is None else as_tensor(learning_rates, "learning_rates", dtype=torch.float64).cpu(),
            norms[None] if norms is not None and norms.ndim == 2 else norms,
        )

    @classmethod
    def join(cls, histories: "Sequence[TrainingHistory]") -> "TrainingHistory":
        """Return the history of all runs of several histories of the same rows, labels and steps.

        Raises:
            InputError: no history, or rows, labels, outputs or steps that differ.
        """
        parts = as_list(histories, "histories")
        for part in parts:
            check_instance(part, "histories", TrainingHistory, hint="pass a list of TrainingHistory")
        same = [p.logits.shape[1:] == parts[0].logits.shape[1:] for p in parts]
        same += [torch.equal(p.labels, parts[0].labels) and torch.equal(p.steps, parts[0].steps) for p in parts]
        if not parts or not all(same):
            raise InputError(
                f"{len(parts)} histories" + (" whose rows, labels, outputs or steps differ" if parts else ""),
                expected="at least one history, all of the same rows, labels and steps",
                hint="train the runs on the same labels in the same order, and take checkpoints at the same steps",
            )

        def joined(name: str) -> Tensor | None:
            values = [getattr(part, name) for part in parts]
            return None if any(value is None for value in values) else torch.cat(values)

        logits = torch.cat(
            [part.logits.to(torch.promote_types(part.logits.dtype, parts[0].logits.dtype)) for part in parts]
        )
        rates = [part.learning_rates for part in parts]
        first = rates[0]
        common = first is not None and all(rate is not None and torch.equal(rate, first) for rate in rates)
        return cls(
            logits,
            parts[0].labels,
            parts[0].steps,
            first if common else None,
            joined("gradient_norms"),
            joined("input_gradient_variance"),
        )

    @property
    def n_runs(self) -> int:
        """The number R of runs."""
        return len(self.logits)

    @property
    def n_checkpoints(self) -> int:
        """The number T of checkpoints."""
        return len(self.steps)

    @property
    def n_rows(self) -> int:
        """The number n of training rows."""
        return int(self.logits.shape[2])

    def statistic(self, statistic: Statistic) -> Tensor:
        """Return a statistic of the outputs at the labels, (R, T, n) float64 (see :func:`label_statistic`)."""
        return torch.stack(
            [torch.stack([label_statistic(z, self.labels, statistic) for z in run]) for run in self.logits]
        )

    def is_correct(self) -> Tensor:
        """Return whether the label has the only largest output, (R, T, n) bool; a tie is a wrong prediction.

        Raises:
            InputError: the targets are real numbers.
        """
        return self.statistic("correct") == 1

    def __str__(self) -> str:
        """Return runs, checkpoints, rows, outputs, and what is stored besides outputs."""
        R, T, n, C = self.logits.shape
        stored = [
            name
            for name in ("learning_rates", "gradient_norms", "input_gradient_variance")
            if getattr(self, name) is not None
        ]
        lines = [
            f"training history of {n:,} rows, {C} outputs: {R} run{'s' * (R != 1)}, {T} checkpoint{'s' * (T != 1)}"
            f" at step{'s' * (T != 1)} {_shortened(self.steps.tolist())}",
            f"  also stored: {', '.join(stored) or 'nothing'}",
        ]
        if not self.labels.is_floating_point():
            accuracy = self.is_correct().double().mean((0, 2))
            lines.append(
                f"  accuracy on these rows: {float(accuracy[0]):.1%} at the first checkpoint,"
                f" {float(accuracy[-1]):.1%} at the last"
            )
        return "\n".join(lines)


def as_outputs(outputs: Tensor) -> Tensor:
    """Return a copy of outputs on the CPU, in float64 if they are in float64 or integers and in float32 otherwise."""
    narrow = outputs.dtype in (torch.float32, torch.float16, torch.bfloat16)
    return outputs.to("cpu", torch.float32 if narrow else torch.float64, copy=True)


def two_columns(outputs: Tensor) -> Tensor:
    """Return outputs (..., C), with one logit z of two classes (..., 1) as [0, z]."""
    return torch.nn.functional.pad(outputs, (1, 0)) if outputs.shape[-1] == 1 else outputs


def as_history_labels(
    labels: ArrayLike, n: int, n_outputs: int, name: str = "labels", *, squared_loss: bool = False
) -> Tensor:
    """Return labels (n,) int64, or real targets (n, C) float64 if ``labels`` has the shape of the outputs, on the CPU.

    Whole numbers (n, 1) are classes, unless the training had a squared loss.

    Raises:
        InputError: labels that do not fit the rows or outputs.
    """
    tensor = labels if isinstance(labels, Tensor) else None
    if tensor is None:
        try:
            tensor = as_tensor(labels, name)
        except InputError:  # text or missing labels: as_labels has the hint that fits
            tensor = None
    if tensor is not None and tensor.is_floating_point() and tensor.ndim == 2 and tuple(tensor.shape) == (n, n_outputs):
        real = as_tensor(tensor, name, dtype=torch.float64).cpu()
        if n_outputs > 1 or squared_loss or bool((real != real.round()).any()):
            return real.clone()
    hint = "pass real targets as (n, C), in the shape of the outputs"
    return as_labels(labels, name, n=n, n_classes=max(2, n_outputs), real_hint=hint).cpu().clone()


def as_steps(steps: ArrayLike) -> Tensor:
    """Return the steps of checkpoints as (T,) int64.

    Raises:
        InputError: they are not whole numbers >= 0 that increase.
    """
    values = as_tensor(steps, "steps").cpu()
    whole = values.ndim == 1 and values.dtype != torch.bool and len(values) > 0
    if whole:
        real = values.to(torch.float64)
        whole = bool(((real == real.round()) & (real >= 0) & (real < MAX_STEP)).all()) and bool((real.diff() > 0).all())
    if not whole:
        raise InputError(
            f"steps {str(values.tolist())[:80]}",
            expected="whole numbers >= 0 that increase, one per checkpoint",
            hint="pass the number of optimizer steps (or epochs) before each checkpoint",
        )
    return values.to(torch.int64).clone()


def as_gradient_norms(values: ArrayLike) -> Tensor:
    """Return gradient norms as float64 on the CPU.

    Raises:
        InputError: a norm is negative.
    """
    norms = as_tensor(values, "gradient_norms", dtype=torch.float64).cpu()
    if norms.numel() and float(norms.min()) < 0:
        raise InputError(
            f"gradient_norms with the value {float(norms.min()):.3g}",
            expected="norms, which are >= 0",
            hint="pass the Euclidean norm of each row's gradient",
        )
    return norms


def _shortened(steps: list[int]) -> str:
    return str(steps)[1:-1] if len(steps) <= 6 else f"{steps[0]}, {steps[1]}, ..., {steps[-1]}"
