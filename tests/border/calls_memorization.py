"""Valid calls of memorization: training histories and their scores, leave-one-out, shadows."""

import torch

from kernelmem.memorization import leave_one_out, memorization_scores, training_dynamics
from tests.border.calls_kernels import LOO, K, X, Y
from tests.border.calls_runs import MODEL, run
from tests.border.driver import Call

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(3, 4, 2, generator=GENERATOR, dtype=torch.float64)
HISTORY = training_dynamics.TrainingHistory.from_arrays(LOGITS, Y, steps=[0, 1, 10], gradient_norms=torch.ones(3, 4))
RATED = training_dynamics.TrainingHistory.from_arrays(
    LOGITS, Y, learning_rates=[0.1, 0.1, 0.1], gradient_norms=torch.ones(3, 4)
)
SCORE = leave_one_out.leave_one_out_margin(LOO)
THRESHOLD = training_dynamics.threshold_samples(Y, seed=0)
THRESHOLD_HISTORIES = [
    training_dynamics.TrainingHistory.from_arrays(torch.randn(1, 4, 3, generator=GENERATOR), labels)
    for labels in THRESHOLD.labels
]
FEW = 0.5


def record(labels: object, step: object, logits: object, **options: object) -> object:
    """Two calls of a recorder, the second with the given arguments, and the history."""
    recorder = training_dynamics.HistoryRecorder(labels)
    recorder.update(1, LOGITS[0, :2], [0, 1], gradient_norms=[1.0, 1.0], input_gradients=X[:2])
    recorder.update(step, logits, **options)
    return recorder.history()


HISTORY_SCORES = ("area_under_margin", "cumulative_loss", "forgetting_events", "confidence", "variability")
HISTORY_SCORES += ("correctness", "learned_at")
CALLS = {
    "training_history": Call(
        training_dynamics.training_history,
        lambda: {
            "run": run(),
            "model": MODEL,
            "x": X,
            "y": Y,
            "every": None,
            "steps": [0, 3],
            "gradients": ["weights", "inputs"],
            "loss": None,
            "forward": None,
            "progress": False,
        },
        examples=FEW,
    ),
    "TrainingHistory.from_arrays": Call(
        training_dynamics.TrainingHistory.from_arrays,
        lambda: {
            "logits": LOGITS,
            "labels": Y,
            "steps": [0, 1, 10],
            "learning_rates": [0.1, 0.1, 0.1],
            "gradient_norms": torch.ones(3, 4),
        },
    ),
    "TrainingHistory.join": Call(
        training_dynamics.TrainingHistory.join, lambda: {"histories": [HISTORY, HISTORY]}, examples=FEW
    ),
    "HistoryRecorder": Call(
        record,
        lambda: {
            "labels": Y,
            "step": 1,
            "logits": LOGITS[0, 2:],
            "indices": [2, 3],
            "gradient_norms": [1.0, 1.0],
            "input_gradients": X[2:],
        },
    ),
    **{
        name: Call(getattr(training_dynamics, name), lambda: {"history": HISTORY}, examples=FEW)
        for name in HISTORY_SCORES
    },
    "el2n": Call(training_dynamics.el2n, lambda: {"history": HISTORY, "step": 1}, examples=FEW),
    "gradient_norm": Call(training_dynamics.gradient_norm, lambda: {"history": HISTORY, "step": 1}, examples=FEW),
    "second_split_forgetting": Call(
        training_dynamics.second_split_forgetting, lambda: {"first": HISTORY, "second": HISTORY}, examples=FEW
    ),
    "leave_one_out_memorization": Call(leave_one_out.leave_one_out_memorization, lambda: {"fit": LOO}, examples=FEW),
    "leave_one_out_margin": Call(leave_one_out.leave_one_out_margin, lambda: {"fit": LOO}, examples=FEW),
    "to_pred_probs": Call(leave_one_out.to_pred_probs, lambda: {"predictions": X, "labels": Y}, examples=FEW),
    "to_pred_probs(fit)": Call(leave_one_out.to_pred_probs, lambda: {"predictions": LOO, "labels": None}, examples=FEW),
    "find_label_issues": Call(
        leave_one_out.find_label_issues, lambda: {"probabilities": X.softmax(1), "labels": Y}, examples=FEW
    ),
    "estimate_label_noise": Call(leave_one_out.estimate_label_noise, lambda: {"kernel": K, "y": Y}, examples=FEW),
    "tracin": Call(training_dynamics.tracin, lambda: {"history": RATED}, examples=FEW),
    "threshold_samples": Call(
        training_dynamics.threshold_samples, lambda: {"labels": Y, "seed": 0, "n_classes": 2}, examples=FEW
    ),
    "ThresholdSamples.flag": Call(
        THRESHOLD.flag,
        lambda: {"first": THRESHOLD_HISTORIES[0], "second": THRESHOLD_HISTORIES[1], "percentile": 99},
        examples=FEW,
    ),
    "prediction_depth": Call(
        training_dynamics.prediction_depth,
        lambda: {"model": MODEL, "x": X, "y": Y, "k": 2, "layers": [""], "forward": None},
        examples=FEW,
    ),
    "self_influence_score": Call(
        training_dynamics.self_influence_score,
        lambda: (
            {"run": run(), "model": MODEL, "x": X, "y": Y, "method": "last"}
            | {"loss": None, "forward": None, "progress": False}
        ),
        examples=FEW,
    ),
    "memorization_scores": Call(
        lambda history, fit, reference, reliability: memorization_scores(
            history, fit, reference=reference, reliability=reliability
        ),
        lambda: {"history": HISTORY, "fit": LOO, "reference": SCORE, "reliability": 0.9},
        examples=FEW,
    ),
}
