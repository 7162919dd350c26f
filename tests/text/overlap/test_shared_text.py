"""Shared text by its definition."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelmem.core import InputError
from kernelmem.text import as_documents, shared_text
from tests.profiles import examples

TEXTS = st.lists(st.text("ab\ud800", max_size=12), min_size=1, max_size=4)


def slow(documents, others, length):
    found = []
    for other in others:
        windows = [
            i
            for i in range(len(other) - length + 1)
            if any(
                other[i : i + length] == text[j : j + length]
                for text in documents
                for j in range(len(text) - length + 1)
            )
        ]
        found.append(len({j for i in windows for j in range(i, i + length)}))
    return found


@examples(0.3)
@given(TEXTS, TEXTS, st.integers(1, 5))
def test_symbols_are_counted_that_lie_in_a_string_of_the_documents(documents, others, length):
    expected = slow(documents, others, length)
    assert shared_text(documents, others, length=length).tolist() == expected
    ids = [[[ord(c) for c in text] for text in group] for group in (documents, others)]
    assert shared_text(ids[0], as_documents(ids[1]), length=length).tolist() == expected


def test_texts_are_not_compared_with_token_ids():
    with pytest.raises(InputError, match="documents with texts, and others with token ids"):
        shared_text(["ab"], [[1, 2]])
