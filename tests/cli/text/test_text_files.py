"""Files of documents: what separates documents, and errors that name lines without quoting them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelmem.cli.text.text_files import read_texts
from kernelmem.core.errors import InputError
from tests.profiles import examples

SECRET = "the private sentence"


def test_blank_lines_separate_documents(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf\n\none\r\ntwo\r\n \t \r\n\r\nthree\n\n\n  four \n")
    assert read_texts(path, "--train") == ["one\ntwo", "three", "four "]
    path.write_text("a single one", encoding="utf-8")
    assert read_texts(path, "--train") == ["a single one"]


@examples(0.3)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=4))
def test_lines_of_json_are_read_as_they_were_written(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("texts") / "a.jsonl"
    for ascii_only in (True, False):
        lines = [json.dumps({"id": 1, "text": text}, ensure_ascii=ascii_only) for text in texts]
        path.write_bytes("\n\n".join(lines).encode())
        assert read_texts(path, "--train") == texts


BAD = {
    "not JSON": (f'{{"text": "a"}}\n\n{SECRET}\n', "line 3"),
    "not an object": (f'["{SECRET}"]\n', "line 1"),
    "another field": (f'{{"content": "{SECRET}"}}\n', "line 1"),
    "another type": (f'{{"text": ["{SECRET}"]}}\n', "line 1"),
    "half a pair": (f'{{"text": "a"}}\n{{"text": "{SECRET} \\ud800"}}\n', "line 2"),
    "nested deeply": ("[" * 200_000 + f'"{SECRET}"', "line 1"),
    "empty": ("\n \n", "without documents"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_lines_are_named_but_not_quoted(tmp_path, name):
    content, place = BAD[name]
    path = tmp_path / "a.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=place) as caught:
        read_texts(path, "--unseen")
    error: BaseException | None = caught.value
    while error is not None:  # a traceback would print the causes that are not suppressed
        assert SECRET not in str(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def test_other_files_are_refused(tmp_path):
    (tmp_path / "latin.txt").write_bytes(f"line\n{SECRET} caf\xe9".encode("latin1"))
    with pytest.raises(InputError, match="line 2, which is not UTF-8") as caught:
        read_texts(tmp_path / "latin.txt", "--train")
    assert SECRET not in str(caught.value)
    for encoding in ("utf-16", "utf-16-be"):
        mark = "" if encoding == "utf-16" else "\ufeff"
        (tmp_path / "wide.txt").write_bytes(f"{mark}{SECRET}".encode(encoding))
        with pytest.raises(InputError, match="iconv -f utf-16"):
            read_texts(tmp_path / "wide.txt", "--train")
    (tmp_path / "folder.txt").mkdir()
    for name in ("absent.txt", "folder.txt", "a.csv", "a", "null\0.txt"):
        with pytest.raises(InputError, match="--train"):
            read_texts(tmp_path / name, "--train")
