"""Suffix arrays: sorted suffixes, common prefixes and counts, compared with their definitions."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernelmem.core import InputError
from kernelmem.text.overlap import suffix_array
from tests.profiles import examples

LETTERS = st.lists(st.text(alphabet="ab", max_size=12), min_size=1, max_size=5)
ANY_TEXT = st.lists(st.text(alphabet="aé😀\ud800", max_size=6), min_size=1, max_size=4)


def common_prefix(a, b):
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def occurrences(span, text):
    return sum(text[i : i + len(span)] == span for i in range(len(text) - len(span) + 1))


@given(texts=LETTERS | ANY_TEXT)
@examples(2)
def test_suffixes_are_sorted_and_share_their_common_prefixes(texts):
    array = suffix_array(texts)
    symbols = array.sequences.symbols.tolist()
    order = sorted(range(len(symbols)), key=lambda i: symbols[i:])
    assert array.order.tolist() == order
    assert array.lcp.tolist() == [0] + [common_prefix(symbols[i:], symbols[j:]) for i, j in pairwise(order)]


@given(texts=LETTERS, span=st.text(alphabet="abc", min_size=1, max_size=4))
@examples(2)
def test_counts_are_those_of_a_search(texts, span):
    counts = [occurrences(span, text) for text in texts]
    copies, documents = suffix_array(texts).count([span])
    assert (copies.tolist(), documents.tolist()) == ([sum(counts)], [sum(count > 0 for count in counts)])


@pytest.mark.parametrize("texts", [["a" * 1500], ["ab" * 500, "ab" * 500], ["xyz" * 9, "", "xyz" * 9]])
def test_long_repetitions_are_sorted(texts):
    array = suffix_array(texts)
    symbols = array.sequences.symbols.tolist()
    assert array.order.tolist() == sorted(range(len(symbols)), key=lambda i: symbols[i:])


def test_token_ids_are_read_from_lists_arrays_and_tensors():
    ids = [[3, 1, 3], np.array([1, 3]), torch.tensor([3], dtype=torch.int32), []]
    assert suffix_array(ids).count([[1, 3], torch.tensor([3])])[0].tolist() == [2, 4]


def test_no_match_crosses_the_border_of_a_document():
    assert suffix_array(["ab", "cd"]).count(["bc"])[0].tolist() == [0]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("one text", "a list of values"),
        ([], "without documents"),
        (["a", [1]], "mixed"),
        ([[0.5]], "whole numbers"),
        ([[-1]], "whole numbers"),
        ([[2**31]], "below"),
        ([None], "token ids|numbers"),
        ([torch.zeros(2, 2, dtype=torch.int64)], "one document"),
    ],
)
def test_other_values_are_refused(texts, message):
    with pytest.raises(InputError, match=message):
        suffix_array(texts)


def test_too_many_symbols_and_wrong_spans_are_refused():
    with pytest.raises(InputError, match="symbols"):
        suffix_array(["a" * 100], memory=1000)
    array = suffix_array(["ab"])
    with pytest.raises(InputError, match="empty span"):
        array.count([""])
    with pytest.raises(InputError, match="text"):
        array.count([[1]])
