"""Shared spans compared with a search for every pair of positions."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from kernelmem.text import as_documents
from kernelmem.text.attribution.shared_spans import shared_spans
from tests.profiles import examples

TOKENS = st.lists(st.integers(0, 2), max_size=8)


def match(sentence, document, start):
    """Length of the longest match of the document from a token on with the sentence."""
    best = 0
    for place in range(len(sentence)):
        k = 0
        while place + k < len(sentence) and start + k < len(document) and sentence[place + k] == document[start + k]:
            k += 1
        best = max(best, k)
    return best


@given(sentence=TOKENS, documents=st.lists(TOKENS, min_size=1, max_size=3), minimum=st.integers(1, 4))
@examples(1.0)
def test_every_maximal_span_is_found(sentence, documents, minimum):
    spans = shared_spans(torch.tensor(sentence, dtype=torch.int64), as_documents(documents), minimum, "1GiB")
    for i, document in enumerate(documents):
        lengths = [match(sentence, document, start) for start in range(len(document))]
        assert int(spans.longest[i]) == max(lengths, default=0)
        maximal = [
            (start, length)
            for start, length in enumerate(lengths)
            if length >= minimum and (start == 0 or lengths[start - 1] <= length)
        ]
        found = spans.of(i)
        assert [(start, length) for start, _, length in found] == maximal
        for start, place, length in found:
            assert sentence[place : place + length] == document[start : start + length]
