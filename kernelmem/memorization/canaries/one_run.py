"""Lower bound on the privacy loss from one training run with randomly included canaries."""

import math
from itertools import pairwise
from typing import Literal

import numpy as np
import torch

from kernelmem.core.checks import ArrayLike, as_count, as_tensor, check_choice, seed_sequence
from kernelmem.core.errors import InputError
from kernelmem.memorization.canaries.privacy_bound import PrivacyBound, as_delta, as_one_sided_level

MIN_CANARIES = 4  # of which the split chooses with two and evaluates with two
FAIR_COIN_P = 1e-6  # masks below this two-sided p-value did not come from fair coins
GRID = 32  # values of ε between which the bound with δ > 0 is bracketed


def one_run_bound(
    scores: ArrayLike,
    included: ArrayLike,
    *,
    delta: float = 0.0,
    guesses: int | Literal["split"] = "split",
    level: float = 0.95,
    seed: int = 0,
) -> PrivacyBound:
    """Return a lower bound on ε from one model whose m canaries were each included in the training set by a fair coin.

    The attacker guesses r of the m coins: the ⌈r/2⌉ canaries with the largest scores as included, the ⌊r/2⌋ with the smallest
    as not included, and abstains on the others. If v guesses are correct, the training is (ε, δ)-differentially private with
    probability at most::

        p(ε) = P[B ≥ v] + 2 m δ max_{1 ≤ i ≤ v} P[v − i ≤ B < v] / i        B ~ Binomial(r, e^ε / (1 + e^ε))

    and the bound is the smallest ε with p(ε) ≥ 1 − level. Ties are broken at random; if all scores are equal, the attacker
    abstains and the bound is 0.

    The number of guesses must not be chosen by its result. With "split", a random half of the canaries chooses it, and the
    bound is that of the other half. Trying several numbers, seeds, scores or δ and reporting the best is not covered.

    Args:
        scores: (m,) numbers, larger = more like a training example, e.g. minus the loss of each canary. They may depend on
            the trained model in any way, but not on ``included``.
        included: (m,) bool or 0/1, True where the canary was a training example. Each was decided by an independent fair
            coin; masks with exactly m / 2 true values do not satisfy this, and make the bound approximate.
        delta: δ of the guarantee, in [0, 1).
        guesses: number r of guesses in 1..m, chosen in advance; or "split".
        level: confidence level, in (0.5, 1).
        seed: seed of the split and of the order of ties.

    Returns:
        PrivacyBound: its ceiling is the bound if all r guesses were correct.

    Raises:
        InputError: NaN or infinite scores, shapes that differ, fewer than 4 canaries, masks that no fair coins give, or an
            option out of range.

    Cost: O(m log m); with δ > 0 O(1,000 m).

    Source: Steinke, Nasr and Jagielski 2023.

    >>> included = torch.arange(200) % 2 == 0
    >>> bound = one_run_bound(included.double(), included, guesses=100)
    >>> round(bound.epsilon, 3), bound.epsilon == bound.ceiling
    (3.493, True)
    """
    level, delta = as_one_sided_level(level), as_delta(delta)
    x, coins = _check(scores, included)
    m = len(x)
    if isinstance(guesses, str) or guesses is None:
        check_choice(guesses, "guesses", ("split",), hint='pass a whole number chosen in advance, or "split"')
        planned = None
    else:
        planned = as_count(guesses, "guesses", maximum=m)
    seeds = seed_sequence(seed, ["ties", "split"])
    tie_order = np.random.default_rng(seeds["ties"]).permutation(m)
    order = tie_order[np.argsort(x[tie_order], kind="stable")]  # increasing scores, tied rows in random order
    alpha = 1 - level
    if planned is None:
        chooses = np.random.default_rng(seeds["split"]).permutation(m) < m // 2
        first, order = order[chooses[order]], order[~chooses[order]]
        share = _best_share(coins[first], delta, alpha) if x.min() < x.max() else 1.0
        m = len(order)
        planned = max(1, round(share * m))
    correct = _n_correct(coins[order], planned) if x.min() < x.max() else 0
    return PrivacyBound(
        epsilon=_epsilon(m, planned, correct, delta, alpha),
        delta=delta,
        level=level,
        ceiling=_epsilon(m, planned, planned, delta, alpha),
        method="one run",
        counts={"canaries": m, "guesses": planned, "correct": correct},
    )


