"""Predictors of labels one after the other: from a kernel of the rows, and from a learner."""

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from kernelmem.compression.online.learner_scores import LearnerScores, Train, as_learner_rows
from kernelmem.compression.online.mixture import Scores
from kernelmem.compression.online.options import MAX_CLASSES, OnlineOptions
from kernelmem.compression.online.sources import Kernels, as_source, mixture_of
from kernelmem.core import ArrayLike, Batch, InputError
from kernelmem.core.checks import as_count, as_labels, check_callable, check_instance, describe


@dataclass(frozen=True)
class KernelPredictor:
    """Predict each label from the labels before it, by the mixture over kernel regressions of :func:`online_code`.

    ``predictor(x, y)`` returns probabilities (n, C) float64, whose row i depends on ``y[:i]`` only. All rows of ``x`` are
    used to scale the kernel to a mean diagonal entry of 1, unless it has it.

    Attributes:
        kernel_function: maps rows x to a kernel (n, n), or a list or dict of kernels, without use of labels.
        n_classes: number C of classes.
        options: grids of the mixture.

    Raises:
        InputError, NumericalError: as :func:`online_code`.

    >>> predictor = KernelPredictor(lambda x: np.minimum(x, x.T), n_classes=2)
    >>> x, y = np.array([[1.0], [2.0], [8.0], [9.0], [1.5]]), np.array([0, 0, 1, 1, 0])
    >>> predictor(x, y).argmax(1)
    array([0, 0, 0, 1, 0])
    """

    kernel_function: Callable[[Any], Kernels]
    n_classes: int
    options: OnlineOptions = field(default_factory=OnlineOptions)

    def __post_init__(self) -> None:
        check_callable(self.kernel_function, "kernel_function", ("x",))
        object.__setattr__(self, "n_classes", as_count(self.n_classes, "n_classes", maximum=MAX_CLASSES))
        check_instance(self.options, "options", OnlineOptions)

    def __call__(self, x: Any, y: ArrayLike) -> np.ndarray:
        """Return the probabilities (n, C) of all rows."""
        scores = self._scores(x)
        return _predict_all(scores, y, self.n_classes, self.options)

    def sequential(self, x: Any) -> Generator[np.ndarray, int, None]:
        """Yield the probabilities (C,) of one row after the other, and receive the label of each."""
        scores = self._scores(x)
        return mixture_of(scores, self.n_classes, self.options).predict_each(scores)

    def _scores(self, x: Any) -> Scores:
        try:
            kernels = self.kernel_function(x)
        except Exception as error:  # raised by the user's function, so of any type
            raise InputError(
                f"kernel_function(x) that raised {type(error).__name__}: {str(error)[:200]}",
                expected="a function of rows that returns their kernel (n, n)",
                hint="call kernel_function(x) on these rows alone",
            ) from error
        if callable(kernels) and not isinstance(kernels, Tensor):
            raise InputError(
                f"kernel_function(x) that returned {describe(kernels)}",
                expected="a kernel (n, n), or a list or dict of kernels",
                hint="pass a learner to LearnerPredictor",
            )
        source = as_source(kernels, None)
        return source.scores(self.n_classes, self.options, np.arange(source.n))


@dataclass(frozen=True)
class LearnerPredictor:
    """Predict each label by a learner that was trained on the labels before its block, as :func:`online_code` does.

    ``predictor(x, y)`` returns probabilities (n, C) float64, whose row i depends on ``y[:i]`` only.

    Attributes:
        train: ``train(x, y)`` returns ``predict_proba`` or a fitted scikit-learn classifier.
        n_classes: number C of classes.
        options: grids of the mixture, and blocks.

    Raises:
        InputError: as :func:`online_code`.
    """

    train: Train
    n_classes: int
    options: OnlineOptions = field(default_factory=OnlineOptions)

    def __post_init__(self) -> None:
        check_callable(self.train, "train", ("x", "y"))
        object.__setattr__(self, "n_classes", as_count(self.n_classes, "n_classes", maximum=MAX_CLASSES))
        check_instance(self.options, "options", OnlineOptions)

    def __call__(self, x: Batch, y: ArrayLike) -> np.ndarray:
        """Return the probabilities (n, C) of all rows."""
        return _predict_all(self._scores(x), y, self.n_classes, self.options)

    def sequential(self, x: Batch) -> Generator[np.ndarray, int, None]:
        """Yield the probabilities (C,) of one row after the other, and receive the label of each."""
        scores = self._scores(x)
        return mixture_of(scores, self.n_classes, self.options).predict_each(scores)

    def _scores(self, x: Batch) -> LearnerScores:
        rows = as_learner_rows(x)
        return LearnerScores(self.train, rows, self.n_classes, self.options, order=np.arange(len(rows)))


def _predict_all(scores: Scores, y: ArrayLike, n_classes: int, options: OnlineOptions) -> np.ndarray:
    """Return the probabilities (n, C) of all rows."""
    labels = as_labels(y, "y", n=len(scores), n_classes=n_classes).cpu().numpy()
    return mixture_of(scores, n_classes, options).predict_all(scores, labels).probabilities
