"""Audit: the result of the audit, with its files, table, figure and summary."""

import dataclasses
import json
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kernelmem.auditing.document import AuditDocument, read_document
from kernelmem.core.atomic_files import write_files
from kernelmem.core.result_files import Result

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

EXAMPLES_PRINTED = 5
LINE_WIDTH = 110  # characters


@dataclass(frozen=True, eq=False, repr=False)
class Audit(Result):
    """Result of :func:`kernelmem.audit`. ``document`` contains it as plain values."""

    document: AuditDocument

    def to_dict(self) -> dict[str, object]:
        """Return the document as nested dicts and lists: the content of ``audit.json``."""
        return json.loads(self.to_json())

    def to_json(self) -> str:
        """Return ``audit.json``: equal inputs, seed, versions and threads give equal bytes, except for ``seconds``."""
        return json.dumps(dataclasses.asdict(self.document), indent=1, allow_nan=False, ensure_ascii=False) + "\n"

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
        from kernelmem.auditing.figures import distribution_figure  # matplotlib is slow to import

        return distribution_figure(self.document)

    def save(self, path: str | Path) -> Path:
        """Write audit.json and then audit.html into the directory ``path``, each completely or not at all; return it.

        An older report there is removed first, so that it never lies next to the numbers of another audit.
        """
        directory = Path(path)
        report = directory / "audit.html"
        write_files(directory, {"audit.json": self.to_json()})
        report.unlink(missing_ok=True)
        write_files(directory, {report.name: self.to_html()})
        return directory

    @classmethod
    def load(cls, path: str | Path) -> "Audit":
        """Read ``audit.json`` (or the directory that holds it).

        Raises:
            InputError: the file does not exist, or has a schema version that this kernelmem does not read.
            FileCorruptError: the file is not an audit.json.
        """
        path = Path(path)
        return cls(read_document(path / "audit.json" if path.is_dir() else path))

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
        return "\n".join(lines)
