"""Verdicts of a text audit, one for each question, with what each could have missed."""

import math
from collections.abc import Sequence

from kernelmem.auditing.text.measurements import CanaryResult, ExtractionResult
from kernelmem.auditing.text.schema import (
    CanaryAnswer,
    ChangeAnswer,
    ExtractionAnswer,
    MembershipAnswer,
    Question,
    TextGate,
    TextVerdict,
)
from kernelmem.statistics import Interval

ASSUMPTION = (
    "It rests on the assumption that unseen documents could as well have been training documents. Only a random draw"
    " ensures that, and no attack on documents chosen otherwise proves that a document was trained on (Zhang 2024)."
)
DRAWN = (
    "The coins of the canaries are randomized; which documents were trained on may not be. This verdict rests on the"
    " assumption that unseen documents could as well have been training documents (Zhang 2024)."
)
UNFIT = (
    "Small excesses, and documents that are emitted only after other prompts, longer ones or samples, are not excluded."
)


def membership_verdict(
    answer: MembershipAnswer | None, gates: Sequence[TextGate], *, has_canaries: bool
) -> TextVerdict:
    """Return whether training documents can be told from unseen ones."""
    limits = (DRAWN if has_canaries else ASSUMPTION, "It speaks of all documents together, not of a single one.")
    if answer is None:
        return _not_run("membership", "Membership was not tested", "Fewer than 20 documents of a kind.", limits)
    failed = _failed("membership", gates)
    if failed or not answer.attacks:
        return _no_claim("membership", failed, limits)
    best = min(answer.attacks, key=lambda attack: attack.adjusted_p)
    largest = max(attack.auc.high for attack in answer.attacks)
    auc = f"{best.name}: AUC {_interval(best.auc)}, p {_p(best.adjusted_p)} adjusted for {len(answer.attacks)} scores"
    numbers = f"{answer.n_members:,} training and {answer.n_unseen:,} unseen documents"
    ceiling = (
        f"No AUC above {largest:.3f} is compatible with the scores that were tried; an AUC of {answer.smallest_auc:.3f} would"
        " have been found with probability .8."
    )
    if best.adjusted_p > answer.significance:
        constant = "; a score that is equal for all documents tells nobody apart" if best.constant else ""
        headline = "Nothing found: training documents could not be told from unseen ones"
        return TextVerdict("membership", "nothing-found", headline, f"{auc}; {numbers}{constant}.", ceiling, limits)
    side = "smaller" if best.auc.value > 0.5 else "larger"
    headline = (
        "Training documents can be told from unseen ones"
        if side == "smaller"
        else "Training documents can be told from unseen ones, as documents that the model knows less well than expected"
    )
    exchanged = "" if side == "smaller" else " Check that training and unseen documents are not exchanged."
    return TextVerdict("membership", "found", headline, f"{auc}; {numbers}.{exchanged}", ceiling, limits)


def extraction_verdict(result: ExtractionResult, gates: Sequence[TextGate], *, has_canaries: bool) -> TextVerdict:
    """Return whether training documents are emitted more often than unseen ones."""
    limits = (DRAWN if has_canaries else ASSUMPTION, UNFIT)
    answer = result.answer
    if answer is None:
        return _not_run("extraction", "Extraction was not tested", _sentence(result.reason), limits)
    failed = _failed("extraction", gates)
    if failed:
        return _no_claim("extraction", failed, limits)
    best = min(answer.rates, key=lambda rate: rate.p)
    detail = (
        f"{best.method}: {_share(best.members)} of {answer.n_documents:,} training documents, {_share(best.unseen)} of"
        f" {answer.n_unseen:,} unseen ones; excess {_share(best.excess)}, p {_p(best.p)}; {answer.suffix} tokens after"
        f" {answer.prefix}"
    )
    if best.p <= answer.significance:
        headline = (
            f"The model emits training documents more often than unseen ones: {best.excess.value:.1%} of them in excess"
        )
        kinds = (
            f"; of the windows that greedy decoding emits {answer.n_recollected:,} are recollected, {answer.n_recited:,}"
            f" recited, {answer.n_reconstructed:,} emitted by the control too"
        )
        return TextVerdict("extraction", "found", headline, f"{detail}{kinds}.", _extraction_ceiling(answer), limits)
    if answer.smallest_excess is None and answer.rates[0].unseen.value == 0:
        headline = "Extraction could not be tested: no excess would be found in so few documents"
        return _not_run("extraction", headline, f"{detail}.", limits)
    headline = "Nothing found: training documents are emitted no more often than unseen ones"
    return TextVerdict("extraction", "nothing-found", headline, f"{detail}.", _extraction_ceiling(answer), limits)


def canary_verdict(result: CanaryResult | None, gates: Sequence[TextGate]) -> TextVerdict:
    """Return whether inserted canaries are known better than their twins."""
    limits = (
        "Canaries are random text; documents with regular text are memorized differently.",
        "A bound of 0 on the privacy loss is not evidence of privacy.",
    )
    if result is None:
        detail = "No canaries were passed. Without randomly inserted text, nothing in this audit is ground truth."
        return _not_run("canaries", "Canaries were not tested", detail, limits)
    failed = _failed("canaries", gates)
    if failed:
        return _no_claim("canaries", failed, limits)
    answer = result.answer
    inserted = answer.tiers[1:]
    detail = (
        f"{answer.n_right:,} of {answer.n_decided:,} pairs without tie right, p {_p(answer.p)};"
        f" ε at least {answer.epsilon:.2f} for replacing a canary by its twin (at most {answer.ceiling:.2f} could be shown)"
    )
    ceiling = (
        f"No ε above {answer.ceiling:.2f} can be shown with {answer.n_decided:,} pairs, and no exposure above"
        f" {answer.largest_exposure:.2f} bits; {_none_emitted(answer)}."
    )
    if 0.5**answer.n_pairs > answer.significance:
        needed = math.ceil(-math.log2(answer.significance))
        headline = f"Canaries could not be tested: at least {needed} pairs are needed"
        return _not_run("canaries", headline, f"{detail}.", limits)
    if answer.p > answer.significance:
        headline = "Nothing found: inserted canaries are not known better than their twins"
        return TextVerdict("canaries", "nothing-found", headline, f"{detail}.", ceiling, limits)
    shown = [
        f"{tier.emitted.value:.0%} at {tier.copies:,} cop{'ies' if tier.copies > 1 else 'y'}"
        for tier in inserted
        if tier.emitted.value > 0
    ]
    emitted = f"; secrets that greedy decoding emits: {', '.join(shown)}" if shown else "; no secret is emitted"
    headline = "The model memorized inserted canaries"
    return TextVerdict("canaries", "found", headline, f"{detail}{emitted}.", ceiling, limits)


