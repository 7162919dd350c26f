"""Annex for auditors: statements of public documents that the numbers of an audit bear on."""

from kernelmem.auditing.schema import AnnexLine, AttackResult, Context, Leak

MODEL_AUC = 0.55


def annex(leak: Leak, context: Context) -> tuple[AnnexLine, ...]:
    """Return what the audit contributes to EDPB Opinion 28/2024 (46, 55, 58) and OWASP AISVS 1.0 (11.2.5).

    An audit cannot establish that a model is anonymous; it contributes evidence on the attacks that were run.
    """
    strongest = max(leak.attacks, key=lambda attack: attack.auc.value, default=None)
    measured = "no attack was run" if strongest is None else _summary(strongest)
    equivalent = leak.equivalent is True
    return (
        AnnexLine(
            "EDPB Opinion 28/2024, paragraph 46",
            "Evidence on anonymity depends on the context in which the model is released.",
            f"Purpose: {context.purpose or 'not stated'}. Threat model: {context.threat_model}.",
            "supported" if context.purpose else "not run",
        ),
        AnnexLine(
            "EDPB Opinion 28/2024, paragraph 55",
            "Resistance against state-of-the-art attacks is tested, membership inference among them, for every data subject.",
            f"Run: {', '.join(attack.name for attack in leak.attacks) or 'none'}; strongest: {measured}. The records that are"
            " easiest to identify are listed. Not run: " + " ".join(leak.not_run),
            "supported" if equivalent else "not supported",
        ),
        AnnexLine(
            "EDPB Opinion 28/2024, paragraph 58",
            "The assumed means of an attacker and the design of the tests are documented.",
            f"Threat model: {context.threat_model}. Gates, controls and power are part of this report.",
            "supported",
        ),
        AnnexLine(
            "OWASP AISVS 1.0, 11.2.5",
            "Membership inference is no better than random guessing (AUC below .55 and true positive rates at 1 % and .1 % false"
            " positives not above them).",
            leak.equivalence,
            "supported" if equivalent else "not supported",
        ),
    )


def _summary(attack: AttackResult) -> str:
    level = "this network" if attack.level == "model" else f"{attack.n_targets} models of the same training"
    return f"{attack.name} on {level}, AUC {attack.auc.value:.3f} ({attack.auc.low:.3f} to {attack.auc.high:.3f})"
