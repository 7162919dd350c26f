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
from kernelmem.memorization.membership.equivalence import auc_over_targets, share_interval
from kernelmem.memorization.membership.lira import separation
from kernelmem.memorization.membership.rates import TprAtFpr, roc
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
from kernelmem.statistics import Interval, auroc, clopper_pearson

LARGEST_SHARE_WITHOUT_SHADOWS = 0.05
FEWEST_MODELS_TO_HALVE = 8


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

    In an ensemble whose rows are in equally many models each (up to one), the number of remaining models with a row would
    reveal whether the target was trained on it. There, one model of the other kind, drawn at random, is left out for each
    row and target, so that these numbers are the same for members and non-members.

    The targets are each other's shadow models, so that each pair of models enters twice: with V the variance of the AUC over
    K targets and V₁ its part that does not depend on the shadow models (the covariance of the AUCs against two halves of
    them), the variance of the mean is 2 (V + V₁) / K, as for a U-statistic of a symmetric kernel, which online "lira" nearly
    is; V₁ = V is assumed for fewer than 8 models. The other attacks depend less on the shadow models: 2 V / K is used, and
    V / K for "loss". With 16 targets the intervals of "lira" cover 96 to 99 % at a nominal 95 % (V / K alone: 85 to 89 %).
    The intervals of the rates have the same factor: without an effect they cover 97 to 100 % with 16 or 48 targets (without
    the factor: 96 and 82 % at a false-positive rate of .1).

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
    areas = _areas(scores, members)
    factor = 1.0
    if target is None and chosen != "loss":
        factor = 2.0
    if target is None and chosen == "lira" and not options.offline:
        factor = _variance_factor(signals, targets, chosen, areas, options, seeds["dropped"])
    d, d_error = separation(signals.phi[:m], signals.masks[:m])

    def rates(values: Tensor, flags: Tensor) -> tuple[TprAtFpr, ...]:
        return tuple(roc(values, flags, tuple(options.fprs), level=options.level, variance_factor=factor))

    return Membership(
        attack=chosen,
        level="algorithm" if target is None else "model",
        scores=scores,
        members=members,
        null_scores=null_scores,
        null_members=null_members,
        auc=_auc(scores, members, options.level, factor),
        null_auc=_auc(null_scores, null_members, options.level, factor),
        rates=rates(scores, members),
        null_rates=rates(null_scores, null_members),
        accuracy=_accuracy(scores, members, options.level, factor)
        if target is None
        else _accuracy_of_model(scores[0], members[0], best_threshold(shadow_scores, signals.masks[:m]), options.level),
        variance_factor=factor,
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

    All of the ensemble but k; if every row is in equally many models of the ensemble and the target, up to one, also without
    one model of the other kind for each row.
    """
    masks = signals.masks
    used = torch.zeros_like(masks)
    used[:m] = True
    used[k] = False
    counts = masks[: max(m, k + 1)].sum(0)
    if int(counts.max() - counts.min()) <= 1:
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


def _auc(scores: Tensor, members: Tensor, level: float, factor: float = 1.0) -> Interval:
    return auc_over_targets(scores.numpy(), members.numpy(), level, factor)


def _areas(scores: Tensor, members: Tensor) -> Tensor:
    """Return the AUC of each target, (K,)."""
    return torch.tensor([auroc(s, f) for s, f in zip(scores, members, strict=True)], dtype=torch.float64)


def _variance_factor(
    signals: Signals, targets: list[int], attack: Attack, areas: Tensor, options: MembershipOptions, seed: int
) -> float:
    """Return 2 (1 + V₁ / V), the variance of the mean AUC relative to V / K (see :func:`membership`)."""
    m, total = len(signals.masks), float(areas.var()) if len(areas) > 1 else 0.0
    if m < FEWEST_MODELS_TO_HALVE or not total:
        return 4.0
    generator = torch.Generator().manual_seed(seed)
    halves = torch.empty(2, len(targets), dtype=torch.float64)
    for half in range(2):
        for row, k in enumerate(targets):
            used = used_models(signals, k, m, generator)
            used[half::2] = False
            scores, _ = score_target(signals, k, used, attack, options)
            halves[half, row] = auroc(scores, signals.masks[k])
    shared = float(torch.cov(halves)[0, 1])
    return 2 * (1 + min(max(shared / total, 0.0), 1.0))


def _accuracy(scores: Tensor, members: Tensor, level: float, factor: float) -> Interval:
    """Return the mean balanced accuracy of K targets, each at the threshold that is best on the other half of them."""
    accuracies = torch.empty(len(scores), dtype=torch.float64)
    for half in range(2):
        other = slice(1 - half, None, 2)
        hits = _above(scores[half::2], best_threshold(scores[other], members[other]))
        flags = members[half::2]
        tpr = (hits * flags).sum(1) / flags.sum(1)
        tnr = ((1 - hits) * ~flags).sum(1) / (~flags).sum(1)
        accuracies[half::2] = (tpr + tnr) / 2
    return share_interval(accuracies, level, factor)


def _accuracy_of_model(scores: Tensor, members: Tensor, threshold: float, level: float) -> Interval:
    """Return the balanced accuracy of one target (n,) at a threshold, with Clopper-Pearson limits of both rates."""
    hits = _above(scores, threshold)
    tpr, tnr = (
        clopper_pearson(round(float(hit.sum())), len(hit), level=1 - (1 - level) / 2)
        for hit in (hits[members], 1 - hits[~members])
    )
    return Interval((tpr.value + tnr.value) / 2, (tpr.low + tnr.low) / 2, (tpr.high + tnr.high) / 2, level)


def _above(scores: Tensor, threshold: float) -> Tensor:
    """Return 1 above the threshold, 1/2 at it and 0 below."""
    return (scores > threshold).to(torch.float64) + 0.5 * (scores == threshold)


def best_threshold(scores: Tensor, members: Tensor) -> float:
    """Return the threshold with the largest TPR − FPR, halfway between two scores; ties lie on the same side."""
    distinct, group = np.unique(scores.numpy().ravel(), return_inverse=True)
    flags = members.numpy().ravel()
    step = np.bincount(group, flags) / flags.sum() - np.bincount(group, ~flags) / (~flags).sum()
    advantage = step[::-1].cumsum()[::-1]  # of the threshold just below each distinct score
    best = int(advantage.argmax())
    return float(distinct[best]) if best == 0 else float((distinct[best - 1] + distinct[best]) / 2)
