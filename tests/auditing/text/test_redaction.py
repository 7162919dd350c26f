"""Redaction: no string of 12 characters of a document in any output, and what each level reveals."""

import dataclasses
import json
import logging
import traceback

import pytest
import torch

import kernelmem as km
from kernelmem.auditing.text.redaction import Redaction
from kernelmem.core import InputError
from kernelmem.text import canaries, causal_lm, shared_text
from tests.auditing.text.models import Recall, decode, encode, random_texts

TRAIN, UNSEEN = (random_texts(25, 30, seed) for seed in (1, 2))
LENGTH = 12
PAIRS = canaries(4, encode, format="key of unit {code}:{secret}".replace(" ", "z"), length=2, tiers=(1,), seed=3)
ROWS = PAIRS.insert(TRAIN, encode, context=6, seed=4)
OPTIONS = km.TextAuditOptions(encode=encode, decode=decode, date="2026-01-02", samples=7)


def quoted(*outputs, length=LENGTH):
    """Number of characters of the outputs that lie in a string of a document of this length."""
    return int(shared_text([*TRAIN, *UNSEEN], list(outputs), length=length).sum())


@pytest.fixture(scope="module")
def lm():
    return causal_lm(Recall(ROWS.ids), bos=0)


@pytest.fixture(scope="module")
def audit(lm):
    def run(**options):
        return km.text_audit(lm, TRAIN, UNSEEN, canaries=PAIRS, options=dataclasses.replace(OPTIONS, **options))

    return run


@pytest.fixture(scope="module")
def redacted(audit):
    return audit()


def test_no_output_of_a_redacted_audit_quotes_a_document(redacted, tmp_path, caplog, capsys):
    caplog.set_level(logging.DEBUG)
    redacted.save(tmp_path / "out")
    files = sorted((tmp_path / "out").iterdir())
    assert {file.name for file in files} == {"audit.json", "audit.html", "documents.csv", "spans.csv"}
    outputs = [text for file in files for text in (file.name, file.read_text(encoding="utf-8"))]
    frame = redacted.to_frame()
    outputs += [str(redacted), repr(redacted), redacted._repr_html_(), frame.to_csv(), repr(redacted.document)]
    outputs += [caplog.text, *capsys.readouterr()]
    assert quoted(*outputs) == 0
    assert PAIRS.texts[0][0] not in "".join(outputs)
    assert len(redacted.document.spans) > 10
    assert all(span.text is None for span in redacted.document.spans)
    assert quoted(TRAIN[0]) == 30  # the test sees what is quoted


@pytest.mark.parametrize("place", ["encode", "decode", "model", "mixed"])
def test_no_error_quotes_a_document(lm, place):
    seen = []

    def fails(value):
        seen.append(value)
        if len(seen) > 30:
            raise KeyError(f"cannot read {value}")
        return encode(value)

    def no_text(ids):
        raise ValueError(f"cannot write {decode(ids)}")

    class Broken(Recall):
        def forward(self, ids):
            if ids.shape[1] > 20:
                raise RuntimeError(f"cannot read {decode(ids[0].tolist())}")
            return super().forward(ids)

    train = TRAIN if place != "mixed" else [*TRAIN[:5], [1, 2], "\ud800"]
    model = lm if place != "model" else causal_lm(Broken(), bos=0)
    options = {"encode": {"encode": fails}, "decode": {"decode": no_text, "reveal": "all", "reason": "test"}}
    with pytest.raises(km.KernelmemError) as caught:
        km.text_audit(model, train, UNSEEN, options=dataclasses.replace(OPTIONS, **options.get(place, {})))
    assert quoted("".join(traceback.format_exception(caught.value))) == 0
    assert caught.value.__suppress_context__
    assert caught.value.__cause__ is None
    assert place != "model" or "RuntimeError: its message is left out" in str(caught.value)


def test_canaries_are_revealed_alone(audit):
    found = audit(reveal="canaries")
    assert {row.text for row in found.document.canary_findings} == {
        pair[int(i)] for pair, i in zip(PAIRS.texts, PAIRS.inserted, strict=True)
    }
    assert quoted(found.to_json()) == 0


def test_spans_show_their_ends_only(audit):
    found = audit(reveal="spans", prefix=6, suffix=24, n_listed=25)
    texts = [span.text for span in found.document.spans]
    assert len(texts) > 10
    assert None not in texts[:20]
    first = found.document.spans[0]
    whole = TRAIN[first.document][first.offset : first.offset + first.length]
    assert first.text == f"{whole[:6]} … {whole[-6:]}"
    assert quoted(found.to_json(), length=9) == 0
    assert found.document.documents[0].text is None
    shown = Redaction(b"key", "spans", decode)
    assert [shown.span(torch.tensor([5] * 40), rank) is None for rank in (0, 19, 20)] == [False, False, True]


def test_all_is_shown_with_the_reason(audit):
    found = audit(reveal="all", reason="review of 3 documents by their author")
    assert json.loads(found.to_json())["context"]["reason"] == "review of 3 documents by their author"
    span = found.document.spans[0]
    assert span.text == TRAIN[span.document][span.offset : span.offset + span.length]
    assert "".join(found.document.documents[0].text) == TRAIN[found.document.documents[0].document]


def test_revealed_text_has_no_characters_that_alter_a_terminal_or_page(audit):
    found = audit(reveal="all", reason="test", decode=lambda ids: "\x1b[31m\u202e<script>")
    assert found.document.spans[0].text == "\\x1b[31m\\u202e<script>"
    page = found.to_html()
    assert not {"\x1b", "\u202e", "<script"} & {part for part in ("\x1b", "\u202e", "<script") if part in page}


def test_hashes_tell_spans_apart_and_depend_on_the_salt(audit, redacted):
    salted = audit(salt="other")
    hashes = [[span.sha256 for span in found.document.spans] for found in (redacted, salted)]
    assert len(set(hashes[0])) == len(hashes[0]) == len(hashes[1])
    assert not set(hashes[0]) & set(hashes[1])
    assert redacted.document.data.sha256 != salted.document.data.sha256
    assert "other" not in json.dumps(salted.to_dict()["context"])


def test_decode_must_return_text(audit):
    with pytest.raises(InputError, match="decode, which returns list"):
        audit(reveal="all", reason="test", decode=lambda ids: ids)
