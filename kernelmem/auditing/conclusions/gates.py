"""Validity gates: conditions that must hold before the audit makes a claim."""

import numpy as np
import torch
from torch import Tensor

from kernelmem.auditing.data_checks import AuditInputs
from kernelmem.auditing.retraining import RetrainingScores, shown_memorization
from kernelmem.auditing.retraining.answer import shadow_accuracies
from kernelmem.auditing.schema import Duplicates, Gate, KernelFidelity, Power
from kernelmem.memorization.membership import blind_baseline
from kernelmem.statistics import Interval

FEWEST_CONTROL = 20  # rows
LARGEST_SHARE_SEEN = 0.5  # of test rows that are near-duplicates of training rows
BLIND_LEVEL = 0.995  # of the intervals: few audits of exchangeable rows are blanked
LARGEST_ALARM_SHARE = 0.035  # of 200 runs at .01: exceeded with probability .001 if the test is exact
CALIBRATION_LEVEL = 3.3  # standard errors: exceeded with probability .001
FEW_ROWS = 20
LARGEST_COUNT = 0.1  # of the training rows, for the power
SMALLEST_SHARE_SHOWN = 0.5  # of the memorization of the shadow models
ACCURACY_DIFFERENCE = 0.1
NOT_NEEDED = "not needed"


def data_gates(inputs: AuditInputs, duplicates: Duplicates, n_control: int, n_tested: int, *, seed: int) -> list[Gate]:
    """Return the gates about the data: exchangeability of training and test rows, and near-duplicates.

    ``n_control`` is the number of groups of near-duplicates among the ``n_tested`` test rows of the control.
    """
    return [_exchangeability(inputs, seed), _near_duplicates(duplicates, n_control, n_tested)]


def _exchangeability(inputs: AuditInputs, seed: int) -> Gate:
    name, question = "blind baseline", "Can training and test rows be told apart without the network?"
    required = "AUROC at most .55, or not above .5 within its error"
    data = inputs.data
    x_train, x_test = (x.reshape(len(x), -1).to(torch.float64) for x in (data.x_train, data.x_test))
    if min(len(x_train), len(x_test)) < 20:
        return Gate(name, question, None, "not run", required, "Fewer than 20 training or test rows.")
    result = blind_baseline(x_train, x_test, seed=seed, level=BLIND_LEVEL)
    classifier = max(result.aurocs, key=lambda key: result.aurocs[key].value)
    meaning = (
        "Training and test rows differ by themselves, so a difference between them is not evidence of training."
        if result.flagged
        else "No difference was found, so test rows are a fair control."
    )
    return Gate(
        name, question, not result.flagged, f"AUROC {_interval(result.largest)} ({classifier})", required, meaning
    )


def _near_duplicates(duplicates: Duplicates, n_control: int, n_tested: int) -> Gate:
    seen = duplicates.near_across / max(n_tested, 1)
    passed = n_control >= FEWEST_CONTROL and seen <= LARGEST_SHARE_SEEN
    return Gate(
        "near-duplicates",
        "Are enough test rows left that the network has not seen, also not as near-copies?",
        passed,
        f"{duplicates.near_train:,} training rows, {duplicates.near_test:,} test rows and {duplicates.near_across:,} pairs"
        f" across at cosine {duplicates.cosine:.3f}; {n_control:,} control groups",
        f"at least {FEWEST_CONTROL} groups of test rows, at most half of the test rows near a training row",
        "Each group of near-duplicates counts once in control and test; a row is predicted without its whole group."
        if passed
        else "Too few test rows are new to the network, so that there is no control.",
    )


def kernel_gates(fidelity: KernelFidelity, alarms: int, runs: int, *, needed: bool) -> list[Gate]:
    """Return the gates of the kernel method: surrogate fidelity, and false alarms with permuted memberships.

    With ``needed`` False (a headline by retraining) they are reported without a consequence.
    """
    faithful = fidelity.agreement >= fidelity.agreement_required
    calm = alarms <= LARGEST_ALARM_SHARE * runs
    value = f"{fidelity.agreement:.1%} (standard error {fidelity.agreement_se:.1%})"
    return [
        Gate(
            "surrogate fidelity",
            "Does kernel regression on the network's tangents predict what the network predicts?",
            faithful if needed else None,
            value,
            f"the same class on at least {fidelity.agreement_required:.0%} of unseen rows",
            ("The kernel describes this network." if faithful else "The kernel does not describe this network.")
            + ("" if needed else " The headline comes from retraining and does not depend on it."),
        ),
        Gate(
            "permuted membership",
            "Is nothing found if training and test rows are relabelled at random?",
            calm if needed else None,
            f"p < .01 in {alarms} of {runs} runs",
            f"at most {int(LARGEST_ALARM_SHARE * runs)} of {runs} runs",
            "The test has the error rate that it states." if calm else "The test raises more false alarms than stated.",
        ),
    ]


