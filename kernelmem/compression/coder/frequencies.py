"""Integer frequencies of the symbols of an alphabet, from their probabilities.

The frequencies decide which bytes encode a symbol, so that encoder and decoder must compute the same integers. The only
step that depends on rounding is ``floor(p W + shift)``: :func:`margin` measures how far all ``p W + shift`` are from the
next integer, and an encoder that changes ``shift`` until the margin exceeds the rounding errors is safe.
"""

import numpy as np

from kernelmem.core import InputError
from kernelmem.core.checks import ArrayLike, as_array, as_labels, as_number

PRECISION = 16
"""Binary digits of the frequencies: they sum to 2**16 for alphabets of at most 2**12 symbols."""

SPARE_DIGITS = 4  # larger alphabets: frequencies sum to at least 2**4 times the number of symbols
MAX_SYMBOLS = 2**24
SUM_TOLERANCE = 1e-5  # of probabilities; what float32 rounds away. The frequencies sum to 2**precision exactly


def precision(n_symbols: int) -> int:
    """Return the number P of binary digits for an alphabet: frequencies sum to 2**P.

    >>> precision(10), precision(4096), precision(50_257)
    (16, 16, 20)
    """
    return max(PRECISION, (n_symbols - 1).bit_length() + SPARE_DIGITS)


def frequencies(probabilities: ArrayLike, shift: float = 0.0) -> np.ndarray:
    """Return integer frequencies (n, C) int64, every one at least 1, each row with the sum 2**P, P = ``precision(C)``.

    ``floor(p W + shift) + 1`` with W = 2**P − 2C; what is left of 2**P is added to the largest frequency, and among equal
    ones to that of the smallest index. No symbol has frequency 0, so that every symbol can be encoded.

    Args:
        probabilities: (n, C), non-negative, each row with the sum 1 (to 1e-5, the rounding of float32).
        shift: number in [0, 1), known to the decoder, that moves all ``p W`` away from integers; see :func:`margin`.

    Raises:
        InputError: not probabilities, or ``shift`` outside [0, 1).

    >>> frequencies([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]])
    array([[32769, 32766,     1],
           [    1, 65534,     1]])
    """
    scaled = _scaled(probabilities, shift)
    result = np.floor(scaled).astype(np.int64) + 1
    remainder = 2 ** precision(scaled.shape[1]) - result.sum(1)
    result[np.arange(len(result)), result.argmax(1)] += remainder
    return result


def margin(probabilities: ArrayLike, shift: float = 0.0) -> float:
    """Return the smallest distance of the numbers ``p W + shift`` that :func:`frequencies` rounds down to an integer.

    A decoder whose probabilities differ by less than ``margin / W`` computes the same frequencies. Infinite for an alphabet
    of one symbol, and without rows.

    Raises:
        InputError: as :func:`frequencies`.
    """
    scaled = _scaled(probabilities, shift)
    return float(np.abs(scaled - np.rint(scaled)).min()) if scaled.size and scaled.shape[1] > 1 else np.inf


def best_shift(probabilities: ArrayLike, n_shifts: int) -> tuple[int, float]:
    """Return the k of the shifts k / ``n_shifts`` with the largest margin, and that margin.

    Raises:
        InputError: as :func:`frequencies`.
    """
    margins = [margin(probabilities, k / n_shifts) for k in range(n_shifts)]
    best = int(np.argmax(margins))
    return best, margins[best]


def ideal_bits(symbols: ArrayLike, frequencies: np.ndarray) -> np.ndarray:
    """Return −log₂ of the frequencies of ``symbols`` (n,), divided by their sum: the bits of each symbol, (n,) float64."""
    labels = as_labels(symbols, "symbols", n=len(frequencies), n_classes=frequencies.shape[1]).cpu().numpy()
    return precision(frequencies.shape[1]) - np.log2(frequencies[np.arange(len(labels)), labels])


def _scaled(probabilities: ArrayLike, shift: float) -> np.ndarray:
    """Return ``p W + shift`` (n, C) float64 of valid probabilities."""
    shift = as_number(shift, "shift", maximum=1 - 2**-16)
    array = as_array(probabilities, "probabilities")
    if array.ndim != 2 or not 1 <= array.shape[1] <= MAX_SYMBOLS or array.dtype.kind not in "biuf":
        raise InputError(
            f"probabilities of shape {array.shape} and dtype {array.dtype}",
            expected=f"(n, C) real numbers with C from 1 to {MAX_SYMBOLS}",
            hint="pass one row of C probabilities per symbol",
        )
    p = array.astype(np.float64, copy=False)
    with np.errstate(invalid="ignore", over="ignore"):
        bad = ~((p >= 0).all(1) & (np.abs(p.sum(1) - 1) <= SUM_TOLERANCE))  # NaN compares as false
    if bad.any():
        row = int(bad.argmax())
        raise InputError(
            f"probabilities of {len(p)} rows, {int(bad.sum())} of which are not a distribution (the first is row {row},"
            f" with the sum {p[row].sum():.6g} and the smallest entry {p[row].min():.6g})",
            expected="non-negative numbers with the sum 1 in every row",
            hint="pass softmax outputs, not logits or log-probabilities",
        )
    n_symbols = p.shape[1]
    return p * (2 ** precision(n_symbols) - 2 * n_symbols) + shift
