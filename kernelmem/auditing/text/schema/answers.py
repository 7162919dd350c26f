"""Answers of a text audit in numbers: membership, extraction, canaries, change of losses."""

from dataclasses import dataclass
from typing import Literal

from kernelmem.auditing.schema import AttackRate
from kernelmem.statistics import Interval


@dataclass(frozen=True)
class TextAttack:
    """Success of one membership score.

    Attributes:
        name: name of the score: "loss", "reference", "min_k++".
        auc: area under the ROC curve with its interval; .5 = guessing.
        p: p-value under permuted membership, two-sided.
        adjusted_p: the same, adjusted for the number of scores (Holm).
        constant: True if the score is equal for all documents.
        rates: true positive rates at low false positive rates.
    """

    name: str
    auc: Interval
    p: float
    adjusted_p: float
    constant: bool
    rates: tuple[AttackRate, ...]


@dataclass(frozen=True)
class MembershipAnswer:
    """Membership inference on documents.

    Attributes:
        n_members, n_unseen: numbers of documents that were compared.
        attacks: the scores; () if a gate about the documents failed, because they would say nothing about training.
        significance: largest adjusted p-value of a claim.
        smallest_auc: smallest area under the ROC curve that is announced with probability .8.
    """

    n_members: int
    n_unseen: int
    attacks: tuple[TextAttack, ...]
    significance: float
    smallest_auc: float


@dataclass(frozen=True)
class ExtractionRate:
    """Share of documents from which a suffix is extracted by one method.

    Attributes:
        method: "greedy": greedy decoding emits it; "sampled": it is among n samples with probability p or more.
        members: share of training documents.
        unseen: share of unseen documents, the control.
        excess: difference of both.
        p: one-sided p-value of the hypothesis that training documents are emitted no more often (Fisher's exact test).
    """

    method: Literal["greedy", "sampled"]
    members: Interval
    unseen: Interval
    excess: Interval
    p: float


@dataclass(frozen=True)
class ExtractionAnswer:
    """Extraction of documents after their beginning.

    Attributes:
        prefix, suffix: numbers of tokens of prompt and continuation.
        n_documents, n_unseen: numbers of documents with a window.
        n_windows: number of windows of the training documents.
        n_short: training documents that are shorter than a window.
        n_contexts: number of contexts before the prefix, the empty one included.
        sampling: distribution of samples, n and p, as text.
        rates: by method.
        n_recited, n_reconstructed, n_recollected: windows that greedy decoding emits, by class: with many copies; emitted by
            the reference, too; the rest.
        n_ties: windows whose greedy result depends on rounding.
        reference: model that decides about "reconstructed", as text.
        significance: largest p-value of a claim, for each of the methods.
        smallest_excess: smallest excess that is announced with probability .8, if the unseen rate is as measured.
    """

    prefix: int
    suffix: int
    n_documents: int
    n_unseen: int
    n_windows: int
    n_short: int
    n_contexts: int
    sampling: str
    rates: tuple[ExtractionRate, ...]
    n_recited: int
    n_reconstructed: int
    n_recollected: int
    n_ties: int
    reference: str
    significance: float
    smallest_excess: float | None


@dataclass(frozen=True)
class CanaryTier:
    """Canaries with the same number of copies.

    Attributes:
        copies: number of copies; 0: the twins, which were not inserted.
        n: number of canaries.
        bits: mean bits of the secret after its head (smaller = better known), in the context of the exposure.
        exposure: mean exposure in bits with its interval.
        n_exact: canaries with an exact rank.
        exposure_p: p-value of the hypothesis that none was memorized.
        emitted: share of canaries whose secret greedy decoding emits in any context.
        emitted_by_context: the same for each context.
        n_right, n_decided: pairs of this tier in which the inserted canary scores higher, and pairs without tie; 0 for twins.
        epsilon, ceiling: lower bound on the privacy loss of replacing a canary by its twin, and its largest possible value.
    """

    copies: int
    n: int
    bits: float
    exposure: Interval
    n_exact: int
    exposure_p: float
    emitted: Interval
    emitted_by_context: tuple[float, ...]
    n_right: int
    n_decided: int
    epsilon: float
    ceiling: float


@dataclass(frozen=True)
class CanaryAnswer:
    """Results of canaries, of which one in each pair was inserted by a coin.

    Attributes:
        n_pairs: number of pairs.
        candidate_bits: log2 of the number of possible secrets.
        largest_exposure: largest exposure that could have been measured, in bits.
        contexts: positions of the canaries, as text; the last is the beginning of a document. The exposure is measured in the
            first one.
        coverage: proof that every copy received loss, as text; "" if it was not checked.
        null_mean, null_se: mean exposure of the twins that is expected by theory, and its standard error.
        tiers: the twins, then by number of copies.
        n_right, n_decided: pairs in which the inserted canary scores higher than its twin, and pairs without tie.
        p: p-value of the sum of the differences under random signs.
        permutations: number of random sign vectors.
        significance: largest p-value of a claim.
        epsilon, ceiling: lower bound on the privacy loss of replacing a canary with all copies by its twin, and its largest
            possible value with this number of pairs.
        epsilon_add_remove: bound on the privacy loss of adding or removing a canary with all its copies.
        level: confidence level of the bounds.
    """

    n_pairs: int
    candidate_bits: float
    largest_exposure: float
    contexts: tuple[str, ...]
    coverage: str
    null_mean: float
    null_se: float
    tiers: tuple[CanaryTier, ...]
    n_right: int
    n_decided: int
    p: float
    permutations: int
    significance: float
    epsilon: float
    ceiling: float
    epsilon_add_remove: float
    level: float


@dataclass(frozen=True)
class ChangeGroup:
    """Change of the losses of some documents from the reference model to the audited one.

    Attributes:
        name: "train" or "unseen".
        n: number of documents.
        before, after: mean bits per token under the reference and under the model.
        difference: mean over documents of the difference, after − before, in bits per token, with its interval.
        worse: share of documents with a larger loss than before.
    """

    name: str
    n: int
    before: float
    after: float
    difference: Interval
    worse: float


@dataclass(frozen=True)
class ChangeAnswer:
    """Change of the losses compared with the reference model, such as the model before a fine-tune.

    Attributes:
        groups: training and unseen documents.
        excess: difference of training documents minus that of unseen ones, in bits per token; below 0 the model improved more
            on the training documents.
        p: p-value of the excess, two-sided (Welch).
        significance: largest p-value of a claim.
    """

    groups: tuple[ChangeGroup, ...]
    excess: Interval
    p: float
    significance: float
