"""Audit: the result of the audit, with its files, table, figure and summary."""

import os
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kernelmem.auditing.document import AuditDocument, read_document, unreadable, write_document
from kernelmem.core.atomic_files import file_sha256, write_files
from kernelmem.core.errors import FileCorruptError, printable
from kernelmem.core.hashed_files import READ_ERRORS, check_json, load_json, read_bytes
from kernelmem.core.result_files import Result, check_consistent

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

EXAMPLES_PRINTED = 5
LINE_WIDTH = 110  # characters


REPORT = "audit.html"


@dataclass(frozen=True, eq=False, repr=False)
class Audit(Result):
    """Result of :func:`kernelmem.audit`. ``document`` contains it as plain values."""

    document: AuditDocument

    def to_dict(self) -> dict[str, object]:
        """Return the document as nested dicts and lists: the content of ``audit.json`` without its SHA-256."""
        return check_json(load_json(self.to_json()))

    def to_json(self) -> str:
        """Return ``audit.json``, with its SHA-256.

        Equal inputs, seed, versions and threads give equal bytes, except for ``seconds`` and the SHA-256.
        """
        return write_document(self.document)

    def to_html(self) -> str:
        """Return the report: one static page without scripts that opens offline."""
        from kernelmem.auditing.report import render  # matplotlib and jinja2 are slow to import

        return render(self.document)

    def to_frame(self) -> "pandas.DataFrame":
        """Return one row per training row.

        Columns: label_memorization, loo_margin, network_memorization, loo_prediction, memorized.
        """
        import pandas  # slow to import

        memorization = self.document.memorization
        names = ("label_memorization", "loo_margin", "network_memorization", "loo_prediction")
        frame = pandas.DataFrame({name: getattr(memorization, name) for name in names})
        frame["memorized"] = frame.index.isin(memorization.memorized)
        return frame.rename_axis("row")

    def plot(self) -> "Figure":
        """Draw the distribution of the network's memorization with its null."""
        from kernelmem.auditing.report import distribution_figure  # matplotlib is slow to import

        return distribution_figure(self.document)

    def save(self, path: str | Path) -> Path:
        """Write audit.json and then audit.html into the directory ``path``, each completely or not at all; return it.

        The files of an older report there are removed first, so that they never lie next to the numbers of another audit.
        """
        return write_report(self, path, {})

    @classmethod
    def load(cls, path: str | Path) -> "Audit":
        """Read ``audit.json`` (or the directory that holds it).

        Raises:
            InputError: the file has a schema version that this kernelmem does not read.
            FileCorruptError: the file is missing, truncated, altered (its hash differs), or not an audit.json; or weights or
                labels next to it are not those of the report.
        """
        path = Path(path) / "audit.json" if os.path.isdir(path) else Path(path)  # noqa: PTH112 (a wrong path is no error here)
        document = read_document(path)
        for name, sha256 in document.files.items():
            file = path.parent / Path(name).name
            if file.is_file() and file_sha256(file) != sha256:
                raise FileCorruptError(
                    f"file {file}, whose SHA-256 differs from the one in {path.name}",
                    expected="the file that was written together with the report",
                    hint="run the audit again, or remove the file: the report is complete without it",
                )
        result = cls(document)
        try:
            check_consistent(result)
        except READ_ERRORS as error:
            raise unreadable(path, error) from error
        return result

    def __str__(self) -> str:
        """Return a summary of at most one screen: headline, accuracies, fidelity, flips and the most memorized rows."""
        document = self.document
        model, fidelity, flips = document.model, document.fidelity, document.flips
        lines = [
            document.verdict.headline,
            *textwrap.wrap(document.verdict.detail, LINE_WIDTH, initial_indent="  ", subsequent_indent="  "),
            f"  accuracy          train {model.train_accuracy:.1%}, test {model.test_accuracy:.1%}",
            f"  NTK surrogate     agrees with the network on {fidelity.agreement:.1%} of {document.data.n_test:,} test rows"
            f" (relative error {fidelity.relative_error:.2f}); label regression: {fidelity.label_regression_agreement:.1%}",
        ]
        if flips.auroc is not None:
            lines.append(
                f"  known flips       {flips.n:,}; AUROC of the leave-one-out margin {flips.auroc:.4f} ± {flips.auroc_se:.4f}"
                f" (flags permuted: {flips.permuted_auroc:.3f})"
            )
        if document.examples:
            lines.append("  most memorized       row  label  leave-one-out  memorization by    by label")
            lines.append("  rows                             prediction         the network  regression")
            lines += [
                f"{example.index:>24}  {example.label:>5}  {example.loo_prediction:>13}"
                f"  {example.network_memorization:>+15.2f}  {example.label_memorization:>+10.2f}"
                for example in document.examples[:EXAMPLES_PRINTED]
            ]
        return printable("\n".join(lines))


def write_report(result: Audit, directory: str | Path, files: Mapping[str, bytes]) -> Path:
    """Write audit.json, the further ``files`` of its document (contents by name), and audit.html; return the directory.

    A kill at any time leaves the files of one report only, possibly not all of them. The numbers are on disk before the
    report is drawn; an exception while drawing says so.

    Raises:
        InputError: the directory cannot be written to, or one of the names is that of a directory.
    """
    directory = Path(directory)
    obsolete = {REPORT, *_further_files(directory), *files}
    write_files(directory, {"audit.json": result.to_json(), **files}, obsolete=sorted(obsolete))
    try:
        page = result.to_html()
    except Exception as error:
        error.add_note(f"The numbers of the audit are in {directory / 'audit.json'}; kernelmem.Audit.load reads them.")
        raise
    write_files(directory, {REPORT: page})
    return directory


def _further_files(directory: Path) -> list[str]:
    """Return the names of unchanged files that belong to the report in ``directory``, besides audit.json and audit.html."""
    try:
        files = load_json(read_bytes(directory / "audit.json"))["files"]
        names = [name for name in files if name == Path(name).name and (directory / name).is_file()]
        return [name for name in names if file_sha256(directory / name) == files[name]]
    except READ_ERRORS:
        return []  # there is no report
