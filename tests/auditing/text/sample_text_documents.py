"""Contents of text audits for tests of the page: numbers as an audit writes them, and every way to have none."""

from dataclasses import replace

import numpy as np

from kernelmem.auditing.schema import AttackRate, Gate
from kernelmem.auditing.text.schema import (
    KIND,
    TEXT_SCHEMA_VERSION,
    CanaryAnswer,
    CanaryFinding,
    CanaryTier,
    ChangeAnswer,
    ChangeGroup,
    DocumentFinding,
    DocumentTable,
    ExtractedSpan,
    ExtractionAnswer,
    ExtractionRate,
    LanguageModelIdentity,
    MembershipAnswer,
    TextAttack,
    TextAuditDocument,
    TextContext,
    TextData,
    TextGate,
    TextVerdict,
)
from kernelmem.statistics import Interval, clopper_pearson, proportion_difference

VARIANTS = ("found", "nothing", "no-claim", "small", "revealed")
SECRET = "key of unit QRST: 481516"
HOSTILE = '<script>alert("Ω")</script>\u202egpj\x07'
RNG = np.random.default_rng(0)


def interval(value: float, half: float, low: float = -np.inf, high: float = np.inf) -> Interval:
    return Interval(value, max(low, value - half), min(high, value + half), 0.95)


def tier(copies: int, exposure: float, emitted: int, right: int) -> CanaryTier:
    n = 80 if copies == 0 else 16
    return CanaryTier(
        copies, n, {0: 31.8, 1: 14.9, 2: 8.9, 4: 4.1, 8: 2.0}.get(copies, 1.0), interval(exposure, 1.2, 0, 19.93), n // 2,
        0.61 if copies == 0 else 1e-9, clopper_pearson(emitted, n), (emitted / n, max(0, emitted - 1) / n),
        right, 0 if copies == 0 else 16, 0.0 if copies == 0 else 1.58, 0.0 if copies == 0 else 1.58,
    )  # fmt: skip


CANARIES = CanaryAnswer(
    80, 19.93, 19.93, ("after other text 1", "at the beginning of a document"), "all 496 copies received loss in every epoch",
    1.42, 0.15, (tier(0, 1.3, 0, 0), tier(1, 9.1, 1, 16), tier(2, 15.3, 5, 16), tier(4, 18.5, 12, 16), tier(8, 19.9, 16, 16),
                 tier(16, 19.93, 16, 16)),
    80, 80, 1e-4, 9999, 0.05, 3.27, 3.27, 1.635, 0.95,
)  # fmt: skip
GATES = (
    TextGate(
        Gate("blind baseline", "Can training documents be told from unseen ones without the model?", True,
             "AUROC 0.513 (0.47 to 0.56)", "interval that contains 0.5", "The documents look alike to a classifier of n-grams."),
        ("membership", "change"),
    ),
    TextGate(
        Gate("reference alone", "Does the reference model tell them apart?", True, "AUROC 0.498 (0.46 to 0.54)",
             "interval that contains 0.5", "The reference does not know which documents were trained on."),
        ("membership",),
    ),
    TextGate(
        Gate("coverage", "Did every copy of every canary receive loss?", None, "not run", "batches or a recorded run",
             "Pass batches= or run=, so that copies that packing or truncation dropped are found."),
        ("canaries",),
    ),
)  # fmt: skip


def attack(name: str, auc: float, p: float) -> TextAttack:
    rates = (
        AttackRate(0.1, interval(min(0.9, 3 * auc - 1.3), 0.04, 0, 1), ""),
        AttackRate(0.01, None, "800 unseen documents, fewer than 10 / 0.01 = 1,000"),
    )
    return TextAttack(name, interval(auc, 0.026), p, min(1.0, 3 * p), False, rates)


def rate(method: str, hits: int, unseen: int, p: float) -> ExtractionRate:
    excess = proportion_difference(hits, 800, unseen, 800)
    return ExtractionRate(method, clopper_pearson(hits, 800), clopper_pearson(unseen, 800), excess, p)  # type: ignore[arg-type]


EXTRACTION = ExtractionAnswer(
    64, 16, 800, 800, 800, 0, 2, "temperature 1, n = 1,000, p = 0.5",
    (rate("greedy", 58, 21, 1e-5), rate("sampled", 91, 40, 1e-5)),
    3, 36, 19, 2, "5-gram model of the unseen documents", 0.025, 0.021,
)  # fmt: skip


def hash_of(number: int) -> str:
    return f"{number * 2654435761 % 2**64:016x}" * 4


def span(number: int, kind: str, text: str | None) -> ExtractedSpan:
    return ExtractedSpan(
        hash_of(number), 17 * number, 64, 16, 41.0 / number, kind, 1 + number % 3, 1, number % 4 > 0, number % 3,  # type: ignore[arg-type]
        None if number % 4 == 0 else 0.4 * number, number == 3, True, text,
    )  # fmt: skip


def canary(number: int, copies: int, text: str | None) -> CanaryFinding:
    return CanaryFinding(
        hash_of(100 + number), number, copies, 19.93 - number, True, 2.0 ** (number - 20), 2, 1.0, 30.5, text
    )


