"""C-score: how consistently models that did not train on a row predict its label."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from kernelmem.core.checks import as_list, check_instance
from kernelmem.core.errors import InputError
from kernelmem.core.files.result_files import Result
from kernelmem.memorization.retraining.differences import bounded_mean, check_estimable, finite_statistic
from kernelmem.memorization.score import Score
from kernelmem.memorization.shadows import ShadowEnsemble

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False, repr=False)
class Consistency(Result):
    """Consistency profile of n rows: accuracy of models without the row, for S training sizes.

    Attributes:
        score: 1 − C-score; larger = more memorized (less consistent with the other rows).
        c_score: (n,) mean over training sizes of the accuracy of models without the row.
        shares: (S,) share of the rows that models were trained on, ascending.
        accuracy: (S, n) mean accuracy of the models without the row. standard_error: (S, n).
    """

    score: Score
    c_score: Tensor
    shares: Tensor
    accuracy: Tensor
    standard_error: Tensor

    shapes: ClassVar = {"c_score": "n", "shares": "S", "accuracy": "Sn", "standard_error": "Sn"}

    def to_frame(self) -> "pd.DataFrame":
        """Return one row per example: C-score, its standard error, and the accuracy at each share."""
        import pandas as pd  # slow to import

        error = self.score.standard_error
        columns = {"c_score": self.c_score.numpy()}
        columns |= {} if error is None else {"standard_error": error.numpy()}
        columns |= {
            f"accuracy_{share:.3g}": row.numpy() for share, row in zip(self.shares.tolist(), self.accuracy, strict=True)
        }
        return pd.DataFrame(columns).rename_axis("example")

    def __str__(self) -> str:
        profile = ", ".join(
            f"{float(row.mean()):.3f} at share {share:.3g}"
            for share, row in zip(self.shares.tolist(), self.accuracy, strict=True)
        )
        return f"{self.score}\n  mean accuracy of models without the row: {profile}"


def c_score(shadows: ShadowEnsemble | Sequence[ShadowEnsemble]) -> Consistency:
    """Return the C-score of every row: the probability that a model trained without the row predicts its label.

    C_i = mean over ensembles of different shares of mean_{k: i not in S_k} 1[model k predicts y_i].

    Args:
        shadows: one ensemble, or several of the same rows with different shares, which are weighted equally.

    Returns:
        The C-score, its profile over shares, and 1 − C as a score (larger = more memorized), with standard errors of Beta
        posteriors under Jeffreys' prior (not 0 at accuracy 0 and 1).

    Raises:
        InputError: ensembles of different rows, rows that no model leaves out, real targets, or one ensemble
            twice.

    Source: Jiang et al. 2021.
    """
    ensembles = [shadows] if isinstance(shadows, ShadowEnsemble) else as_list(shadows, "shadows")
    if not ensembles:
        raise InputError("no ensemble", expected="at least one", hint="pass the result of km.shadow_ensemble")
    for ensemble in ensembles:
        check_instance(ensemble, "shadows", ShadowEnsemble)
        check_estimable(ensemble.masks, least=1, without_only=True)
        if (
            not torch.equal(ensemble.labels, ensembles[0].labels)
            or ensemble.identity.data != ensembles[0].identity.data
        ):
            raise InputError(
                "ensembles of different rows",
                expected="ensembles of the same rows and labels, in the same order",
                hint="train them on the same data with another share",
            )
    if ensembles[0].labels.is_floating_point():
        raise InputError(
            "an ensemble of real targets",
            expected="class labels, which a model predicts or not",
            hint='for real targets use km.feldman_zhang(shadows, statistic="log_likelihood")',
        )
    for position, ensemble in enumerate(ensembles):
        if any(torch.equal(ensemble.logits, other.logits) for other in ensembles[:position]):
            raise InputError(
                f"the same models twice, as ensemble {position}",
                expected="ensembles of different models",
                hint="pass each ensemble once: repeating one makes the standard errors too small",
            )
    ensembles = sorted(ensembles, key=lambda ensemble: ensemble.identity.share)
    profile = [bounded_mean((~e.masks).to(torch.float64), finite_statistic(e, "correct")[0]) for e in ensembles]
    accuracy, error = (torch.stack(parts) for parts in zip(*profile, strict=True))
    consistency = accuracy.mean(0)
    shares = torch.tensor([e.identity.share for e in ensembles], dtype=torch.float64)
    score = Score(
        1 - consistency,
        error.square().sum(0).sqrt() / len(ensembles),
        "1 − C-score",
        "algorithm",
        sum(e.n_models for e in ensembles),
        "probability that a model trained without the row does not predict its label",
        "Jiang et al. 2021",
    )
    return Consistency(score, consistency, shares, accuracy, error)
