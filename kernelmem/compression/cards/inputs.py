"""Inputs on a grid of whole numbers, by rules that give the same numbers on every machine.

Centers and scales are order statistics of the rows, rounded to powers of two and multiples of them: no sum of
floating-point numbers is formed, whose last digits depend on the order of the terms.
"""

from dataclasses import dataclass

import numpy as np

from kernelmem.core import array_sha256

FRACTION_BITS = 8  # inputs are multiples of 2^-8 of the scale
LARGEST = 8  # in scales from the center
CENTER_STEPS = 8  # centers are multiples of an eighth of the scale
COMMON_SCALE = 16.0  # largest ratio of the ranges of features that share one center and scale
EXPONENT_BITS = 12  # of a scale in float64


@dataclass(frozen=True)
class InputGrid:
    """Centers and scales that map inputs to whole numbers, z = round(2^8 (x − c 2^(e−3)) / 2^e), within ±2^11.

    Attributes:
        exponents: (p,) or (1,) int64, e: logarithm of the scale, of each feature or of all.
        centers: (p,) or (1,) int64, c: center in eighths of the scale.
    """

    exponents: np.ndarray
    centers: np.ndarray

    def apply(self, x: np.ndarray) -> np.ndarray:
        """Return rows (n, p) as whole numbers, (n, p) float64."""
        centers = np.ldexp(self.centers.astype(np.float64), (self.exponents - 3).astype(np.int32))
        scaled = np.ldexp(x - centers, (FRACTION_BITS - self.exponents).astype(np.int32))
        limit = float(LARGEST << FRACTION_BITS)
        return np.rint(np.clip(scaled, -limit, limit)) + 0.0  # no negative zero

    @property
    def bits(self) -> int:
        """Length of a code of the grid: needed where the network is applied to other rows, not for the labels of these."""
        return 1 + sum(EXPONENT_BITS + _gamma_bits(int(c)) for c in self.centers)


def input_grid(x: np.ndarray) -> InputGrid:
    """Return the grid of rows (n, p): one center and scale for all features if their ranges are similar, else one for each.

    The center is near the median, the scale the power of two near the range from the 5 % to the 95 % quantile.
    """
    ranges = x.max(0) - x.min(0)
    varying = ranges[ranges > 0]
    is_common = len(varying) == 0 or float(varying.max()) <= COMMON_SCALE * float(varying.min())
    values = np.sort(x.reshape(-1, 1) if is_common else x, axis=0)
    last = len(values) - 1
    low, median, high = (values[last * k // 20] for k in (1, 10, 19))
    spread = np.where(high > low, high - low, values[-1] - values[0])
    spread[spread == 0] = 1.0
    mantissa, exponents = np.frexp(spread)
    exponents = exponents.astype(np.int64) - (mantissa < 0.75)
    centers = np.rint(np.ldexp(median, (3 - exponents).astype(np.int32)))
    limit = 2.0**60  # of a constant that is far from 0
    return InputGrid(exponents, np.clip(centers, -limit, limit).astype(np.int64))


def input_sha256(x: np.ndarray) -> str:
    """Return the SHA-256 of rows (n, p) float64, in which −0 is 0."""
    return array_sha256({"x": np.asarray(x, np.float64) + 0.0})


def _gamma_bits(value: int) -> int:
    """Return the length of the Elias gamma code of a whole number of either sign."""
    return 2 * (2 * abs(value) + 1).bit_length() - 1
