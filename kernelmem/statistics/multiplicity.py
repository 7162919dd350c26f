"""P-values adjusted for several tests: Holm and Benjamini-Hochberg."""

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.checks import ArrayLike, as_tensor
from kernelmem.core.errors import InputError


def holm(p_values: ArrayLike) -> Tensor:
    """Return p-values adjusted for the family-wise error rate, valid under any dependence.

    The i-th smallest of k is multiplied by k − i + 1, then made nondecreasing and cut at 1. Rejecting where the adjusted
    p-value is at most α rejects any true null hypothesis with probability at most α.

    Args:
        p_values: numbers (k,) in [0, 1], of all the tests that were made.

    Returns:
        float64 (k,), in the given order.

    Raises:
        InputError: another shape, NaN, or values outside [0, 1].

    Source: Holm 1979.

    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    p = _check(p_values)
    order = np.argsort(p, kind="stable")
    adjusted = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1.0)
    result = np.empty_like(adjusted)
    result[order] = adjusted
    return torch.from_numpy(result)


def benjamini_hochberg(p_values: ArrayLike) -> Tensor:
    """Return p-values adjusted for the false discovery rate, valid for independent or positively dependent tests.

    The i-th smallest of k is multiplied by k / i, then made nondecreasing from the largest down and cut at 1.

    Args:
        p_values: numbers (k,) in [0, 1], of all the tests that were made.

    Returns:
        float64 (k,), in the given order.

    Raises:
        InputError: another shape, NaN, or values outside [0, 1].

    Source: Benjamini and Hochberg 1995.

    >>> benjamini_hochberg([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.04, 0.04]
    """
    from scipy.stats import false_discovery_control  # slow to import

    return torch.from_numpy(false_discovery_control(_check(p_values)))


def _check(p_values: ArrayLike) -> np.ndarray:
    p = as_tensor(p_values, "p_values", dtype=torch.float64).cpu().numpy()
    if p.ndim != 1 or len(p) == 0 or p.min() < 0 or p.max() > 1:
        raise InputError(
            f"p_values of shape {p.shape}" + (f" between {p.min():.3g} and {p.max():.3g}" if p.size else ""),
            expected="one number in [0, 1] per test, shape (k,)",
            hint="pass the p-values of all tests that were made",
        )
    return p
