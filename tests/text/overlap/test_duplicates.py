"""Repeated spans of documents, compared with a search for every window."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kernelmem.text.overlap import Duplicates, duplicates
from tests.profiles import examples

TEXTS = st.lists(st.text(alphabet="ab", max_size=14), min_size=1, max_size=5)


def windows(texts, length):
    return [(d, i, text[i : i + length]) for d, text in enumerate(texts) for i in range(len(text) - length + 1)]


@given(texts=TEXTS, length=st.integers(1, 6))
@examples(1)
def test_spans_copies_and_earlier_text_are_those_of_a_search(texts, length):
    found = duplicates(texts, length=length)
    everywhere = windows(texts, length)
    counts = Counter(window for *_, window in everywhere)
    covered, earlier, best = ([np.zeros(len(text), dtype=int) for text in texts] for _ in range(3))
    seen = set()
    for d, i, window in everywhere:
        place = slice(i, i + length)
        if counts[window] > 1:
            covered[d][place] = 1
            best[d][place] = np.maximum(best[d][place], counts[window])
        if window in seen:
            earlier[d][place] = 1
        seen.add(window)
    assert found.repeated.tolist() == [int(mask.sum()) for mask in covered]
    assert int(found.earlier.sum()) == sum(int(mask.sum()) for mask in earlier)
    rebuilt = [np.zeros(len(text), dtype=int) for text in texts]
    for row in found.to_frame().itertuples():
        assert rebuilt[row.document][row.start : row.stop].sum() == 0
        rebuilt[row.document][row.start : row.stop] = 1
        assert row.copies == best[row.document][row.start : row.stop].max()
        text = texts[row.document][row.start : row.stop]
        holders = {
            len({d for d, _, other in everywhere if other == text[k : k + length]})
            for k in range(len(text) - length + 1)
            if counts[text[k : k + length]] == row.copies
        }
        assert row.documents in holders
    assert [mask.tolist() for mask in rebuilt] == [mask.tolist() for mask in covered]


@given(texts=TEXTS, length=st.integers(1, 6))
@examples(2)
def test_the_documents_to_keep_have_every_window_and_each_adds_one(texts, length):
    keep = duplicates(texts, length=length).keep.tolist()
    kept = [texts[i] for i in keep]
    assert {w for *_, w in windows(texts, length)} == {w for *_, w in windows(kept, length)}
    assert {text for text in texts if len(text) < length} == {text for text in kept if len(text) < length}
    for k, text in enumerate(kept):
        new = {w for *_, w in windows([text], length)} - {w for *_, w in windows(kept[:k], length)}
        assert new or (len(text) < length and text not in kept[:k])


def test_positions_are_characters_not_bytes():
    texts = ["é😀 the same", "ü the same"]
    spans = duplicates(texts, length=9).to_frame()
    assert [texts[row.document][row.start : row.stop] for row in spans.itertuples()] == [" the same"] * 2


def test_the_result_holds_no_text_and_survives_its_file(tmp_path):
    found = duplicates(["a secret sentence"] * 2 + ["another"], length=10)
    assert "secret" not in str(found)
    found.save(tmp_path / "spans.km")
    assert b"secret" not in (tmp_path / "spans.km").read_bytes()
    assert Duplicates.load(tmp_path / "spans.km").to_frame().equals(found.to_frame())
    assert (found.share, found.keep.tolist()) == (34 / 41, [0, 2])


def test_empty_and_short_documents_have_no_span():
    found = duplicates(["", "", "ab"], length=5)
    assert (found.share, len(found.start), found.keep.tolist()) == (0.0, 0, [0, 2])
