"""Files of a text audit: read as they were written, or refused by name."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

import kernelmem as km
from kernelmem.auditing.text.result import table_files
from kernelmem.core.files.hashed_files import hashed_json
from tests.auditing.sample_documents import build
from tests.auditing.text.models import Recall, encode, random_texts
from tests.damaged_files import damaged_bytes, damaged_json
from tests.profiles import examples


@pytest.fixture(scope="module")
def result():
    train, unseen = (random_texts(20, 12, seed) for seed in (1, 2))
    lm = km.text.causal_lm(Recall([encode(text) for text in train]), bos=0)
    pairs = km.text.canaries(2, encode, format="key{code}:{secret}", length=1, tiers=(1,))
    options = km.TextAuditOptions(encode=encode, samples=3, n_listed=2)
    return km.text_audit(lm, train, unseen, canaries=pairs, options=options)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("audit") / "audit.json"


@pytest.fixture(autouse=True)
def without_drawing(monkeypatch):
    monkeypatch.setattr(km.TextAudit, "to_html", lambda _: "page")


def load(path):
    try:
        return km.TextAudit.load(path)
    except (km.FileCorruptError, km.InputError) as caught:
        error = caught
    assert "audit.json" in str(error)
    assert len(str(error)) < 1500
    return None


def test_an_audit_is_read_as_it_was_written(result, tmp_path):
    result.save(tmp_path)
    assert km.TextAudit.load(tmp_path).document == result.document
    assert km.TextAudit.load(tmp_path / "audit.json").to_json() == result.to_json()
    with pytest.raises(km.InputError, match="of an older report"):
        result.save(tmp_path)
    result.save(tmp_path, overwrite=True)
    rows = (tmp_path / "documents.csv").read_text().splitlines()
    assert rows[0] == "document,member,tokens,score_loss,score_min_k++"
    assert len(rows) == 41
    (tmp_path / "spans.csv").write_text("of another audit")
    with pytest.raises(km.FileCorruptError, match=r"spans\.csv"):
        km.TextAudit.load(tmp_path)


def test_files_are_written_by_the_audit_itself(tmp_path):
    lm = km.text.causal_lm(Recall(), bos=0)
    found = km.text_audit(lm, [[1, 2, 3]], [[1, 2, 4]], out=tmp_path / "o")
    assert km.TextAudit.load(tmp_path / "o").document == found.document
    assert set(table_files(found.document)) == set(found.document.files)
    with pytest.raises(km.InputError, match="of an older report"):
        km.text_audit(lm, [[1, 2, 3]], [[1, 2, 4]], out=tmp_path / "o")


def test_the_audit_of_a_classifier_is_another_kind(result, tmp_path):
    document, rows = build("bare")
    (tmp_path / "audit.json").write_text(km.Audit(document, rows).to_json())
    with pytest.raises(km.InputError, match=r"the audit of a classifier.*read it with kernelmem\.Audit\.load"):
        km.TextAudit.load(tmp_path)
    (tmp_path / "audit.json").write_text(result.to_json())
    with pytest.raises(km.InputError, match=r"the audit of a language model.*kernelmem\.TextAudit\.load"):
        km.Audit.load(tmp_path)


@examples(0.3)
@given(st.data())
def test_damaged_bytes(path, result, data):
    text = result.to_json()
    path.write_bytes(data.draw(damaged_bytes(text.encode())))
    found = load(path)
    assert found is None or found.to_json() == text


@examples(0.5)
@given(st.data())
def test_other_content_with_a_true_hash(path, result, data):
    values = json.loads(result.to_json())
    del values["kernelmem_sha256"]
    values["table"] = {"document": [0], "member": [True], "tokens": [1], "scores": {"loss": [0.5]}}
    values = data.draw(damaged_json(values))
    try:
        path.write_text(hashed_json(values), encoding="utf-8", errors="surrogatepass")
    except (ValueError, TypeError, AttributeError):  # NaN, or not an object: nobody can write such a file
        path.write_text(json.dumps(values))
    found = load(path)
    if found is not None:
        assert km.TextAudit.load(path).to_json() == found.to_json()
        assert str(found)