def finding(number: int, text: str | None) -> DocumentFinding:
    saved = tuple(float(v) for v in np.random.default_rng(number).gamma(0.6, 1.6, 128) - 0.4)
    characters = None if text is None else tuple((text * 128)[:128])
    return DocumentFinding(
        hash_of(200 + number), 11 * number, 128, sum(saved), 0, saved, (40, 56), interval(12.0, 22.0), characters
    )


def build(variant: str) -> TextAuditDocument:
    """The content of one audit; "revealed" contains texts that try to be markup."""
    shown = variant == "revealed"
    reveal, reason = ("all", "incident 12") if shown else ("nothing", "")
    document = TextAuditDocument(
        KIND, TEXT_SCHEMA_VERSION,
        TextContext("2026-11-26", "A. Auditor", "release of the weights", "the attacker has log-probabilities of chosen"
                    " texts, and knows the beginning of documents", "12 epochs",
                    "coins decided which canary of each pair was inserted",
                    "The results speak of this one model, not of the algorithm that trained it.", reveal, reason),  # type: ignore[arg-type]
        LanguageModelIdentity("CharacterLSTM", 239_498, 98, 98, None, "float32", hash_of(7), "CharacterLSTM (other documents)"),
        TextData("pydoc topics", 800, 800, 800, 800, 102_400, 102_400, "character", 50, 0.45, 0, 0, 0.21, 0, 0, 0.19, hash_of(8)),
        GATES,
        (
            TextVerdict("membership", "found", "Training documents can be told from unseen ones",
                        "AUROC of the score “reference” 0.846 (0.820 to 0.872).",
                        "An AUROC of 0.55 or more would have been found.",
                        ("A membership score cannot prove that a document was trained on.",)),
            TextVerdict("extraction", "found", "The model emits training documents more often than unseen ones",
                        "Greedy decoding emits 7.3% of training documents and 2.6% of unseen ones.",
                        "An excess of 2.1 points would have been found.", ()),
            TextVerdict("canaries", "found", "The model memorized inserted canaries", "80 of 80 pairs are right.",
                        "With 80 pairs no bound above 3.27 can be found.", ("Canaries are not documents.",)),
            TextVerdict("change", "found", "Training lowered the loss of training documents more than that of unseen ones",
                        "0.42 bits per token more.", "", ()),
        ),
        MembershipAnswer(800, 800, (attack("reference", 0.846, 1e-5), attack("min_k++", 0.69, 1e-5), attack("loss", 0.671, 1e-5)),
                         0.05, 0.55),
        EXTRACTION, CANARIES,
        ChangeAnswer((ChangeGroup("train", 800, 2.41, 1.62, interval(-0.79, 0.03), 0.004),
                      ChangeGroup("unseen", 800, 2.40, 2.03, interval(-0.37, 0.03), 0.08)), interval(-0.42, 0.04), 1e-6, 0.05),
        tuple(span(k, kind, HOSTILE if shown else None) for k, kind in
              enumerate(("recollected", "reconstructed", "recited", "recollected", "recollected"), 1)),
        tuple(canary(k, copies, SECRET if shown else None) for k, copies in enumerate((16, 16, 8, 4))),
        tuple(finding(k, f"for x in range(3):\n  {HOSTILE}" if shown else None) for k in range(1, 4)),
        DocumentTable(), ("No search for other prompts was made.", "No near-copies were counted as extraction."),
        {"documents.csv": hash_of(1), "spans.csv": hash_of(2)}, "kernelmem text audit --seed 0", 0,
        {"kernelmem": "0.2.0", "torch": "2.13.0"}, 12.5,
    )  # fmt: skip
    return _vary(document, variant)


def _vary(document: TextAuditDocument, variant: str) -> TextAuditDocument:
    if variant == "nothing":
        quiet = [replace(v, status="nothing-found", headline=f"No sign of {v.question}") for v in document.verdicts]
        spans = tuple(replace(s, claimed=False) for s in document.spans[:1])
        return replace(document, verdicts=tuple(quiet), spans=spans, canary_findings=(), documents=())
    if variant == "no-claim":
        failed = replace(
            document.gates[0].gate,
            passed=False,
            value="AUROC 0.884 (0.86 to 0.90)",
            meaning="Documents differ by source.",
        )
        verdicts = tuple(
            replace(v, status="no-claim", headline="No claim", detail="The blind baseline failed.", ceiling="")
            if v.question in ("membership", "change") else v for v in document.verdicts
        )  # fmt: skip
        return replace(
            document, gates=(TextGate(failed, ("membership", "change")), *document.gates[1:]), verdicts=verdicts
        )
    if variant == "small":
        missing = tuple(
            replace(v, status="not-run", headline="Not run", detail="No data were passed.", ceiling="", limits=())
            for v in document.verdicts
        )
        return replace(
            document, verdicts=missing, membership=None, extraction=None, canaries=None, change=None, gates=(), spans=(),
            canary_findings=(), documents=(), not_tested=(), files={},
            model=replace(document.model, reference="", bos=None, context=64),
            data=replace(document.data, canary_share=None, n_cut=2, n_without_loss=1, seen=3, exact_repeats=4, unit="token"),
        )  # fmt: skip
    return document
