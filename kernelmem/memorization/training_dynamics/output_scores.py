"""Scores of the outputs along one training run: AUM, EL2N, forgetting events, cartography, cumulative loss, learned-at."""

import torch
from torch import Tensor

from kernelmem.core.checks import as_count, check_instance
from kernelmem.core.errors import InputError
from kernelmem.memorization.score import Score, mean_of_runs
from kernelmem.memorization.training_dynamics.history import TrainingHistory

EARLY = 0.1  # share of the training after which early scores are taken


def area_under_margin(history: TrainingHistory) -> Score:
    """Return minus the mean over checkpoints of the margin z_y − max_{k≠y} z_k (the sign of AUM is turned).

    Raises:
        InputError: not a history, or one of real targets.

    Source: Pleiss et al. 2020.

    >>> history = TrainingHistory.from_arrays([[[2.0, 0.0], [0.0, 1.0]], [[3.0, 0.0], [0.0, 2.0]]], [0, 0])
    >>> area_under_margin(history).values.tolist()
    [-2.5, 1.5]
    """
    margins = _of_classes(history, "area under the margin").statistic("margin")
    return score_of_runs(
        -margins.mean(1),
        history,
        "area under the margin (minus)",
        "minus the mean over checkpoints of the label's output minus the largest other output, in units of the outputs",
        "Pleiss et al. 2020",
    )


def el2n(history: TrainingHistory, *, step: int | None = None) -> Score:
    """Return the length |p − onehot(y)|₂ of the error of the softmax p early in training; for real targets |f − y|₂.

    Args:
        history: outputs at checkpoints.
        step: checkpoint to use; None: the one nearest to a tenth of the training, the initial weights excluded.

    Raises:
        InputError: there is no such checkpoint, or only that of the initial weights.

    Source: Paul, Ganguli, Dziugaite 2021, who average over ten runs (:meth:`TrainingHistory.join`).
    """
    index = early_checkpoint(history, step)
    z = history.logits[:, index].to(torch.float64)
    if history.labels.is_floating_point():
        errors = z - history.labels
    else:
        errors = z.softmax(-1) - torch.nn.functional.one_hot(history.labels, z.shape[-1])
    return score_of_runs(
        torch.linalg.vector_norm(errors, dim=-1),
        history,
        f"EL2N at step {int(history.steps[index])}",
        "length of the error of the predicted probabilities early in training",
        "Paul, Ganguli, Dziugaite 2021",
    )


def cumulative_loss(history: TrainingHistory) -> Score:
    """Return the sum over checkpoints of the cross-entropy −log p_y (of |f − y|²/2 for real targets), in nats.

    Source: Ravikumar, Soufleri, Roy 2025.
    """
    check_instance(history, "history", TrainingHistory)
    return score_of_runs(
        -history.statistic("log_likelihood").sum(1),
        history,
        "cumulative loss",
        f"sum of the loss over {history.n_checkpoints} checkpoints",
        "Ravikumar, Soufleri, Roy 2025",
    )


def forgetting_events(history: TrainingHistory) -> Score:
    """Return the number of checkpoints at which a row is wrong after it was right at the one before.

    A row that is right at none of the T checkpoints was never learned and counts T + 1, more than any other (its count would
    be 0). Ties of outputs are wrong predictions.

    Raises:
        InputError: not a history, or one of real targets.

    Source: Toneva et al. 2019, who count rows that were never learned as infinite.
    """
    correct = _of_classes(history, "forgetting events").is_correct()
    events = (correct[:, :-1] & ~correct[:, 1:]).sum(1).to(torch.float64)
    never = float(history.n_checkpoints + 1)
    return score_of_runs(
        torch.where(correct.any(1), events, never),
        history,
        "forgetting events",
        f"number of times that the row was right and then wrong; {never:g}: never right",
        "Toneva et al. 2019",
    )


def confidence(history: TrainingHistory) -> Score:
    """Return 1 − the mean over checkpoints of the label's probability p_y (dataset cartography: confidence).

    Raises:
        InputError: not a history, or one of real targets.

    Source: Swayamdipta et al. 2020.
    """
    p = _of_classes(history, "confidence").statistic("probability")
    meaning = "1 − mean probability of the label over checkpoints"
    return score_of_runs(1 - p.mean(1), history, "1 − confidence", meaning, "Swayamdipta et al. 2020")


def variability(history: TrainingHistory) -> Score:
    """Return the standard deviation over checkpoints of the label's probability p_y (dataset cartography: variability).

    Large for rows that are learned late or not steadily. A row that is never learned has a small one: a training that does
    not fit wrong labels turns this score around.

    Raises:
        InputError: not a history, or one of real targets.

    Source: Swayamdipta et al. 2020.
    """
    p = _of_classes(history, "variability").statistic("probability")
    meaning = "standard deviation of the label's probability over checkpoints"
    return score_of_runs(p.std(1, correction=0), history, "variability", meaning, "Swayamdipta et al. 2020")


