"""Certificates: closed forms, the bounds that they may not exceed, and how often they are wrong."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

import kernelmem as km
from kernelmem.compression import Certificate, certificate, held_out_certificate, online_certificate, online_code
from kernelmem.statistics import clopper_pearson
from tests.profiles import examples


@st.composite
def cases(draw):
    n = draw(st.integers(1, 5000))
    return draw(st.integers(0, n)), n, draw(st.floats(0, 5000)), draw(st.sampled_from([0.001, 0.05, 0.5]))


def maurer(k, n, bits, delta):
    """Largest p with n kl(k/n, p) <= L ln 2 + ln(2 sqrt(n) / delta)."""
    budget = (bits * math.log(2) + math.log(2 * math.sqrt(n) / delta)) / n
    low, high, q = k / n, 1.0, k / n
    for _ in range(100):
        p = (low + high) / 2
        divergence = (q * math.log(q / p) if q else 0.0) + (
            (1 - q) * math.log((1 - q) / (1 - p)) if q < 1 and p < 1 else 0.0
        )
        low, high = (p, high) if divergence <= budget else (low, p)
    return high


def catoni(k, n, bits, delta, rate):
    budget = rate * k + bits * math.log(2) - math.log(delta)
    return -math.expm1(-budget / n) / -math.expm1(-rate)


@pytest.mark.parametrize(
    ("k", "n", "bits", "bound", "by_scipy"),
    [(20, 1400, 976, 0.4255, 0.4098), (20_000, 50_000, 6000, 0.6024, 0.4856), (0, 50_000, 6000, 0.0799, 0.0148)],
)
def test_the_binomial_tail_does_not_underflow(k, n, bits, bound, by_scipy):
    """``scipy.stats.binom.logcdf`` returns -inf where the tail is below the smallest float64: its bound is too small."""
    assert certificate(k, n, bits=bits).bound == pytest.approx(bound, abs=5e-5)
    assert by_scipy < bound - 0.01


@given(st.integers(1, 10**9), st.floats(0, 1e5), st.floats(1e-6, 0.9))
def test_without_errors_the_bound_is_a_closed_form(n, bits, delta):
    exact = -math.expm1((math.log(delta) - bits * math.log(2)) / n)
    slack = 64 * np.finfo(float).eps * math.lgamma(n + 1) / n  # what the bound adds for rounding
    assert 0 <= certificate(0, n, bits=bits, delta=delta).bound - exact + 1e-15 <= slack + 3e-15


@given(cases())
def test_without_bits_it_is_the_one_sided_clopper_pearson_interval(case):
    k, n, _, delta = case
    assume(delta < 0.5)
    expected = clopper_pearson(k, n, level=1 - 2 * delta).high
    assert held_out_certificate(k, n, delta=delta).bound == pytest.approx(expected, rel=1e-9)
    assert held_out_certificate(k, n, candidates=4, delta=delta).bound == certificate(k, n, bits=2.0, delta=delta).bound


@given(cases())
def test_the_tail_at_the_bound_is_delta_times_two_to_the_minus_bits(case):
    """Direct sum in exact integers; rational p, so that nothing is rounded."""
    k, n, bits, delta = case
    n, k = min(n, 60), min(k, 60) % (min(n, 60) + 1)
    assume(k < n)
    bound = certificate(k, n, bits=bits, delta=delta).bound
    numerator, denominator = bound.as_integer_ratio()
    tail = sum(math.comb(n, j) * numerator**j * (denominator - numerator) ** (n - j) for j in range(k + 1))
    log_tail = (math.log(tail) if tail else -math.inf) - n * math.log(denominator)
    target = math.log(delta) - bits * math.log(2)
    # the last digit of p moves the logarithm by up to n eps / (1 - p)
    assert log_tail == pytest.approx(target, abs=1e-10 + 4 * n * 2.3e-16 / max(1 - bound, 1e-300)) or bound == 1.0


@given(cases(), st.floats(0.01, 20))
def test_it_is_never_above_the_bounds_of_maurer_and_catoni(case, rate):
    k, n, bits, delta = case
    bound = certificate(k, n, bits=bits, delta=delta).bound
    assert k / n <= bound <= 1
    assert bound <= min(1.0, catoni(k, n, bits, delta, rate)) + 1e-9
    assert bound <= maurer(k, n, bits, delta) + 1e-9


@given(cases(), st.integers(1, 100))
def test_more_errors_more_bits_and_more_confidence_raise_it(case, more):
    k, n, bits, delta = case
    bound = certificate(k, n, bits=bits, delta=delta).bound
    assert certificate(k, n, bits=bits + more, delta=delta).bound >= bound
    assert certificate(min(n, k + more), n, bits=bits, delta=delta).bound >= bound
    assert certificate(k, n, bits=bits, delta=delta / 2).bound >= bound
    assert online_certificate(min(n, k + more), n).bound >= online_certificate(k, n).bound
    assert certificate(n, n, bits=bits).bound == 1.0


@examples(0.5)
@given(st.integers(1, 300), st.floats(0.001, 0.999), st.sampled_from([0.01, 0.05, 0.3]))
def test_the_held_out_bound_is_below_the_error_rate_with_probability_delta_at_most(n, p, delta):
    """Exact: probabilities of all numbers of errors at which the bound is wrong."""
    wrong = [k for k in range(n + 1) if held_out_certificate(k, n, delta=delta).bound < p]
    assert stats.binom.pmf(wrong, n, p).sum() <= delta * (1 + 1e-9)


def chosen_network(rng, n, delta):
    """One of 64 networks of error rate 0.3 and codes of 6 bits, chosen by its errors: is its certificate wrong?"""
    errors = rng.binomial(n, 0.3, 64).min()
    return certificate(int(errors), n, bits=6.0, delta=delta).bound < 0.3


def online_learner(rng, n, delta):
    """Error rates that fall after every mistake, more if there were few: is the certificate of their mean wrong?"""
    rate, rates, mistakes = 0.5, [], 0
    for t, u in enumerate(rng.random(n)):
        rates.append(rate)
        mistakes += u < rate
        rate = max(0.05, rate * (0.9 if u < rate else 1.0)) if mistakes < 5 + t / 10 else min(0.6, rate * 1.05)
    return online_certificate(mistakes, n, delta=delta).bound < np.mean(rates)


@pytest.mark.parametrize("learner", [chosen_network, online_learner])
def test_certificates_are_wrong_in_at_most_delta_of_the_simulations(learner):
    delta, n_simulations, rng = 0.1, 1000, np.random.default_rng(0)
    wrong = sum(learner(rng, 200, delta) for _ in range(n_simulations))
    # three standard deviations above delta
    assert wrong / n_simulations <= delta + 3 * math.sqrt(delta * (1 - delta) / n_simulations)


def test_unpaid_choices_make_it_wrong_more_often():
    """The control of the simulation: 64 networks, of which the best is certified as if it had been the only one."""
    rng = np.random.default_rng(0)
    wrong = sum(certificate(int(rng.binomial(200, 0.3, 64).min()), 200, delta=0.1).bound < 0.3 for _ in range(100))
    assert wrong > 60


def test_online_certificate_of_the_digits():
    assert online_certificate(52, 1400).bound == pytest.approx(0.057, abs=5e-4)
    assert online_certificate(0, 1).bound <= 1.0
    assert online_certificate(7, 7).bound == 1.0


def test_an_online_code_is_certified_by_its_mistakes():
    x = torch.linspace(-1, 1, 50, dtype=torch.float64)
    code = online_code(torch.exp(-((x[:, None] - x) ** 2) * 9), x > 0)
    assert str(online_certificate(code)) == str(online_certificate(code.mistakes, 50))
    with pytest.raises(km.InputError, match="mistakes"):
        online_certificate(code, 50)
    with pytest.raises(km.InputError, match="n=None"):
        online_certificate(3)


def test_summary_says_of_what_it_speaks(tmp_path):
    texts = [str(item) for item in (held_out_certificate(3, 50), online_certificate(3, 50), certificate(3, 50, bits=9))]
    assert "it does not speak of the network" in texts[1]
    assert "3 of 50 rows wrong, 9.0 bits" in texts[2]
    assert "chosen among 2^3" in str(held_out_certificate(3, 50, candidates=8))
    path = certificate(3, 50).save(tmp_path / "c.safetensors")
    assert str(Certificate.load(path)) == str(certificate(3, 50))


@pytest.mark.parametrize(
    "call",
    [
        lambda: certificate(5, 4),
        lambda: certificate(-1, 4),
        lambda: certificate(1, 4, bits=-1),
        lambda: certificate(1, 4, bits=math.inf),
        lambda: certificate(1, 4, delta=0.0),
        lambda: certificate(1, 4, delta=1.0),
        lambda: certificate(1, 10**10),
        lambda: certificate(1.5, 4),  # type: ignore[arg-type]
        lambda: held_out_certificate(1, 4, candidates=0),
        lambda: online_certificate(5, 4),
        lambda: online_certificate(1, 4, n_lambdas=0),
    ],
)
def test_refused(call):
    with pytest.raises(km.InputError):
        call()
