"""Sentences that page and terminal share: what was found, how sure it is, which checks failed."""

from kernelmem.auditing.report.formats import (
    format_count,
    format_interval,
    format_list,
    format_number,
    format_p_value,
    format_percent,
    format_share_interval,
)
from kernelmem.auditing.schema import AttackResult, AuditDocument, Gate

STATUS_TITLES = {"memorized": "Memorization found", "nothing-found": "Nothing found", "no-claim": "No claim"}
REASONS = {
    "mislabelled": "probably a wrong label: the other rows predict another class",
    "rare": "rare: few training rows are similar",
    "duplicate": "has a near-duplicate among the training rows",
    "boundary": "near the boundary between two classes",
    "not classified": "no particular reason",
}
METHODS = {
    "retraining": "by retraining: models trained with and without a row are compared",
    "kernel": "without retraining: by a regression on the network's own kernel, from which single rows are left out",
}


def lower_first(text: str) -> str:
    """Return a sentence that continues another one.

    Example:
        >>> lower_first("Share of rows."), lower_first("AUC of all.")
        ('share of rows.', 'AUC of all.')
    """
    return text if text[1:2].isupper() else text[:1].lower() + text[1:]


def upper_first(text: str) -> str:
    """Return a text that begins a sentence.

    Example:
        >>> upper_first("attacks with LiRA.")
        'Attacks with LiRA.'
    """
    return text[:1].upper() + text[1:]


def makes_claim(document: AuditDocument) -> bool:
    """Return False if a gate failed: then no number may be presented as a finding."""
    return document.verdict.status != "no-claim" and not failed_gates(document)


def failed_gates(document: AuditDocument) -> list[Gate]:
    """Return the gates that failed."""
    return [gate for gate in document.gates if gate.passed is False]


def found(document: AuditDocument) -> list[str]:
    """Return what was found, in sentences for a reader who knows no machine learning."""
    if not makes_claim(document):
        names = format_list([f"“{gate.name}”" for gate in failed_gates(document)]) or "a condition"
        return [
            f"Nothing is claimed. A check that must hold before any number can be believed failed: {names}.",
            "The numbers that were computed are in audit.json and rows.csv for diagnosis. They are not findings.",
        ]
    how_much = document.how_much
    share, control = format_share_interval(how_much.fraction), format_share_interval(how_much.control)
    rows = f"{format_count(how_much.n_rows)} training rows"
    sentences = [
        f"An estimated {share} of the {rows} are memorized."
        if document.verdict.status == "memorized"
        else f"The estimate for the {rows} is {share}, which chance alone can explain.",
        f"This is measured: {lower_first(how_much.definition)}",
        f"Control, where nothing can be memorized: {control}.",
    ]
    suspected = document.suspected
    if suspected.n:
        both = f"; {format_count(suspected.n_memorized)} of these rows are flagged as memorized"
        if document.verdict.status != "memorized":
            both = ""
        sentences.append(f"{format_count(suspected.n)} training labels are probably wrong{both}.")
    return [*sentences, leak_sentence(document)]


def certainty(document: AuditDocument) -> list[str]:
    """Return how sure the result is, in sentences for a reader who knows no machine learning."""
    how_much = document.how_much
    sentences = [checks_sentence(document)]
    if makes_claim(document):
        level = how_much.fraction.level
        sentences += [
            f"Numbers in parentheses are {format_percent(level)} intervals: with new data of the same kind, such an interval"
            f" would contain the true value in about {100 * level:.0f} of 100 audits.",
            f"If nothing were memorized, a result like this would have probability p {format_p_value(how_much.p_value)}, and"
            f" about {format_number(how_much.expected_by_chance, 2)} rows would be flagged by chance.",
            document.power.meaning,
        ]
    else:
        sentences += [
            f"{gate.name}: {gate.value}, required: {gate.required}. {gate.meaning}" for gate in failed_gates(document)
        ]
    return [sentence for sentence in sentences if sentence]


def checks_sentence(document: AuditDocument) -> str:
    """Return how many validity checks passed, with the names of the others."""
    gates = document.gates
    if not gates:
        return "No validity checks were run."
    run = [gate for gate in gates if gate.passed is not None]
    failed, skipped = failed_gates(document), [gate for gate in gates if gate.passed is None]
    parts = [f"{len(run) - len(failed)} of {len(run)} validity checks passed"]
    if failed:
        parts.append(f"failed: {', '.join(gate.name for gate in failed)}")
    if skipped:
        parts.append(f"not run: {', '.join(gate.name for gate in skipped)}")
    return "; ".join(parts) + "."


def succeeding(document: AuditDocument) -> list[AttackResult]:
    """Return the attacks whose interval of the AUC lies above that of the null, best first."""
    better = [attack for attack in document.leak.attacks if attack.auc.low > max(0.5, attack.null_auc.high)]
    return sorted(better, key=lambda attack: -attack.auc.low)


def leak_sentence(document: AuditDocument) -> str:
    """Return whether an attacker can tell training rows from other rows."""
    attacks = document.leak.attacks
    if not attacks:
        return "It was not tested whether an attacker could tell which rows were in the training set."
    n, best = len(attacks), succeeding(document)
    if best:
        return (
            f"An attacker can tell training rows from other rows better than by guessing ({len(best)} of {n}"
            f" attack{'s' * (n > 1)} succeeded; the strongest, {best[0].name}: AUC {format_interval(best[0].auc)}, where 0.5"
            " is guessing)."
        )
    largest = max(attacks, key=lambda attack: attack.auc.value)
    if largest.auc.low > 0.5:
        return (
            "It is open whether an attacker can tell training rows from other rows: the interval of the strongest attack is"
            f" above 0.5, which is guessing, but not above that of its control ({largest.name}: AUC"
            f" {format_interval(largest.auc)}, control {format_interval(largest.null_auc)})."
        )
    attempts = "The attack that was tried" if n == 1 else f"None of the {n} attacks that were tried"
    verb = "could not tell" if n == 1 else "could tell"
    return (
        f"{attempts} {verb} training rows from other rows better than by guessing"
        f" ({largest.name}: AUC {format_interval(largest.auc)}, where 0.5 is guessing)."
    )
