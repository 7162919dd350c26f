"""Sampling distributions compared with their definition, and emission by n samples in closed form."""

import math
from fractions import Fraction

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernelmem.core import InputError
from kernelmem.text import Sampling, emission_probability, log10_queries
from tests.profiles import examples


def by_definition(log_p, sampling):
    """Probabilities of the tokens that a sampler draws from, one step after the other."""
    p = [math.exp(value / sampling.temperature) for value in log_p]
    p = [value / sum(p) for value in p]
    if sampling.top_k is not None:
        smallest = sorted(p)[-min(sampling.top_k, len(p))]
        p = [value if value >= smallest else 0.0 for value in p]
        p = [value / sum(p) for value in p]
    if sampling.top_p is not None:
        total, kept = 0.0, set()
        for i in sorted(range(len(p)), key=lambda i: -p[i]):
            if total < sampling.top_p or not kept:
                kept.add(i)
            total += p[i]
        p = [value if i in kept else 0.0 for i, value in enumerate(p)]
        p = [value / sum(p) for value in p]
    return p


@given(
    logits=st.lists(st.floats(-5, 5), min_size=1, max_size=6, unique=True),
    temperature=st.sampled_from([0.3, 1.0, 2.0]),
    top_k=st.none() | st.integers(1, 7),
    top_p=st.none() | st.sampled_from([1e-3, 0.37, 0.83, 1.0]),
)
@examples(3)
def test_distributions_are_those_of_a_sampler(logits, temperature, top_k, top_p):
    log_p = torch.tensor(logits, dtype=torch.float64).log_softmax(0)
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    q = sampling.log_probs(log_p[None])[0].exp()
    expected = torch.tensor(by_definition(log_p.tolist(), sampling), dtype=torch.float64)
    assert torch.allclose(q, expected, rtol=1e-12, atol=0)


def test_equally_probable_tokens_at_the_limit_of_top_k_stay():
    q = Sampling(top_k=2).log_probs(torch.tensor([[0.0, 0.0, 0.0, -1.0]], dtype=torch.float64)).exp()
    assert torch.allclose(q, torch.tensor([[1 / 3, 1 / 3, 1 / 3, 0.0]], dtype=torch.float64))


@given(log10_p=st.floats(-15, -1e-3) | st.floats(-420, -15), log10_n=st.floats(0, 299))
@examples(1)
def test_emission_is_the_closed_form_in_high_precision(log10_p, log10_n):
    log_p, n = log10_p * math.log(10), 10.0**log10_n
    with mpmath.workdps(800):
        exact = 1 - (1 - mpmath.exp(mpmath.mpf(log_p))) ** mpmath.mpf(n)
        # log n and log p are rounded: relative to their size in the exponent
        error = 4 * 2.3e-16 * (2 + abs(log_p) + math.log(n))
        assert float(emission_probability(log_p, n)) == pytest.approx(float(exact), rel=error, abs=1e-300)


@given(log_p=st.floats(-900, -1e-3), p=st.floats(0.01, 0.99))
@examples(2)
def test_after_the_queries_the_text_was_emitted_with_probability_p(log_p, p):
    log10_n = float(log10_queries(log_p, p))
    if 0 < log10_n < 299:
        assert float(emission_probability(log_p, 10**log10_n)) == pytest.approx(p, rel=1e-11)


def test_small_probabilities_do_not_vanish():
    """With 1 - (1 - p)**n, p_z = 1e-17 and n = 1e18 give 0."""
    assert float(emission_probability(-17 * math.log(10), 1e18)) == pytest.approx(1 - math.exp(-10), rel=1e-13)
    assert float(log10_queries(-400 * math.log(10))) == pytest.approx(400 + math.log10(math.log(2)), rel=1e-14)
    assert float(emission_probability(-400 * math.log(10), 1e300)) == pytest.approx(1e-100, rel=1e-12)


def test_one_sample_has_the_probability_itself_and_the_ends_are_exact():
    assert float(emission_probability(math.log(0.25))) == pytest.approx(float(Fraction(1, 4)), rel=1e-15)
    ends = torch.tensor([0.0, -math.inf], dtype=torch.float64)
    for values in (ends, ends.float(), ends.numpy(), ends.tolist()):
        assert emission_probability(values, 10).tolist() == [1.0, 0.0]
    assert log10_queries(ends).tolist() == [0.0, math.inf]


@pytest.mark.parametrize(
    "options",
    [{"temperature": 0}, {"temperature": math.nan}, {"top_k": 0}, {"top_p": 0}, {"top_p": 1.1}, {"n": 0}, {"p": 1}],
)
def test_other_settings_are_refused(options):
    with pytest.raises(InputError, match=next(iter(options))):
        Sampling(**options)


def test_probabilities_in_place_of_their_logarithms_are_refused():
    for function in (emission_probability, log10_queries):
        with pytest.raises(InputError, match=r"log\(p_z\)"):
            function([0.5])
