"""Validity gates of a text audit: conditions that must hold before a verdict is given."""

import math

from kernelmem.auditing.schema import Gate
from kernelmem.auditing.text.measurements import PERMUTATIONS, CanaryResult, MembershipResult
from kernelmem.auditing.text.schema import TextData, TextGate
from kernelmem.statistics import Interval
from kernelmem.text import TokenLosses

LARGEST_OVERLAP = 0.5  # share of unseen text that is training text
LARGEST_ALARM_SHARE = 0.035  # of 200 runs at .01: exceeded with probability .001 if the test is exact
TWIN_LEVEL = 0.001
DOCUMENTS = ("membership", "extraction", "change")
EXCHANGEABLE = {
    "blind": (
        "blind baseline",
        "Can training and unseen documents be told apart by their text, without the model?",
        "AUROC at most .55, or not above .5 within its 99 % interval",
    ),
    "length": (
        "lengths",
        "Can they be told apart by their numbers of tokens?",
        "AUROC within .05 of .5, or .5 in its 99 % interval",
    ),
    "reference": (
        "reference alone",
        "Can they be told apart by their loss under a model that was not trained on them?",
        "AUROC within .05 of .5, or .5 in its 99 % interval",
    ),
}


def document_gates(
    data: TextData, result: MembershipResult | None, losses: TokenLosses, reference: TokenLosses | None
) -> list[TextGate]:
    """Return the gates about documents: exchangeability, shared text, permuted membership, and a reference that differs."""
    gates = [_exchangeability(name, result) for name in EXCHANGEABLE]
    gates.append(_overlap(data))
    gates.append(_permuted(result))
    if reference is not None:
        gates.append(_reference_differs(losses, reference))
    return gates


def canary_gates(result: CanaryResult) -> list[TextGate]:
    """Return the gates about canaries: that they were trained on, and that the twins behave as theory says."""
    return [_coverage(result), _twins(result)]


def _exchangeability(name: str, result: MembershipResult | None) -> TextGate:
    title, question, required = EXCHANGEABLE[name]
    gate = None if result is None else next((g for g in result.found.gates if g.name == name), None)
    if gate is None:
        reason = "No reference model was given." if result is not None else "Fewer than 20 documents of a kind."
        return TextGate(Gate(title, question, None, "not run", required, reason), DOCUMENTS)
    meaning = (
        "Training and unseen documents differ by themselves, so a difference between them is not evidence of training."
        if gate.failed
        else "No difference was found, so unseen documents are a fair control."
    )
    return TextGate(Gate(title, question, not gate.failed, _auroc(gate.auroc), required, meaning), DOCUMENTS)


def _overlap(data: TextData) -> TextGate:
    passed = data.overlap <= LARGEST_OVERLAP
    return TextGate(
        Gate(
            "shared text",
            "Is the text of the unseen documents new to the model?",
            passed,
            f"{data.overlap:.1%} of it lies in a string of {data.length} {data.unit}s of a training document; {data.seen:,}"
            " unseen documents equal a training document and are left out",
            f"at most {LARGEST_OVERLAP:.0%}",
            "Unseen documents can show that nothing was memorized."
            if passed
            else "Most of the unseen text was trained on, so unseen documents are not a control.",
        ),
        DOCUMENTS,
    )


def _permuted(result: MembershipResult | None) -> TextGate:
    name, question = "permuted membership", "Is nothing found if training and unseen documents are exchanged at random?"
    largest = int(LARGEST_ALARM_SHARE * PERMUTATIONS)
    required = f"p < .01 in at most {largest} of {PERMUTATIONS} runs"
    if result is None:
        gate = Gate(name, question, None, "not run", required, "Fewer than 20 documents of a kind.")
        return TextGate(gate, ("membership",))
    passed = result.alarms <= largest
    meaning = "The test has the error rate that it states." if passed else "The test raises more alarms than it states."
    value = f"p < .01 in {result.alarms} of {PERMUTATIONS} runs"
    return TextGate(Gate(name, question, passed, value, required, meaning), ("membership",))


def _reference_differs(losses: TokenLosses, reference: TokenLosses) -> TextGate:
    same = int((losses.token_bits == reference.token_bits).sum())
    passed = same < len(losses.token_bits)
    return TextGate(
        Gate(
            "reference differs",
            "Does the reference give other losses than the model?",
            passed,
            f"{len(losses.token_bits) - same:,} of {len(losses.token_bits):,} tokens differ",
            "at least one token",
            "Model and reference are different models."
            if passed
            else "Both are the same function: the adapter changes nothing, or the same weights were loaded twice.",
        ),
        ("membership", "change"),
    )


def _coverage(result: CanaryResult) -> TextGate:
    name, question = "canary coverage", "Did every copy of every canary receive loss, and no twin any?"
    required = "every planned copy, with loss on every token of its secret"
    if result.problem:
        meaning = "The canaries were not trained on as planned, so their results say nothing about memorization."
        return TextGate(Gate(name, question, False, result.problem, required, meaning), ("canaries",))
    if result.coverage is None:
        meaning = "Pass trained_on= to check it; it is assumed that the canaries were inserted as designed."
        return TextGate(Gate(name, question, None, "not run", required, meaning), ("canaries",))
    value = str(result.coverage).splitlines()[0]
    return TextGate(
        Gate(name, question, True, value, required, "The canaries were trained on as planned."), ("canaries",)
    )


def _twins(result: CanaryResult) -> TextGate:
    from scipy.stats import chi2  # slow to import

    twins = result.answer.tiers[0]
    total = twins.exposure.value * twins.n
    p = float(chi2.sf(2 * math.log(2) * total, 2 * twins.n))
    passed = p >= TWIN_LEVEL
    return TextGate(
        Gate(
            "twins",
            "Are canaries that were not inserted ranked as random secrets are?",
            passed,
            f"mean exposure {twins.exposure.value:.2f} bits of {twins.n:,} twins, p = {p:.2g}",
            f"not above {result.answer.null_mean:.2f} bits within chance (p >= {TWIN_LEVEL:g})",
            "The exposure is right where nothing was inserted."
            if passed
            else "Twins are known to the model: they were trained on, or the coins are not those of the training.",
        ),
        ("canaries",),
    )


def _auroc(interval: Interval) -> str:
    return f"AUROC {interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})"
