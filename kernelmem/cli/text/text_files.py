"""Documents of a text file or of JSON lines. Errors name lines and never quote them, since documents may be private."""

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path

from kernelmem.core.errors import InputError
from kernelmem.core.files.hashed_files import read_bytes, reason

BLANK_LINES = re.compile(r"\n[^\S\n]*\n\s*")  # whitespace on a line makes it blank, too
FORMATS = (".txt", ".jsonl")
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_texts(path: Path, option: str) -> list[str]:
    """Return the documents of a file in UTF-8, line ends as line feeds.

    - ``.txt``: documents are separated by one or more blank lines; line breaks within a document are part of it;
    - ``.jsonl``: every line is a JSON object with the document in the field "text"; blank lines are skipped.

    Raises:
        InputError: another extension, a file that cannot be read, that is not UTF-8 or has no document, a line that is not
            such an object.
    """
    if path.suffix not in FORMATS:
        raise InputError(
            f"{option} {path}",
            expected=f"a {' or '.join(FORMATS)} file",
            hint='write one document per paragraph, or one JSON object {"text": ...} per line',
        )
    try:
        content = read_bytes(path)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{option} {path} ({reason(error)})", expected="a file that can be read", hint="check the path"
        ) from error
    text = _decoded(content, path, option)
    documents = list(_json_texts(text, path, option)) if path.suffix == ".jsonl" else _paragraphs(text)
    if not documents:
        raise InputError(f"{option} {path} without documents", expected="at least one", hint="check the file")
    return documents


def _decoded(content: bytes, path: Path, option: str) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        encoding = "utf-16" if content.startswith(UTF_16) else "latin1"
        raise InputError(
            f"{option} {path}, line {line:,}, which is not UTF-8",
            expected="text in UTF-8",
            hint=f"convert the file, if its encoding is {encoding}: iconv -f {encoding} -t utf-8 < old > new",
        ) from None  # the error holds the bytes
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _paragraphs(text: str) -> list[str]:
    parts = (part.strip("\n") for part in BLANK_LINES.split(text))
    return [part for part in parts if part.strip()]


def _json_texts(text: str, path: Path, option: str) -> Iterator[str]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        problem, value = "", None
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):  # a ValueError holds the line
            problem = "which is not JSON"
        if not problem and not isinstance(value, dict):
            problem = "which is not a JSON object"
        document = value.get("text") if isinstance(value, dict) else None
        if not problem and not isinstance(document, str):
            problem = 'which has no text in the field "text"'
        if isinstance(document, str) and any("\ud800" <= character <= "\udfff" for character in document):
            problem = "whose text has half a surrogate pair"
        if problem or not isinstance(document, str):
            raise InputError(
                f"{option} {path}, line {number:,}, {problem}",
                expected='a JSON object with the document in the field "text"',
                hint='write every line with json.dumps({"text": document})',
            )
        yield document
