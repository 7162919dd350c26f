"""Bounds on the error rate: from held-out rows, from online mistakes, from the code length of a network."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.checks import as_count, as_number
from kernelmem.core.errors import InputError
from kernelmem.core.files.result_files import Result

MAX_ROWS = 10**9
MAX_BITS = 1e15
KINDS = ("held-out", "online", "weights")
"""Kinds of certificates, in the order in which they are printed: the most informative first."""
LAMBDAS = (0.1, 10.0)  # smallest and largest λ of the online certificate


class PredictedRows(Protocol):
    """Online code, or another result that tells which rows were predicted wrongly before their labels were read."""

    @property
    def wrong(self) -> Tensor:
        """(n,) bool."""
        ...


@dataclass(frozen=True, eq=False, repr=False)
class Certificate(Result):
    """An upper bound on an error rate that holds with probability at least 1 − δ over the draw of the rows.

    Attributes:
        kind: "held-out": error rate of a network on rows that it was not trained on; "online": mean error rate of the
            predictors of an online learner; "weights": error rate of a network on its training rows and its code length.
        bound: the bound, in 0..1.
        errors: number of errors k.
        n: number of rows.
        bits: length L of the code in bits; 0 for one predictor that was fixed before the rows were seen.
        delta: probability δ that the bound is wrong.
    """

    kind: Literal["held-out", "online", "weights"]
    bound: float
    errors: int
    n: int
    bits: float
    delta: float

    @property
    def meaning(self) -> str:
        """Sentence that says of what the bound speaks, and what was assumed."""
        confidence = f"with probability at least {1 - self.delta:g}, if the rows are independent draws"
        if self.kind == "online":
            return (
                f"mean error rate on new rows of the {self.n:,} predictors that the online learner went through is at"
                f" most {self.bound:.4g} {confidence} (it does not speak of the network)"
            )
        if self.kind == "held-out":
            among = f", chosen among 2^{self.bits:.4g} on these rows," if self.bits else ""
            return f"error rate of the network{among} on new rows is at most {self.bound:.4g} {confidence}"
        return (
            f"error rate on new rows of the network with a code of {self.bits:,.1f} bits is at most {self.bound:.4g}"
            f" {confidence} and the coding scheme was fixed before they were seen"
        )

    def __str__(self) -> str:
        length = f", {self.bits:,.1f} bits" if self.bits else ""
        basis = f"{self.errors:,} of {self.n:,} rows wrong{length}, delta {self.delta:g}"
        return f"{self.kind} certificate: {self.bound:.4g}  ({basis})\n  {self.meaning}"


def certificate(errors: int, n: int, *, bits: float = 0.0, delta: float = 0.05) -> Certificate:
    """Bound the error rate of a network from its errors on n rows and the length of its code, exactly.

    The bound is the largest p with Σ_{j ≤ k} C(n, j) p^j (1 − p)^{n−j} ≥ δ 2^{−L} (Occam's razor): with probability at least
    1 − δ over n independent rows it holds for all networks at once whose lengths L satisfy Kraft's inequality. The sum is
    evaluated in logarithms. ``scipy.stats.binom.logcdf`` underflows from a few hundred bits on, which makes the bound too small.

    Args:
        errors: number k of rows that the network classifies wrongly, in 0..n.
        n: number of rows, at most 10⁹. The network may have been trained on them.
        bits: length L of a prefix code of the network, including every choice made after the rows were seen; 0 for a
            network that does not depend on these rows.
        delta: probability that the bound is wrong, between 0 and 1.

    Raises:
        InputError: a count, length or probability out of range.

    Source: Langford 2005; Clopper and Pearson 1934 for L = 0. Cost: O(√n) per step of a bisection.

    >>> print(f"{certificate(20, 1400, bits=976).bound:.4f}")
    0.4255
    """
    n = as_count(n, "n", maximum=MAX_ROWS)
    errors = as_count(errors, "errors", minimum=0, maximum=n)
    bits, delta = as_number(bits, "bits", maximum=MAX_BITS), _as_delta(delta)
    return Certificate(
        "weights", _largest_rate(errors, n, math.log(delta) - bits * math.log(2)), errors, n, bits, delta
    )


def held_out_certificate(errors: int, n: int, *, candidates: int = 1, delta: float = 0.05) -> Certificate:
    """Bound the error rate of a network from its errors on n rows that it was not trained on.

    The bound is the upper end of the one-sided interval of Clopper and Pearson at level 1 − δ / ``candidates``.

    Args:
        errors: number of rows that the network classifies wrongly, in 0..n.
        n: number of held-out rows.
        candidates: number of networks (for example checkpoints) from which this one was chosen by its errors on these rows.
        delta: probability that the bound is wrong, between 0 and 1.

    Raises:
        InputError: a count or probability out of range.

    >>> print(f"{held_out_certificate(15, 397).bound:.4f}")
    0.0576
    """
    exact = certificate(errors, n, bits=math.log2(as_count(candidates, "candidates")), delta=delta)
    return Certificate("held-out", exact.bound, exact.errors, exact.n, exact.bits, exact.delta)


def online_certificate(
    mistakes: int | PredictedRows, n: int | None = None, *, n_lambdas: int = 16, delta: float = 0.05
) -> Certificate:
    """Bound the mean error rate of the n predictors of an online learner from the mistakes it made before it saw each label.

    The bound is the smallest of (1 − exp(−(λ M + ln(J / δ)) / n)) / (1 − e^{−λ}) over J values of λ, spaced evenly in ln λ from
    0.1 to 10 (an exponential martingale, and Jensen's inequality). A predictor drawn at random from the n has this error rate.
    No row is held out, and no code length enters. Predictors may depend on the rows before theirs only; that of an online
    code depends on the others as far as its kernel is divided by the mean diagonal entry of all rows, unless all entries
    are equal.

    Args:
        mistakes: number M of rows on which the most probable label, given the rows before, was wrong; or an online code.
        n: number of rows, at most 10⁹; None with an online code.
        n_lambdas: number J of values of λ.
        delta: probability that the bound is wrong, between 0 and 1.

    Raises:
        InputError: a count or probability out of range.

    Source: Cesa-Bianchi, Conconi and Gentile 2004 for the idea; the bound follows from Markov's inequality.

    >>> print(f"{online_certificate(52, 1400).bound:.3f}")
    0.057
    """
    wrong = getattr(mistakes, "wrong", None)
    if isinstance(wrong, Tensor) and wrong.dtype == torch.bool and n is None:
        mistakes, n = int(wrong.sum()), len(wrong)
    n = as_count(n, "n", maximum=MAX_ROWS)
    mistakes = as_count(mistakes, "mistakes", minimum=0, maximum=n)
    n_lambdas, delta = as_count(n_lambdas, "n_lambdas", maximum=10_000), _as_delta(delta)
    lambdas = np.geomspace(*LAMBDAS, n_lambdas)
    exponents = (lambdas * mistakes + math.log(n_lambdas / delta)) / n
    bound = float(np.min(np.expm1(-exponents) / np.expm1(-lambdas)))
    return Certificate("online", min(1.0, bound), mistakes, n, 0.0, delta)


def print_order(certificates: Iterable[Certificate]) -> list[Certificate]:
    """Return certificates in the order held-out, online, weights."""
    return sorted(certificates, key=lambda item: KINDS.index(item.kind))


def _as_delta(delta: float) -> float:
    delta = as_number(delta, "delta", maximum=1.0, exclusive=True)
    if delta == 1.0:
        raise InputError("delta=1", expected="a probability below 1", hint="pass delta=0.05")
    return delta


def _largest_rate(k: int, n: int, log_threshold: float) -> float:
    """Return the largest p at which the binomial probability of at most k in n is at least exp(log_threshold)."""
    if k == n:
        return 1.0
    # Below the mean of a binomial distribution, terms further than 5 √n from k add less than e^-48 of the sum.
    j = np.arange(max(0, k - 5 * math.isqrt(n) - 50), k + 1, dtype=np.float64)
    log_binomials = math.lgamma(n + 1) - _log_factorials(j) - _log_factorials(n - j)
    log_threshold -= (
        32 * np.finfo(np.float64).eps * math.lgamma(n + 1)
    )  # rounding makes the bound larger, never smaller
    low, high = k / n, 1.0
    for _ in range(200):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        log_terms = log_binomials + j * math.log(middle) + (n - j) * math.log1p(-middle)
        largest = float(log_terms.max())
        if largest + math.log(float(np.exp(log_terms - largest).sum())) >= log_threshold:
            low = middle
        else:
            high = middle
    return high


def _log_factorials(counts: np.ndarray) -> np.ndarray:
    from scipy.special import gammaln  # slow to import

    return gammaln(counts + 1)
