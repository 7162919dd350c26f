"""Scores of gradients along one training run: GraNd (gradient norm), TracIn, VoG (variance of input gradients)."""

import torch
from torch import Tensor

from kernelmem.core.checks import check_instance
from kernelmem.core.errors import InputError
from kernelmem.memorization.score import Score
from kernelmem.memorization.training_dynamics.history import TrainingHistory
from kernelmem.memorization.training_dynamics.output_scores import early_checkpoint, score_of_runs


def gradient_norm(history: TrainingHistory, *, step: int | None = None) -> Score:
    """Return the norm of the gradient of each row's loss with respect to the weights early in training (GraNd).

    At initialization the score does not rank examples (the published result came from a restored checkpoint, Kirsch 2023):
    by default the checkpoint nearest to a tenth of the training is used, never the initial weights.

    Args:
        history: with ``gradient_norms``.
        step: checkpoint to use; None: as described.

    Raises:
        InputError: a history without gradient norms, or without that checkpoint.

    Source: Paul, Ganguli, Dziugaite 2021, who average over ten runs.
    """
    index = early_checkpoint(history, step)
    norms = history.gradient_norms
    if norms is None:
        raise InputError(
            "history without gradient norms",
            expected="norms of the gradients of the rows' losses at the checkpoints",
            hint='pass gradients=["weights"] to training_history, or gradient_norms= to HistoryRecorder.update',
        )
    return score_of_runs(
        norms[:, index],
        history,
        f"GraNd at step {int(history.steps[index])}",
        "norm of the gradient of the row's loss early in training",
        "Paul, Ganguli, Dziugaite 2021",
    )


def tracin(history: TrainingHistory) -> Score:
    """Return the self-influence Σ_t η_t |∇ℓ(w_t)|² over the checkpoints, η the learning rate (TracInCP).

    The sum over all steps that used the row is ``self_influence_score(run, ..., method="tracin")``.

    Raises:
        InputError: a history without gradient norms or learning rates.

    Source: Pruthi et al. 2020.
    """
    check_instance(history, "history", TrainingHistory)
    norms, rates = history.gradient_norms, history.learning_rates
    if norms is None or rates is None:
        raise InputError(
            f"history without {'gradient norms' if norms is None else 'learning rates'}",
            expected="norms of the gradients of the rows' losses, and learning rates, at the checkpoints",
            hint='pass gradients=["weights"] to training_history, or both to TrainingHistory.from_arrays',
        )
    return score_of_runs(
        (rates[:, None] * norms.square()).sum(1),
        history,
        "self-influence (TracIn at checkpoints)",
        f"sum over {history.n_checkpoints} checkpoints of learning rate times squared gradient norm of the row's loss",
        "Pruthi et al. 2020",
    )


def variance_of_gradients(history: TrainingHistory) -> Score:
    """Return the variance over checkpoints of ∂z_y/∂x, averaged over the inputs and standardized within each class (VoG).

    The values of a class are shifted and scaled to mean 0 and standard deviation 1 over its rows in each run; a class of one
    row, or of equal values, has 0.

    Raises:
        InputError: a history without input gradients, or of one checkpoint.

    Source: Agarwal, D'souza, Hooker 2022.
    """
    check_instance(history, "history", TrainingHistory)
    variance = history.input_gradient_variance
    if variance is None or history.n_checkpoints < 2:
        raise InputError(
            "history without input gradients" if variance is None else "history of one checkpoint",
            expected="the variance of the derivatives of the label's output with respect to the inputs over checkpoints",
            hint='pass gradients=["inputs"] to training_history, or input_gradients= to HistoryRecorder.update',
        )
    return score_of_runs(
        _standardized_by_class(variance, history.labels),
        history,
        "variance of gradients",
        "variance of the input gradient over checkpoints, in standard deviations within the class",
        "Agarwal, D'souza, Hooker 2022",
    )


def _standardized_by_class(values: Tensor, labels: Tensor) -> Tensor:
    """Return values (R, n) minus their mean over the rows with the same label, divided by their standard deviation."""
    result = torch.zeros_like(values)
    for label in labels.unique():
        rows = labels == label
        centered = values[:, rows] - values[:, rows].mean(1, keepdim=True)
        scale = centered.square().mean(1, keepdim=True).sqrt()
        smallest = 8 * torch.finfo(values.dtype).eps * values[:, rows].abs().amax(1, keepdim=True)
        result[:, rows] = torch.where(scale > smallest, centered / scale.clamp_min(torch.finfo(values.dtype).tiny), 0.0)
    return result
