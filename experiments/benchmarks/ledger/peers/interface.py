"""What an engine is: a function from a recorded run to the lines that make up the change of the outputs."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

__all__ = ["Account", "Engine"]


@dataclass(frozen=True)
class Account:
    """The lines of steps start..stop−1."""

    contributions: Tensor  # (m, n, C): of examples, or of groups
    others: Tensor  # (m, C): all other lines together
    stop: int
    start: int = 0
    log_probabilities: bool = False  # what is explained; otherwise logits
    unattributed: float = 0.0  # largest change that earlier gradients made and that is given to no example
    evaluations: float = 0.0  # tangents of a row in a step, on average
    rounding: float = 0.0  # largest entry of that line


@dataclass(frozen=True)
class Engine:
    """The analysis, computed anew at every call, and a small one that loads what is loaded late."""

    analyze: Callable[[], Account]
    warm_up: Callable[[], object]
