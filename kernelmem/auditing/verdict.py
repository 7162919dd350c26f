"""What must hold before a headline is printed, and what the headline says."""

from kernelmem.auditing.document import DataIdentity, KernelFidelity, Memorization, Verdict

__all__ = ["AGREEMENT_REQUIRED", "NULL_LEVEL", "SIGNIFICANCE", "verdict"]

AGREEMENT_REQUIRED = 0.9  # below it a claim about the kernel machine is no claim about the network
NULL_LEVEL = 0.99  # quantile of the null above which a training row counts as memorized
SIGNIFICANCE = 0.01  # of the count of such rows


def verdict(kernel: KernelFidelity, found: Memorization, data: DataIdentity) -> Verdict:
    """State what was found, how sure it is, and what it does not say."""
    n, count = data.n_train, len(found.memorized)
    limits = _limits(found, data)
    chance = f"{found.expected_by_chance:.1f} expected by chance"
    if kernel.agreement < kernel.agreement_required:
        return Verdict(
            "no-claim",
            "No claim: the kernel machine does not stand for this network",
            f"The network machine names the network's class on {kernel.agreement:.1%} of the test rows; at least"
            f" {kernel.agreement_required:.0%} is required. The per-row numbers below describe the kernel machine, not the"
            " network.",
            (
                "A network trained far from its linear regime, or stopped early in it, can move its tangent kernel too much"
                " for this audit.",
                *limits,
            ),
        )
    if count and found.p_value < SIGNIFICANCE:
        return Verdict(
            "memorized",
            f"This network memorized {count:,} of {n:,} training rows ({count / n:.1%})",
            f"Their margin exceeds what the rest of the data explains by more than {found.threshold:.3g} (the 99th percentile"
            f" of the same statistic on rows it never saw); {chance}, p {_p(found.p_value)}.",
            limits,
        )
    return Verdict(
        "nothing-found",
        f"No memorization found above {found.threshold:.3g} margin units",
        f"{count:,} of {n:,} training rows lie above the null's 99th percentile; {chance}, p {_p(found.p_value)}. Rows whose"
        " margin is raised by less than that, or fewer rows than chance gives, cannot be seen by this audit.",
        limits,
    )


def _limits(found: Memorization, data: DataIdentity) -> tuple[str, ...]:
    limits = [
        "A row counts as memorized where this network's margin on it exceeds the margin predicted without it; that it could"
        " be extracted, or its membership inferred by an attacker, is another question.",
        f"At the 99th percentile of the null about {found.expected_by_chance:.0f} rows are named by chance: a single row near"
        " the threshold is a lead, not a proof.",
        "Rows with near-duplicates in the training set support each other and count as less memorized than they are.",
    ]
    if abs(found.null_mean) > 3 * found.null_se:
        limits.append(
            f"On rows it never saw the statistic averages {found.null_mean:+.3f} ± {found.null_se:.3f}, not 0: the network"
            " machine is off by that much. The percentile is taken from these same rows, so the count allows for it."
        )
    if data.n_test < 300:
        limits.append(
            f"The null rests on {data.n_test} test rows: its 99th percentile is its {'maximum' if data.n_test < 100 else 'edge'}"
            " and is known roughly."
        )
    if data.duplicates_train_test:
        limits.append(
            f"{data.duplicates_train_test} test rows are also training rows; they are left out of the null's percentile, but"
            " count in test accuracy."
        )
    return tuple(limits)


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"
