"""Answers of an audit: how much is memorized, which rows, and whether it can leak."""

from dataclasses import dataclass
from typing import Literal

from kernelmem.statistics import Interval

Reason = Literal["mislabelled", "rare", "duplicate", "boundary", "not classified"]


@dataclass(frozen=True)
class HowMuch:
    """Memorized share of the training rows, with its control.

    Attributes:
        method: "retraining": differences between models trained with and without a row; "kernel": leave-one-out
            predictions of a regression on the network's own kernel.
        definition: meaning of a memorized row for this method, one sentence.
        fraction: estimated share of memorized training rows, with an interval.
        mean: mean memorization, with an interval: the share of the training labels that the network gives only because it
            was trained on them (Feldman's memorization, averaged over rows); None if it was not estimated.
        n_flagged: number of rows that are individually called memorized.
        n_rows: number of training rows.
        control: the same share where nothing can be memorized, with an interval.
        control_definition: rows or models of the control, one sentence.
        n_control: number of rows of the control.
        expected_by_chance: number of training rows that would be counted if nothing were memorized.
        p_value: probability of at least the observed count if nothing were memorized.
        n_models: number of models trained for the estimate; 0 for the kernel method.
    """

    method: Literal["retraining", "kernel"]
    definition: str
    fraction: Interval
    mean: Interval | None
    n_flagged: int
    n_rows: int
    control: Interval
    control_definition: str
    n_control: int
    expected_by_chance: float
    p_value: float
    n_models: int


@dataclass(frozen=True)
class InfluentialRow:
    """A training row with a large influence on the prediction for another row.

    Attributes:
        index: training row.
        label: its class; None if the audit is redacted.
        influence: change of the margin (label minus strongest other class) of the label regression because this row is in
            the training set; exact.
    """

    index: int
    label: int | None
    influence: float


@dataclass(frozen=True)
class RowFinding:
    """A training row of the list of most memorized rows.

    Attributes:
        index: training row.
        label: its given class; None if the audit is redacted.
        predicted_without: class that is predicted without the row; None if the audit is redacted.
        score: value of the ranking score (see ``RowTable.score``); larger = more memorized.
        standard_error: standard error of the score; None if it is exact for its inputs.
        flagged: True if the row is called memorized; False: it only ranks high.
        reason: what kind of row it is.
        predicted_effect: predicted change of the probability of the label by training with the row.
        verified_effect: the same change, measured by retraining without the row; None if that was not run.
        memorized_bits: bits of the label that only the row itself and the network have; None if there is no number.
        flipped: True or False if it is known whether the label is wrong, else None.
        influential: other rows with the largest influence on its prediction, largest first.
    """

    index: int
    label: int | None
    predicted_without: int | None
    score: float
    standard_error: float | None
    flagged: bool
    reason: Reason
    predicted_effect: float | None
    verified_effect: Interval | None
    memorized_bits: float | None
    flipped: bool | None
    influential: tuple[InfluentialRow, ...]


@dataclass(frozen=True)
class SuspectedLabel:
    """A training row whose label the other rows contradict.

    Attributes:
        index: training row.
        label: its given class; None if the audit is redacted.
        suggested: class that the other rows predict; None if the audit is redacted.
        margin: leave-one-out margin of the given label, negative.
        memorized: True if the row is also counted as memorized.
    """

    index: int
    label: int | None
    suggested: int | None
    margin: float
    memorized: bool


@dataclass(frozen=True)
class SuspectedLabels:
    """Training rows whose labels are probably wrong, and how they relate to the memorized rows.

    Attributes:
        n: number of suspected rows.
        n_memorized: number of suspected rows that are also counted as memorized.
        known_flips: number of labels known to be wrong; None if unknown.
        known_flips_suspected: number of these among the suspected rows; None if unknown.
        meaning: the relation of suspected labels, memorized rows and known flips in one or two sentences.
        rows: the most suspicious rows, lowest margin first.
    """

    n: int
    n_memorized: int
    known_flips: int | None
    known_flips_suspected: int | None
    meaning: str
    rows: tuple[SuspectedLabel, ...]


@dataclass(frozen=True)
class AttackRate:
    """True positive rate of an attack at one false positive rate.

    Attributes:
        false_positive_rate: the false positive rate.
        true_positive_rate: the rate with its interval; None if it cannot be measured.
        reason: why it cannot be measured; "" if it can.
    """

    false_positive_rate: float
    true_positive_rate: Interval | None
    reason: str


@dataclass(frozen=True)
class AttackResult:
    """Success of one membership inference attack.

    Attributes:
        name: name of the attack.
        level: "model": against the audited network; "algorithm": against models of the same training, averaged.
        n_members, n_nonmembers: numbers of records attacked; for several targets, their totals.
        n_targets: number of attacked models.
        auc: area under the ROC curve with its interval; .5 = guessing.
        null_auc: the same with permuted membership.
        rates: true positive rates at low false positive rates.
        predictive_values: (prior, share of members among the records that are called members at the smallest
            measurable false positive rate); None if it cannot be measured.
    """

    name: str
    level: Literal["model", "algorithm"]
    n_members: int
    n_nonmembers: int
    n_targets: int
    auc: Interval
    null_auc: Interval
    rates: tuple[AttackRate, ...]
    predictive_values: tuple[tuple[float, float | None], ...]


@dataclass(frozen=True)
class WorstRecord:
    """A training row whose membership is easiest to infer.

    Attributes:
        index: training row.
        label: its class; None if the audit is redacted.
        score: separation of the attack's score as member and as non-member; its meaning is in ``Leak.worst_meaning``.
    """

    index: int
    label: int | None
    score: float


@dataclass(frozen=True)
class Leak:
    """Answer to the question whether an attacker could tell who was in the training set.

    Attributes:
        attacks: attacks that were run.
        worst: records that are easiest to identify, worst first.
        worst_meaning: meaning of their score, one sentence.
        equivalence: result of the equivalence test "no better than guessing", with the smallest effect it would have
            noticed.
        equivalent: True if leakage above the margin is excluded; False if not; None if not tested.
        not_run: attacks that were not run, with the reason.
    """

    attacks: tuple[AttackResult, ...]
    worst: tuple[WorstRecord, ...]
    worst_meaning: str
    equivalence: str
    equivalent: bool | None
    not_run: tuple[str, ...]


@dataclass(frozen=True)
class Slice:
    """Memorization and accuracy of a class or of a group of rows that the user named.

    Attributes:
        kind: "class" or "group".
        name: name of the slice.
        n_train, n_test: numbers of rows (0 test rows of groups, which are known for training rows only).
        n_flagged: training rows that are called memorized.
        fraction: share of flagged rows with its interval; None without training rows.
        adjusted_p: p-value of a difference from the other rows, corrected for all slices (Holm); None without rows.
        train_accuracy, test_accuracy: of the network; None without rows.
        n_contradicted: training rows whose label the other rows contradict.
    """

    kind: Literal["class", "group"]
    name: str
    n_train: int
    n_test: int
    n_flagged: int
    fraction: Interval | None
    adjusted_p: float | None
    train_accuracy: float | None
    test_accuracy: float | None
    n_contradicted: int


@dataclass(frozen=True)
class Agreement:
    """Rank agreement of a score with memorization measured by retraining.

    Attributes:
        name: name of the score.
        spearman: rank correlation over training rows; None if one of the two is constant.
        corrected: the same, corrected for the noise of the retraining estimate; None if not available.
        ceiling: largest correlation that the noise of the retraining estimate allows; None if not available.
    """

    name: str
    spearman: float | None
    corrected: float | None
    ceiling: float | None
