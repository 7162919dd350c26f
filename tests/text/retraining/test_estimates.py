"""Estimates of counterfactual memorization: unbiased by enumeration, errors, permuted control, membership without leaks."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernelmem.core import InputError
from kernelmem.memorization.shadows.masks import draw_masks
from kernelmem.text.retraining import Counterfactual, estimates
from tests.profiles import examples

DOCUMENTS = np.random.default_rng(3).integers(0, 3, (6, 9))


def count_model_bits(rows):
    """Bits of all documents under the bigram model with Laplace's rule, trained on some of them."""
    counts = np.ones((3, 3))
    for document in DOCUMENTS[list(rows)]:
        np.add.at(counts, (document[:-1], document[1:]), 1)
    log2_p = np.log2(counts / counts.sum(1, keepdims=True))
    return -log2_p[DOCUMENTS[:, :-1], DOCUMENTS[:, 1:]].sum(1)


HALVES = list(combinations(range(6), 3))
MASKS = torch.tensor([[i in half for i in range(6)] for half in HALVES])
BITS = torch.tensor(np.array([count_model_bits(half) for half in HALVES]))
PAIRS = estimates.complementary_pairs(MASKS)


def test_the_mean_over_all_ensembles_is_the_counterfactual_by_enumeration():
    expected = torch.stack(
        [BITS[~MASKS[:, i], i].sum() / (~MASKS[:, i]).sum() - BITS[MASKS[:, i], i].mean() for i in range(6)]
    )
    assert PAIRS is not None
    assert len(PAIRS) == 10
    ensembles = [PAIRS[list(chosen)] for chosen in combinations(range(10), 2)]
    values = torch.stack([estimates.memorization(MASKS, BITS, pairs, 0.95).values for pairs in ensembles])
    torch.testing.assert_close(values.mean(0), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(Counterfactual.of(MASKS, BITS).memorization, expected, rtol=0, atol=1e-12)
    # errors: the mean of the estimated variances is the variance over ensembles with replacement, σ² / 2
    errors = torch.stack([estimates.memorization(MASKS, BITS, pairs, 0.95).standard_errors for pairs in ensembles])
    all_pairs = estimates.pair_differences(MASKS, BITS, PAIRS)
    torch.testing.assert_close(errors.square().mean(0), all_pairs.var(0) / 2, rtol=1e-12, atol=0)


def test_pairs_are_found_in_any_order():
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    a, b = Counterfactual.of(MASKS, BITS), Counterfactual.of(MASKS[order].numpy(), BITS[order].float())
    assert a.paired
    assert b.paired
    torch.testing.assert_close(a.memorization, b.memorization, rtol=0, atol=1e-4)
    torch.testing.assert_close(a.standard_errors, b.standard_errors, rtol=0, atol=1e-4)


def test_models_without_partners_are_compared_as_two_groups():
    chosen = [k for k in range(20) if k != 4]
    result = Counterfactual.of(MASKS[chosen], BITS[chosen])
    used = MASKS[chosen].double()
    assert not result.paired
    expected = (BITS[chosen] * (1 - used)).sum(0) / (1 - used).sum(0) - (BITS[chosen] * used).sum(0) / used.sum(0)
    torch.testing.assert_close(result.memorization, expected, rtol=0, atol=1e-12)
    assert float(result.mean.value) == pytest.approx(float(expected.mean()), abs=1e-12)
    assert result.mean.low < result.mean.value < result.mean.high


def constructed(models, n, effect, seed, duplicates=False):
    """Masks of pairs, and bits with a known memorization: ``effect``, whatever else a model was trained on."""
    numbers = torch.Generator().manual_seed(seed)
    masks = draw_masks(0, models, n, share=0.5, sampling="balanced", seed=seed)
    noise = torch.randn(models, n, generator=numbers, dtype=torch.float64)
    bits = 40 + 5 * torch.rand(n, generator=numbers, dtype=torch.float64) + noise - effect * masks
    if duplicates:  # document 0 is as well learned from document 1
        bits[:, 0] -= 4 * masks[:, 1].double()
    return masks, bits


@given(st.integers(0, 2**32), st.sampled_from([4, 6, 10]), st.integers(2, 9))
@examples(0.2)
def test_laws_of_shift_scale_and_size(seed, models, n):
    masks, bits = constructed(models, n, 3.0, seed)
    base = Counterfactual.of(masks, bits, permutations=9)
    moved = Counterfactual.of(masks, 2 * bits + torch.arange(n), permutations=9)  # each document by its own constant
    torch.testing.assert_close(moved.memorization, 2 * base.memorization, rtol=0, atol=1e-11)
    torch.testing.assert_close(moved.standard_errors, 2 * base.standard_errors, rtol=0, atol=1e-11)
    assert moved.permuted.p == base.permuted.p
    assert moved.membership == base.membership or moved.membership.value == pytest.approx(base.membership.value)
    assert float(base.mean.value) == pytest.approx(float(base.memorization.mean()))
    assert bool((base.low <= base.memorization).all())
    torch.testing.assert_close(base.bits_without - base.bits_with, base.memorization, rtol=0, atol=1e-11)


def coverage(repetitions, duplicates):
    """Shares of intervals (of document 0, of the mean) that hold the truth, and the mean variance of document 0."""
    inside, variance = np.zeros(2), 0.0
    for seed in range(repetitions):
        masks, bits = constructed(16, 10, 3.0, seed, duplicates)
        result = estimates.memorization(masks, bits, estimates.complementary_pairs(masks), 0.9)
        # in halves of a fixed size document 1 is in less often where document 0 is: 4 / 9 against 5 / 9
        truth = torch.tensor([3.0 - 4 / 9 * duplicates, 3.0])
        mean = 3.0 - 4 / 90 * duplicates
        inside += [
            float(result.low[0]) <= truth[0] <= float(result.high[0]),
            result.mean.low <= mean <= result.mean.high,
        ]
        variance += float(result.standard_errors[0]) ** 2 / repetitions
    return inside / repetitions, variance


def check_coverage(repetitions, duplicates):
    shares, variance = coverage(repetitions, duplicates)
    slack = 3 * (0.09 / repetitions) ** 0.5
    assert abs(shares - 0.9).max() < slack + 0.02 * duplicates  # differences of ± 4 are not Gaussian
    # 8 pairs; independent models would have 2 (1 + 4) / 8 with a duplicate: partners are anything but independent
    expected = (2 + (16 - (4 / 9) ** 2) * duplicates) / 8
    assert abs(variance / expected - 1) < 3 * (2 / 7 / repetitions) ** 0.5


@pytest.mark.parametrize("duplicates", [False, True])
def test_intervals_cover(duplicates):
    check_coverage(80, duplicates)


@pytest.mark.soak
@pytest.mark.parametrize("duplicates", [False, True])
def test_intervals_cover_in_many_repetitions(duplicates):
    check_coverage(5000, duplicates)


def null_values(repetitions, models=8, n=20):
    """P-values of the permutation test and AUROCs where no model memorizes."""
    p, areas = [], []
    for seed in range(repetitions):
        masks, bits = constructed(models, n, 0.0, seed)
        pairs = estimates.complementary_pairs(masks)
        observed = estimates.memorization(masks, bits, pairs, 0.9).mean.value
        p.append(estimates.permuted_masks(masks, bits, observed, permutations=19, seed=seed).p)
        areas.append(float(estimates.membership_aurocs(masks, bits, torch.ones(n), pairs)[0].mean()))
    return np.array(p), np.array(areas)


def check_null(p, areas):
    assert abs((p <= 0.1 + 1e-9).mean() - 0.1) < 3 * (0.09 / len(p)) ** 0.5
    assert abs(areas.mean() - 0.5) < 3 * areas.std(ddof=1) / len(areas) ** 0.5


def test_nulls_read_nothing():
    check_null(*null_values(25))


@pytest.mark.soak
def test_nulls_read_nothing_in_many_repetitions():
    check_null(*null_values(2000))


def test_scores_of_a_model_do_not_know_its_mask():
    """If the two models of a pair exchange their masks, their scores stay: 1 minus the AUROC is left."""
    masks, bits = constructed(8, 15, 1.0, 5)
    pairs = estimates.complementary_pairs(masks)
    k, partner = pairs[1].tolist()
    before = estimates.membership_aurocs(masks, bits, torch.ones(15), pairs)
    masks[[k, partner]] = masks[[partner, k]]
    after = estimates.membership_aurocs(masks, bits, torch.ones(15), pairs)
    for a, b in zip(before, after, strict=True):
        torch.testing.assert_close(a[[k, partner]], 1 - b[[k, partner]], rtol=0, atol=1e-12)


def test_equal_models_memorize_nothing():
    masks = draw_masks(0, 8, 12, share=0.5, sampling="balanced", seed=0)
    result = Counterfactual.of(masks, torch.arange(12.0).expand(8, 12) + 3)
    assert bool((result.memorization == 0).all())
    assert result.permuted.p == 1
    assert result.membership.value == 0.5
    assert result.reliability is None


def test_memorization_is_found_where_it_is():
    masks, bits = constructed(16, 40, 3.0, 0)
    result = Counterfactual.of(masks, bits, tokens=torch.full((40,), 8))
    assert abs(result.mean.value - 3) < 4 * 2 / (16 * 40) ** 0.5
    assert result.permuted.p == 1 / 200
    assert abs(result.permuted.mean) < 0.2
    # N(3, 1) against N(0, 1): an attack with known means has AUROC Φ(3 / √2) = .983
    assert 0.93 < result.membership.value < 0.995
    assert 0.8 < result.loss_membership.value < result.membership.value


def test_the_reliability_is_that_of_the_values():
    """Memorization with variance v and errors with variance e: reliability v / (v + e)."""
    effect = 3 * torch.rand(400, dtype=torch.float64)
    masks, bits = constructed(16, 400, effect, 1)
    expected = float(effect.var() / (effect.var() + 4 / 16))
    assert Counterfactual.of(masks, bits, permutations=1).reliability == pytest.approx(expected, abs=0.06)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": -BITS}, "negative"),
        ({"bits": BITS[:, :5]}, "shape"),
        ({"bits": BITS * torch.nan}, "NaN"),
        ({"masks": MASKS.double() * 2}, "masks"),
        ({"masks": MASKS[0]}, "masks"),
        ({"masks": torch.ones_like(MASKS)}, "fewer than 2"),
        ({"masks": MASKS[:2], "bits": BITS[:2]}, "fewer than 2"),
        ({"tokens": [1, 2]}, "tokens"),
        ({"tokens": [0.5] * 6}, "tokens"),
        ({"level": 1}, "level"),
        ({"permutations": 0}, "permutations"),
    ],
)
def test_what_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        Counterfactual.of(**({"masks": MASKS, "bits": BITS} | changes))


def test_result_is_saved_printed_and_drawn(tmp_path):
    masks, bits = constructed(8, 12, 3.0, 0)
    result = Counterfactual.of(masks, bits, tokens=torch.full((12,), 4))
    again = Counterfactual.load(result.save(tmp_path / "a.safetensors"))
    assert str(again) == str(result)
    assert "4 pairs" in str(result)
    assert list(result.to_frame().columns[:2]) == ["memorization", "standard_error"]
    assert len(result.plot().axes) == 2
