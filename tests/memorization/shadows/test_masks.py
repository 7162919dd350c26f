"""Random subsets of the rows: what is exact, what is random, and what they depend on."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernelmem.core import InputError
from kernelmem.memorization.shadows.masks import balanced_ratio, draw_masks, model_seeds
from tests.profiles import examples

SHARES = st.sampled_from([0.5, 0.7, 0.3, 0.9, 1 / 3, 0.25, 0.99])


@examples(2.0)
@given(share=SHARES, n=st.integers(2, 60), m=st.integers(1, 45), seed=st.integers(0, 2**40))
def test_balanced_rows_and_models_have_equal_counts(share, n, m, seed):
    if share * n < 1:
        return
    masks = draw_masks(0, m, n, share=share, sampling="balanced", seed=seed)
    p, q = balanced_ratio(share)
    for counts, exact in ((masks.sum(0), m * p / q), (masks.sum(1), n * p / q)):
        assert math.floor(exact) <= int(counts.min())
        assert int(counts.max()) <= math.ceil(exact)


@pytest.mark.parametrize("sampling", ["iid", "balanced"])
@examples(1.0)
@given(start=st.integers(0, 30), size=st.integers(1, 20), seed=st.integers(0, 2**40))
def test_a_mask_depends_on_seed_and_model_only(sampling, start, size, seed):
    part = draw_masks(start, start + size, 9, share=0.7, sampling=sampling, seed=seed)
    everything = draw_masks(0, start + size + 3, 9, share=0.7, sampling=sampling, seed=seed)
    assert torch.equal(part, everything[start : start + size])


@pytest.mark.parametrize("sampling", ["iid", "balanced"])
def test_rows_are_drawn_with_the_share_and_in_pairs_as_if_independent(sampling):
    m, n, share = 4000, 10, 0.7
    masks = draw_masks(0, m, n, share=share, sampling=sampling, seed=3).double()
    spread = math.sqrt(share * (1 - share) / m)
    assert float((masks.mean(0) - share).abs().max()) < 5 * spread
    covariance = torch.cov(masks.T)
    # exactly share · n rows per model make two rows slightly exclusive: covariance −share (1 − share) / (n − 1)
    expected = 0.0 if sampling == "iid" else -share * (1 - share) / (n - 1)
    off_diagonal = covariance[~torch.eye(n, dtype=torch.bool)]
    assert float((off_diagonal - expected).abs().max()) < 5 * share * (1 - share) / math.sqrt(m) * 1.3


def test_no_subset_is_empty():
    masks = draw_masks(0, 300, 3, share=0.34, sampling="iid", seed=0)
    assert int(masks.sum(1).min()) >= 1


def test_seeds_of_models_are_distinct():
    seeds = [value for k in range(200) for value in model_seeds(5, k)]
    assert len(set(seeds)) == 400
    assert model_seeds(5, 7) != model_seeds(6, 7)


def test_shares_that_cannot_be_drawn_are_refused():
    with pytest.raises(InputError, match=r"share=0\.61803.*sampling='balanced'.*pass share=0\.62"):
        draw_masks(0, 4, 10, share=0.6180339, sampling="balanced", seed=0)
    with pytest.raises(InputError, match="at least one training row per model on average"):
        draw_masks(0, 4, 10, share=0.05, sampling="iid", seed=0)
