"""Inputs of the attacks: one statistic of every model on every row, and which models were trained on which row."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kernelmem.core.checks import (
    ArrayLike,
    as_flag,
    as_list,
    as_number,
    as_pair,
    as_tensor,
    check_choice,
    check_instance,
)
from kernelmem.core.errors import InputError
from kernelmem.memorization.output_statistics import MAX_STATISTIC, STATISTICS, Statistic, label_statistic
from kernelmem.memorization.shadows import ShadowEnsemble

Attack = Literal["loss", "calibrated", "lira", "rmia", "quantile"]
ATTACKS: tuple[Attack, ...] = ("loss", "calibrated", "lira", "rmia", "quantile")
Variance = Literal["shrunk", "per_row", "pooled"]
VARIANCES: tuple[Variance, ...] = ("shrunk", "per_row", "pooled")
Target = tuple[ArrayLike, ArrayLike] | tuple[ArrayLike, ArrayLike, ArrayLike]


@dataclass(frozen=True, eq=False)
class MembershipOptions:
    """Options of the attacks and of their evaluation.

    Attributes:
        statistic: statistic of "lira" and "quantile" (see :func:`label_statistic`); None: "logit", or "log_likelihood" for
            real targets. "loss", "calibrated" and "rmia" use the log-likelihood by definition.
        offline: True: "lira" and "rmia" use only models that were not trained on the row, as an attacker does who learns
            of the row after training the shadow models.
        variance: variances of "lira": "shrunk" (normal-inverse-gamma prior common to all rows, Student-t predictive
            distribution; for any number of models), "per_row" (Gaussian with the variance of the row; for 64 models or
            more), "pooled" (Gaussian with the mean squared residual of all rows).
        gamma: factor γ by which the likelihood ratio of a row must exceed that of a population row in "rmia".
        offline_a: constant a of "rmia" in P_in ≈ a P_out + 1 − a, in 0..1; None: fitted to the shadow models.
        quantile: quantile of non-members that "quantile" predicts; scores are distances above it, in (0, 1).
        quantile_model: "linear" or "boosting" (scikit-learn's QuantileRegressor or GradientBoostingRegressor).
        features: (rows (n, ...), test rows (t, ...)) from which "quantile" predicts; None: mean and standard deviation of
            the statistic over the other models.
        fprs: false-positive rates at which the true-positive rate is reported.
        level: confidence level of all intervals.

    Raises:
        InputError: an unknown name, or a number out of range.
    """

    statistic: Statistic | None = None
    offline: bool = False
    variance: Variance = "shrunk"
    gamma: float = 1.0
    offline_a: float | None = None
    quantile: float = 0.95
    quantile_model: Literal["linear", "boosting"] = "linear"
    features: tuple[ArrayLike, ArrayLike] | None = None
    fprs: tuple[float, ...] = (0.1, 0.01, 0.001)
    level: float = 0.95

    def __post_init__(self) -> None:
        check_choice(self.statistic, "statistic", (None, *STATISTICS))
        as_flag(self.offline, "offline")
        check_choice(self.variance, "variance", VARIANCES)
        check_choice(self.quantile_model, "quantile_model", ("linear", "boosting"))
        as_number(self.gamma, "gamma", exclusive=True)
        if self.offline_a is not None:
            as_number(self.offline_a, "offline_a", maximum=1.0)
        for name in ("quantile", "level"):
            as_number(getattr(self, name), name, minimum=0.01, maximum=0.9999)
        if self.features is not None:
            as_pair(self.features, "features", ("rows", "test_rows"))
        for fpr in as_list(self.fprs, "fprs"):
            as_number(fpr, "false-positive rate of fprs", exclusive=True, maximum=0.5)


@dataclass(frozen=True, eq=False)
class Signals:
    """Statistics of M models; an external target, if there is one, is the last model.

    Attributes:
        phi: (M, n) statistic at the labels.
        log_p: (M, n) log-likelihood of the labels.
        masks: (M, n) bool, training rows of each model.
        test_phi, test_log_p: (M, t) the same on t rows that no model was trained on; t may be 0.
        features: (n, d) and (t, d) features of "quantile", or None.
        n_classes: number C of outputs; 0 for real targets, which have no probabilities.
        seed: seed of what an attack draws.
    """

    phi: Tensor
    log_p: Tensor
    masks: Tensor
    test_phi: Tensor
    test_log_p: Tensor
    features: tuple[Tensor, Tensor] | None
    n_classes: int
    seed: int

    @property
    def n_models(self) -> int:
        """The number M of models."""
        return len(self.phi)


def as_signals(
    shadows: ShadowEnsemble, target: Target | None, options: MembershipOptions, seed: int, *, smallest: int = 2
) -> Signals:
    """Check the shadow models and the target, and compute the statistics of all of them.

    Raises:
        InputError: arrays of shapes that do not fit, outputs that are not finite, fewer models than ``smallest``.
    """
    check_instance(shadows, "shadows", ShadowEnsemble)
    check_instance(options, "options", MembershipOptions)
    labels, test_labels = shadows.labels, shadows.test_labels
    m, n = shadows.n_models, shadows.n_rows
    if m < smallest or n < 2:
        raise InputError(
            f"shadows of {m} models on {n} rows",
            expected=f"at least {smallest} models and 2 rows",
            hint="train more models",
        )
    t = int(shadows.test_logits.shape[1])
    is_real = labels.is_floating_point()
    statistic = options.statistic or ("log_likelihood" if is_real else "logit")
    parts = [(shadows.logits, shadows.test_logits, shadows.masks)]
    if target is not None:
        parts.append(_as_target(target, shadows))
        if parts[1][1].shape[1] != t:
            t = 0  # the target's outputs on the test rows are not known
    phi, log_p, test_phi, test_log_p = [], [], [], []
    for logits, test_logits, _ in parts:
        for k in range(len(logits)):  # one model at a time: logits may be memory-mapped
            phi.append(label_statistic(logits[k], labels, statistic))
            log_p.append(label_statistic(logits[k], labels, "log_likelihood"))
            if t:
                test_phi.append(label_statistic(test_logits[k], test_labels, statistic))
                test_log_p.append(label_statistic(test_logits[k], test_labels, "log_likelihood"))
    none = torch.zeros(len(phi), 0, dtype=torch.float64)
    signals = Signals(
        torch.stack(phi),
        torch.stack(log_p),
        torch.cat([masks for _, _, masks in parts]),
        torch.stack(test_phi) if t else none,
        torch.stack(test_log_p) if t else none,
        _as_features(options, n, t),
        0 if is_real else int(shadows.logits.shape[2]),
        seed,
    )
    _check_finite(signals, m)
    return signals


def _as_target(target: Target, shadows: ShadowEnsemble) -> tuple[Tensor, Tensor, Tensor]:
    """Return (logits (1, n, C), test logits (1, t, C), members (1, n)) of an external target."""
    if not isinstance(target, tuple | list) or len(target) not in (2, 3):
        raise InputError(
            f"target of type {type(target).__name__}",
            expected="(logits (n, C), members (n,)), or (logits, members, test logits (t, C))",
            hint="pass target=(model(x), members), with x the rows of the shadow models",
        )
    n, C = shadows.logits.shape[1:]
    logits = as_tensor(target[0], "logits of target").cpu()
    test = as_tensor(target[2], "test logits of target").cpu() if len(target) == 3 else logits.new_zeros(0, C)
    expected_test = tuple(shadows.test_logits.shape[1:]) if len(target) == 3 else (0, C)
    if tuple(logits.shape) != (n, C) or tuple(test.shape) != expected_test:
        raise InputError(
            f"target with logits of shape {tuple(logits.shape)} and test logits of shape {tuple(test.shape)}",
            expected=f"logits ({n}, {C}) on the rows of the shadow models, test logits {expected_test}",
            hint="evaluate the target on the same rows, in the same order",
        )
    members = as_members(target[1], n, "members of target")
    return logits[None], test[None], members[None]


def as_members(value: ArrayLike, n: int, name: str) -> Tensor:
    """Return (n,) bool: True for members; at least one member and one non-member.

    Raises:
        InputError: another shape, values other than 0 and 1, or only one kind of rows.
    """
    members = as_tensor(value, name).cpu()
    if tuple(members.shape) != (n,) or not bool(((members == 0) | (members == 1)).all()):
        raise InputError(
            f"{name} of shape {tuple(members.shape)} and dtype {members.dtype}".replace("torch.", ""),
            expected=f"({n},) bool, True for the rows that the target was trained on",
            hint="for row numbers, set these entries of torch.zeros(n, dtype=torch.bool) to True",
        )
    members = members.to(torch.bool)
    if bool(members.all()) or not bool(members.any()):
        raise InputError(
            f"{name}: {int(members.sum())} of {n} rows",
            expected="at least one member and one non-member",
            hint="include rows that the target was not trained on",
        )
    return members


def _as_features(options: MembershipOptions, n: int, t: int) -> tuple[Tensor, Tensor] | None:
    if options.features is None:
        return None
    rows, test_rows = (as_tensor(x, "features", dtype=torch.float64).cpu() for x in options.features)
    if (
        min(rows.ndim, test_rows.ndim) < 2
        or rows.shape[1:] != test_rows.shape[1:]
        or (len(rows), len(test_rows)) != (n, t)
    ):
        raise InputError(
            f"features of shapes {tuple(rows.shape)} and {tuple(test_rows.shape)}",
            expected=f"({n}, ...) for the rows and ({t}, ...) for the test rows, of equal shape",
            hint="pass features=(x, x_test), the inputs of the shadow models; a target needs its test logits too",
        )
    return rows.flatten(1), test_rows.flatten(1)


def _check_finite(signals: Signals, m: int) -> None:
    for values in (signals.phi, signals.test_phi):
        bad = (~(values.abs() < MAX_STATISTIC)).any(1).nonzero()[:, 0].tolist()
        if bad:
            which = "target" if bad == [m] else f"models {', '.join(map(str, bad[:10]))}"
            raise InputError(
                f"outputs of {which} that are not finite, or beyond 1e140",
                expected="finite outputs whose squares are finite",
                hint="a model that diverged: leave it out with shadows.select(models)",
            )


def check_targets(signals: Signals) -> None:
    """Check that every model was trained on some rows and not on others.

    Raises:
        InputError: a model was trained on all or none of the rows.
    """
    size = signals.masks.sum(1)
    wrong = ((size == 0) | (size == signals.masks.shape[1])).nonzero()[:, 0].tolist()
    if wrong:
        raise InputError(
            f"models {', '.join(map(str, wrong[:10]))} trained on all or none of the rows",
            expected="models trained on some of the rows",
            hint="leave these models out with shadows.select(models)",
        )
