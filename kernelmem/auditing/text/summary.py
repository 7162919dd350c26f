"""One-screen summary of a text audit for terminals, without text of documents."""

import textwrap

from kernelmem.auditing.text.schema import CanaryTier, TextAuditDocument, TextGate, TextVerdict
from kernelmem.core.errors import printable

LINE_WIDTH, NAME_WIDTH = 110, 14  # characters
TITLES = {"found": "FOUND", "nothing-found": "nothing found", "no-claim": "no claim", "not-run": "not run"}
TIERS_PRINTED = 6


def summary(document: TextAuditDocument) -> str:
    """Return verdicts with their numbers and ceilings, gates, canaries by copies, and what was revealed."""
    data, model = document.data, document.model
    lines = [
        f"text audit of {model.name} ({model.n_parameters:,} parameters, {model.vocabulary:,} tokens):"
        f" {data.n_train_used:,} of {data.n_train:,} training documents, {data.n_unseen_used:,} of {data.n_unseen:,} unseen"
    ]
    for verdict in document.verdicts:
        lines += _verdict(verdict)
    lines += _line("gates", _gates(document.gates))
    if document.canaries is not None and not any(
        v.question == "canaries" and v.status == "no-claim" for v in document.verdicts
    ):
        tiers = document.canaries.tiers
        lines += _line("canaries", "; ".join(map(_tier, (*tiers[:1], *tiers[1:][-TIERS_PRINTED:]))))
    left_out = f"; {data.seen:,} unseen documents equal training documents and are left out" if data.seen else ""
    lines += _line(
        "shared text",
        f"{data.repeated:.1%} of the training text is repeated, {data.overlap:.1%} of the unseen text occurs in it"
        f" ({data.length} {data.unit}s){left_out}",
    )
    lines += _line("randomized", document.context.randomized)
    lines += _line(
        "revealed", document.context.reveal + (f" ({document.context.reason})" if document.context.reason else "")
    )
    return printable("\n".join(lines))


def _verdict(verdict: TextVerdict) -> list[str]:
    lines = _line(verdict.question, f"[{TITLES[verdict.status]}] {verdict.headline}")
    lines += _line("", verdict.detail)
    if verdict.status in ("found", "nothing-found"):
        lines += _line("", verdict.ceiling)
    return lines


def _gates(gates: tuple[TextGate, ...]) -> str:
    run = [gate.gate for gate in gates if gate.gate.passed is not None]
    failed = [gate.name for gate in run if not gate.passed]
    skipped = [gate.gate.name for gate in gates if gate.gate.passed is None]
    text = f"{len(run) - len(failed)} of {len(run)} passed"
    text += f"; failed: {', '.join(failed)}" if failed else ""
    return text + (f"; not run: {', '.join(skipped)}" if skipped else "")


def _tier(tier: CanaryTier) -> str:
    name = "twins" if tier.copies == 0 else f"{tier.copies:,} cop{'ies' if tier.copies > 1 else 'y'}"
    return f"{name}: {tier.exposure.value:.2f} bits, {tier.emitted.value:.0%} emitted"


def _line(name: str, text: str) -> list[str]:
    indent = " " * (NAME_WIDTH + 2)
    return textwrap.wrap(text, LINE_WIDTH, initial_indent=f"  {name:<{NAME_WIDTH}}", subsequent_indent=indent)
