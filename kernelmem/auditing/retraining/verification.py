"""Literal retraining without single rows: the measured effect of training on a row."""

import numpy as np
import torch
from torch import Tensor

from kernelmem.auditing.data_checks import AuditInputs
from kernelmem.auditing.retraining.budget import subset_outputs
from kernelmem.memorization.output_statistics import label_statistic
from kernelmem.memorization.shadows import EnsembleTraining, TrainFunction
from kernelmem.statistics import Interval, mean_interval

PAIRS = 8  # seeds


def verify_rows(
    inputs: AuditInputs, training: EnsembleTraining | TrainFunction, rows: list[int], *, seed: int, pairs: int = PAIRS
) -> dict[int, Interval]:
    """Measure the change of the probability of each row's label by training with it: p with the row − p without it.

    For each of 8 seeds one model is trained on all n rows and one without each row, from the same initial weights. The
    interval is Student's t over seeds.

    Cost: 8 (1 + number of rows) trainings on n rows.
    """
    if not rows:
        return {}
    n = len(inputs.data.y_train)
    everything = torch.arange(n)
    seeds = np.random.default_rng(seed).integers(2**31 - 2, size=pairs).tolist()
    subsets = [everything] * pairs
    subsets += [everything[everything != row] for row in rows for _ in seeds]
    outputs = subset_outputs(inputs, training, subsets, seeds * (1 + len(rows)))
    probability = label_statistic(outputs, inputs.data.y_train, "probability").reshape(1 + len(rows), pairs, n)
    return {row: _effect(probability[0, :, row] - probability[1 + k, :, row]) for k, row in enumerate(rows)}


def _effect(differences: Tensor) -> Interval:
    interval = mean_interval(differences)
    return Interval(interval.value, max(-1.0, interval.low), min(1.0, interval.high), interval.level)