def retraining_gates(
    scores: RetrainingScores, inputs: AuditInputs, network_correct: np.ndarray, control_high: float, unseen: Tensor
) -> list[Gate]:
    """Return the gates of retraining: fidelity of the shadow models to the network, and the permuted control.

    ``unseen`` holds the numbers of test rows that are not near training rows.
    """
    y_test = inputs.data.y_test
    test_correct = (inputs.test_outputs.argmax(1) == y_test).numpy()
    shown = shown_memorization(scores, network_correct, y_test, test_correct, unseen)
    test_accuracy = float(test_correct.mean())
    _, shadow_test = shadow_accuracies(scores.shadows)
    shadow_accuracy = float(shadow_test.mean()) if len(scores.shadows.test_labels) else float("nan")
    similar = np.isnan(shadow_accuracy) or abs(test_accuracy - shadow_accuracy) <= ACCURACY_DIFFERENCE
    faithful = bool(similar and (not shown.visible or shown.share >= SMALLEST_SHARE_SHOWN))
    value = (
        f"{shown.share:.0%} (standard error {shown.error:.0%}) of the shadow models' memorization"
        if shown.visible
        else "the shadow models memorize too little to tell"
    )
    return [
        Gate(
            "shadow fidelity",
            "Do the retrained models behave like the audited network?",
            faithful,
            f"{value}; test accuracy {test_accuracy:.1%}, shadow models {shadow_accuracy:.1%}",
            "at least half of the memorization, and a test accuracy within 10 percentage points",
            "Results of the retrained models apply to this network."
            if faithful
            else "The retrained models differ from this network, so their memorization is not its own.",
        ),
        Gate(
            "permuted membership",
            "Is nothing found if each row's memberships are permuted among the models?",
            control_high <= 0.05,
            f"at most {control_high:.1%} of the rows",
            "at most 5% of the rows",
            "The estimate is zero where nothing is memorized."
            if control_high <= 0.05
            else "The number of models is too small: the estimate is not zero where nothing is memorized.",
        ),
    ]


def calibration_gate(control: Interval) -> Gate:
    """Return the gate about the calibration of the kernel method: the memorized share of unseen rows must be zero."""
    factor = CALIBRATION_LEVEL / 1.96  # of the half-widths of a 95 % interval
    low, high = (control.value + factor * (end - control.value) for end in (control.low, control.high))
    passed = low <= 0 <= high
    return Gate(
        "calibration",
        "Is the memorized share zero on rows that the network never saw?",
        passed,
        _interval(control),
        "zero within 3.3 standard errors",
        "The calibration holds for unseen rows."
        if passed
        else "The network's predictions on unseen rows do not follow the regression on its kernel.",
    )


def power_gate(power: Power, n_train: int, *, found: bool) -> Gate:
    """Return the gate about power: the smallest memorization that the audit would have announced.

    It passes if memorization was ``found``: then the power sufficed.
    """
    enough = power.smallest_count is not None and power.smallest_count <= max(FEW_ROWS, LARGEST_COUNT * n_train)
    passed = found or enough
    parts = [] if power.smallest_count is None else [f"{power.smallest_count:,} row{'s' * (power.smallest_count != 1)}"]
    parts += [] if power.smallest_effect is None else [f"an effect of {power.smallest_effect:.2f} on one row"]
    return Gate(
        "power",
        "How little memorization would this audit have announced?",
        passed,
        " or ".join(parts) or "no number of rows",
        f"at most {FEW_ROWS} rows or {LARGEST_COUNT:.0%} of the rows, with probability {power.probability:g}, or a finding",
        power.meaning,
    )


def _interval(interval: Interval) -> str:
    return f"{interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})"
