"""Attack every model of an ensemble with the others, or one given model with all of them."""

from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.checks import check_choice, seed_sequence
from kernelmem.core.errors import InputError
from kernelmem.core.options import Progress, as_progress
from kernelmem.memorization.membership.attacks import DEFAULT_OPTIONS, score_target
from kernelmem.memorization.membership.equivalence import auc_over_targets
from kernelmem.memorization.membership.lira import separation
from kernelmem.memorization.membership.rates import roc
from kernelmem.memorization.membership.result import Membership
from kernelmem.memorization.membership.signals import (
    ATTACKS,
    Attack,
    MembershipOptions,
    Signals,
    Target,
    as_signals,
    check_targets,
)
from kernelmem.memorization.shadows import ShadowEnsemble
from kernelmem.statistics import Interval, clopper_pearson, mean_interval

LARGEST_SHARE_WITHOUT_SHADOWS = 0.05


def membership(
    shadows: ShadowEnsemble,
    *,
    attack: Attack | Literal["best"] = "lira",
    target: Target | None = None,
    seed: int = 0,
    progress: Progress = None,
    options: MembershipOptions = DEFAULT_OPTIONS,
) -> Membership:
    """Measure how well an attack tells the rows that a model was trained on from other rows.

    Without ``target`` every model of the ensemble is the target once and the others are the shadow models: the result speaks
    of the training algorithm, and intervals are over targets. With ``target`` the given model is attacked with all models of
    the ensemble: the result speaks of this model, and intervals are over its rows.

    In an ensemble whose rows are in equally many models each, the number of remaining models with a row would reveal whether
    the target was trained on it. There, one model of the other kind, drawn at random, is left out for each row and target, so
    that these numbers are the same for members and non-members.

    Every result has its control: the attack is repeated after the memberships of each row were permuted among the models,
    where its AUC is 0.5.

    Args:
        shadows: m models, each trained on a random subset of the rows.
        attack: one of the attacks of :func:`attack_scores`, or "best": the attack with the largest AUC on every other target
            (with ``target``: on the models of the ensemble), reported on the remaining targets only.
        target: None, or (logits (n, C), members (n,)) or (logits, members, test logits (t, C)) of a model that is not in the
            ensemble, on the rows of the ensemble.
        seed: seed of the permuted run and of the models that are left out.
        progress: called with (attacks done, all attacks).
        options: see :class:`MembershipOptions`.

    Raises:
        InputError: arrays that do not fit, outputs that are not finite, a target trained on all or no rows, or more than
            5 % of the rows without enough shadow models.

    Cost: O(m² n + m n C) without target, O(m² n) with one (thresholds are chosen on the ensemble).

    Source: Carlini et al. 2022; Zarifzadeh et al. 2024; intervals over targets instead of rows.
    """
    check_choice(attack, "attack", (*ATTACKS, "best"))
    seeds = seed_sequence(seed, ["dropped", "permuted", "attack"])
    signals = as_signals(shadows, target, options, seeds["attack"])
    m = shadows.n_models
    models = list(range(m))
    check_targets(signals)
    attacks: list[Attack] = available_attacks(signals, options) if attack == "best" else [attack]
    n_runs = (len(attacks) + 1) * m + 2
    report, done = as_progress(progress, "attacking models", "model"), 0

    def run(signals: Signals, targets: list[int], name: Attack) -> tuple[Tensor, int]:
        nonlocal done
        generator = torch.Generator().manual_seed(seeds["dropped"])
        rows, missing = [], 0
        for k in targets:
            scores, lacking = score_target(signals, k, used_models(signals, k, m, generator), name, options)
            rows.append(scores)
            missing += lacking
            done = min(done + 1, n_runs - 1)
            report(done, n_runs)
        return torch.stack(rows), missing

    of_shadows = {name: run(signals, models, name) for name in attacks}
    judges = models[::2] if target is None else models
    if attack == "best":
        aucs = [_auc(of_shadows[name][0][judges], signals.masks[judges], options.level).value for name in attacks]
        chosen = attacks[aucs.index(max(aucs))]
        targets = models[1::2] if target is None else [m]
    else:
        chosen, targets = attacks[0], models if target is None else [m]
    shadow_scores, n_missing = of_shadows[chosen]
    if target is None:
        scores = shadow_scores[targets]
        n_pairs = m * signals.phi.shape[1]
    else:
        scores, n_missing = run(signals, targets, chosen)
        n_pairs = signals.phi.shape[1]
    if n_missing > LARGEST_SHARE_WITHOUT_SHADOWS * n_pairs:
        raise InputError(
            f"{n_missing:,} of {n_pairs:,} (target, row) pairs without enough shadow models for attack={chosen!r}",
            expected=f"at most {LARGEST_SHARE_WITHOUT_SHADOWS:.0%} of them",
            hint='train more shadow models, or with sampling="balanced"',
        )
    permuted = _permuted(signals, seeds["permuted"])
    null_scores, _ = run(permuted, targets, chosen)
    members, null_members = signals.masks[targets], permuted.masks[targets]
    report(n_runs, n_runs)
    d, d_error = separation(signals.phi[:m], signals.masks[:m])
    return Membership(
        attack=chosen,
        level="algorithm" if target is None else "model",
        scores=scores,
        members=members,
        null_scores=null_scores,
        null_members=null_members,
        auc=_auc(scores, members, options.level),
        null_auc=_auc(null_scores, null_members, options.level),
        rates=tuple(roc(scores, members, tuple(options.fprs), level=options.level)),
        null_rates=tuple(roc(null_scores, null_members, tuple(options.fprs), level=options.level)),
        accuracy=_accuracy(
            scores, members, shadow_scores if target is not None else None, signals.masks[:m], options.level
        ),
        separation=d,
        separation_se=d_error,
        n_shadows=m - (target is None),
        n_without_shadows=n_missing,
        considered=tuple(attacks) if attack == "best" else (),
    )


