"""Collector of a training history in the user's own training loop."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernelmem.core.checks import ArrayLike, as_count, as_labels, as_tensor
from kernelmem.core.errors import InputError
from kernelmem.memorization.training_dynamics.history import (
    TrainingHistory,
    as_gradient_norms,
    as_history_labels,
    as_outputs,
    two_columns,
)


@dataclass
class _Checkpoint:
    """Outputs of the n rows at one checkpoint, filled batch by batch."""

    step: int
    logits: Tensor  # (n, C)
    seen: Tensor  # (n,) bool
    gradient_norms: Tensor | None  # (n,)
    has_input_gradients: bool


@dataclass
class _RunningVariance:
    """Mean and sum of squared deviations (n, d) of input gradients, updated one checkpoint at a time (Welford 1962)."""

    mean: Tensor
    squares: Tensor
    counts: Tensor  # (n,)

    def update(self, rows: Tensor, values: Tensor) -> None:
        """Add the gradients (b, d) of the different ``rows`` (b,)."""
        self.counts[rows] += 1
        difference = values - self.mean[rows]
        self.mean[rows] += difference / self.counts[rows, None]
        self.squares[rows] += difference * (values - self.mean[rows])


class HistoryRecorder:
    """Collects outputs of a user's own training loop, batch by batch, in any order of the rows.

    ::

        recorder = km.HistoryRecorder(y_train)
        for epoch in range(1, epochs + 1):
            for x, y, index in loader:                      # index: position of each row in the training data
                outputs = model(x)
                ...                                         # loss, backward, optimizer step
                recorder.update(epoch, outputs, index)
        history = recorder.history()

    Outputs of training batches are those of the loop (train mode, weights that move within the epoch), as AUM and
    forgetting events were defined; for other scores pass outputs of a separate pass in eval mode. Every checkpoint must
    have each row once.
    """

    def __init__(self, labels: ArrayLike) -> None:
        """Start a history of the n training rows with the labels (n,) that the training sees.

        Raises:
            InputError: ``labels`` are not class indices.
        """
        self.labels = as_labels(labels, "labels").cpu().clone()
        if not len(self.labels):
            raise InputError("labels of no rows", expected="at least one label", hint="pass the training labels")
        self._checkpoints: list[_Checkpoint] = []
        self._variance: _RunningVariance | None = None

    def update(
        self,
        step: int,
        logits: ArrayLike,
        indices: ArrayLike | None = None,
        *,
        gradient_norms: ArrayLike | None = None,
        input_gradients: ArrayLike | None = None,
    ) -> None:
        """Add the outputs of some rows at the checkpoint ``step``; an error leaves the recorder as it was.

        Args:
            step: number of optimizer steps or epochs, not below that of the last call; a larger one starts a checkpoint.
            logits: (b, C) outputs, or (b, 1) the logit of class 1.
            indices: (b,) positions of the rows in the training data; None: all n rows in their order.
            gradient_norms: (b,) norms of the gradients of the rows' losses.
            input_gradients: (b, ...) derivatives of the label's output with respect to the row's inputs.

        Raises:
            InputError: shapes that do not fit, NaN, an index that is out of range or was given at this step, a new step
                while the last checkpoint lacks rows, or a label without output.
        """
        step = as_count(step, "step", minimum=0)
        outputs = as_tensor(logits, "logits")
        if outputs.ndim != 2 or 0 in outputs.shape:
            raise InputError(
                f"logits of shape {tuple(outputs.shape)}",
                expected="(rows, outputs) of one batch",
                hint="pass the outputs of the model, (b, C); for one logit per row pass logits[:, None]",
            )
        outputs = two_columns(as_outputs(outputs))
        rows = self._check_indices(indices, len(outputs))
        as_history_labels(self.labels[rows], len(rows), outputs.shape[1])
        norms = (
            None
            if gradient_norms is None
            else self._per_row(as_gradient_norms(gradient_norms), "gradient_norms", len(rows), 1)
        )
        gradients = None
        if input_gradients is not None:
            values = as_tensor(input_gradients, "input_gradients", dtype=torch.float64).cpu()
            gradients = self._per_row(values, "input_gradients", len(rows), None).reshape(len(rows), -1)
        self._check_checkpoint(step, outputs, rows, norms is not None, gradients)
        if not self._checkpoints or self._checkpoints[-1].step != step:
            n = len(self.labels)
            empty = None if norms is None else torch.zeros(n, dtype=torch.float64)
            empty_logits = torch.zeros(n, outputs.shape[1], dtype=outputs.dtype)
            seen = torch.zeros(n, dtype=torch.bool)
            self._checkpoints.append(_Checkpoint(step, empty_logits, seen, empty, gradients is not None))
        checkpoint = self._checkpoints[-1]
        if outputs.dtype != checkpoint.logits.dtype:
            checkpoint.logits = checkpoint.logits.to(torch.float64)
        checkpoint.logits[rows] = outputs.to(checkpoint.logits.dtype)
        checkpoint.seen[rows] = True
        if checkpoint.gradient_norms is not None and norms is not None:
            checkpoint.gradient_norms[rows] = norms
        if gradients is not None:
            if self._variance is None:
                n, d = len(self.labels), gradients.shape[1]
                shapes = ((n, d), (n, d), (n,))
                mean, squares, counts = (torch.zeros(shape, dtype=torch.float64) for shape in shapes)
                self._variance = _RunningVariance(mean, squares, counts)
            self._variance.update(rows, gradients)

    def history(self, *, learning_rates: ArrayLike | None = None) -> TrainingHistory:
        """Return the history of the checkpoints so far; ``learning_rates`` (T,) are those at the checkpoints.

        Raises:
            InputError: there is no checkpoint, or the last one lacks rows.
        """
        if not self._checkpoints:
            raise InputError("recorder without checkpoints", expected="at least one", hint="call update first")
        self._check_complete()
        is_wide = any(checkpoint.logits.dtype == torch.float64 for checkpoint in self._checkpoints)
        dtype = torch.float64 if is_wide else torch.float32
        norms = [checkpoint.gradient_norms for checkpoint in self._checkpoints]
        variance = self._variance
        return TrainingHistory(
            torch.stack([checkpoint.logits.to(dtype) for checkpoint in self._checkpoints])[None],
            self.labels,
            torch.tensor([checkpoint.step for checkpoint in self._checkpoints]),
            None if learning_rates is None else as_tensor(learning_rates, "learning_rates", dtype=torch.float64).cpu(),
            torch.stack([norm for norm in norms if norm is not None])[None] if norms[0] is not None else None,
            None if variance is None else (variance.squares.mean(1) / variance.counts)[None],
        )

    def _check_indices(self, indices: ArrayLike | None, b: int) -> Tensor:
        """Return the positions of the b rows of a batch as (b,) int64.

        Raises:
            InputError: they are not b different positions; None and b is not n.
        """
        n = len(self.labels)
        if indices is None:
            if b != n:
                raise InputError(
                    f"logits of {b} rows without indices, and {n} labels",
                    expected="all rows in their order, or indices",
                    hint="pass the positions of the rows in the training data as the third argument",
                )
            return torch.arange(n)
        rows = as_tensor(indices, "indices").cpu()
        is_whole = not (rows.is_floating_point() or rows.dtype == torch.bool)
        if not is_whole or rows.shape != (b,) or not bool(((rows >= 0) & (rows < n)).all()):
            raise InputError(
                f"indices of shape {tuple(rows.shape)} and dtype {rows.dtype}".replace("torch.", "") + f" for {b} rows",
                expected=f"one whole number in 0..{n - 1} for each row of logits",
                hint="let the dataset return the position of each row with its input and label",
            )
        rows = rows.to(torch.int64)
        if len(rows.unique()) != b:
            raise InputError("indices that repeat", expected="different rows", hint="pass each row once per checkpoint")
        return rows

    def _per_row(self, values: Tensor, name: str, b: int, n_dimensions: int | None) -> Tensor:
        """Return ``values`` after checking that they have one entry for each of b rows."""
        right_dimensions = values.ndim >= 1 if n_dimensions is None else values.ndim == n_dimensions
        if not right_dimensions or len(values) != b or not values.numel():
            raise InputError(
                f"{name} of shape {tuple(values.shape)} for {b} rows",
                expected=f"({b},)" if n_dimensions == 1 else f"({b}, ...)",
                hint="pass those of the rows of logits, in the same order",
            )
        return values

    def _check_checkpoint(
        self, step: int, outputs: Tensor, rows: Tensor, with_norms: bool, gradients: Tensor | None
    ) -> None:
        """Check that a batch fits the checkpoints so far.

        Raises:
            InputError: it does not.
        """
        if not self._checkpoints:
            return
        last = self._checkpoints[-1]
        problem = hint = ""
        if step < last.step:
            problem, hint = f"step {step} after step {last.step}", "call update in the order of the training"
        elif outputs.shape[1] != last.logits.shape[1]:
            problem = f"logits with {outputs.shape[1]} outputs after {last.logits.shape[1]}"
            hint = "pass the outputs of the same model"
        elif with_norms != (last.gradient_norms is not None):
            problem, hint = "gradient_norms in some calls only", "pass gradient_norms in every call or in none"
        elif (gradients is not None) != last.has_input_gradients:
            problem, hint = "input_gradients in some calls only", "pass input_gradients in every call or in none"
        elif (
            gradients is not None and self._variance is not None and gradients.shape[1] != self._variance.mean.shape[1]
        ):
            problem, hint = f"input_gradients of {gradients.shape[1]} inputs", "pass gradients of the same inputs"
        elif step == last.step and bool(last.seen[rows].any()):
            row = int(rows[last.seen[rows]][0])
            problem, hint = f"row {row} twice at step {step}", "count epochs as steps: each row once per checkpoint"
        if problem:
            raise InputError(
                problem, expected="batches of one training run, with every row once per checkpoint", hint=hint
            )
        if step > last.step:
            self._check_complete()

    def _check_complete(self) -> None:
        last = self._checkpoints[-1]
        missing = (~last.seen).nonzero()[:, 0]
        if len(missing):
            raise InputError(
                f"checkpoint at step {last.step} without {len(missing):,} of {len(last.seen):,} rows"
                f" (the first: row {int(missing[0])})",
                expected="every row once per checkpoint",
                hint="do not drop the last batch (drop_last=False), or pass all rows in a separate pass in eval mode",
            )
