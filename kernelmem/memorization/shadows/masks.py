"""Random subsets of the rows, one per model, and the seeds of the models."""

from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.checks import seed_sequence
from kernelmem.core.errors import InputError

MAX_PERIOD = 100  # models in a block of balanced masks


def draw_masks(start: int, stop: int, n_rows: int, *, share: float, sampling: str, seed: int) -> Tensor:
    """Return the training masks of the models start..stop-1, (stop - start, n_rows) bool.

    The mask of model k depends on ``seed``, k, ``n_rows`` and ``share`` only, so that more models extend an ensemble.

    "iid": each entry is True with probability ``share``; an empty subset is drawn again.
    "balanced", with share = p/q in lowest terms: model k = b q + j contains row i if the circle point
    u_i = (r_i + 1/2) / n of block b passes a whole number between u_i + j p/q and u_i + (j + 1) p/q, with r a random
    permutation per block. Among the first m models a row is then in share · m, rounded up or down; a model has
    share · n rows, rounded up or down (systematic sampling, Madow 1949).

    Raises:
        InputError: share · n_rows is below 1, or for "balanced" the share is not p/q with q at most 100.
    """
    if share * n_rows < 1:
        raise InputError(
            f"share={share:g} of {n_rows} rows",
            expected="at least one training row per model on average",
            hint=f"pass share={1 / n_rows:.3g} or more"
            if n_rows > 1
            else "pass at least two rows, of which models can leave out some",
        )
    base_seed = seed_sequence(seed, ["masks", "models"])["masks"]
    masks = np.empty((stop - start, n_rows), dtype=bool)
    if sampling == "iid":
        for k in range(start, stop):
            generator = np.random.default_rng([base_seed, k])
            while True:
                mask = generator.random(n_rows) < share
                if mask.any():
                    break
            masks[k - start] = mask
        return torch.from_numpy(masks)
    p, q = balanced_ratio(share)
    for block in range(start // q, -(-stop // q)):
        rank = np.random.default_rng([base_seed, block]).permutation(n_rows)
        for k in range(max(start, block * q), min(stop, (block + 1) * q)):
            j = k - block * q
            # u_i + j p/q in units of 1 / (2 n q), exactly
            position = q * (2 * rank + 1) + 2 * n_rows * p * j
            period = 2 * n_rows * q
            masks[k - start] = (position + 2 * n_rows * p) // period > position // period
    return torch.from_numpy(masks)


def balanced_ratio(share: float) -> tuple[int, int]:
    """Return p, q with share = p/q in lowest terms and q at most 100.

    Raises:
        InputError: there are no such numbers.

    >>> balanced_ratio(0.7), balanced_ratio(1 / 3)
    ((7, 10), (1, 3))
    """
    ratio = Fraction(share).limit_denominator(MAX_PERIOD)
    if abs(float(ratio) - share) > 1e-9 or not 0 < ratio < 1:
        raise InputError(
            f"share={share!r} with sampling='balanced'",
            expected=f"a ratio p/q with q at most {MAX_PERIOD}, such as 0.7",
            hint=f"pass share={min(max(round(share, 2), 0.01), 0.99):g}, or sampling='iid'",
        )
    return ratio.numerator, ratio.denominator


def model_seeds(seed: int, k: int) -> tuple[int, int]:
    """Return the seeds of the initial weights and of the batch order of model k."""
    base_seed = seed_sequence(seed, ["masks", "models"])["models"]
    initial, order = np.random.SeedSequence([base_seed, k]).generate_state(2, np.uint64)
    return int(initial >> np.uint64(1)), int(order >> np.uint64(1))