def _check(scores: ArrayLike, included: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return scores as float64 and masks as bool, both (m,).

    Raises:
        InputError: shapes differ, there are few canaries, a value is not 0 or 1, or no fair coins give these masks.
    """
    from scipy.stats import binomtest  # slow to import

    x = as_tensor(scores, "scores", dtype=torch.float64).cpu().numpy()
    coins = as_tensor(included, "included", dtype=torch.float64).cpu().numpy()
    if x.ndim != 1 or coins.shape != x.shape or len(x) < MIN_CANARIES:
        raise InputError(
            f"scores of shape {x.shape} and included of shape {coins.shape}",
            expected=f"one score and one mask per canary, both of shape (m,), m >= {MIN_CANARIES}",
            hint="pass one-dimensional scores and masks of the same canaries",
        )
    if not np.isin(coins, (0, 1)).all():
        raise InputError(
            "included with values other than 0 and 1",
            expected="True where the canary was a training example",
            hint="pass the mask from which the training set was made",
        )
    coins = coins.astype(bool)
    if binomtest(int(coins.sum()), len(coins)).pvalue < FAIR_COIN_P:
        raise InputError(
            f"{int(coins.sum()):,} of {len(coins):,} canaries included",
            expected="about half of them, each included by an independent fair coin",
            hint="draw the mask by torch.rand(m) < 0.5, and train again",
        )
    return x, coins


def _n_correct(coins_in_order: np.ndarray, guesses: int) -> int:
    """Return the number of correct guesses, from the masks (m,) in the order of increasing scores."""
    n_low = guesses // 2
    n_high = guesses - n_low
    return int(coins_in_order[len(coins_in_order) - n_high :].sum()) + int((~coins_in_order[:n_low]).sum())


def _best_share(coins_in_order: np.ndarray, delta: float, alpha: float) -> float:
    """Return the share of canaries to guess for which these canaries have the largest bound."""
    m = len(coins_in_order)
    numbers = np.unique(np.geomspace(1, m, 24).round().astype(int))
    bounds = [_epsilon(m, int(r), _n_correct(coins_in_order, int(r)), delta, alpha) for r in numbers]
    return float(numbers[int(np.argmax(bounds))]) / m if max(bounds) > 0 else 1.0


def _epsilon(m: int, guesses: int, correct: int, delta: float, alpha: float) -> float:
    """Return the smallest ε ≥ 0 with p(ε) ≥ alpha, 0 if that holds at 0."""
    from scipy.optimize import brentq
    from scipy.stats import beta

    if correct == 0:
        return 0.0
    accuracy = float(beta.ppf(alpha, correct, guesses - correct + 1))  # P[Binomial(r, accuracy) >= v] = alpha
    pure = max(0.0, math.log(accuracy) - math.log1p(-accuracy))
    if delta == 0 or pure == 0:
        return pure
    # The second term of p(ε) is at least 0, so the bound is at most that of δ = 0. p need not increase: the first crossing.
    grid = np.linspace(0, pure, GRID)
    for low, high in pairwise(grid.tolist()):
        if p_value(m, guesses, correct, low, delta) >= alpha:
            return low
        if p_value(m, guesses, correct, high, delta) >= alpha:
            return float(brentq(lambda e: p_value(m, guesses, correct, e, delta) - alpha, low, high))  # pyright: ignore[reportArgumentType]
    return pure


def p_value(m: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """Return p(ε), the probability of at least ``correct`` correct guesses under (ε, δ)-differential privacy, at most 1."""
    from scipy.stats import binom

    accuracy = 1 / (1 + math.exp(-epsilon))
    tail = float(binom.sf(correct - 1, guesses, accuracy))
    if delta == 0 or correct == 0:
        return tail
    below = np.cumsum(binom.pmf(np.arange(correct - 1, -1, -1), guesses, accuracy))  # P[v − i <= B < v], i = 1..v
    return min(1.0, tail + 2 * m * delta * float((below / np.arange(1, correct + 1)).max()))
