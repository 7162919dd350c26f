"""Scores of a learner that is trained again whenever the number of known labels has grown by a factor."""

import random
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from kernelmem.compression.online.mixture import marginal_probabilities
from kernelmem.compression.online.options import OnlineOptions
from kernelmem.core import Batch, InputError, Rows, as_rows
from kernelmem.core.checks import as_tensor, describe

Train: TypeAlias = Callable[[Any, Any], Any]
"""``train(x, y)`` returns ``predict_proba``, a function of rows that returns (m, C) probabilities, or a fitted
scikit-learn classifier."""

SMALLEST_PROBABILITY = 1e-30  # a zero has no logarithm; the floors of the mixture decide what the row costs
SUM_TOLERANCE = 1e-4  # of probabilities, in float32


@dataclass(frozen=True)
class LearnerRows:
    """Rows that a learner is given as tensors, or as arrays if that is what the caller has passed."""

    rows: Rows
    arrays: bool

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.rows)

    def take(self, start: int, stop: int) -> Any:
        """Return a copy of the rows from ``start`` to ``stop``."""
        tree = self.rows.slice(start, stop)
        return tree.numpy() if self.arrays else tree

    def labels(self, labels: np.ndarray) -> np.ndarray | Tensor:
        """Return a copy of labels (n,)."""
        return labels.copy() if self.arrays else torch.from_numpy(labels.copy())


def as_learner_rows(x: Batch) -> LearnerRows:
    """Read ``x`` as rows.

    Raises:
        InputError: no rows, or rows that are not finite numbers.
    """
    return LearnerRows(as_rows(x), arrays=not isinstance(x, Tensor) and hasattr(x, "__array__"))


