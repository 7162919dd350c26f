"""Membership: what one attack infers about the rows of one or many target models."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.checks import as_count
from kernelmem.core.errors import InputError
from kernelmem.core.files.result_files import Result
from kernelmem.memorization.membership.equivalence import Equivalence, equivalence_test
from kernelmem.memorization.membership.rates import RESOLUTION, TprAtFpr, roc
from kernelmem.statistics import Interval, clopper_pearson

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

PRIORS = (0.01, 0.1, 0.5)
RECORD_FPR = 0.01  # at which a row counts as identified


@dataclass(frozen=True, eq=False, repr=False)
class Membership(Result):
    """Scores and rates of a membership attack on K targets; larger = more likely a member.

    Attributes:
        attack: name of the attack.
        level: "algorithm" (K models of the ensemble were attacked, each by the others; intervals are over these targets) or
            "model" (one given model was attacked; intervals are over its rows and say nothing about other models).
        scores: (K, n) float64.
        members: (K, n) bool.
        null_scores: (K, n), the same attack after the memberships of every row were permuted among the models.
        null_members: (K, n) bool, the permuted memberships.
        auc: P(score of a member > score of a non-member) + P(equal) / 2, mean over targets.
        null_auc: the same of the permuted run; the interval contains 0.5 unless chance or a fault moves it.
        rates: true-positive rates, of the scores of all targets pooled.
        null_rates: the same of the permuted run.
        accuracy: balanced accuracy at a threshold that was chosen on other models.
        variance_factor: variance of the mean over targets relative to that of independent targets, see :func:`membership`.
        separation: (n,) d′ of the statistic between shadow models with and without the row.
        separation_se: (n,) its standard error.
        n_shadows: number of shadow models per target.
        n_without_shadows: number of (target, row) pairs that lacked shadow models and have the median score.
        considered: attacks among which this one was chosen on other targets, or ().
    """

    attack: str
    level: Literal["algorithm", "model"]
    scores: Tensor
    members: Tensor
    null_scores: Tensor
    null_members: Tensor
    auc: Interval
    null_auc: Interval
    rates: tuple[TprAtFpr, ...]
    null_rates: tuple[TprAtFpr, ...]
    accuracy: Interval
    variance_factor: float
    separation: Tensor
    separation_se: Tensor
    n_shadows: int
    n_without_shadows: int
    considered: tuple[str, ...]

    shapes: ClassVar[Mapping[str, str]] = {
        "scores": "Kn", "members": "Kn", "null_scores": "Kn", "null_members": "Kn",
        "separation": "n", "separation_se": "n",
    }  # fmt: skip

    @property
    def n_targets(self) -> int:
        """The number K of targets."""
        return len(self.scores)

    @property
    def advantage(self) -> Interval:
        """TPR − FPR at the threshold of ``accuracy``, 2 · accuracy − 1 (Yeom et al. 2018)."""
        a = self.accuracy
        return Interval(2 * a.value - 1, 2 * a.low - 1, 2 * a.high - 1, a.level)

    @property
    def record_fpr(self) -> float:
        """The FPR at which a row counts as identified: 0.01, or 10 / (number of non-members) if that is larger."""
        return min(max(RECORD_FPR, RESOLUTION / int((~self.members).sum())), 0.5)

    def precision(self, fpr: float, prior: float) -> float | None:
        """Return the share of members among rows called members (PPV) at a reported ``fpr`` and a ``prior`` of membership.

        Raises:
            InputError: another ``fpr`` than those of ``rates``, or a prior outside (0, 1].
        """
        for rate in self.rates:
            if rate.fpr == fpr:
                return rate.precision(prior)
        raise InputError(
            f"fpr={fpr!r}", expected=f"one of {', '.join(f'{r.fpr:g}' for r in self.rates)}", hint="set options.fprs"
        )

    def equivalence(
        self, *, auc_margin: float = 0.55, tpr_factor: float = 2.0, fprs: tuple[float, ...] = (0.01, 0.001)
    ) -> Equivalence:
        """Test that the attack is no better than guessing by more than a margin (see :func:`equivalence_test`)."""
        return equivalence_test(
            self.scores,
            self.members,
            auc_margin=auc_margin,
            tpr_factor=tpr_factor,
            fprs=fprs,
            variance_factor=self.variance_factor,
        )

    def to_frame(self) -> "pd.DataFrame":
        """Return one row per record, worst first by :meth:`worst`; NaN where a column is undefined.

        Columns: ``record``; ``difference``, mean score as a member minus mean score as a non-member, over targets;
        ``difference_se``; ``separation`` (d′); ``separation_se``; ``times_member``, number of targets trained on the
        record; ``identified``, share of these in which its score exceeds the threshold of FPR :attr:`record_fpr`.
        """
        import pandas as pd

        difference, error = self._difference(slice(None))
        times, identified = self._identified(slice(None))
        frame = pd.DataFrame(
            {
                "record": range(self.scores.shape[1]),
                "difference": difference.numpy(),
                "difference_se": error.numpy(),
                "separation": self.separation.numpy(),
                "separation_se": self.separation_se.numpy(),
                "times_member": times.numpy(),
                "identified": (identified / times).numpy(),
            }
        )
        order = self._risk(slice(None)).argsort(descending=True, stable=True).numpy()
        return frame.iloc[order].reset_index(drop=True)

    def worst(self, n: int = 10) -> list[int]:
        """Return the n records that the attack separates best.

        Records are ordered by ``difference``, or for one target by the score of its members. They are chosen among all: see
        :meth:`worst_identified` for how often such records are identified by targets that did not choose them.
        """
        return self._risk(slice(None)).argsort(descending=True, stable=True)[: as_count(n, "n")].tolist()

    def worst_identified(self, n: int = 10) -> Interval | None:
        """Return how often the n worst records of every other target are identified in the remaining targets.

        None for fewer than 4 targets, or if these records are in none of the remaining ones. The interval is
        Clopper-Pearson's over (record, target) pairs.
        """
        n = as_count(n, "n")
        if self.n_targets < 4:
            return None
        worst = self._risk(slice(0, None, 2)).argsort(descending=True, stable=True)[:n]
        times, identified = self._identified(slice(1, None, 2))
        trials = int(times[worst].sum())
        return clopper_pearson(int(identified[worst].sum()), trials, level=self.auc.level) if trials else None

    def _difference(self, targets: slice) -> tuple[Tensor, Tensor]:
        """Return the mean score as a member minus as a non-member and its standard error (n,), NaN where undefined."""
        scores, members = self.scores[targets], self.members[targets]
        means, variances = [], torch.zeros(scores.shape[1], dtype=torch.float64)
        for used in (members, ~members):
            count = used.sum(0)
            mean = (scores * used).sum(0) / count
            variances += ((scores - mean.nan_to_num()).square() * used).sum(0) / (count - 1) / count
            means.append(mean)
        return means[0] - means[1], torch.where(variances.isfinite(), variances, torch.nan).sqrt()

    def _identified(self, targets: slice) -> tuple[Tensor, Tensor]:
        """Return how often each record was a member, and how often it was then above the threshold, both (n,)."""
        threshold = float(np.quantile(self.scores[~self.members].numpy(), 1 - self.record_fpr))
        members = self.members[targets]
        return members.sum(0), ((self.scores[targets] > threshold) & members).sum(0)

    def _risk(self, targets: slice) -> Tensor:
        """Return the number by which records are ordered, larger = worse (n,)."""
        if self.n_targets == 1:
            return torch.where(self.members[0], self.scores[0], -torch.inf)
        return self._difference(targets)[0].nan_to_num(nan=-torch.inf)

    def plot(self) -> "Figure":
        """Draw the ROC curve on logarithmic axes with its interval, and that of the permuted run."""
        from kernelmem.plotting.memorization import roc_figure  # matplotlib is slow to import

        n_nonmembers = int((~self.members).sum())
        smallest = min(RESOLUTION / n_nonmembers, 0.1)
        fprs = torch.logspace(torch.tensor(smallest).log10().item(), -0.005, 24, dtype=torch.float64).tolist()
        fprs = [max(fprs[0], smallest), *fprs[1:]]
        curves = [
            [
                (r.value, r.low, r.high)
                for r in roc(s, m, fprs, level=self.auc.level, variance_factor=self.variance_factor)
            ]
            for s, m in ((self.scores, self.members), (self.null_scores, self.null_members))
        ]
        over = "targets" if self.n_targets > 1 else "rows"
        title = (
            f"{self.attack}: AUC {self.auc.value:.3f} ({self.auc.low:.3f} to {self.auc.high:.3f}), interval over {over}"
        )
        return roc_figure(fprs, curves[0], curves[1], title=title)

    def __str__(self) -> str:
        """Return attack, rates with controls, precision, records and the equivalence test."""
        who = (
            f"{self.n_targets} models, each attacked with {self.n_shadows} others (intervals over targets)"
            if self.level == "algorithm"
            else f"one given model, attacked with {self.n_shadows} shadow models (intervals over its rows)"
        )
        chosen = f", chosen among {', '.join(self.considered)} on other targets" if self.considered else ""
        lines = [
            f"Membership of {self.scores.shape[1]:,} rows, attack {self.attack}{chosen}",
            f"  {who}; speaks of the {self.level}",
            f"  AUC {self.auc.value:.3f} ({self.auc.low:.3f} to {self.auc.high:.3f});"
            f" permuted membership {self.null_auc.value:.3f} ({self.null_auc.low:.3f} to {self.null_auc.high:.3f})",
        ]
        for rate, null in zip(self.rates, self.null_rates, strict=True):
            control = "" if null.value is None else f"; permuted {null.value:.3g} ({null.low:.3g} to {null.high:.3g})"
            lines.append(f"  {rate}{control}")
            if rate.value is not None:
                values = ", ".join(f"{rate.precision(p):.2g} if {p:.0%} are members" for p in PRIORS)
                lines.append(f"    share of true members among rows called members: {values}")
        lines.append(
            f"  balanced accuracy {self.accuracy.value:.3f} ({self.accuracy.low:.3f} to {self.accuracy.high:.3f}),"
            f" advantage {self.advantage.value:.3f}, threshold from other models"
        )
        worst = self.worst(5)
        lines.append("  worst records: " + ", ".join(f"{i} (d′ {float(self.separation[i]):.2g})" for i in worst))
        identified = self.worst_identified(10)
        if identified is not None:
            lines.append(
                f"  the 10 worst records of half of the targets are identified at FPR {self.record_fpr:.2g} in"
                f" {identified.value:.0%} ({identified.low:.0%} to {identified.high:.0%}) of the others"
            )
        if self.n_without_shadows:
            lines.append(f"  {self.n_without_shadows:,} (target, row) pairs lacked shadow models: median score")
        return "\n".join([*lines, *(f"  {line}" for line in str(self.equivalence()).splitlines())])
