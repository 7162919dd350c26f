"""Score: one number per training example, with its standard error, its level and its meaning."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from kernelmem.core.checks import as_count
from kernelmem.core.errors import InputError
from kernelmem.core.files.result_files import Result

if TYPE_CHECKING:
    import pandas as pd

Level = Literal["algorithm", "model"]
"""What a score speaks of: the training algorithm, averaged over training sets and seeds, or this one trained model."""


@dataclass(frozen=True, eq=False, repr=False)
class Score(Result):
    """A memorization score of n training examples; larger = more memorized, always.

    Attributes:
        values: (n,) float64.
        standard_error: (n,) float64, or None if the values are exact for their inputs.
        name: name of the score.
        level: "algorithm" or "model".
        n_models: number of trained models that the values are computed from.
        meaning: what the values measure, in one sentence, with their unit.
        source: author and year.
    """

    values: Tensor
    standard_error: Tensor | None
    name: str
    level: Level
    n_models: int
    meaning: str
    source: str

    shapes: ClassVar[Mapping[str, str]] = {"values": "n"}

    def top(self, n: int = 10) -> list[tuple[int, float]]:
        """Return the n most memorized examples, largest first, values that are not defined last: (example, value)."""
        n, order = as_count(n, "n"), self.values.nan_to_num(-torch.inf, torch.inf, -torch.inf)
        return [(int(i), float(self.values[i])) for i in order.argsort(descending=True, stable=True)[:n]]

    def to_frame(self) -> "pd.DataFrame":
        """Return one row per example, with columns ``value`` and, for an estimate, ``standard_error``."""
        import pandas as pd  # slow to import

        columns = {"value": self.values.numpy()}
        if self.standard_error is not None:
            columns["standard_error"] = self.standard_error.numpy()
        return pd.DataFrame(columns).rename_axis("example")

    def __str__(self) -> str:
        """Return name, meaning, level, range, and the most memorized examples."""
        finite = self.values[self.values.isfinite()]
        spread = (
            f"{float(finite.min()):.3g} to {float(finite.max()):.3g}, median {float(finite.median()):.3g}"
            if len(finite)
            else "no finite value"
        )
        error = (
            "exact for these inputs"
            if self.standard_error is None
            else f"mean standard error {float(self.standard_error.nanmean()):.2g}"
        )
        models = f"{self.n_models} model{'s' * (self.n_models != 1)}"
        return "\n".join(
            [
                f"{self.name} of {len(self.values):,} examples: {spread} ({error})",
                f"  {self.meaning}",
                f"  larger = more memorized; speaks of the {self.level} ({models}); {self.source}",
                "  largest: " + ", ".join(f"{i} ({value:.3g})" for i, value in self.top(5)),
            ]
        )


def check_same_examples(scores: list[Score]) -> int:
    """Return the common number of examples n of several scores.

    Raises:
        InputError: there is no score, or the numbers differ.
    """
    sizes = sorted({len(score.values) for score in scores})
    if len(sizes) != 1:
        raise InputError(
            f"scores of {sizes or 'no'} examples",
            expected="at least one score, all of the same examples",
            hint="compute them from the same rows",
        )
    return sizes[0]


def mean_of_runs(values: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the mean (n,) over R runs of a score (R, n), and its standard error s / √R (None for one run)."""
    if len(values) == 1:
        return values[0], None
    return values.mean(0), values.std(0, correction=1) / torch.tensor(len(values), dtype=values.dtype).sqrt()
