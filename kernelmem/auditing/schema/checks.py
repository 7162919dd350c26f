"""Validity gates of an audit, fidelity of its kernel regressions, and its power."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Gate:
    """A condition that must hold before the audit makes a claim. One failed gate blanks the headline.

    Attributes:
        name: short name, such as "surrogate fidelity".
        question: what is checked, as a question.
        passed: True or False; None if the gate was not run, with the reason in ``meaning``.
        value: measured value, as text with its uncertainty.
        required: requirement, as text.
        meaning: consequence of the result, in one sentence.
    """

    name: str
    question: str
    passed: bool | None
    value: str
    required: str
    meaning: str


@dataclass(frozen=True)
class KernelFidelity:
    """Agreement of NTK surrogate and label regression with the network on unseen test rows.

    Both are kernel ridge regressions on the network's NTK, fitted to all audited rows with leave-one-out predictions: the
    NTK surrogate to the network's outputs, the label regression to the labels.

    Attributes:
        agreement: share of unseen test rows on which surrogate and network predict the same class.
        agreement_se: standard error of ``agreement``.
        agreement_required: no claim is made below it by the kernel method.
        relative_error: |surrogate − network| / |network|, centered outputs, Frobenius norm.
        label_regression_agreement: the same share for the label regression.
        label_regression_test_accuracy, surrogate_test_accuracy: accuracies on unseen test rows.
        label_regression_ridge, surrogate_ridge: ridges, which minimize the leave-one-out squared error.
        label_regression_loo_error, surrogate_loo_error: mean squared leave-one-out residual at that ridge.
    """

    agreement: float
    agreement_se: float
    agreement_required: float
    relative_error: float
    label_regression_agreement: float
    label_regression_test_accuracy: float
    surrogate_test_accuracy: float
    label_regression_ridge: float
    surrogate_ridge: float
    label_regression_loo_error: float
    surrogate_loo_error: float


@dataclass(frozen=True)
class Power:
    """Smallest memorization that this audit announces with the stated probability.

    Attributes:
        method: method of the headline.
        probability: probability of an announcement, .8.
        significance: largest p-value of a claim.
        smallest_count: smallest number of fully memorized training rows that is announced; None if no number is.
        smallest_effect: smallest memorization of a single row, as a difference of probabilities in [0, 1], that is
            announced; None if the method sees no single row.
        meaning: these numbers in one sentence.
        budget: what the training budget was, what it bought and what it cost in power; "" without retraining.
    """

    method: Literal["retraining", "kernel"]
    probability: float
    significance: float
    smallest_count: int | None
    smallest_effect: float | None
    meaning: str
    budget: str
