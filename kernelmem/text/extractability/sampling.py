"""Sampling from a language model, and the probability that a text is among n samples."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.checks import ArrayLike, as_array, as_count, as_number, as_tensor, check_instance
from kernelmem.core.errors import InputError

MAX_QUERIES = 1e300
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Sampling:
    """A way to sample from a language model, and what counts as extracted: emitted by n samples with probability ≥ p.

    The changes are made in this order, as generation with Hugging Face models makes them.

    Attributes:
        temperature: log-probabilities are divided by it, > 0.
        top_k: number of tokens that can be sampled: those at least as probable as the k-th; None: all.
        top_p: fewest most probable tokens whose sum is at least ``top_p``; None: all.
        n: number of samples of a prompt.
        p: probability with which at least one of n samples is the text.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    n: float = 1000
    p: float = 0.5

    def __post_init__(self) -> None:
        as_number(self.temperature, "temperature", minimum=1e-6, maximum=1e6)
        if self.top_k is not None:
            as_count(self.top_k, "top_k")
        if self.top_p is not None:
            as_number(self.top_p, "top_p", exclusive=True, maximum=1.0)
        as_number(self.n, "n", minimum=1.0, maximum=MAX_QUERIES)
        _as_probability(self.p)

    def log_probs(self, log_probs: Tensor) -> Tensor:
        """Return the log-probabilities (..., V), float64, with which tokens are sampled; −inf for those that are not.

        Args:
            log_probs: log-probabilities (..., V) of the model.

        Cost: O(V log V) per row with ``top_p``, otherwise O(V).
        """
        q = (log_probs.to(torch.float64) / self.temperature).log_softmax(-1)
        if self.top_k is not None and self.top_k < q.shape[-1]:
            kth = q.topk(self.top_k, dim=-1).values[..., -1:]
            q = q.masked_fill(q < kth, -math.inf).log_softmax(-1)
        if self.top_p is not None and self.top_p < 1:
            ordered, order = q.sort(dim=-1, descending=True, stable=True)
            before = ordered.exp().cumsum(-1) - ordered.exp()  # probability of the tokens that are more probable
            beyond = before >= self.top_p
            beyond[..., 0] = False  # the most probable token is always kept
            q = q.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), -math.inf).log_softmax(-1)
        return q

    def __str__(self) -> str:
        """Return the settings in one line."""
        settings = [f"temperature {self.temperature:g}"]
        settings += [f"top-k {self.top_k}"] if self.top_k is not None else []
        settings += [f"top-p {self.top_p:g}"] if self.top_p is not None else []
        return ", ".join(settings)


def emission_probability(log_p: ArrayLike, n: float = 1.0) -> Tensor:
    """Return the probability 1 − (1 − p_z)ⁿ that at least one of n samples is a text of probability p_z, float64.

    It is computed as −expm1(n log1p(−p_z)), from log p_z: p_z = 1e-17 and n = 1e18 give .99995, where 1 − (1 − p_z)ⁿ in
    floating-point numbers is 0; p_z = 1e-400, which is no floating-point number, and n = 1e300 give 1e-100.

    Args:
        log_p: natural logarithms of p_z, of any shape, ≤ 0.
        n: number of samples, 1 to 1e300.

    Raises:
        InputError: positive or NaN logarithms, n out of range.

    Source: Hayes et al. 2024.

    >>> round(emission_probability(-17 * math.log(10), n=1e18).item(), 6)
    0.999955
    """
    n = as_number(n, "n", minimum=1.0, maximum=MAX_QUERIES)
    return -torch.expm1(-torch.exp(math.log(n) + _log_rate(_as_log_probabilities(log_p))))


def log10_queries(log_p: ArrayLike, p: float = 0.5) -> Tensor:
    """Return log10 of the number of samples after which a text of probability p_z was emitted with probability p, float64.

    n = ln(1 − p) / ln(1 − p_z), at least 1; it is not rounded up. Infinite if p_z = 0.

    Args:
        log_p: natural logarithms of p_z, of any shape, ≤ 0 (−inf: p_z = 0).
        p: probability, between 0 and 1.

    Raises:
        InputError: positive or NaN logarithms, p out of range.

    Source: Hayes et al. 2024.

    >>> log10_queries([math.log(0.5), -921.0], p=0.5).round(decimals=4).tolist()
    [0.0, 399.826]
    """
    p = _as_probability(p)
    queries = math.log(-math.log1p(-p)) - _log_rate(_as_log_probabilities(log_p))
    return queries.clamp_min(0.0) / math.log(10)


def _as_probability(p: float) -> float:
    p = as_number(p, "p", exclusive=True, maximum=1.0)
    if p == 1.0:
        raise InputError("p=1", expected="a probability below 1", hint="pass p=0.99")
    return p


def _as_log_probabilities(log_p: ArrayLike) -> Tensor:
    """Return log-probabilities in float64, with −inf for probability 0.

    Raises:
        InputError: NaN or positive values.
    """
    array = log_p if isinstance(log_p, Tensor) else as_array(log_p, "log_p")
    if isinstance(array, np.ndarray) and array.dtype.kind == "f":
        array = torch.from_numpy(array.astype(np.float64))
    finite, zero = log_p, None
    if isinstance(array, Tensor) and array.layout is torch.strided and array.dtype in FLOATS and not array.is_meta:
        zero = (array == -math.inf).cpu()
        finite = array.masked_fill(array == -math.inf, 0.0)
    values = as_tensor(finite, "log_p", dtype=torch.float64).cpu()
    if bool((values > 0).any()):
        raise InputError(
            f"log_p with values up to {float(values.max()):.4g}",
            expected="logarithms of probabilities, at most 0",
            hint="pass log(p_z), not p_z",
        )
    return values if zero is None else values.masked_fill(zero, -math.inf)


def _log_rate(log_p: Tensor) -> Tensor:
    """Return log(−log(1 − p)), which is log p for p below 1e-17, where 1 − p rounds to 1."""
    log_complement = torch.where(log_p > -math.log(2), (-torch.expm1(log_p)).log(), torch.log1p(-torch.exp(log_p)))
    return torch.where(log_p < -40, log_p, (-log_complement).log())


def check_sampling(sampling: object) -> None:
    """Check that ``sampling`` is a :class:`Sampling`.

    Raises:
        InputError: another value.
    """
    check_instance(sampling, "sampling", Sampling)
