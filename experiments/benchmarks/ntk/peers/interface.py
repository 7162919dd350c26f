"""What an engine is: a function from a problem to a function from inputs to a kernel."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Engine", "TooLarge", "Unsupported", "attempt", "fits"]

Kernel = Callable[[Any], np.ndarray]  # inputs -> (n, n) or (n, n, C, C), computed anew at every call


class Unsupported(Exception):  # noqa: N818  (an answer, no mistake)
    """The engine has no way to do this; its message is the reason."""


class TooLarge(Exception):  # noqa: N818
    """The engine would need more memory than there is; its message is the estimate."""


@dataclass(frozen=True)
class Engine:
    """A way to compute the kernel, and the inputs in its own form."""

    kernel: Kernel
    inputs: Any


def fits(needed: int, free: int) -> None:
    """Refuse before the memory of the machine is exhausted.

    Raises:
        TooLarge: more than seven tenths of what is free.
    """
    if needed > 0.7 * free:
        raise TooLarge(f"needs about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")


def attempt(run: Callable[[], dict]) -> dict:
    """Return what ``run`` returns, or a status and a reason if an engine does not support a problem, or fails."""
    try:
        return run()
    except Unsupported as error:
        return {"status": "unsupported", "reason": str(error)[:300]}
    except TooLarge as error:
        return {"status": "out of memory", "reason": str(error)}
    except ImportError as error:
        return {"status": "not installed", "reason": str(error)[:300]}
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        exhausted = isinstance(error, MemoryError) or "alloc" in text or "RESOURCE_EXHAUSTED" in text
        return {"status": "out of memory" if exhausted else "failed", "reason": text[:300]}
