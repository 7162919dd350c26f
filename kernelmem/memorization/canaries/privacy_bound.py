"""Lower bound on the privacy loss ε of a training algorithm."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from kernelmem.core.checks import as_number
from kernelmem.core.errors import InputError
from kernelmem.core.files.result_files import Result
from kernelmem.statistics import as_level

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False, repr=False)
class PrivacyBound(Result):
    """Lower confidence bound on ε: an (ε′, δ)-differentially private training with ε′ < ε is refuted.

    A bound of 0 shows no leakage above what this number of observations can detect; it is not evidence of privacy, since a
    stronger attack can give a larger bound. It speaks of the algorithm with these options, not of the search for them.

    Attributes:
        epsilon: the bound, in nats; at least 0.
        delta: δ of the refuted guarantee.
        level: probability with which the bound is at most the true ε, at least.
        ceiling: bound that an attack without any error would have had with as many observations.
        method: "one run" or "split sample".
        counts: numbers that the bound was computed from.
    """

    epsilon: float
    delta: float
    level: float
    ceiling: float
    method: Literal["one run", "split sample"]
    counts: Mapping[str, int]

    def to_frame(self) -> "pd.DataFrame":
        """Return a table with one row: the numbers of the bound and the counts that it was computed from."""
        import pandas as pd  # slow to import

        numbers = {"epsilon": self.epsilon, "delta": self.delta, "level": self.level, "ceiling": self.ceiling}
        return pd.DataFrame([{**numbers, "method": self.method, **self.counts}])

    def __str__(self) -> str:
        counts = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in self.counts.items())
        finding = (
            f"privacy loss of at least {self.epsilon:.3g}"
            if self.epsilon > 0
            else "no privacy loss shown (bound 0, which is not evidence of privacy)"
        )
        return (
            f"{finding}; largest bound attainable {self.ceiling:.3g} (delta {self.delta:g}, {self.level:.0%} confidence)\n"
            f"  {self.method}: {counts}"
        )


def as_one_sided_level(level: float) -> float:
    """Return the confidence level of a one-sided bound, in (0.5, 1).

    Raises:
        InputError: another value.
    """
    level = as_level(level)
    if level <= 0.5:
        raise InputError(f"level={level:g}", expected="a confidence level above 0.5", hint="pass level=0.95")
    return level


def as_delta(delta: float) -> float:
    """Return δ, in [0, 1).

    Raises:
        InputError: another value.
    """
    delta = as_number(delta, "delta", maximum=1.0)
    if delta == 1.0:
        raise InputError("delta=1", expected="a probability below 1", hint="every algorithm is (0, 1)-private")
    return delta
