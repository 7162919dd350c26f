"""Mixture of experts: its definition in loops, its bounds, and sums over all label vectors."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernelmem.compression.online import KernelPredictor, OnlineOptions
from kernelmem.compression.online.mixture import Mixture
from tests.profiles import examples
from tests.tolerances import summing

SMALL = OnlineOptions(ridges=(0.01, 1.0), temperatures=(0.2, 1.0), floors=(2.0**-16, 0.25))


class GivenScores:
    """Scores that do not depend on labels."""

    def __init__(self, values):
        self.values = values
        self.names = [f"score {b}" for b in range(len(values))]

    def __len__(self):
        return self.values.shape[1]

    def of_all_rows(self, labels):
        return self.values

    def one_by_one(self):
        for i in range(len(self)):
            yield self.values[:, i]


def expert_probabilities(mixture, values, y):
    """The prior weight and the predictions (n, C) of every expert."""
    B, n, C = values.shape
    for b, temperature, floor in product(range(B), mixture.temperatures, mixture.floors):
        p = np.exp(values[b] / temperature - (values[b] / temperature).max(1, keepdims=True))
        yield (1 - floor) * p / p.sum(1, keepdims=True) + floor / C
    yield np.array([[(np.sum(y[:i] == c) + 0.5) / (i + C / 2) for c in range(C)] for i in range(n)])
    yield np.full((n, C), 1 / C)


@st.composite
def cases(draw):
    B, n, C = draw(st.integers(1, 3)), draw(st.integers(1, 12)), draw(st.integers(1, 4))
    generator = np.random.default_rng(draw(st.integers(0, 2**31)))
    values = draw(st.sampled_from([0.1, 1.0, 30.0, 1e4])) * generator.standard_normal((B, n, C))
    mixture = Mixture(B, C, (0.1, 1.0), (2.0**-16, 0.25), draw(st.sampled_from([0.5, 0.01])))
    return mixture, values, generator.integers(C, size=n)


@given(cases())
@examples(2)
def test_the_mixture_is_bayes_rule_over_its_experts(case):
    mixture, values, y = case
    experts = np.stack(list(expert_probabilities(mixture, values, y)))
    weights = np.full(len(experts), (1 - mixture.uniform) / (len(experts) - 1))
    weights[-1] = mixture.uniform
    prior, expected, rows = weights.copy(), [], np.arange(len(y))
    for i, label in enumerate(y):
        expected.append(weights @ experts[:, i])
        weights = weights * experts[:, i, label] / expected[-1][label]
    result = mixture.predict_all(GivenScores(values), y)
    tolerance = summing(len(y), len(experts)) * 40  # logarithms of up to 40 are added up
    np.testing.assert_allclose(result.probabilities, expected, rtol=tolerance, atol=0)
    np.testing.assert_allclose(result.posterior, weights, rtol=tolerance, atol=1e-300)
    # at most the best expert and its prior; the uniform expert bounds what random labels cost
    bits = -np.log2(result.probabilities[rows, y]).sum()
    own = -np.log2(experts[:, rows, y]).sum(1) - np.log2(prior)
    assert bits <= own.min() + 1e-9
    # every row is a distribution, and no class is impossible
    np.testing.assert_allclose(result.probabilities.sum(1), 1, rtol=0, atol=tolerance)
    assert result.probabilities.min() >= 2.0**-16 / mixture.n_classes * mixture.uniform * 0.5


@given(cases())
@examples(1)
def test_rows_one_by_one_have_the_same_probabilities(case):
    mixture, values, y = case
    steps = mixture.predict_each(GivenScores(values))
    rows = [next(steps)] + [steps.send(int(label)) for label in y[:-1]]
    np.testing.assert_allclose(rows, mixture.predict_all(GivenScores(values), y).probabilities, rtol=1e-11)
    with pytest.raises(StopIteration):
        steps.send(int(y[-1]))


def test_the_experts_have_names():
    assert Mixture(1, 2, (0.5,), (0.25, 0.5), 0.5).names(["a"]) == (
        "a, temperature 0.5, floor 0.25", "a, temperature 0.5, floor 0.5", "marginal", "uniform",
    )  # fmt: skip


@pytest.mark.parametrize(("n", "C"), [(5, 3), (8, 2)])
def test_probabilities_of_all_label_vectors_sum_to_one(n, C):
    x = torch.linspace(0, 3, n, dtype=torch.float64)[:, None]
    predictor = KernelPredictor(lambda x: torch.exp(-((x - x.T) ** 2)), C, SMALL)
    rows = np.arange(n)
    vectors = np.array(list(product(range(C), repeat=n)))
    total = sum(predictor(x, y)[rows, y].prod() for y in vectors)
    assert total == pytest.approx(1, abs=1e-12)