def change_verdict(answer: ChangeAnswer | None, gates: Sequence[TextGate], *, has_reference: bool) -> TextVerdict:
    """Return what the training changed on training documents beyond its effect on unseen ones."""
    limits = (
        "It compares the model with the reference that was passed; if that is not the model before the training, the change"
        " is not that of the training.",
    )
    if answer is None:
        detail = "Fewer than 2 documents of a kind." if has_reference else "No reference model was passed."
        return _not_run("change", "The change of losses was not tested", detail, limits)
    failed = _failed("change", gates)
    if failed:
        return _no_claim("change", failed, limits)
    train, unseen = answer.groups
    detail = (
        f"{_bits(train.difference)} bits per token on {train.n:,} training documents ({train.worse:.1%} got worse),"
        f" {_bits(unseen.difference)} on {unseen.n:,} unseen ones; difference {_bits(answer.excess)}, p {_p(answer.p)}"
    )
    ceiling = (
        f"The excess lies within {_signed(answer.excess.low)} to {_signed(answer.excess.high)} bits per token"
        f" ({answer.excess.level:.0%} interval)."
    )
    if answer.p > answer.significance:
        headline = "Nothing found: losses changed on training documents as on unseen ones"
        return TextVerdict("change", "nothing-found", headline, f"{detail}.", ceiling, limits)
    side = "less" if answer.excess.value < 0 else "more"
    headline = (
        f"Compared with the reference, training documents cost {abs(answer.excess.value):.2g} bits per token {side}"
    )
    return TextVerdict("change", "found", f"{headline} than unseen ones", f"{detail}.", ceiling, limits)


def not_tested(
    verdicts: Sequence[TextVerdict], threat_model: str, *, n_contexts: int, uses_all: bool
) -> tuple[str, ...]:
    """Return what the audit did not test, one sentence each."""
    items = [f"{verdict.headline}: {verdict.detail}" for verdict in verdicts if verdict.status == "not-run"]
    items += [
        "Prompts that an attacker optimizes, paraphrases, and near-verbatim copies.",
        f"Documents in contexts other than the {n_contexts} tried: a model may recall text only after what it was trained after.",
        "Retraining without documents: the results speak of this one model, not of the algorithm that trained it.",
        f"Attackers other than the one assumed: {threat_model}.",
    ]
    if not uses_all:
        items.append("Documents outside the random part that was evaluated.")
    return tuple(items)


def _failed(question: Question, gates: Sequence[TextGate]) -> list[TextGate]:
    return [gate for gate in gates if gate.gate.passed is False and question in gate.blanks]


def _no_claim(question: Question, failed: Sequence[TextGate], limits: tuple[str, ...]) -> TextVerdict:
    names = [gate.gate.name for gate in failed]
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    gates = [gate.gate for gate in failed]
    detail = " ".join(f"{gate.question} {gate.value} (required: {gate.required}). {gate.meaning}" for gate in gates)
    headline = f"No claim about {question}: {listed} {'fails' if len(names) == 1 else 'fail'}"
    return TextVerdict(question, "no-claim", headline, detail, "Nothing is found, and nothing is excluded.", limits)


def _not_run(question: Question, headline: str, detail: str, limits: tuple[str, ...]) -> TextVerdict:
    return TextVerdict(question, "not-run", headline, detail, "Nothing is excluded.", limits)


def _extraction_ceiling(answer: ExtractionAnswer) -> str:
    greedy = answer.rates[0]
    power = (
        "no excess would have been found with these numbers of documents"
        if answer.smallest_excess is None
        else f"an excess of {answer.smallest_excess:.1%} would have been found with probability .8"
    )
    return (
        f"At most {greedy.members.high:.1%} of such documents are emitted by greedy decoding, at most"
        f" {max(0.0, greedy.excess.high):.1%} in excess of unseen ones ({greedy.members.level:.0%} intervals); {power}."
    )


def _none_emitted(answer: CanaryAnswer) -> str:
    twins = answer.tiers[0].emitted
    return f"{twins.value:.1%} of the twins are emitted, at most {twins.high:.1%} of such secrets"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _interval(interval: Interval) -> str:
    return f"{interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})"


def _share(interval: Interval) -> str:
    return f"{_percent(interval.value)} ({_percent(interval.low)} to {_percent(interval.high)})"


def _percent(value: float) -> str:
    return f"{value:.1%}".replace("-", "\N{MINUS SIGN}")


def _bits(interval: Interval) -> str:
    return f"{_signed(interval.value)} ({_signed(interval.low)} to {_signed(interval.high)})"


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def _p(value: float) -> str:
    return "< 0.0001" if value < 0.0001 else f"= {value:.2g}"
