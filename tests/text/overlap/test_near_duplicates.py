"""MinHash: unbiased with the binomial variance, and candidate pairs that are compared exactly."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelmem.core import InputError
from kernelmem.text.overlap import near_duplicates, suffix_array
from kernelmem.text.overlap.near_duplicates import _shingle_sets, _signatures
from tests.profiles import examples


def shingles(text, size):
    return {text[i : i + size] for i in range(len(text) - size + 1)} or {text}


def jaccard(a, b, size):
    a, b = shingles(a, size), shingles(b, size)
    return len(a & b) / len(a | b)


@given(
    texts=st.lists(st.text(alphabet="ab", max_size=10), min_size=1, max_size=6),
    size=st.integers(1, 4),
    threshold=st.sampled_from([0.3, 0.5, 1.0]),
)
@examples(1)
def test_pairs_are_those_of_an_exhaustive_search(texts, size, threshold):
    found = near_duplicates(texts, threshold=threshold, shingle=size, hashes=256)
    pairs = [(i, j, jaccard(texts[i], texts[j], size)) for j in range(len(texts)) for i in range(j)]
    true = sorted((i, j, value) for i, j, value in pairs if value >= threshold)
    listed = list(zip(found.first.tolist(), found.second.tolist(), found.jaccard.tolist(), strict=True))
    assert set(listed) <= set(true)
    assert found.recall(threshold) >= 0.99
    assert {pair for pair in true if found.recall(pair[2]) > 1 - 1e-9} <= set(listed)


def test_share_of_equal_hashes_is_unbiased_with_the_binomial_variance():
    """400 repetitions of 64 hashes: the mean within 4 standard errors, the variance within 4 of its own."""
    a, b = "abcdefghijklmnopqrst", "abcdefghijklmnop1234"
    true, hashes, repetitions = jaccard(a, b, 3), 64, 400
    sets, ends = _shingle_sets(suffix_array([a, b]), 3)
    estimates = np.array([np.equal(*_signatures(sets, ends, hashes, seed).T).mean() for seed in range(repetitions)])
    variance = true * (1 - true) / hashes
    assert abs(estimates.mean() - true) < 4 * np.sqrt(variance / repetitions)
    assert abs(estimates.var(ddof=1) / variance - 1) < 4 * np.sqrt(2 / repetitions)


def test_copies_with_small_changes_are_found_and_one_is_kept():
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("abcdefgh"), 60)) for _ in range(20)]
    found = near_duplicates([*texts, *(text[:-1] + "!" for text in texts), texts[0]], threshold=0.9)
    copies = {(i, 20 + i) for i in range(20)} | {(0, 40), (20, 40)}
    assert set(zip(found.first.tolist(), found.second.tolist(), strict=True)) == copies
    assert found.keep.tolist() == list(range(20))
    assert "missed" in str(found)


def test_short_and_empty_documents_equal_only_their_copies():
    found = near_duplicates(["ab", "", "ab", "ba", ""], threshold=0.1, shingle=5, hashes=128)
    assert list(zip(found.first.tolist(), found.second.tolist(), strict=True)) == [(0, 2), (1, 4)]


def test_hashes_that_miss_pairs_and_little_memory_are_refused():
    with pytest.raises(InputError, match="hashes=459"):
        near_duplicates(["a", "b"], threshold=0.01)
    near_duplicates(["a", "b"], threshold=0.01, hashes=459)
    with pytest.raises(InputError, match="candidate pairs"):
        near_duplicates(["a"] * 400, memory=5 * 10**6)
    with pytest.raises(InputError, match="hashes of 400 documents"):
        near_duplicates([f"{i}" for i in range(400)], memory=4 * 10**5)
