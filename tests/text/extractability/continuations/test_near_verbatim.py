"""Near-verbatim measures compared with searches over all substrings; greedy continuations; controls; defects of other tools."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernelmem.core import InputError
from kernelmem.text import CharacterLSTM, NearVerbatim, causal_lm, extraction, near_verbatim, ngram_model
from kernelmem.text.extractability.continuations.alignment import PADDING, contained, edit_distance, longest_common
from tests.profiles import examples
from tests.text.extractability.models import cycle_lm, pair_lm

TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=6)


def levenshtein(a, b):
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(diagonal + (x != y), row[j] + 1, row[j - 1] + 1)
    return row[-1]


def substrings(text):
    return [text[i:j] for i in range(len(text) + 1) for j in range(i, len(text) + 1)]


@given(generated=TOKENS, documents=st.lists(TOKENS, min_size=1, max_size=3), n=st.integers(1, 3))
@examples(1.0)
def test_measures_are_searches_over_all_substrings(generated, documents, n):
    size = max(map(len, documents)) + 1
    padded = np.array([ids + [PADDING] * (size - len(ids)) for ids in documents])
    texts = np.array([generated] * len(documents))
    common, distance = longest_common(texts, padded), edit_distance(texts, padded)
    for i, ids in enumerate(documents):
        parts = substrings(ids)
        assert common[i] == max(len(part) for part in parts if part in substrings(generated))
        assert distance[i] == min(levenshtein(generated, part) for part in parts)
        assert distance[i] <= len(generated) - common[i]
    n = min(n, len(generated))
    shares = contained(texts, padded, n)
    grams = [generated[j : j + n] for j in range(len(generated) - n + 1)]
    for share, ids in zip(shares, documents, strict=True):
        assert share == sum(gram in substrings(ids) for gram in grams) / len(grams)


@given(seed=st.integers(0, 99))
@examples(0.2)
def test_exact_is_greedy_extraction_and_the_continuation_is_greedy(seed):
    rng, lm = np.random.default_rng(seed), pair_lm(seed)
    documents = []
    for _ in range(4):
        ids = rng.integers(0, 5, 2).tolist()
        for _ in range(3):
            ids.append(int(lm.next_log_probs([ids])[0].argmax()))
        ids[int(rng.integers(2, 5))] = int(rng.integers(5))
        documents.append([*ids, *rng.integers(0, 5, 3).tolist()])
    arguments = {"prefix": 2, "suffix": 3, "contexts": [[4, 1]], "stride": 2}
    found = near_verbatim(lm, documents, ngram=2, **arguments)
    assert torch.equal(found.windows.exact, extraction(lm, documents, **arguments).windows.greedy)
    assert bool((found.windows.distance[found.windows.exact] == 0).all())
    assert bool((found.windows.ngrams[found.windows.exact] == 1).all())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_models_with_a_state_are_continued_as_others(dtype):
    model = CharacterLSTM(7, embedding=4, hidden=6).to(dtype)
    with torch.no_grad():
        model.head.weight *= 20
    documents = np.random.default_rng(0).integers(0, 7, (40, 9)).tolist()
    again = causal_lm(model, forward=lambda model, ids: model(ids))  # has no step
    arguments = {"prefix": 4, "suffix": 3, "ngram": 1, "contexts": [[2]]}
    found, other = (near_verbatim(lm, documents, **arguments) for lm in (causal_lm(model), again))
    assert found.to_frame().equals(other.to_frame())
    assert torch.equal(found.windows.common, other.windows.common)


def test_a_shifted_or_changed_copy_is_near_verbatim_at_every_offset():
    """The cycle continues 0 by 1 2 3 4 5; a stride over offsets, or a comparison of ends only, misses the copies."""
    copies = [[0, *[9] * shift, 1, 2, 3, 4, 5, *[9] * (5 - shift)] for shift in range(6)]
    found = near_verbatim(cycle_lm(10), copies, prefix=1, suffix=5)
    assert found.windows.exact.tolist() == [[True] + [False] * 5]
    for measure in ("edit", "common", "ngrams"):
        assert found.similarity(measure).tolist() == [1.0] * 6
    changed = near_verbatim(cycle_lm(10), [[0, 1, 2, 7, 4, 5]], prefix=1, suffix=5, ngram=2)
    assert changed.windows.distance.item() == 1
    assert changed.windows.common.item() == 2
    assert changed.windows.ngrams.item() == 0.5
    assert "1 of 1 continuations are in no document" in str(changed)


def test_repeating_the_prompt_does_not_count():
    """The cycle of two emits its prompt again; the document goes on with something else."""
    lm = ngram_model([[1, 2] * 6], order=2, vocabulary=10)
    found = near_verbatim(lm, [[1, 2, 1, 2, 7, 8, 9, 7]], prefix=4, suffix=4, ngram=2)
    assert found.to_frame().iloc[0][["exact", "edit", "common", "ngrams", "holders"]].tolist() == [False, 0, 0, 0, 1]


def test_controls_of_a_model_that_stores_its_documents():
    rng = np.random.default_rng(0)
    members, unseen = (rng.integers(0, 30, (12, 14)).tolist() for _ in range(2))
    found = near_verbatim(ngram_model(members, order=6, vocabulary=30), members, unseen=unseen, prefix=6, suffix=8)
    assert [found.rate(measure).value for measure in ("exact", "edit", "common", "ngrams")] == [1.0] * 4
    assert found.mismatched_rate(at=0.5).value == found.unseen_rate(at=0.5).value == 0.0
    assert found.excess().low > 0.5
    assert found.holders.tolist() == [[1] * 12]
    assert "excess" in str(found)


def test_the_result_survives_its_file(tmp_path):
    found = near_verbatim(cycle_lm(), [[1, 2, 3, 4], [2, 3, 3, 3]], unseen=[[3, 1, 3, 1]], prefix=1, suffix=2, ngram=1)
    loaded = NearVerbatim.load(found.save(tmp_path / "near.km"))
    assert loaded.to_frame().equals(found.to_frame())
    assert str(loaded) == str(found)


def test_little_memory_changes_nothing():
    documents = np.random.default_rng(0).integers(0, 6, (7, 9)).tolist()
    wide, narrow = (
        near_verbatim(cycle_lm(), documents, prefix=3, suffix=2, ngram=1, memory=m) for m in ("1GiB", 12000)
    )
    assert wide.to_frame().equals(narrow.to_frame())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ngram": 3}, "ngram"),
        ({"documents": [[], [1]]}, "prefix \\+ suffix"),
        ({"unseen": [[]]}, "unseen"),
        ({"suffix": 0}, "suffix"),
        ({"lm": None}, "lm"),
        ({"progress": "yes"}, "progress"),
    ],
)
def test_other_arguments_are_refused(change, message):
    """Also an empty suffix, which some tools count as extracted from any model."""
    with pytest.raises(InputError, match=message):
        near_verbatim(**({"lm": cycle_lm(), "documents": [[1, 2, 3]], "prefix": 1, "suffix": 2, "ngram": 1} | change))


def test_questions_without_an_answer_are_refused():
    found = near_verbatim(cycle_lm(), [[1, 2, 3]], prefix=1, suffix=2, ngram=1)
    for call, message in (
        (found.excess, "unseen"),
        (found.mismatched_rate, "at least two"),
        (lambda: found.rate("blue"), "measure"),
        (lambda: found.rate(at=0), "at="),
    ):
        with pytest.raises(InputError, match=message):
            call()