def available_attacks(signals: Signals, options: MembershipOptions) -> list[Attack]:
    """Return the attacks for which there are data: "rmia" needs class labels, "quantile" enough test rows."""
    possible: dict[Attack, bool] = {
        "rmia": signals.n_classes > 0,
        "quantile": signals.test_phi.shape[1] >= 5 / (1 - options.quantile),
    }
    return [name for name in ATTACKS if possible.get(name, True)]


def used_models(signals: Signals, k: int, m: int, generator: torch.Generator) -> Tensor:
    """Return the shadow models (M, n) that may be used against model k.

    All of the ensemble but k; if every row is in equally many models of the ensemble and the target, also without one model
    of the other kind for each row.
    """
    masks = signals.masks
    used = torch.zeros_like(masks)
    used[:m] = True
    used[k] = False
    counts = masks[: max(m, k + 1)].sum(0)
    if bool((counts == counts[0]).all()):
        other_kind = used & (masks != masks[k])
        drawn = (
            torch.rand(masks.shape, generator=generator, dtype=torch.float64).masked_fill(~other_kind, -1.0).argmax(0)
        )
        used[drawn, torch.arange(masks.shape[1])] = False
    return used


def _permuted(signals: Signals, seed: int) -> Signals:
    """Return signals in which the memberships of each row are permuted among the models."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(signals.masks.shape, generator=generator, dtype=torch.float64).argsort(0)
    return replace(signals, masks=signals.masks.gather(0, order))


def _auc(scores: Tensor, members: Tensor, level: float) -> Interval:
    return auc_over_targets(scores.numpy(), members.numpy(), level)


def _accuracy(
    scores: Tensor, members: Tensor, shadow_scores: Tensor | None, shadow_members: Tensor, level: float
) -> Interval:
    """Return the balanced accuracy at a threshold that is best on other models.

    The other models are the shadow models of a given target, or the other half of the targets.
    """
    if shadow_scores is not None:
        threshold = best_threshold(shadow_scores.numpy(), shadow_members.numpy())
        hits = _above(scores, threshold)[0]
        tpr, tnr = (
            clopper_pearson(round(float(hit.sum())), len(hit), level=1 - (1 - level) / 2)
            for hit in (hits[members[0]], 1 - hits[~members[0]])
        )
        return Interval((tpr.value + tnr.value) / 2, (tpr.low + tnr.low) / 2, (tpr.high + tnr.high) / 2, level)
    accuracies = torch.empty(len(scores), dtype=torch.float64)
    for half in range(2):
        other = slice(1 - half, None, 2)
        threshold = best_threshold(scores[other].numpy(), members[other].numpy())
        hits, flags = _above(scores[half::2], threshold), members[half::2]
        accuracies[half::2] = (
            (hits * flags).sum(1) / flags.sum(1) + ((1 - hits) * ~flags).sum(1) / (~flags).sum(1)
        ) / 2
    interval = mean_interval(accuracies, level=level)
    return Interval(interval.value, max(interval.low, 0.0), min(interval.high, 1.0), level)


def _above(scores: Tensor, threshold: float) -> Tensor:
    """Return 1 above the threshold, 1/2 at it and 0 below."""
    return (scores > threshold).to(torch.float64) + 0.5 * (scores == threshold)


def best_threshold(scores: np.ndarray, members: np.ndarray) -> float:
    """Return the threshold with the largest TPR − FPR, halfway between two scores; ties lie on the same side."""
    distinct, group = np.unique(scores.ravel(), return_inverse=True)
    flags = members.ravel()
    step = np.bincount(group, flags) / flags.sum() - np.bincount(group, ~flags) / (~flags).sum()
    advantage = step[::-1].cumsum()[::-1]  # of the threshold just below each distinct score
    best = int(advantage.argmax())
    return float(distinct[best]) if best == 0 else float((distinct[best - 1] + distinct[best]) / 2)
