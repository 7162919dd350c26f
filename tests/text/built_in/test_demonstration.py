"""Demonstration: documents apart, canaries in the rows, the same seed gives the same model."""

import pytest
import torch

from kernelmem import text
from kernelmem.core import InputError
from kernelmem.text.built_in.corpus import BOS, VOCABULARY

OPTIONS = {"n_documents": 40, "epochs": 1, "n_canaries": 10, "hidden": 16}


@pytest.fixture(scope="module")
def small():
    return text.demonstration(**OPTIONS, seed=3)


def test_documents_are_apart(small):
    texts = [*small.member_texts, *small.unseen_texts, *small.reference_texts]
    assert len(set(texts)) == len(texts) == 120
    for documents, group in [(small.members, small.member_texts), (small.reference_documents, small.reference_texts)]:
        assert [small.decode(ids) for ids in documents] == list(group)


def test_every_copy_is_in_the_rows_and_no_twin(small):
    coverage = text.coverage(small.canaries, small.rows)
    assert coverage.copies.sum() == small.canaries.repetitions.sum() == 2 * (1 + 2 + 4 + 8 + 16)
    is_document = small.rows.document >= 0
    assert sorted(small.rows.document[is_document].tolist()) == list(range(40))


def test_models_are_language_models_of_the_characters(small):
    for model in (small.model, small.reference_model):
        lm = text.causal_lm(model, bos=BOS)
        assert lm.vocabulary == VOCABULARY
    assert not torch.equal(small.model.head.weight, small.reference_model.head.weight)
    assert "40 members" in str(small)
    assert len({small.decode(ids) for ids in small.contexts}) == 5
    assert "a reference model" in str(small)


def test_the_same_seed_gives_the_same_demonstration(small):
    calls = []
    again = text.demonstration(**OPTIONS, seed=3, reference=False, progress=lambda *call: calls.append(call))
    assert torch.equal(again.model.head.weight, small.model.head.weight)
    assert again.member_texts == small.member_texts
    assert again.reference_model is None
    assert calls == [(1, 1)]
    assert again.recipe == small.recipe


def test_too_many_documents_are_refused():
    with pytest.raises(InputError, match="n_documents=5000"):
        text.demonstration(n_documents=5000)
