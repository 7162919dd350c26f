"""Law of Audit.load: a damaged or hostile audit.json is refused by name, or read as what it was."""

import hashlib
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import kernelmem as km
from kernelmem.auditing.schema import ROWS_NPZ
from kernelmem.core.files.hashed_files import hashed_json
from tests.auditing.sample_documents import build
from tests.damaged_files import damaged_bytes, damaged_json
from tests.profiles import examples


@pytest.fixture(scope="module")
def result():
    """A sample audit with the hash of its rows."""
    document, rows = build("kernel")
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in rows.files().items()}
    return km.Audit(replace(document, files=hashes), rows)


@pytest.fixture(scope="module")
def path(tmp_path_factory, result):
    path = tmp_path_factory.mktemp("audit") / "audit.json"
    (path.parent / ROWS_NPZ).write_bytes(result.rows.files()[ROWS_NPZ])
    return path


@pytest.fixture(scope="module")
def text(result):
    return result.to_json()


def load(path):
    try:
        return km.Audit.load(path)
    except (km.FileCorruptError, km.InputError) as caught:
        error = caught
    assert any(name in str(error) for name in ("audit.json", ROWS_NPZ))
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
    values |= {"rows": values["rows"][:3], "images": {}, "features": {}}
    values = data.draw(damaged_json(values))
    try:
        path.write_text(hashed_json(values), encoding="utf-8", errors="surrogatepass")
    except (ValueError, TypeError, AttributeError):  # NaN, or not an object: nobody can write such a file
        path.write_text(json.dumps(values))
    found = load(path)
    if found is not None:
        assert km.Audit.load(path).to_json() == found.to_json()
        assert str(found)
