"""Membership of the evaluated documents: attacks, their power, and the permutation control."""

import math
from dataclasses import dataclass

import numpy as np

from kernelmem.auditing.schema import AttackRate
from kernelmem.auditing.text.inputs import TextInputs
from kernelmem.auditing.text.schema import DocumentTable, MembershipAnswer, TextAttack
from kernelmem.memorization.membership.rates import TprAtFpr
from kernelmem.statistics import Interval, holm
from kernelmem.text import TextMembership, TokenLosses, text_membership

SIGNIFICANCE = 0.01
FEWEST = 20  # documents of each kind
PERMUTATIONS = 200
POWER = 0.8


@dataclass(frozen=True)
class MembershipResult:
    """Membership of documents.

    Attributes:
        found: scores and gates.
        answer: the numbers.
        alarms: number of ``PERMUTATIONS`` random memberships with p < 0.01.
    """

    found: TextMembership
    answer: MembershipAnswer
    alarms: int


def membership(
    losses: TokenLosses, reference: TokenLosses | None, inputs: TextInputs, *, seed: int
) -> MembershipResult | None:
    """Return the membership attacks on the evaluated documents; None for fewer than 20 documents of a kind."""
    from scipy.stats import norm  # slow to import

    n_members, n_unseen = len(inputs.train.ids), len(inputs.unseen.ids)
    if min(n_members, n_unseen) < FEWEST:
        return None
    found = text_membership(
        losses, inputs.train.ids, inputs.unseen.ids, reference=reference, texts=inputs.texts, seed=seed
    )
    adjusted = holm([result.p for result in found.results.values()]).tolist() if found.results else []
    attacks = tuple(
        TextAttack(
            name=name,
            auc=result.auroc,
            p=result.p,
            adjusted_p=p,
            constant=bool(found.scores[name].min() == found.scores[name].max()),
            rates=tuple(map(_attack_rate, result.rates)),
        )
        for (name, result), p in zip(found.results.items(), adjusted, strict=True)
    )
    deviation = math.sqrt((n_members + n_unseen + 1) / (12 * n_members * n_unseen))
    quantiles = float(norm.isf(SIGNIFICANCE / 2 / len(found.scores)) + norm.isf(1 - POWER))
    answer = MembershipAnswer(n_members, n_unseen, attacks, SIGNIFICANCE, min(1.0, 0.5 + quantiles * deviation))
    scores = found.scores["reference" if reference is not None else "loss"].numpy()
    return MembershipResult(found, answer, _permuted_alarms(scores, n_members, seed))


def document_table(found: TextMembership | None, losses: TokenLosses, inputs: TextInputs) -> DocumentTable:
    """Return the scores of all evaluated documents as columns."""
    scores = {} if found is None else {name: tuple(values.tolist()) for name, values in found.scores.items()}
    if any(not math.isfinite(value) for values in scores.values() for value in values):
        scores = {name: values for name, values in scores.items() if all(map(math.isfinite, values))}
    members = len(inputs.train.index)
    return DocumentTable(
        document=(*inputs.train.index, *inputs.unseen.index),
        member=(True,) * members + (False,) * len(inputs.unseen.index),
        tokens=tuple(losses.counts.tolist()),
        scores=scores,
    )


def _attack_rate(rate: TprAtFpr) -> AttackRate:
    interval = None if rate.value is None else Interval(rate.value, rate.low, rate.high, rate.level)
    return AttackRate(rate.fpr, interval, rate.reason)


def _permuted_alarms(scores: np.ndarray, n_members: int, seed: int) -> int:
    """Return how many of 200 random memberships have p < 0.01, by the normal limit of Mann-Whitney's test."""
    from scipy.stats import norm, rankdata  # slow to import

    ranks = rankdata(scores)
    n = len(ranks)
    variance = ranks.var(ddof=1)
    if variance == 0:
        return 0
    source = np.random.default_rng(seed)
    sums = np.array([ranks[source.permutation(n)[:n_members]].sum() for _ in range(PERMUTATIONS)])
    error = math.sqrt(variance * n_members * (n - n_members) / n)
    return int((2 * norm.sf(np.abs(sums - n_members * ranks.mean()) / error) < SIGNIFICANCE).sum())