def correctness(history: TrainingHistory) -> Score:
    """Return the share of checkpoints at which the row is not predicted as labeled (dataset cartography: 1 − correctness).

    Raises:
        InputError: not a history, or one of real targets.

    Source: Swayamdipta et al. 2020.
    """
    correct = _of_classes(history, "correctness").is_correct().to(torch.float64)
    meaning = "share of checkpoints at which the label is not predicted"
    return score_of_runs(1 - correct.mean(1), history, "1 − correctness", meaning, "Swayamdipta et al. 2020")


def learned_at(history: TrainingHistory) -> Score:
    """Return the first step from which the row is right at every later checkpoint; last step + 1 if there is none.

    Raises:
        InputError: not a history, or one of real targets.

    Source: Toneva et al. 2019; Baldock, Maennel, Neyshabur 2021 (iteration learned).
    """
    correct = _of_classes(history, "learned at").is_correct()
    never = float(history.steps[-1] + 1)
    return score_of_runs(
        first_lasting_step(correct, history.steps, never),
        history,
        "learned at",
        f"first step from which the row is always right; {never:g}: not right at the last checkpoint",
        "Toneva et al. 2019; Baldock, Maennel, Neyshabur 2021",
    )


def second_split_forgetting(first: TrainingHistory, second: TrainingHistory) -> Score:
    """Return minus the step of a second training, on other rows, from which a row of the first training stays wrong.

    Train on these rows (``first``), then continue on other rows of the task (``second``, outputs on the same rows as in
    ``first``): wrong labels are forgotten at once, rare rows late, typical rows never. A row that is right at the last
    checkpoint of ``second`` has −(last step + 1), a row that ``first`` did not learn has 0.

    Raises:
        InputError: histories of other rows, labels or numbers of runs.

    Source: Maini et al. 2022.
    """
    for history in (first, second):
        _of_classes(history, "second-split forgetting")
    if first.n_runs != second.n_runs or not torch.equal(first.labels, second.labels):
        raise InputError(
            f"histories of {first.n_rows} and {second.n_rows} rows, {first.n_runs} and {second.n_runs} runs",
            expected="the same rows and labels in the same order, and the same number of runs",
            hint="evaluate the rows of the first training during the second training, too",
        )
    learned = first.is_correct()[:, -1]
    never = float(second.steps[-1] + 1)
    forgotten = first_lasting_step(~second.is_correct(), second.steps, never)
    return score_of_runs(
        -torch.where(learned, forgotten, 0.0),
        second,
        "second-split forgetting (minus)",
        f"minus the step of the second training from which the row stays wrong; {-never:g}: never; 0: not learned before",
        "Maini et al. 2022",
    )


def first_lasting_step(holds: Tensor, steps: Tensor, never: float) -> Tensor:
    """Return the first step from which ``holds`` (R, T, n) is true at every later checkpoint, (R, n); ``never`` if none is."""
    holds_from_here = holds.flip(1).to(torch.uint8).cummin(1).values.flip(1)  # (R, T, n)
    index = (1 - holds_from_here.to(torch.int64)).sum(1)  # number of checkpoints before the lasting ones
    return torch.cat([steps.to(torch.float64), torch.tensor([never], dtype=torch.float64)])[index]


def early_checkpoint(history: TrainingHistory, step: int | None) -> int:
    """Return the index of the checkpoint at ``step``; None: that nearest to a tenth of the training, except step 0.

    Raises:
        InputError: there is no checkpoint at this step, or none after step 0.
    """
    check_instance(history, "history", TrainingHistory)
    steps = history.steps
    if step is not None:
        step = as_count(step, "step", minimum=0)
        if step not in steps.tolist():
            raise InputError(
                f"step={step}",
                expected=f"one of the {len(steps)} checkpoints, {str(steps.tolist())[:80]}",
                hint="pass a step of history.steps, or None",
            )
        return steps.tolist().index(step)
    if int(steps[-1]) == 0:
        raise InputError(
            "history with the initial weights only",
            expected="a checkpoint after the first steps: at initialization these scores measure the inputs, not the labels",
            hint="take checkpoints during training, or pass step=0",
        )
    distance = (steps - EARLY * steps[-1]).abs()
    return int(torch.where(steps > 0, distance, torch.inf).argmin())


def score_of_runs(values: Tensor, history: TrainingHistory, name: str, meaning: str, source: str) -> Score:
    """Return the mean over runs of values (R, n) as a Score, with its standard error if there are two runs or more."""
    mean, standard_error = mean_of_runs(values)
    level = "model" if history.n_runs == 1 else "algorithm"
    return Score(mean, standard_error, name, level, history.n_runs, meaning, source)


def _of_classes(history: TrainingHistory, name: str) -> TrainingHistory:
    """Return the history.

    Raises:
        InputError: it is not a history, or has real targets, for which the score is not defined.
    """
    check_instance(history, "history", TrainingHistory, hint="pass km.training_history(run, model, x, y)")
    if history.labels.is_floating_point():
        raise InputError(
            f"{name} of real targets of shape {tuple(history.labels.shape)}",
            expected="class labels",
            hint="use cumulative_loss, el2n or gradient_norm, which real targets have too",
        )
    return history
