"""Audit: the result of the audit, with its files, table, figure and summary."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from kernelmem.auditing.schema import (
    JSON_NAME,
    ROWS_NPZ,
    AuditDocument,
    RowTable,
    check_further_files,
    read_document,
    unreadable,
    write_document,
    write_report_files,
)
from kernelmem.core.errors import FileCorruptError
from kernelmem.core.files.hashed_files import READ_ERRORS, check_json, load_json, read_bytes, reason
from kernelmem.core.files.result_files import Result, check_consistent

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False, repr=False)
class Audit(Result):
    """Result of :func:`kernelmem.audit`.

    Attributes:
        document: headline, gates, power and answers as plain values.
        rows: statistics of every row.
    """

    document: AuditDocument
    rows: RowTable

    def to_dict(self) -> dict[str, object]:
        """Return the document as nested dicts and lists: the content of ``audit.json`` without its SHA-256."""
        return check_json(load_json(self.to_json()))

    def to_json(self) -> str:
        """Return ``audit.json``, with its SHA-256.

        Equal inputs, seed, date, versions and threads give equal bytes, except for ``seconds`` and the SHA-256.
        """
        return write_document(self.document)

    def to_html(self) -> str:
        """Return the report: one static page without scripts that opens offline."""
        from kernelmem.auditing.report import render_page  # matplotlib and jinja2 are slow to import

        return render_page(self.document, self.rows)

    def to_frame(self) -> "pandas.DataFrame":
        """Return one row per training row, with the columns of :class:`RowTable` that hold one value per training row."""
        return self.rows.to_frame()

    def plot(self) -> "Figure":
        """Draw the distribution of the leave-one-out margins of training and control rows, or of memorization by retraining."""
        from kernelmem.auditing.report import plot_scores  # matplotlib is slow to import

        return plot_scores(self.document, self.rows)

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write audit.json, rows.npz, rows.csv and audit.html into the directory ``path``, each completely or not at all.

        The files of an older report there are removed first, so that they never lie next to the numbers of another audit.

        Raises:
            InputError: the directory holds a report and ``overwrite`` is False, or cannot be written to.
        """
        return write_report(self, path, {}, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | Path) -> "Audit":
        """Read ``audit.json`` (or the directory that holds it) and rows.npz beside it.

        Raises:
            InputError: the file has a schema version that this kernelmem does not read.
            FileCorruptError: a file is missing, truncated, altered (its hash differs), or not that of an audit; or a further
                file next to it is not that of the report.
        """
        path = Path(path) / JSON_NAME if os.path.isdir(path) else Path(path)  # noqa: PTH112 (a wrong path is no error here)
        document = read_document(path)
        check_further_files(path, document.files)
        result = cls(document, _read_rows(path, document))
        try:
            check_consistent(result)
        except READ_ERRORS as error:
            raise unreadable(path, error) from error
        return result

    def __str__(self) -> str:
        """Return a summary of at most one screen: headline, gates, control, attacks and the most memorized rows.

        If a gate failed, it has no finding.
        """
        from kernelmem.auditing.report import summary  # matplotlib and jinja2 are slow to import

        return summary(self.document)

    def _repr_html_(self) -> str:
        """Return the summary (called by notebooks); the numbers of the rows are in ``to_frame()``."""
        return f"<pre>{escape(str(self))}</pre>"


def _read_rows(path: Path, document: AuditDocument) -> RowTable:
    """Return the row table beside ``path``, with one entry per training row of the document."""
    file = path.parent / ROWS_NPZ
    try:
        content = read_bytes(file)
        if ROWS_NPZ not in document.files:
            raise ValueError(f"{path.name} does not contain its SHA-256")
        rows = RowTable.read(content)
        if len(rows.label) != document.data.n_train:
            raise ValueError(f"{len(rows.label)} rows instead of {document.data.n_train}")
    except READ_ERRORS as error:
        raise FileCorruptError(
            f"file {file} of audit.json ({reason(error)})",
            expected="the rows.npz that was written together with audit.json",
            hint="copy the whole directory of the report, or run the audit again",
        ) from error
    return rows


def write_report(result: Audit, directory: str | Path, files: Mapping[str, bytes], *, overwrite: bool = False) -> Path:
    """Write audit.json, rows.npz, rows.csv, the further ``files`` of its document, and audit.html; return the directory.

    See :func:`kernelmem.auditing.schema.write_report_files`.
    """
    contents = {**result.rows.files(), **files}
    return write_report_files(directory, result.to_json(), contents, result.to_html, overwrite=overwrite)
