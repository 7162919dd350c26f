"""N-gram model: its probabilities by counting, closed forms, and its use as a language model."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernelmem.core import InputError
from kernelmem.text.overlap import ngram_model
from tests.profiles import examples

V = 3
DOCUMENTS = st.lists(st.lists(st.integers(0, V - 1), max_size=8), min_size=1, max_size=4).filter(any)
START = "start"


def by_counting(documents, order, history, token):
    """p(token | history) from its definition, one context at a time."""
    history = tuple(history)[max(0, len(history) - (order - 1)) :] if order > 1 else ()
    p = 1 / V
    for length in range(len(history) + 1):
        context = history[len(history) - length :]
        after = Counter()
        for ids in documents:
            padded = (START, *ids)
            for t in range(1, len(padded)):
                if t >= length and padded[t - length : t] == context:
                    after[padded[t]] += 1
        if not after:
            break
        p = (after[token] + len(after) * p) / (after.total() + len(after))
    return p


@given(documents=DOCUMENTS, text=st.lists(st.integers(0, V - 1), min_size=1, max_size=6), order=st.integers(1, 4))
@examples(2)
def test_probabilities_are_those_of_counting(documents, text, order):
    (log_probs,) = ngram_model(documents, order=order, vocabulary=V).log_probs([text])
    expected = [[by_counting(documents, order, (START, *text[:t]), w) for w in range(V)] for t in range(len(text))]
    assert torch.allclose(log_probs.exp(), torch.tensor(expected, dtype=torch.float64), rtol=1e-13, atol=0)
    assert torch.allclose(log_probs.exp().sum(1), torch.ones(len(text), dtype=torch.float64), rtol=1e-14)


def test_counts_of_one_token_in_closed_form():
    """(c(w) + t / V) / (N + t): tokens 0, 0, 0, 1 of a vocabulary of 4."""
    model = ngram_model([[0, 0], [0, 1]], order=1, vocabulary=4)
    p = model.next_log_probs([[], [3]]).exp()
    expected = torch.tensor([3.5, 1.5, 0.5, 0.5], dtype=torch.float64) / 6
    assert torch.allclose(p, expected.expand(2, 4), rtol=1e-15)


def test_a_context_that_always_has_one_continuation_is_learned():
    """After h seen c times, always before w: p(w | h) >= c / (c + 1)."""
    model = ngram_model([[0, 1, 2] * 50], order=3)
    assert float(model.next_log_probs([[0, 1, 2, 0]])[0, 1].exp()) > 49 / 50


def test_documents_do_not_continue_each_other():
    split, joined = ngram_model([[0], [1]], order=2), ngram_model([[0, 1]], order=2)
    assert float(split.next_log_probs([[0]])[0, 1]) == pytest.approx(math.log((1 + 2 / 2) / 4))
    assert float(joined.next_log_probs([[0]])[0, 1]) > float(split.next_log_probs([[0]])[0, 1])


def test_ids_and_sizes_are_checked():
    model = ngram_model([[0, 1]])
    assert (model.order, model.vocabulary, model.n_tokens) == (5, 2, 2)
    with pytest.raises(InputError, match="token id 5"):
        model.log_probs([[5]])
    with pytest.raises(InputError, match="without a token"):
        ngram_model([[]])
    with pytest.raises(InputError, match="memory"):
        ngram_model([[0] * 100], memory=1000)
    with pytest.raises(InputError, match="memory"):
        model.log_probs([[0] * 100], memory=1000)
