"""Fidelity of shadow models to a target: accuracy and distribution of the statistic, with and without a row."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.checks import ArrayLike
from kernelmem.core.files.result_files import Result
from kernelmem.memorization.membership.signals import MembershipOptions, as_signals, check_targets
from kernelmem.memorization.output_statistics import Statistic, label_statistic
from kernelmem.memorization.shadows import ShadowEnsemble
from kernelmem.statistics import holm

ALPHA = 0.05


@dataclass(frozen=True, eq=False, repr=False)
class ShadowFidelity(Result):
    """Comparison of a target with the shadow models, on its members ("in") and on its non-members ("out").

    Attributes:
        accuracy_in: accuracy of the target on its training rows.
        accuracy_out: accuracy of the target on the other rows.
        shadow_accuracy_in: mean accuracy of the shadow models on their training rows.
        shadow_accuracy_out: mean accuracy of the shadow models on the other rows.
        ks_in: largest difference of the distribution functions of the statistic, target and all models, on training rows.
        ks_out: the same on other rows.
        shadow_ks_in: mean of the same number for the shadow models.
        shadow_ks_out: mean of the same number for the shadow models, on other rows.
        p_values: (4,) of accuracy in, accuracy out, KS in, KS out, adjusted by Holm; Student's t of one further model.
        faithful: no adjusted p-value is below 0.05.
        n_shadows: number of shadow models.
    """

    accuracy_in: float
    accuracy_out: float
    shadow_accuracy_in: float
    shadow_accuracy_out: float
    ks_in: float
    ks_out: float
    shadow_ks_in: float
    shadow_ks_out: float
    p_values: Tensor
    faithful: bool
    n_shadows: int

    def __str__(self) -> str:
        """Return the verdict, accuracies and distances."""
        verdict = "no difference found" if self.faithful else "the target differs from the shadow models"
        p = [f"p {float(value):.2g}" for value in self.p_values]
        return "\n".join(
            [
                f"fidelity of {self.n_shadows} shadow models: {verdict}",
                f"  accuracy on training rows {self.accuracy_in:.3f}, shadow models {self.shadow_accuracy_in:.3f} ({p[0]})",
                f"  accuracy on other rows    {self.accuracy_out:.3f}, shadow models {self.shadow_accuracy_out:.3f} ({p[1]})",
                f"  KS distance, training rows {self.ks_in:.3f}, shadow models {self.shadow_ks_in:.3f} ({p[2]})",
                f"  KS distance, other rows    {self.ks_out:.3f}, shadow models {self.shadow_ks_out:.3f} ({p[3]})",
            ]
        )


def shadow_fidelity(
    shadows: ShadowEnsemble, target_logits: ArrayLike, members: ArrayLike, *, statistic: Statistic | None = None
) -> ShadowFidelity:
    """Compare a target with shadow models that are meant to be trained in the same way.

    An attack with shadow models of another accuracy or confidence is weak, and finds little where there is much. The target
    is compared as one further model: t = (a − mean) / (s √(1 + 1/m)) with m − 1 degrees of freedom, two-sided for accuracies,
    one-sided for distances.

    Args:
        shadows: at least 3 shadow models, not the target; for real targets the accuracy is replaced by the mean
            log-likelihood.
        target_logits: (n, C) outputs of the target on the same rows.
        members: (n,) bool, training rows of the target.
        statistic: statistic whose distribution is compared; None: as in :class:`MembershipOptions`.

    Raises:
        InputError: shapes that do not fit, outputs that are not finite, a model trained on all or no rows.

    Cost: O(m n C + m n log(m n)).
    """
    signals = as_signals(shadows, (target_logits, members), MembershipOptions(statistic=statistic), 0, smallest=3)
    m, masks = shadows.n_models, signals.masks
    check_targets(signals)
    if signals.n_classes:
        logits = [*shadows.logits, torch.as_tensor(target_logits).detach().cpu()]
        quality = torch.stack([label_statistic(z, shadows.labels, "correct") for z in logits])
    else:
        quality = signals.log_p
    values, p_values = {}, []
    for name, used in (("in", masks), ("out", ~masks)):
        accuracy = ((quality * used).sum(1) / used.sum(1)).numpy()
        values[f"accuracy_{name}"], values[f"shadow_accuracy_{name}"] = float(accuracy[m]), float(accuracy[:m].mean())
        p_values.append(_p_value(accuracy, two_sided=True))
    for name, used in (("in", masks), ("out", ~masks)):
        distances = _distances(signals.phi, used)
        values[f"ks_{name}"], values[f"shadow_ks_{name}"] = float(distances[m]), float(distances[:m].mean())
        p_values.append(_p_value(np.log(np.maximum(distances, 1e-12)), two_sided=False))
    adjusted = torch.as_tensor(holm(torch.tensor(p_values, dtype=torch.float64)))
    return ShadowFidelity(**values, p_values=adjusted, faithful=bool((adjusted >= ALPHA).all()), n_shadows=m)


def _distances(phi: Tensor, used: Tensor) -> np.ndarray:
    """Return the Kolmogorov-Smirnov distance of each model's statistic on its ``used`` rows from that of all models."""
    pool = np.sort(phi[used].numpy())
    distances = []
    for values, rows in zip(phi, used, strict=True):
        own = np.sort(values[rows].numpy())
        below = np.searchsorted(pool, own, side="left") / len(pool)
        through = np.searchsorted(pool, own, side="right") / len(pool)
        first = np.searchsorted(own, own, side="left") / len(own)
        last = np.searchsorted(own, own, side="right") / len(own)
        distances.append(max(float(np.abs(below - first).max()), float(np.abs(through - last).max())))
    return np.array(distances)


def _p_value(values: np.ndarray, *, two_sided: bool) -> float:
    """Return the p-value that the last of the values (m + 1,) comes from the Gaussian of the others."""
    from scipy.stats import t

    others = values[:-1]
    m, spread = len(others), float(others.std(ddof=1))
    difference = float(values[-1] - others.mean())
    if spread <= 1e-12 * max(float(np.abs(others).max()), 1e-300):  # all shadow models agree
        return 1.0 if abs(difference) <= 1e-12 * max(abs(float(values[-1])), 1e-300) else 0.0
    statistic = difference / (spread * math.sqrt(1 + 1 / m))
    return float(2 * t.sf(abs(statistic), m - 1)) if two_sided else float(t.sf(statistic, m - 1))
