"""Bits of left-out predictions and of networks: lengths of prefix codes for outputs that have not seen the labels."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernelmem.compression.accounting.calibration import MAX_FLOOR, MIN_FLOOR, _rate_error, left_out_bits, noise_entropy
from kernelmem.compression.accounting.network_bits import bits_given, network_bits
from tests.profiles import examples
from tests.tolerances import summing

SEEDS = st.integers(0, 2**32 - 1)


def normal(seed, *shape):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def random_labels(seed, n, C):
    return torch.from_numpy(np.random.default_rng(seed + 1).integers(0, C, n))


def every_label_vector(n, C):
    return [torch.tensor(labels) for labels in itertools.product(range(C), repeat=n)]


@examples(0.1)
@given(SEEDS, st.integers(1, 4), st.integers(2, 3), st.sampled_from([1e-3, 1.0, 1e3]))
def test_left_out_bits_of_outputs_that_ignore_the_labels_satisfy_kraft_with_equality(seed, n, C, scale):
    outputs = scale * normal(seed, n, C)
    total = sum(2 ** -left_out_bits(outputs, labels).total for labels in every_label_vector(n, C))
    assert abs(total - 1) <= summing(n * C**n)


@examples(0.2)
@given(SEEDS, st.integers(1, 4), st.integers(2, 3), st.sampled_from([1e-3, 1.0, 1e3, 1e300]))
def test_network_bits_satisfy_kraft_with_equality(seed, n, C, scale):
    logits, reference = scale * normal(seed, n, C), normal(seed + 1, n, C).softmax(1)
    total = 0.0
    for labels in every_label_vector(n, C):
        reference_bits = -float(reference.gather(1, labels[:, None]).log2().sum())
        total += 2 ** -network_bits(logits, labels, reference, reference_bits)[0]
    assert abs(total - 1) <= summing(100 * n * C**n)


@examples(0.2)
@given(SEEDS, st.integers(1, 4), st.integers(2, 3), st.booleans())
def test_bits_given_a_network_pay_for_the_calibration_of_the_reference(seed, n, C, same):
    """The reference is calibrated on every label vector; the network may be the reference itself."""
    outputs = normal(seed, n, C)
    logits = outputs if same else normal(seed + 1, n, C)
    vectors = every_label_vector(n, C)
    total = sum(2 ** -bits_given(logits, labels, left_out_bits(outputs, labels, 3))[0] for labels in vectors)
    assert total <= 1 + summing(100 * n * C**n)


def test_a_network_that_is_the_reference_memorizes_nothing():
    outputs, labels = noisy_outputs(0, 300, 10, 0.1)
    left = left_out_bits(outputs, labels, 19)
    assert left.total - bits_given(left.probabilities.log(), labels, left)[0] == pytest.approx(-1, abs=1e-3)
    # it finds its temperature and floor in a coarser grid, without having been chosen among 19
    assert left.total - bits_given(outputs, labels, left)[0] <= left.price - math.log2(70)


@examples(0.5)
@given(SEEDS, st.integers(1, 60), st.integers(2, 6), st.sampled_from([0.0, 1e-6, 1.0, 1e6, 1e300]))
def test_a_network_costs_at_most_one_bit_and_never_more_than_its_rows_and_the_choice(seed, n, C, scale):
    logits, labels = scale * normal(seed, n, C), random_labels(seed, n, C)
    reference = normal(seed + 2, n, C).softmax(1)
    reference_bits = -float(reference.gather(1, labels[:, None]).log2().sum()) + 3.0
    total, rows = network_bits(logits, labels, reference, reference_bits)
    assert 0 <= total <= reference_bits + 1
    assert bool((rows >= 0).all())
    assert float(rows.sum()) - summing(n) * n <= total + 3.0
    assert total <= float(rows.sum()) + math.log2(140) + 3.0


@examples(0.3)
@given(SEEDS, st.integers(2, 40), st.integers(2, 5), st.integers(-8, 8))
def test_names_of_classes_order_of_rows_scale_and_constants_do_not_matter(seed, n, C, shift):
    rng = np.random.default_rng(seed)
    logits, labels, reference = normal(seed, n, C), random_labels(seed, n, C), normal(seed + 2, n, C).softmax(1)
    rows, classes = torch.from_numpy(rng.permutation(n)), torch.from_numpy(rng.permutation(C))
    moved = (logits[rows][:, classes], classes.argsort()[labels[rows]], reference[rows][:, classes])
    total, bits = network_bits(logits, labels, reference, 2.0 * n)
    other_total, other_bits = network_bits(*moved, 2.0 * n)
    tolerance = 100 * summing(n) * n
    assert abs(total - other_total) <= tolerance
    assert float((bits[rows] - other_bits).abs().max()) <= tolerance
    assert abs(network_bits(2.0**900 * logits, labels, reference, 2.0 * n)[0] - total) <= tolerance
    assert abs(network_bits(4 * (logits + shift), labels, reference, 2.0 * n)[0] - total) <= tolerance
    left = left_out_bits(logits, labels)
    assert abs(left_out_bits(moved[0], moved[1]).total - left.total) <= tolerance
    assert abs(left_out_bits(4 * (logits + shift), labels).total - left.total) <= tolerance


def test_a_network_that_knows_every_label_leaves_a_few_bits():
    labels = torch.arange(1000) % 10
    logits = 30.0 * torch.nn.functional.one_hot(labels, 10).double()
    total, rows = network_bits(logits, labels, torch.full((1000, 10), 0.1, dtype=torch.float64), 1000 * math.log2(10))
    assert total < 7
    assert float(rows.max()) < 0.01


@examples(0.3)
@given(SEEDS, st.integers(2, 80), st.integers(2, 6), st.integers(1, 50))
def test_the_price_is_between_the_choices_and_the_size_of_the_grid(seed, n, C, choices):
    result = left_out_bits(normal(seed, n, C), random_labels(seed, n, C), choices)
    grid = 41 * (math.ceil(math.pi / 2 * math.sqrt(n)) + 1)
    assert math.log2(choices) <= result.price <= math.log2(choices * grid) + 1e-9
    assert torch.allclose(result.probabilities.sum(1), torch.ones(n, dtype=torch.float64), atol=1e-12, rtol=0)
    assert float(result.probabilities.min()) >= MIN_FLOOR / C * (1 - 1e-9)
    assert 0 <= result.noise_rate <= MAX_FLOOR * (C - 1) / C
    assert 0 < result.noise_rate_error <= 1


def noisy_outputs(seed, n, C, rate, sharpness=4.0):
    """Outputs whose softmax at temperature 1 is the distribution of the clean label, and labels with symmetric noise."""
    rng = np.random.default_rng(seed)
    outputs = sharpness * rng.standard_normal((n, C))
    clean = (outputs + rng.gumbel(size=(n, C))).argmax(1)
    flipped = rng.random(n) < rate
    labels = np.where(flipped, (clean + rng.integers(1, C, n)) % C, clean)
    return torch.from_numpy(outputs), torch.from_numpy(labels)


def coverage(n, C, rate, seeds):
    results = [left_out_bits(*noisy_outputs(seed, n, C, rate)) for seed in range(seeds)]
    errors = np.array([(result.noise_rate - rate) / result.noise_rate_error for result in results])
    return float((np.abs(errors) < 1.96).mean()), float(errors.mean())


def test_the_standard_error_of_the_noise_rate_covers():
    share, bias = coverage(300, 10, 0.1, 30)
    assert share >= 0.76  # 30 trials at .95: below .76 with probability 1e-4
    assert abs(bias) < 4 / math.sqrt(30)


@pytest.mark.parametrize(("C", "rate"), [(2, 0.3), (5, 0.1), (10, 0.02)])
def test_the_standard_error_of_the_noise_rate_is_that_of_the_expected_information(C, rate):
    outputs, h = 3 * normal(0, 200, C), 1e-5

    def probabilities(r, log_temperature):
        s = (outputs / math.exp(log_temperature)).softmax(1)
        return s * (1 - r) + (1 - s) * r / (C - 1)

    at = (rate, math.log(0.7))
    by_rate = (probabilities(at[0] + h, at[1]) - probabilities(at[0] - h, at[1])) / (2 * h)
    by_temperature = (probabilities(at[0], at[1] + h) - probabilities(at[0], at[1] - h)) / (2 * h)
    gradients = torch.stack([by_rate, by_temperature])
    information = torch.einsum("anc,bnc->ab", gradients / probabilities(*at), gradients)
    expected = float(information.inverse()[0, 0]) ** 0.5
    assert _rate_error(outputs, 0.7, rate) == pytest.approx(expected, rel=1e-5)


@pytest.mark.soak
@pytest.mark.parametrize(("C", "rate"), [(2, 0.1), (2, 0.3), (10, 0.02), (10, 0.2), (10, 0.4)])
def test_the_standard_error_of_the_noise_rate_covers_at_its_level(C, rate):
    """With 8 wrong labels the distribution is skewed: there ± 1.96 errors of a binomial share cover .90 only."""
    share, bias = coverage(400, C, rate, 400)
    assert 0.91 - 0.06 * (rate == 0.02) <= share <= 0.98  # a standard deviation of .011
    assert abs(bias) < 0.3


def test_the_entropy_of_the_noise_is_that_of_its_distribution():
    for rate, C in ((0.2, 10), (0.9, 10), (0.3, 2), (1.0, 4)):
        p = torch.tensor([1 - rate] + [rate / (C - 1)] * (C - 1), dtype=torch.float64)
        assert noise_entropy(rate, C) == pytest.approx(float(-torch.special.xlogy(p, p).sum() / math.log(2)), abs=1e-12)
    assert noise_entropy(0.9, 10) == pytest.approx(math.log2(10))


def test_equal_outputs_cost_about_the_uniform_code():
    labels = random_labels(0, 50, 4)
    result = left_out_bits(torch.zeros(50, 4, dtype=torch.float64), labels)
    assert result.total == pytest.approx(100.0, abs=1e-9)
