"""Report of a text audit: one static HTML page without scripts that opens offline."""

from markupsafe import Markup

from kernelmem.auditing.report import formats, page_environment
from kernelmem.auditing.text.report import figures
from kernelmem.auditing.text.report.highlight import LEVELS, highlighted
from kernelmem.auditing.text.schema import TextAuditDocument, TextVerdict

STATUS_TITLES = {
    "found": "Found",
    "nothing-found": "Nothing found",
    "no-claim": "No claim: a validity check failed",
    "not-run": "Not run",
}
CLASSES = {"found": "memorized", "nothing-found": "nothing-found", "no-claim": "no-claim", "not-run": "no-claim"}
QUESTIONS = {
    "membership": "Can training documents be told from unseen ones?",
    "extraction": "Does it emit training documents?",
    "canaries": "Did it memorize the inserted canaries?",
    "change": "What did the training change?",
}
REVEALED = {
    "nothing": "none; findings have a salted hash, a position and a score",
    "canaries": "that of canaries, which is synthetic",
    "spans": "that of canaries, and the first and last characters of some findings",
    "all": "that of findings and of the highlighted documents",
}


def render_text_page(document: TextAuditDocument) -> str:
    """Render a text audit as one HTML page: escaped, static, deterministic; it fetches nothing.

    A question with a failed gate is rendered without any number of its findings. Text is shown where the document has it: a
    redacted document has none.
    """
    verdicts = [_blanked(document, verdict) for verdict in document.verdicts]
    claimed = {verdict.question: verdict.status != "no-claim" for verdict in verdicts}
    canaries, extraction, membership = document.canaries, document.extraction, document.membership
    drawn = {
        "exposure": figures.exposure_figure(canaries) if canaries and claimed["canaries"] else Markup(""),
        "extraction": figures.extraction_figure(extraction) if extraction and claimed["extraction"] else Markup(""),
        "membership": figures.membership_figure(membership) if membership and claimed["membership"] else Markup(""),
    }
    return page_environment("kernelmem.auditing.text.report").get_template("text.html.j2").render(
        document=document,
        verdicts=verdicts,
        claimed=claimed,
        drawn=drawn,
        status_titles=STATUS_TITLES,
        classes=CLASSES,
        questions=QUESTIONS,
        revealed=REVEALED[document.context.reveal],
        rates=sorted({r.false_positive_rate for a in (membership.attacks if membership else ()) for r in a.rates})[::-1],
        highlighted=highlighted,
        levels=LEVELS,
        limits=[limit for verdict in document.verdicts for limit in verdict.limits],
        absent=formats.MISSING,
    )  # fmt: skip


def _blanked(document: TextAuditDocument, verdict: TextVerdict) -> TextVerdict:
    """Return the verdict without claim if one of its gates failed, whatever the document says."""
    failed = [gate.gate for gate in document.gates if gate.gate.passed is False and verdict.question in gate.blanks]
    if not failed and verdict.status != "no-claim":
        return verdict
    reasons = " ".join(f"{gate.name}: {gate.value}; required: {gate.required}. {gate.meaning}" for gate in failed)
    return TextVerdict(verdict.question, "no-claim", STATUS_TITLES["no-claim"], reasons or verdict.detail, "", ())
