"""One-screen summary of an audit for terminals, with the statements of the page."""

import textwrap

from kernelmem.auditing.report.formats import (
    MISSING,
    format_count,
    format_interval,
    format_number,
    format_p_value,
    format_plus_minus,
    format_share,
    format_share_interval,
)
from kernelmem.auditing.report.wording import checks_sentence, failed_gates, leak_sentence, makes_claim
from kernelmem.auditing.schema import AuditDocument, RowFinding
from kernelmem.core.errors import printable

LINE_WIDTH = 110  # characters
NAME_WIDTH = 18  # characters before the value of a line
ROWS_PRINTED = 5
LONGEST_CLASS_NAME = 16


def summary(document: AuditDocument) -> str:
    """Return headline, interval, control, checks, first rows, leak and power; without findings if a gate failed.

    Texts that the user wrote are printed with escapes for terminal controls.
    """
    model, verdict = document.model, document.verdict
    claimed = makes_claim(document)
    headline = verdict.headline if claimed or verdict.status == "no-claim" else "No claim: a validity check failed"
    lines = [headline]
    if claimed or verdict.status == "no-claim":
        lines += textwrap.wrap(verdict.detail, LINE_WIDTH, initial_indent="  ", subsequent_indent="  ")
    lines += _line("checks", checks_sentence(document))
    accuracies = f"train {format_share(model.train_accuracy)}, test {format_share(model.test_accuracy)}"
    if not claimed:
        for gate in failed_gates(document):
            lines += _line("failed", f"{gate.name}: {gate.value}; required: {gate.required}")
        lines += _line("accuracy", accuracies)
        lines += _line("no claim", "the numbers in audit.json and rows.csv are for diagnosis, not findings")
        return printable("\n".join(lines))
    how_much = document.how_much
    lines += _line(
        "memorized",
        f"{format_share_interval(how_much.fraction)} of {format_count(how_much.n_rows)} training rows;"
        f" {format_count(how_much.n_flagged)} flagged one by one, p {format_p_value(how_much.p_value)}",
    )
    lines += _line("control", f"{format_share_interval(how_much.control)} of {format_count(how_much.n_control)} rows")
    lines += _line("accuracy", accuracies)
    lines += _line("leak", leak_sentence(document))
    lines += _line("label bits", document.compression.sentence)
    suspected = document.suspected
    if suspected.n:
        count = f"{format_count(suspected.n)} suspected, {format_count(suspected.n_memorized)} of them flagged"
        lines += _line("wrong labels", count)
    flips = document.flips
    if flips.auroc is not None:
        permuted = f" (flags permuted: {format_number(flips.permuted_auroc)})"
        lines += _line("known flips", f"{flips.n:,}; AUROC of the margin {format_interval(flips.auroc, 4)}{permuted}")
    if document.power.meaning not in verdict.detail:
        lines += _line("power", document.power.meaning)
    if document.rows:
        lines.append(
            f"  {'rows that rank first':<{NAME_WIDTH + 4}}{'row':>8}  {'label':<16}  {'without the row':<16}  score"
        )
        lines += [_row_line(document, row) for row in document.rows[:ROWS_PRINTED]]
    return printable("\n".join(lines))


def _line(name: str, text: str) -> list[str]:
    """Return a named line, wrapped."""
    return textwrap.wrap(
        text,
        LINE_WIDTH,
        initial_indent=f"  {name:<{NAME_WIDTH}}",
        subsequent_indent=" " * (NAME_WIDTH + 2),
    )


def _row_line(document: AuditDocument, row: RowFinding) -> str:
    """Return the line of a row: its state, index, label, class without it, and score with its standard error."""
    found = document.verdict.status == "memorized"
    state = ("flagged" if found else "within chance") if row.flagged else "below the threshold"
    label, without = (_class_name(document, value) for value in (row.label, row.predicted_without))
    score = format_number(row.score) if row.standard_error is None else format_plus_minus(row.score, row.standard_error)
    return f"    {state:<{NAME_WIDTH + 2}}{row.index:>8}  {label:<16}  {without:<16}  {score}"


def _class_name(document: AuditDocument, label: int | None) -> str:
    """Return the name of a class, shortened; a dash if it is left out."""
    names = document.data.class_names
    name = MISSING if label is None else names[label] if 0 <= label < len(names) else str(label)
    return name if len(name) <= LONGEST_CLASS_NAME else f"{name[: LONGEST_CLASS_NAME - 1]}…"
