"""TextAudit: the result of a text audit, with its files, table and summary."""

import csv
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from kernelmem.auditing.schema import (
    JSON_NAME,
    check_further_files,
    read_json_document,
    unreadable,
    write_report_files,
)
from kernelmem.auditing.text.schema import KIND, TEXT_SCHEMA_VERSION, TextAuditDocument
from kernelmem.core.files.hashed_files import READ_ERRORS, check_json, hashed_json, load_json
from kernelmem.core.files.result_files import Result, check_consistent

if TYPE_CHECKING:
    import pandas as pd

DOCUMENTS_CSV, SPANS_CSV = "documents.csv", "spans.csv"
SPAN_COLUMNS = (
    *("sha256", "document", "offset", "length", "score", "kind", "copies", "holders", "greedy", "contexts"),
    *("log10_queries", "tie", "claimed"),
)


@dataclass(frozen=True, eq=False, repr=False)
class TextAudit(Result):
    """Result of :func:`kernelmem.text_audit`. It has no text of documents unless that was to be revealed.

    Attributes:
        document: verdicts, gates, numbers and findings as plain values.
    """

    document: TextAuditDocument

    def to_dict(self) -> dict[str, object]:
        """Return the document as nested dicts and lists: the content of ``audit.json`` without its SHA-256."""
        return check_json(load_json(self.to_json()))

    def to_json(self) -> str:
        """Return ``audit.json``, with its SHA-256.

        Equal inputs, seed, date, versions and threads give equal bytes, except for ``seconds`` and the SHA-256.
        """
        return hashed_json(asdict(self.document))

    def to_html(self) -> str:
        """Return the report: one static page without scripts that opens offline."""
        from kernelmem.auditing.text.report import render_text_page  # matplotlib and jinja2 are slow to import

        return render_text_page(self.document)

    def to_frame(self) -> "pd.DataFrame":
        """Return one row per evaluated document: document, member, tokens, and a column for each membership score."""
        import pandas as pd  # slow to import

        table = self.document.table
        columns = {"document": table.document, "member": table.member, "tokens": table.tokens, **table.scores}
        return pd.DataFrame({name: list(values) for name, values in columns.items()})

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write audit.json, documents.csv, spans.csv and audit.html into the directory ``path``, each completely or not at all.

        The files of an older report there are removed first, so that they never lie next to the numbers of another audit.

        Raises:
            InputError: the directory holds a report and ``overwrite`` is False, or cannot be written to.
        """
        contents = {
            name: content for name, content in table_files(self.document).items() if name in self.document.files
        }
        return write_report_files(path, self.to_json(), contents, self.to_html, kind=KIND, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | Path) -> "TextAudit":
        """Read ``audit.json`` (or the directory that holds it).

        Raises:
            InputError: the file has a schema version that this kernelmem does not read, or is the audit of a classifier.
            FileCorruptError: the file is missing, truncated, altered (its hash differs), or not that of an audit; or a further
                file next to it is not that of the report.
        """
        path = Path(path) / JSON_NAME if os.path.isdir(path) else Path(path)  # noqa: PTH112 (a wrong path is no error here)
        document = read_json_document(path, TextAuditDocument, TEXT_SCHEMA_VERSION, KIND)
        check_further_files(path, document.files)
        result = cls(document)
        try:
            check_consistent(result)
        except READ_ERRORS as error:
            raise unreadable(path, error) from error
        return result

    def __str__(self) -> str:
        """Return a summary of at most one screen: verdicts, gates, numbers and limits, without text of documents."""
        from kernelmem.auditing.text.summary import summary

        return summary(self.document)

    def _repr_html_(self) -> str:
        """Return the summary (called by notebooks)."""
        return f"<pre>{escape(str(self))}</pre>"


def table_files(document: TextAuditDocument) -> dict[str, bytes]:
    """Return documents.csv, the scores of all documents, and spans.csv, the extracted spans without their text."""
    table = document.table
    scores = [f"score_{name}" for name in table.scores]
    columns = (table.document, table.member, table.tokens, *table.scores.values())
    spans = ([getattr(span, name) for name in SPAN_COLUMNS] for span in document.spans)
    return {
        DOCUMENTS_CSV: _csv(["document", "member", "tokens", *scores], zip(*columns, strict=True)),
        SPANS_CSV: _csv(SPAN_COLUMNS, spans),
    }


def _csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([f"{value:.9g}" if isinstance(value, float) else value for value in row] for row in rows)
    return stream.getvalue().encode()
