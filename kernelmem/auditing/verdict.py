"""Conditions for a claim of memorization, and the headline of the report."""

from kernelmem.auditing.document import DataIdentity, KernelFidelity, Memorization, Verdict

AGREEMENT_REQUIRED = 0.9  # below it a statement about the surrogate says nothing about the network
NULL_LEVEL = 0.99  # quantile of the null above which a training row counts as memorized
SIGNIFICANCE = 0.01  # largest p-value of the number of such rows for a claim


def verdict(fidelity: KernelFidelity, memorization: Memorization, data: DataIdentity) -> Verdict:
    """Return the headline, the significance of the number of memorized rows, and the limits of the audit.

    The status is "no-claim" if the NTK surrogate does not approximate the network, else "memorized" or "nothing-found".
    """
    n_train, n_memorized = data.n_train, len(memorization.memorized)
    limits = _limits(memorization, data)
    chance = f"{memorization.expected_by_chance:.1f} expected by chance, p {_format_p_value(memorization.p_value)}"
    if fidelity.agreement < fidelity.agreement_required:
        return Verdict(
            "no-claim",
            "No claim: the NTK surrogate does not approximate this network",
            f"The NTK surrogate predicts the network's class on {fidelity.agreement:.1%} of the test rows; at least"
            f" {fidelity.agreement_required:.0%} is required. The statistics of the rows below describe the surrogate, not"
            " the network.",
            (
                "The tangent kernel of a network that was trained far from its linear regime, or that stopped early in it, can"
                " change too much during training for this audit.",
                *limits,
            ),
        )
    if n_memorized and memorization.p_value < SIGNIFICANCE:
        return Verdict(
            "memorized",
            f"This network memorized {n_memorized:,} of {n_train:,} training rows ({n_memorized / n_train:.1%})",
            f"The network's margin on these rows exceeds the margin predicted without the row by more than"
            f" {memorization.threshold:.3g} logits, the 99th percentile of the same difference on rows it never saw;"
            f" {chance}.",
            limits,
        )
    return Verdict(
        "nothing-found",
        f"No memorization found above a margin difference of {memorization.threshold:.3g} logits",
        f"{n_memorized:,} of {n_train:,} training rows lie above the 99th percentile of the null; {chance}."
        " This audit cannot detect rows whose margin is raised by less than that, or fewer rows than expected by chance.",
        limits,
    )


def _limits(memorization: Memorization, data: DataIdentity) -> tuple[str, ...]:
    """Return sentences about the limits of the audit: those of every audit, then those of these data."""
    limits = [
        "A row counts as memorized if the network's margin on it exceeds the margin predicted without it. The audit does not"
        " test whether the row can be extracted or its membership inferred by an attacker.",
        f"About {memorization.expected_by_chance:.0f} rows exceed the 99th percentile of the null by chance: a single row near"
        " the threshold is a lead, not a proof.",
        "Rows with near-duplicates in the training set support each other, so their memorization is underestimated.",
    ]
    if abs(memorization.null_mean) > 3 * memorization.null_se:
        bias = f"{memorization.null_mean:+.3f}".replace("-", "\N{MINUS SIGN}")
        limits.append(
            f"On rows that the network never saw, the statistic averages {bias} ±"
            f" {memorization.null_se:.3f} logits, not 0: this is the bias of the NTK surrogate. The threshold comes from these"
            " same rows, so the count accounts for it."
        )
    if data.n_test < 300:
        limits.append(
            f"The null has only {data.n_test} test rows, so its 99th percentile"
            f" {'is its maximum and ' if data.n_test < 100 else ''}is estimated roughly."
        )
    if data.duplicates_train_test:
        limits.append(
            f"{data.duplicates_train_test} test rows are also training rows. They are excluded from the null, but included in"
            " the test accuracy."
        )
    return tuple(limits)


def _format_p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"
