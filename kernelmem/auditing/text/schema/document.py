"""TextAuditDocument: the content of audit.json of a text audit, from which the report is drawn."""

from dataclasses import dataclass
from typing import Literal

from kernelmem.auditing.text.schema.answers import CanaryAnswer, ChangeAnswer, ExtractionAnswer, MembershipAnswer
from kernelmem.auditing.text.schema.findings import CanaryFinding, DocumentFinding, DocumentTable, ExtractedSpan
from kernelmem.auditing.text.schema.identity import LanguageModelIdentity, TextContext, TextData
from kernelmem.auditing.text.schema.verdicts import TextGate, TextVerdict

KIND = "text"
TEXT_SCHEMA_VERSION = 1


@dataclass(frozen=True)
class TextAuditDocument:
    """The content of ``audit.json`` of a text audit.

    Attributes:
        kind: "text", which tells it from the audit of a classifier.
        schema_version: version of this schema.
        context: date, auditor, purpose, threat model, randomization, revealed text.
        model, data: identity of the language model and of the documents.
        gates: validity gates, in the order in which they are read.
        verdicts: one for each question: membership, extraction, canaries, change.
        membership, extraction, canaries, change: the numbers; None if they were not run.
        spans: extracted spans of training documents, most bits saved first, those that the reference emits last.
        canary_findings: inserted canaries, largest exposure first.
        documents: training documents on which most bits are saved.
        table: scores of all evaluated documents.
        not_tested: what this audit did not test, one sentence each.
        files: SHA-256 by name of each further file of the report, documents.csv and spans.csv among them.
        reproduce: command or call that gives this report again.
        seed: seed of the audit.
        versions: version by package name.
        seconds: duration of the audit.
    """

    kind: Literal["text"]
    schema_version: int
    context: TextContext
    model: LanguageModelIdentity
    data: TextData
    gates: tuple[TextGate, ...]
    verdicts: tuple[TextVerdict, ...]
    membership: MembershipAnswer | None
    extraction: ExtractionAnswer | None
    canaries: CanaryAnswer | None
    change: ChangeAnswer | None
    spans: tuple[ExtractedSpan, ...]
    canary_findings: tuple[CanaryFinding, ...]
    documents: tuple[DocumentFinding, ...]
    table: DocumentTable
    not_tested: tuple[str, ...]
    files: dict[str, str]
    reproduce: str
    seed: int
    versions: dict[str, str]
    seconds: float
