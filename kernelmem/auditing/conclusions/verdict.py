"""Headline, detail and limits of an audit, and what it did not test."""

from kernelmem.auditing.schema import Compression, Context, DataIdentity, Gate, HowMuch, Leak, Power, Verdict
from kernelmem.statistics import Interval


def verdict(gates: tuple[Gate, ...], how_much: HowMuch, power: Power, data: DataIdentity, label_note: str) -> Verdict:
    """Return the headline: no claim if a gate failed, else how much was memorized, or that nothing was found."""
    limits = _limits(how_much, data, label_note)
    failed = [gate for gate in gates if gate.passed is False]
    if failed:
        return Verdict(
            "no-claim",
            f"No claim: {_listed([gate.name for gate in failed])}" + (" fails" if len(failed) == 1 else " fail"),
            " ".join(f"{gate.question} {gate.value} (required: {gate.required}). {gate.meaning}" for gate in failed),
            limits,
        )
    unit = "training labels" if how_much.method == "kernel" else "training rows"
    control = f"{_percent(how_much.control)} in the control"
    chance = f"{how_much.expected_by_chance:.1f} expected by chance"
    flagged = f"{how_much.n_flagged:,} of {how_much.n_rows:,} rows are flagged as memorized ({chance})"
    if how_much.p_value < power.significance:
        method = "retraining" if how_much.method == "retraining" else "its own kernel, without retraining"
        return Verdict(
            "memorized",
            f"This network memorized about {_percent(how_much.fraction)} of its {unit}",
            f"Measured by {method}; {control}; p {_format_p_value(how_much.p_value)}. {flagged}.",
            limits,
        )
    return Verdict(
        "nothing-found",
        f"No memorization found: at most {max(0.0, how_much.fraction.high):.1%} of the {unit}",
        f"The estimate is {_percent(how_much.fraction)}, with {control}; p {_format_p_value(how_much.p_value)}. {flagged}."
        f" {power.meaning}",
        limits,
    )


def not_tested(how_much: HowMuch, leak: Leak, compression: Compression, context: Context) -> tuple[str, ...]:
    """Return what the audit did not test, one sentence each."""
    items = list(leak.not_run)
    if how_much.method == "kernel":
        items.insert(0, "Retraining without rows: memorization is inferred from the network's kernel, not measured.")
    else:
        items.insert(0, "Other training recipes: the retrained models describe the training that was given.")
    if compression.status == "not run":
        items.append(
            "Bits of the labels in the network: they could not be computed, for the reason that is stated there."
        )
    items.append(
        "Memorization of single features, of groups of rows as a whole, and of rows outside the training set given."
    )
    items.append(f"Attackers other than the one assumed: {context.threat_model}.")
    return tuple(items)


def _limits(how_much: HowMuch, data: DataIdentity, label_note: str) -> tuple[str, ...]:
    """Return sentences about the limits of the audit: those of its method, then those of these data."""
    limits = [how_much.definition]
    if how_much.method == "kernel":
        limits.append(
            "A flagged row is a row whose label the network gives although the other rows contradict it. Rows that the network"
            " memorized although the other rows barely support their label are not flagged. Compared with retraining on digits,"
            " nearly all flagged rows were memorized where the network had fitted its wrong labels, and a third to nine tenths"
            " elsewhere."
        )
        limits.append(
            "The kernel was shaped by training on all rows; leaving a row out of the regression does not undo that. The"
            " interval contains an allowance for it."
        )
    else:
        limits.append(
            "Retrained models describe the training, averaged over seeds and over random subsets of the rows; training on all"
            " rows memorizes fewer of them (up to 28 % fewer on digits), for which the interval allows. The shadow fidelity gate"
            " checks that this network behaves like the retrained models."
        )
    if data.n_test < 300:
        limits.append(f"The control has only {data.n_test} test rows.")
    duplicates = data.duplicates
    if duplicates.across:
        limits.append(
            f"{duplicates.across:,} test rows are also training rows. They are excluded from the control, but included in the"
            " test accuracy."
        )
    if duplicates.near_train > duplicates.train:
        limits.append(
            f"{duplicates.near_train:,} training rows have near-duplicates in the training set, which support each other:"
            " their memorization as a group is not measured by leaving out one of them."
        )
    return (*limits, label_note) if label_note else tuple(limits)


def _percent(interval: Interval) -> str:
    low, high = max(interval.low, -1.0), interval.high
    text = f"{interval.value:.1%} ({interval.level:.0%} interval {low:.1%} to {high:.1%})"
    return text.replace("-", "\N{MINUS SIGN}")


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _format_p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"
