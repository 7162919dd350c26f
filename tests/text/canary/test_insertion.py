"""Insertion of canaries: every copy whole, in a row of its own, after different text, words kept apart."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import kernelmem as km
from kernelmem.text import CanaryRows
from kernelmem.text.canary import canaries
from tests.profiles import examples
from tests.text.canary.tables import CHARACTERS, encode

DOCUMENTS = [
    "the quick brown fox jumps over the lazy dog, and runs away.",
    "one two three four five six seven eight",
    "nine  ten \n\n eleven",
    "",
]


def decode(ids):
    return "".join(CHARACTERS[i] for i in ids.tolist())


@examples(0.5)
@given(st.integers(1, 8), st.integers(0, 40), st.integers(0, 2**32))
def test_rows_are_documents_and_whole_copies(n, context, seed):
    design = canaries(n, encode, tiers=(1, 3), seed=seed)
    rows = design.insert(DOCUMENTS, encode, context=context, seed=seed)
    documents = (rows.owner < 0).nonzero()[:, 0].tolist()
    assert sorted(rows.document[documents].tolist()) == [0, 1, 2, 3]
    assert all(decode(rows.ids[i]) == DOCUMENTS[rows.document[i]] for i in documents)
    words = {word for text in DOCUMENTS for word in text.split()}
    for pair in range(n):
        own = (rows.owner == pair).nonzero()[:, 0].tolist()
        assert len(own) == int(design.repetitions[pair])
        text = design.texts[pair][int(design.inserted[pair])]
        before = []
        for i in own:
            start = int(rows.start[i])
            assert decode(rows.ids[i][start:]) == text
            before.append(decode(rows.ids[i][:start]))
        if context:
            assert len(set(before)) == len(own)  # deduplication must not remove copies
            assert all(piece.endswith("\n") and 1 < len(piece) <= context + 1 for piece in before)
            assert not any(piece[-2].isspace() for piece in before)
            if context >= 8:
                # copyright-traps joins the trap and the next word: every word here is a word of the documents
                assert {word for piece in before for word in piece.split()} <= words
        else:
            assert set(before) == {""}


def test_the_share_of_canaries_is_that_of_the_ids():
    design = canaries(3, encode, tiers=(2,), length=4)
    rows = design.insert(DOCUMENTS, encode, context=10)
    canary_tokens = 6 * len(design.ids(0, 0))
    assert rows.canary_share == canary_tokens / sum(map(len, rows.ids))
    assert f"{rows.canary_share:.2%}" in str(rows)
    assert len(rows.to_frame()) == len(rows.ids) == 10


def test_rows_are_shuffled_by_the_seed_only():
    design = canaries(4, encode, tiers=(2,))
    first, same, other = (design.insert(DOCUMENTS, encode, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first.ids, same.ids, strict=True))
    assert first.owner.tolist() != other.owner.tolist()


def test_too_little_text_and_another_encoding_are_refused():
    design = canaries(2, encode, tiers=(8,))
    with pytest.raises(km.InputError, match="fewer than 8 different pieces"):
        design.insert(["one two three"], encode)
    with pytest.raises(km.InputError, match="different pieces"):
        design.insert([], encode)
    assert len(design.insert([], encode, context=0).ids) == 16
    with pytest.raises(km.InputError, match="other ids"):
        design.insert(DOCUMENTS, lambda text: [i + 1 for i in encode(text)])
    with pytest.raises(km.InputError, match=r"documents\[0\]"):
        design.insert([[1, 2]], encode)


def test_saved_rows_are_read_again(tmp_path):
    rows = canaries(2, encode).insert(DOCUMENTS, encode)
    loaded = CanaryRows.load(rows.save(tmp_path / "rows"))
    assert all(torch.equal(a, b) for a, b in zip(rows.ids, loaded.ids, strict=True))
    assert torch.equal(rows.owner, loaded.owner)