class LearnerScores:
    """Log-probabilities of a learner, (1, C) for each row, from the labels before the row's block."""

    names = ("learner",)

    def __init__(
        self,
        train: Train,
        rows: "LearnerRows",
        n_classes: int,
        options: OnlineOptions,
        *,
        order: np.ndarray,
        report: Callable[[int, int], object] = lambda done, total: None,
    ) -> None:
        """Cut the n rows, taken in the ``order`` (n,), into blocks.

        The first block is predicted by the marginal expert, another one by ``train(x, y)`` on the rows before it.
        ``report`` is called with (rows done, n).
        """
        self._train, self._n_classes, self._report = train, n_classes, report
        self._rows = LearnerRows(rows.rows[order], rows.arrays)
        self._blocks = _blocks(len(order), options.first_block, options.growth)

    def __len__(self) -> int:
        """Return the number n of rows."""
        return len(self._rows)

    def of_all_rows(self, labels: np.ndarray) -> np.ndarray:
        """Return the scores (1, n, C) of all rows, given the labels (n,)."""
        scores = np.empty((1, len(labels), self._n_classes))
        first = self._blocks[0][1]
        scores[0, :first] = np.log(marginal_probabilities(labels[:first], self._n_classes))
        for start, stop in self._blocks[1:]:
            scores[0, start:stop] = self._block(start, stop, labels[:start])
            self._report(stop, len(labels))
        return scores

    def n_bytes(self, *, decoding: bool) -> int:
        """Return the memory of predictions; that of the learner is not known."""
        return 8 * 3 * len(self) * self._n_classes

    def one_by_one(self) -> Generator[np.ndarray, int, None]:
        """Yield the scores (1, C) of one row after the other, and receive the label of each."""
        labels = np.zeros(len(self._rows), dtype=np.int64)
        for start, stop in self._blocks:
            block = None if start == 0 else self._block(start, stop, labels[:start])
            for i in range(start, stop):
                row = self._marginal(labels[:i]) if block is None else block[i - start]
                labels[i] = yield row[None]

    def _marginal(self, labels: np.ndarray) -> np.ndarray:
        """Return the log-probabilities (C,) of the marginal expert after ``labels``."""
        return np.log(marginal_probabilities(np.append(labels, 0), self._n_classes)[-1])

    def _block(self, start: int, stop: int, labels: np.ndarray) -> np.ndarray:
        """Train on the rows before ``start`` and return the log-probabilities (m, C) of the rows ``start`` to ``stop``."""
        if (labels == labels[0]).all():  # most classifiers cannot be trained on one class
            return np.tile(self._marginal(labels), (stop - start, 1))
        with _fixed_random_state():
            try:
                learner = self._train(self._rows.take(0, start), self._rows.labels(labels))
                classes = _classes(learner)
                predict = learner if callable(learner) else getattr(learner, "predict_proba", None)
                values = predict(self._rows.take(start, stop)) if callable(predict) else None
            except Exception as error:  # raised by the user's functions, so of any type
                raise InputError(
                    f"train(x, y) or its predictions, which raised {type(error).__name__}: {str(error)[:200]}",
                    expected="a learner of any number of rows and at least two classes",
                    hint="try predict = train(x[:20], y[:20]) and predict(x[20:30])",
                ) from error
        if values is None:
            raise InputError(
                f"train(x, y) that returned {describe(learner if predict is None else values)}"
                + " without predict_proba" * (predict is None and learner is not None),
                expected="a function predict_proba(x) that returns probabilities, or a fitted classifier that has one",
                hint="return CalibratedClassifierCV(classifier).fit(x, y), of sklearn.calibration"
                if hasattr(learner, "predict")
                else "pass train=lambda x, y: LogisticRegression().fit(x, y)",
            )
        return np.log(np.maximum(self._probabilities(values, stop - start, classes), SMALLEST_PROBABILITY))

    def _probabilities(self, values: Any, n: int, classes: np.ndarray | None) -> np.ndarray:
        """Return predicted probabilities as (n, C) float64, with a zero for each class that the learner has not seen."""
        with torch.no_grad():
            p = as_tensor(values, "predictions of the learner").detach().cpu().double().numpy()
        columns = self._n_classes if classes is None else len(classes)
        known = classes is None or (set(classes.tolist()) <= set(range(self._n_classes)))
        if p.shape != (n, columns) or not known:
            raise InputError(
                f"predictions of shape {p.shape} for {n} rows",
                expected=f"one column for each of {self._n_classes} classes, ({n}, {self._n_classes})",
                hint="return the fitted scikit-learn classifier or its method predict_proba: columns of classes that are"
                " missing among the labels are then filled with zeros",
            )
        if bool((p < 0).any()) or bool((np.abs(p.sum(1) - 1) > SUM_TOLERANCE).any()):
            raise InputError(
                f"predictions from {p.min():.3g} to {p.max():.3g} whose rows sum to {p.sum(1).min():.6g} to {p.sum(1).max():.6g}",
                expected="probabilities, each row with the sum 1",
                hint="return softmax(logits), not logits or log-probabilities",
            )
        if classes is None:
            return p
        full = np.zeros((n, self._n_classes))
        full[:, classes.astype(np.int64)] = p
        return full


def _classes(predict: object) -> np.ndarray | None:
    """Return the classes of a fitted scikit-learn classifier or of its method; None for another function."""
    classifier = predict if hasattr(predict, "predict_proba") else getattr(predict, "__self__", None)
    classes = getattr(classifier, "classes_", None)
    return None if classes is None else np.asarray(classes)


def _blocks(n: int, first: int, growth: float) -> list[tuple[int, int]]:
    """Return (start, stop) of the blocks: ends at first, first × growth, ..., n."""
    ends = [0, min(first, n)]
    while ends[-1] < n:
        ends.append(min(n, max(ends[-1] + 1, int(ends[-1] * growth))))
    return list(pairwise(ends))


@contextmanager
def _fixed_random_state() -> Iterator[None]:
    """Seed the global generators of Python, NumPy and torch (CPU), so that a decoder trains alike; restore them after."""
    python, numpy, generator = random.getstate(), np.random.get_state(), torch.default_generator  # noqa: NPY002
    torch_state = generator.get_state()
    try:
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        generator.manual_seed(0)
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        generator.set_state(torch_state)
