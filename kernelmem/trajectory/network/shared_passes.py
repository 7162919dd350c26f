"""Passes that rows with different weights share, and the computation that is repeated without them if it has to be."""

from collections.abc import Callable
from contextvars import ContextVar
from functools import wraps
from typing import ParamSpec, TypeVar

from kernelmem.tangents.survey import PassMismatchError

_P = ParamSpec("_P")
_R = TypeVar("_R")
_shared: ContextVar[bool] = ContextVar("shared passes", default=True)


def passes_are_shared() -> bool:
    """Return True if one pass may evaluate rows with different weights, as far as the network allows it."""
    return _shared.get()


def with_separate_passes_if_needed(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorate a function of a recorded run, so that it is repeated with one pass for each set of weights if it has to be.

    A network whose operations depend on the data may use its parameters, in a pass over some rows, in a way that the
    survey did not see; then the rows of such an operation may lie anywhere, and cannot be told apart by their weights.
    """

    @wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return function(*args, **kwargs)
        except PassMismatchError:
            token = _shared.set(False)
            try:
                return function(*args, **kwargs)
            finally:
                _shared.reset(token)

    return call
