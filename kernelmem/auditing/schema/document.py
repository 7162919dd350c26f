"""AuditDocument: the content of audit.json, from which, with the row table, the report is drawn."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from kernelmem.auditing.schema.answers import Agreement, HowMuch, Leak, RowFinding, Slice, SuspectedLabels
from kernelmem.auditing.schema.checks import Gate, KernelFidelity, Power
from kernelmem.auditing.schema.compression import Compression
from kernelmem.auditing.schema.files import read_json_document
from kernelmem.auditing.schema.identity import Context, DataIdentity, ModelIdentity
from kernelmem.core.files.hashed_files import hashed_json
from kernelmem.statistics import Interval

# Version 2 held the arrays per row, and counted rows by the NTK surrogate; 3 had no bits of the labels (compression,
# rows[].memorized_bits, and the columns left_out_bits and memorized_bits of the row table)
SCHEMA_VERSION = 4


@dataclass(frozen=True)
class Verdict:
    """Headline and detail of the result, and the limits of what it says.

    Attributes:
        status: "no-claim" if a gate failed, else "memorized" or "nothing-found".
        headline: the result in one sentence.
        detail: its numbers, or the gates that failed.
        limits: what the result does not say, one sentence each.
    """

    status: Literal["memorized", "nothing-found", "no-claim"]
    headline: str
    detail: str
    limits: tuple[str, ...]


@dataclass(frozen=True)
class Flips:
    """Evaluation of the audit against training labels known to be wrong, which it does not use otherwise.

    Every field is None or () if it is unknown which labels are wrong; ``n`` alone is set if no label or every label is.

    Attributes:
        n: number of known wrong labels.
        auroc: separation by the leave-one-out margin, with its interval.
        other_aurocs: (name, AUROC) of other scores of the row table.
        permuted_auroc, permuted_sd: mean and standard deviation with permuted flags, the null control.
        precision, recall: among the k most suspicious rows, for k in ``ranks``.
        ranks: values of k.
    """

    n: int | None = None
    auroc: Interval | None = None
    other_aurocs: tuple[tuple[str, float], ...] = ()
    permuted_auroc: float | None = None
    permuted_sd: float | None = None
    precision: tuple[float, ...] = ()
    recall: tuple[float, ...] = ()
    ranks: tuple[int, ...] = ()


@dataclass(frozen=True)
class AnnexLine:
    """A statement of a public document that the numbers of this audit bear on.

    Attributes:
        source: document and paragraph.
        statement: the statement, summarized.
        result: what this audit contributes to it, or what was not run.
        status: "supported", "not supported" or "not run".
    """

    source: str
    statement: str
    result: str
    status: Literal["supported", "not supported", "not run"]


@dataclass(frozen=True)
class AuditDocument:
    """The content of ``audit.json``.

    Attributes:
        schema_version: version of this schema.
        context: date, auditor, purpose, threat model, redaction.
        verdict: headline, detail and limits.
        data, model: identity of data and network.
        gates: validity gates, in the order in which they are read.
        power: smallest memorization that would have been announced.
        how_much: memorized share of the training rows.
        rows: most memorized training rows, most memorized first; flagged rows come before rows that only rank high.
        suspected: training rows whose labels are probably wrong.
        leak: membership inference.
        compression: account of the training labels in bits.
        slices: results by class and by user-given group.
        agreements: rank agreement of cheap scores with retraining; () without retraining.
        fidelity: agreement of the kernel regressions with the network.
        flips: evaluation against known wrong labels.
        annex: statements of public documents that the numbers bear on.
        not_tested: what this audit did not test, one sentence each.
        images: PNG data URI by training index (as text), if rows are shown and are images.
        features: first features by training index (as text), if rows are shown and are not images.
        files: SHA-256 by name of each further file of the report, rows.npz and rows.csv among them.
        reproduce: command or call that gives this report again.
        seed: seed of the audit.
        versions: version by package name.
        seconds: duration of the audit, retraining included.
    """

    schema_version: int
    context: Context
    verdict: Verdict
    data: DataIdentity
    model: ModelIdentity
    gates: tuple[Gate, ...]
    power: Power
    how_much: HowMuch
    rows: tuple[RowFinding, ...]
    suspected: SuspectedLabels
    leak: Leak
    compression: Compression
    slices: tuple[Slice, ...]
    agreements: tuple[Agreement, ...]
    fidelity: KernelFidelity
    flips: Flips
    annex: tuple[AnnexLine, ...]
    not_tested: tuple[str, ...]
    images: dict[str, str]
    features: dict[str, tuple[float, ...]]
    files: dict[str, str]
    reproduce: str
    seed: int | None
    versions: dict[str, str]
    seconds: float


def write_document(document: AuditDocument) -> str:
    """Return ``audit.json``: the document as a JSON object, with an entry that is the SHA-256 of the others."""
    return hashed_json(asdict(document))


def read_document(path: Path) -> AuditDocument:
    """Read ``audit.json``; the errors are those of :func:`read_json_document`."""
    return read_json_document(path, AuditDocument, SCHEMA_VERSION)
