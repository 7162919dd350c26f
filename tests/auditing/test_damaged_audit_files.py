"""Law of Audit.load: a damaged or hostile audit.json is refused by name, or read as what it was."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

import kernelmem as km
from kernelmem.core.hashed_files import hashed_json
from tests.damaged_files import damaged_bytes, damaged_json
from tests.profiles import examples


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("audit") / "audit.json"


@pytest.fixture(scope="module")
def text(make_document):
    return km.Audit(make_document("flips")).to_json()


def load(path):
    try:
        return km.Audit.load(path)
    except (km.FileCorruptError, km.InputError) as caught:
        error = caught
    assert "audit.json" in str(error)
    assert len(str(error)) < 1500
    return None


@examples(1.0)
@given(st.data())
def test_damaged_bytes(path, text, data):
    path.write_bytes(data.draw(damaged_bytes(text.encode())))
    found = load(path)
    assert found is None or found.to_json() == text


@examples(1.0)
@given(st.data())
def test_other_content_with_a_true_hash(path, text, data):
    values = json.loads(text)
    del values["kernelmem_sha256"]
    values["memorization"] |= {key: v[:5] for key, v in values["memorization"].items() if isinstance(v, list)}
    values |= {"examples": values["examples"][:3], "images": {}, "features": {}}
    values = data.draw(damaged_json(values))
    try:
        path.write_text(hashed_json(values), encoding="utf-8", errors="surrogatepass")
    except (ValueError, TypeError, AttributeError):  # NaN, or not an object: nobody can write such a file
        path.write_text(json.dumps(values))
    found = load(path)
    if found is not None:
        assert km.Audit.load(path).to_json() == found.to_json()
        assert str(found)
