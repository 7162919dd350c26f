"""Files of a report: audit.json with a hash, further files beside it, and audit.html."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from kernelmem.core.errors import FileCorruptError, InputError
from kernelmem.core.files.atomic_files import check_directory, file_sha256, write_files
from kernelmem.core.files.hashed_files import READ_ERRORS, check_json, load_json, read_bytes, reason
from kernelmem.core.files.result_files import decode

JSON_NAME, REPORT = "audit.json", "audit.html"
READERS = {"": "kernelmem.Audit.load", "text": "kernelmem.TextAudit.load"}  # by the kind of the audit

D = TypeVar("D")


def read_json_document(path: Path, cls: type[D], version: int, kind: str = "") -> D:
    """Read ``audit.json`` as a document of class ``cls``.

    Args:
        path: path of the file.
        cls: dataclass of plain values, with a field ``schema_version``, and a field ``kind`` unless the kind is "".
        version: schema version of the class.
        kind: kind of audit.

    Raises:
        InputError: the file has another schema version, or is that of another kind of audit.
        FileCorruptError: the file is missing, truncated, altered (its hash differs), or not an audit.json.
    """
    try:
        content = load_json(read_bytes(path), finite=True)
        found_kind = decode(content.get("kind", ""), str, "kind") if isinstance(content, dict) else ""
        found = decode(content["schema_version"], int, "schema_version")
        if (found_kind, found) == (kind, version):
            return decode(check_json(content), cls, "audit")
    except READ_ERRORS as error:
        raise unreadable(path, error) from error
    if found_kind != kind and found_kind in READERS:
        raise InputError(
            f"audit file {path}, the audit of a {'language model' if found_kind else 'classifier'}",
            expected=f"the audit of a {'language model' if kind else 'classifier'}",
            hint=f"read it with {READERS[found_kind]}",
        )
    raise InputError(
        f"audit file {path} of schema version {found}",
        expected=f"version {version}",
        hint="run the audit again, or read the file with the kernelmem version recorded in it under versions",
    )


def unreadable(path: Path, error: Exception) -> FileCorruptError:
    """Return the error for an audit.json that cannot be read because of ``error``."""
    return FileCorruptError(
        f"audit file {path} ({reason(error)})",
        expected="an audit.json written by kernelmem",
        hint="run the audit again",
    )


def check_further_files(path: Path, files: Mapping[str, str]) -> None:
    """Check that the files beside ``path``, if they are there, have the SHA-256 in ``files``.

    Raises:
        FileCorruptError: a file next to it is not that of the report.
    """
    for name, sha256 in files.items():
        file = path.parent / Path(name).name
        if file.is_file() and file_sha256(file) != sha256:
            raise FileCorruptError(
                f"file {file}, whose SHA-256 differs from the one in {path.name}",
                expected="the file that was written together with the report",
                hint="run the audit again",
            )


def check_no_report(directory: str | Path, *, overwrite: bool) -> None:
    """Raise an InputError if files cannot be written to the directory, or if it holds a report and must not be changed."""
    directory = check_directory(directory)
    names = [name for name in (JSON_NAME, REPORT) if (directory / name).exists()]
    if names and not overwrite:
        raise InputError(
            f"output directory {directory}, which holds {' and '.join(names)} of an older report",
            expected="a directory without a report",
            hint="pass another directory, or overwrite=True",
        )


def write_report_files(
    directory: str | Path,
    json_text: str,
    files: Mapping[str, bytes],
    draw: Callable[[], str],
    *,
    kind: str = "",
    overwrite: bool = False,
) -> Path:
    """Write audit.json, the further ``files`` whose SHA-256 it contains, and audit.html; return the directory.

    A kill at any time leaves the files of one report only, possibly not all of them. The numbers are on disk before the
    report is drawn; an exception while drawing says so.

    Args:
        directory: where the files go.
        json_text: content of audit.json.
        files: contents of the further files by name.
        draw: returns the content of audit.html.
        kind: kind of audit.
        overwrite: True to replace an older report.

    Raises:
        InputError: the directory holds a report and ``overwrite`` is False, it cannot be written to, or one of the names is
            that of a directory.
    """
    check_no_report(directory, overwrite=overwrite)
    directory = Path(directory)
    obsolete = {REPORT, *_further_files(directory), *files}
    write_files(directory, {JSON_NAME: json_text, **files}, obsolete=sorted(obsolete))
    try:
        page = draw()
    except Exception as error:
        error.add_note(f"The numbers of the audit are in {directory / JSON_NAME}; {READERS[kind]} reads them.")
        raise
    write_files(directory, {REPORT: page})
    return directory


def _further_files(directory: Path) -> list[str]:
    """Return the names of unchanged files that belong to the report in ``directory``, besides audit.json and audit.html."""
    try:
        files = load_json(read_bytes(directory / JSON_NAME))["files"]
        names = [name for name in files if name == Path(name).name and (directory / name).is_file()]
        return [name for name in names if file_sha256(directory / name) == files[name]]
    except READ_ERRORS:
        return []  # there is no report
