"""Membership attacks: one score per row for one target model, larger = more likely a member."""

import torch
from torch import Tensor

from kernelmem.core.checks import ArrayLike, as_seed, as_tensor, check_choice
from kernelmem.core.errors import InputError
from kernelmem.memorization.membership.lira import lira_scores, mean_over
from kernelmem.memorization.membership.quantile import quantile_scores
from kernelmem.memorization.membership.signals import ATTACKS, Attack, MembershipOptions, Signals, as_signals
from kernelmem.memorization.shadows import ShadowEnsemble

DEFAULT_OPTIONS = MembershipOptions()


def attack_scores(
    shadows: ShadowEnsemble,
    target_logits: ArrayLike,
    *,
    attack: Attack = "lira",
    test_logits: ArrayLike | None = None,
    seed: int = 0,
    options: MembershipOptions = DEFAULT_OPTIONS,
) -> Tensor:
    """Return the scores (n,) of one attack on one target model; larger = more likely a member.

    For the label y, φ a statistic of the outputs at y (log-odds by default), and p the softmax probability of y:

    - ``"loss"``: log p under the target, no shadow models (Yeom et al. 2018);
    - ``"calibrated"``: log p − mean of log p over the shadow models without the row (Watson et al. 2022);
    - ``"lira"``: log-likelihood ratio of φ between shadow models with and without the row, or one-sided against those
      without it (``offline``); see :class:`MembershipOptions` for variances (Carlini et al. 2022);
    - ``"rmia"``: share of population rows z with ratio_x ≥ γ ratio_z, where ratio = p under the target / mean p over shadow
      models; the population are the test rows, or all rows if there are none (Zarifzadeh et al. 2024);
    - ``"quantile"``: φ − the quantile of φ that is predicted for a non-member with the same features, by a regression on
      the test rows of the target (Bertran et al. 2023).

    A row for which there are not enough shadow models has the median score of the others.

    Args:
        shadows: shadow models; the target is not one of them.
        target_logits: (n, C) outputs of the target on the same rows, in the same order.
        attack: name of the attack.
        test_logits: (t, C) outputs of the target on the test rows, for "rmia" and "quantile".
        seed: seed of what "quantile" draws.
        options: see :class:`MembershipOptions`.

    Raises:
        InputError: shapes that do not fit, outputs that are not finite, an attack that lacks its data.

    Cost: O(m n C).
    """
    check_choice(attack, "attack", ATTACKS)
    seed = as_seed(seed)
    logits = as_tensor(target_logits, "target_logits")
    members = torch.zeros(max(len(logits), 2) if logits.ndim else 2, dtype=torch.bool)
    members[0] = True  # not used by any attack
    target = (logits, members) if test_logits is None else (logits, members, test_logits)
    signals = as_signals(shadows, target, options, seed)
    used = torch.ones_like(signals.masks)
    used[-1] = False
    return score_target(signals, signals.n_models - 1, used, attack, options)[0]


def score_target(
    signals: Signals, k: int, used: Tensor, attack: Attack, options: MembershipOptions
) -> tuple[Tensor, int]:
    """Return the scores (n,) of model k and the number of rows without enough shadow models.

    Args:
        signals: statistics of all models.
        k: the target.
        used: (M, n) bool, the shadow models that the attack may use for each row; never the target.
        attack: name of the attack.
        options: see :class:`MembershipOptions`.
    """
    with_row, without_row = used & signals.masks, used & ~signals.masks
    if attack == "loss":
        scores, enough = signals.log_p[k], torch.ones(signals.phi.shape[1], dtype=torch.bool)
    elif attack == "calibrated":
        scores, enough = signals.log_p[k] - mean_over(signals.log_p, without_row), without_row.any(0)
    elif attack == "lira":
        scores, enough = lira_scores(
            signals.phi[k], signals.phi, with_row, without_row, variance=options.variance, offline=options.offline
        )
    elif attack == "rmia":
        scores, enough = _rmia_scores(signals, k, with_row, without_row, options)
    else:
        scores, enough = quantile_scores(signals, k, without_row, options)
    if not bool(enough.any()):
        raise InputError(
            f"{int(used.any(1).sum())} shadow models, too few for any row",
            expected="for every row several models with it and several without",
            hint='train more shadow models, with sampling="balanced"',
        )
    return torch.where(enough, scores, scores[enough].median()), int((~enough).sum())


def _rmia_scores(
    signals: Signals, k: int, with_row: Tensor, without_row: Tensor, options: MembershipOptions
) -> tuple[Tensor, Tensor]:
    """Return the share (n,) of population rows whose likelihood ratio is exceeded, ties counting one half."""
    if not signals.n_classes:
        raise InputError(
            'attack="rmia" for real targets',
            expected="class labels, which have probabilities",
            hint='pass attack="lira"',
        )
    p = signals.log_p.exp()
    n_in, n_out = with_row.sum(0), without_row.sum(0)
    p_out, p_in = mean_over(p, without_row), mean_over(p, with_row)
    a = fitted_offline_a(p_in, p_out, (n_in > 0) & (n_out > 0)) if options.offline_a is None else options.offline_a
    enough = n_out > 0 if options.offline else (n_out > 0) & (n_in > 0)
    mean = _offline_mean(p_out, a) if options.offline else (p_in + p_out) / 2
    ratio = signals.log_p[k] - mean.clamp_min(1e-300).log()
    if signals.test_log_p.shape[1]:
        others = without_row.any(1) | with_row.any(1)
        mean_z = _offline_mean(signals.test_log_p[others].exp().mean(0), a)
        population = signals.test_log_p[k] - mean_z.clamp_min(1e-300).log()
    else:
        population = ratio[enough]
    bound = (population + torch.tensor(options.gamma, dtype=torch.float64).log()).sort().values
    below = torch.searchsorted(bound, ratio, side="left") + torch.searchsorted(bound, ratio, side="right")
    return below.to(torch.float64) / (2 * max(len(bound), 1)), enough


def fitted_offline_a(p_in: Tensor, p_out: Tensor, rows: Tensor) -> float:
    """Return the a in 0..1 of 1 − P_in ≈ a (1 − P_out) by least squares over ``rows``."""
    q_in, q_out = 1 - p_in[rows], 1 - p_out[rows]
    norm = float(q_out.square().sum())
    return min(max(float((q_in * q_out).sum()) / norm, 0.0), 1.0) if norm > 0 else 0.0


def _offline_mean(p_out: Tensor, a: float) -> Tensor:
    """Return the mean of P_in and P_out with P_in ≈ a P_out + 1 − a."""
    return ((1 + a) * p_out + 1 - a) / 2
