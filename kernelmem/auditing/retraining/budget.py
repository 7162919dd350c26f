"""Shadow models within a budget of minutes: a pilot decides how many are trained."""

import tempfile
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from kernelmem.auditing.data_checks import AuditInputs
from kernelmem.core.errors import InputError
from kernelmem.memorization.shadows import (
    EnsembleTraining,
    ShadowEnsemble,
    ShadowOptions,
    TrainFunction,
    shadow_ensemble,
)

PILOT = 16  # models; one chunk of the ensemble
FEWEST, MOST = 32, 512
SHARE = 0.8  # of the rows; at .7 up to 1.4 times as many rows exceed .25 as in training on all rows
BUDGET_SHARE = 0.8  # of the budget, for the shadow models; the rest is for the verification of single rows


@dataclass(frozen=True)
class Trained:
    """Shadow models of an audit.

    Attributes:
        shadows: their outputs on training and test rows.
        seconds_per_model: measured training time; None for models that were trained elsewhere.
        note: what the budget was and what it bought, one sentence.
    """

    shadows: ShadowEnsemble
    seconds_per_model: float | None
    note: str


def train_within(
    inputs: AuditInputs,
    retrain: EnsembleTraining | TrainFunction | ShadowEnsemble,
    *,
    minutes: float,
    seed: int,
    n_models: int | None = None,
) -> Trained:
    """Train as many shadow models as the budget allows, or check those that were trained elsewhere.

    A pilot of 16 models on random subsets of 80 % of the training rows is timed. The number of models is the one that fits
    into 80 % of the budget, between 32 and 512; the pilot is part of them. A given ``n_models`` is trained without a pilot.

    Raises:
        InputError: the budget is too short for 32 models, or models trained elsewhere do not fit the training rows.
    """
    if isinstance(retrain, ShadowEnsemble):
        shadows = _check_shadows(retrain, inputs)
        return Trained(shadows, None, f"{shadows.n_models:,} models that were trained elsewhere.")
    data, C = inputs.data, inputs.train_outputs.shape[1]
    options = {
        "share": SHARE,
        "sampling": "balanced",
        "n_classes": C,
        "forward": inputs.forward,
        "training_name": "the audited training",
        "models_per_chunk": PILOT,
    }
    rows = (inputs.rows[0].tree, data.y_train), (inputs.rows[1].tree, data.y_test)

    def train(n_models: int, path: str) -> ShadowEnsemble:
        return shadow_ensemble(
            rows[0], retrain, test=rows[1], path=path, seed=seed, progress=False,
            options=ShadowOptions(n_models=n_models, **options),
        )  # fmt: skip

    share = f"on {SHARE:.0%} of the rows each"
    with tempfile.TemporaryDirectory() as path:
        if n_models is not None:
            return Trained(
                _in_memory(train(n_models, path)), None, f"{n_models} models {share}, the number that was asked for."
            )
        started = time.perf_counter()
        train(PILOT, path)
        seconds = (time.perf_counter() - started) / PILOT
        affordable = int(BUDGET_SHARE * 60 * minutes / seconds)
        if affordable < FEWEST:
            raise InputError(
                f"budget={minutes:g} minutes, enough for {affordable} models of {seconds:.3g} s each",
                expected=f"a budget for at least {FEWEST} models",
                hint=f"pass budget={FEWEST * seconds / 60 / BUDGET_SHARE:.2g} or more, or omit retrain",
            )
        n_models = min(MOST, affordable - affordable % PILOT)
        shadows = _in_memory(train(n_models, path))
    limit = "the most that an audit uses" if n_models == MOST else f"what the budget of {minutes:g} minutes allows"
    return Trained(shadows, seconds, f"{n_models} models {share} ({limit}; {seconds:.2g} s per model in a pilot).")


def _in_memory(shadows: ShadowEnsemble) -> ShadowEnsemble:
    """Return the ensemble without its files."""
    return ShadowEnsemble(
        shadows.masks, shadows.logits.clone(), shadows.labels, shadows.test_logits.clone(), shadows.test_labels,
        shadows.identity,
    )  # fmt: skip


def _check_shadows(shadows: ShadowEnsemble, inputs: AuditInputs) -> ShadowEnsemble:
    """Check that models trained elsewhere have the training rows in their order, the classes, and enough models."""
    y, C = inputs.data.y_train, inputs.train_outputs.shape[1]
    if shadows.labels.is_floating_point() or shadows.n_rows != len(y) or not torch.equal(shadows.labels.cpu(), y):
        raise InputError(
            f"shadow models of {shadows.n_rows:,} rows with other labels than the {len(y):,} training rows",
            expected="shadow models of the training rows, in their order, with their labels as class indices",
            hint="train them with the same (x, y), or with km.shadow_ensemble",
        )
    if shadows.n_classes != C:
        raise InputError(
            f"shadow models with {shadows.n_classes} outputs for a network with {C}",
            expected="the same classes",
            hint="keep the outputs of all classes",
        )
    n_in = shadows.masks.sum(0)
    few = ((n_in < 2) | (n_in > shadows.n_models - 2)).nonzero()[:, 0]
    if len(few):
        raise InputError(
            f"shadow models of which fewer than two were trained with, or without, {len(few):,} of the rows"
            f" ({', '.join(map(str, few[:5].tolist()))}{', ...' * (len(few) > 5)})",
            expected="at least two models with and two without every row",
            hint="train more models, on random subsets",
        )
    return shadows


def subset_outputs(
    inputs: AuditInputs, training: EnsembleTraining | TrainFunction, subsets: list[Tensor], seeds: list[int]
) -> Tensor:
    """Train one model on each of k subsets of the training rows, with its seed; return the outputs (k, n, C) on these rows."""
    from kernelmem.training.ensemble import EnsembleOptions, Member, train_mlps, train_modules

    data, C = inputs.data, inputs.train_outputs.shape[1]
    x, y = inputs.rows[0].tree, data.y_train
    if isinstance(training, EnsembleTraining):
        members = [
            Member(training.width, rows, y[rows], seed, seed + 1) for rows, seed in zip(subsets, seeds, strict=True)
        ]
        options = EnsembleOptions(keep_outputs=True, n_classes=C)
        share = sum(map(len, subsets)) / len(subsets) / len(y)
        arguments = {"test": (x, y), "recipe": training.recipe_for(share), "options": options, "progress": False}
        ensemble = (
            train_mlps(members, x, **arguments)
            if training.make_model is None
            else train_modules(training.make_model, members, x, **arguments)
        )
        outputs = ensemble.metrics[-1].logits
        assert outputs is not None
        return outputs.to("cpu", torch.float64)
    calls = iter(zip(subsets, seeds, strict=True))

    def train_next(_indices: Tensor, _seed: int) -> torch.nn.Module:
        rows, seed = next(calls)
        torch.manual_seed(seed)
        return training(rows, seed)

    options = ShadowOptions(n_models=len(subsets), n_classes=C, forward=inputs.forward)
    return shadow_ensemble((x, y), train_next, options=options, progress=False).logits.to(torch.float64)
