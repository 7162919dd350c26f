"""Calls of a user's predictor: fresh copies, a time limit, and output that is checked."""

import math
import pickle
import random
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

T = TypeVar("T")
FLOAT64_CHANGE, FLOAT32_CHANGE = 1e-9, 1e-5  # changes of probabilities up to these are rounding


class PredictorError(Exception):
    """A predictor that raised, returned something else than probabilities, or did not return in time."""


class PredictorCalls:
    """A predictor with its inputs: every call gets a fresh copy of the predictor and of its arguments.

    Attributes:
        seconds: time of the fastest call.
        rounding: change of probabilities that is attributed to rounding, from the type of the output.
    """

    def __init__(
        self, predictor: Any, data: bytes | None, x: np.ndarray | Tensor, as_tensors: bool, timeout: float
    ) -> None:
        self._predictor, self.data, self.x, self.as_tensors = predictor, data, x, as_tensors
        self.timeout, self.seconds, self.rounding = timeout, math.inf, FLOAT64_CHANGE
        self.has_sequential = callable(getattr(self.copy(), "sequential", None))

    def copy(self) -> Any:
        """Return a fresh predictor, or the user's own if it cannot be copied."""
        return self._predictor if self.data is None else pickle.loads(self.data)

    def predict(self, y: np.ndarray, x: np.ndarray | Tensor | None = None, n_classes: int | None = None) -> np.ndarray:
        """Return ``predictor(x, y)`` as (n, C) float64.

        Raises:
            PredictorError: see there.
        """
        x = copied(self.x if x is None else x)
        labels = torch.tensor(y) if self.as_tensors else y.copy()
        started = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore" if self.seconds < math.inf else "once")  # not a hundred times
            output = within(self.timeout, lambda: self.copy()(x, labels))
        self.seconds = min(self.seconds, time.perf_counter() - started)
        array, is_float32 = as_rows(output)
        self.rounding = FLOAT32_CHANGE if is_float32 else self.rounding
        if (
            array.ndim != 2
            or len(array) != len(y)
            or array.shape[1] != (n_classes or array.shape[1])
            or not array.shape[1]
        ):
            raise PredictorError(f"returned shape {array.shape}, not ({len(y)}, {n_classes or 'C'})")
        if not np.isfinite(array).all():
            rows = ~np.isfinite(array).all(1)
            raise PredictorError(
                f"returned NaN or infinite values in {rows.sum()} rows (the first is row {rows.argmax()})"
            )
        return array

    def rows(self, P: np.ndarray, y: np.ndarray) -> "np.ndarray | PredictorError":
        """Return the rows that ``predictor.sequential(x)`` yields if it receives the labels ``y``, or P without that method.

        An error of the predictor is returned.
        """
        if not self.has_sequential:
            return P
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return within(self.timeout, lambda: self._step_through(y, P.shape[1]))
        except PredictorError as error:
            return error

    def _step_through(self, y: np.ndarray, n_classes: int) -> np.ndarray:
        generator = self.copy().sequential(copied(self.x))
        rows = np.empty((len(y), n_classes))
        for i in range(len(y)):
            try:
                row, _ = as_rows(next(generator) if i == 0 else generator.send(int(y[i - 1])))
            except StopIteration:
                raise PredictorError(f"sequential ended after {i} of {len(y)} rows") from None
            if row.shape != (n_classes,) or not np.isfinite(row).all():
                raise PredictorError(f"sequential yielded {row.shape} for row {i}, not {n_classes} finite numbers")
            rows[i] = row
        return rows


def as_rows(output: object) -> tuple[np.ndarray, bool]:
    """Return what a predictor returned as float64, and whether it had the precision of float32 or less.

    Raises:
        PredictorError: not real numbers.
    """
    array = output.detach().cpu() if isinstance(output, Tensor) else output
    if isinstance(array, Tensor):
        array = array.to(torch.float32).numpy() if array.dtype == torch.bfloat16 else array.numpy()
    try:
        array = np.asarray(array)
        if array.dtype.kind not in "biuf":
            raise TypeError(f"dtype {array.dtype}")
    except (TypeError, ValueError) as error:
        raise PredictorError(
            f"returned {type(output).__name__}, no array of probabilities ({str(error)[:100]})"
        ) from None
    return array.astype(np.float64), array.dtype.kind == "f" and array.dtype.itemsize < 8


def unknown_after(y: np.ndarray, t: int, n_classes: int) -> np.ndarray:
    """Return y with the labels from t on as a decoder has them: unknown, so 0, 1, ..., C − 1 in turn."""
    labels = np.arange(len(y)) % n_classes  # all classes occur, as many learners require
    labels[:t] = y[:t]
    return labels


def copied(x: np.ndarray | Tensor) -> np.ndarray | Tensor:
    """Return a copy, so that no predictor changes the arrays of the user."""
    return x.clone() if isinstance(x, Tensor) else x.copy()


def within(seconds: float, function: Callable[[], T]) -> T:
    """Return ``function()``, which runs in a thread of its own.

    A call that does not end in time is abandoned: Python cannot stop it, and it goes on until the program ends. Random
    states and the default dtype are restored.

    Raises:
        PredictorError: the function raised, or did not end in time.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:  # reported, whatever it is
            errors.append(error)

    state = torch.get_rng_state(), np.random.get_state(), random.getstate(), torch.get_default_dtype()  # noqa: NPY002
    thread = threading.Thread(target=run, daemon=True)
    try:
        thread.start()
        thread.join(seconds)
    finally:
        torch.set_rng_state(state[0])
        np.random.set_state(state[1])  # noqa: NPY002
        random.setstate(state[2])
        torch.set_default_dtype(state[3])
    if results:
        return results[0]
    if not errors:
        raise PredictorError(f"did not return within {seconds:g} s")
    if isinstance(errors[0], PredictorError):
        raise errors[0]
    raise PredictorError(f"raised {type(errors[0]).__name__}: {' '.join(str(errors[0]).split())[:200]}") from errors[0]
