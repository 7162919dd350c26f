"""Ledger of a training run: its terms, summaries of them, tables and the certificate."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.checks import ArrayLike, as_count, as_labels
from kernelmem.core.errors import FileCorruptError, InputError
from kernelmem.core.files.result_files import Result
from kernelmem.trajectory.argument_checks import check_row_and_output
from kernelmem.trajectory.ledger.closure import residual_limit, rounding_limit

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

MAX_PRINTED = 12  # largest number of groups that are printed individually


@dataclass(frozen=True)
class LedgerEntries:
    """Terms of a ledger while it is computed: float64, added to in place."""

    contributions: Tensor  # (m, n, k): of examples, groups, layers or steps
    decay: Tensor  # (m, k)
    rounding: Tensor  # (m, k)
    residuals: Tensor  # (T, m, k): of every step
    evaluations: Tensor  # (T,): tangents per row

    @classmethod
    def zeros(cls, m: int, n_sources: int, k: int, T: int) -> "LedgerEntries":
        """Return a ledger in which all terms are zero."""
        sizes = ((m, n_sources, k), (m, k), (m, k), (T, m, k), (T,))
        contributions, decay, rounding, residuals, evaluations = (
            torch.zeros(shape, dtype=torch.float64) for shape in sizes
        )
        return cls(contributions, decay, rounding, residuals, evaluations)


@dataclass(frozen=True, eq=False, repr=False)
class Ledger(Result):
    """The change of a network's outputs on m rows during training as a sum of terms: float64, (m, k) unless noted."""

    contributions: Tensor  # (m, n, k): of each source, that is training example, group, layer or step
    initial: Tensor  # before training
    final: Tensor
    decay: Tensor  # effect of weight decay
    rounding: Tensor  # effect of recorded steps minus the optimizer's formula
    buffers: Tensor  # effect of running statistics
    residual: Tensor  # change minus all terms
    residuals: Tensor  # (T, m, k): of the quadrature in every step; T + 1 if averaged weights are explained
    evaluations: Tensor  # (T,), or T + 1: tangents per row that the quadrature used
    names: tuple[str, ...]  # of the k outputs
    tape: str = ""  # hash of the recorded run
    by: str = "example"  # kind of source: "example", "group", "layer" or "step"
    sources: tuple[str, ...] = ()  # names of groups or layers
    history: Tensor | None = None  # (m, T, n, k): of every example in every step
    tolerance: float = 1e-12  # of the quadrature, for the whole run
    inner_dtype: str = "float64"  # narrowest type in which the model computes, whatever the type of its parameters
    training_dtype: str = "float64"  # narrowest type in which training computed: of its parameters, or of autocast

    @property
    def closed(self) -> bool:
        """True if residual and rounding are as small as the tolerance and the types of numbers allow."""
        return not self.open_terms()

    shapes: ClassVar[Mapping[str, str]] = {
        "contributions": "mnk",
        "residuals": "Tmk",
        "evaluations": "T",
        "names": "k",
        **dict.fromkeys(("initial", "final", "decay", "rounding", "buffers", "residual"), "mk"),
    }

    @property
    def largest_residual(self) -> float:
        """Largest |residual| over rows and outputs: the certificate."""
        return float(self.residual.abs().max())

    @property
    def mass(self) -> Tensor:
        """Sum of absolute contributions Σ_i |c_i| over the sources i, (m, k), for k outputs of m rows."""
        return self.contributions.abs().sum(1)

    @property
    def cancellation(self) -> Tensor:
        """Σ_i |c_i| / |Σ_i c_i|, (m, k): 1 where all sources have one sign, NaN where all are zero."""
        return self.mass / self.contributions.sum(1).abs()

    def top(self, row: int, n: int = 10, *, output: int = 0) -> list[tuple[int, float]]:
        """Return the n sources with the largest |contribution| to one output of a row, largest first: (index, contribution).

        The index is that of the training example or step, or the position of the group or layer in ``sources``.

        Raises:
            InputError: ``row`` or ``output`` is out of range, or ``n`` is below 1.
        """
        check_row_and_output(row, output, len(self.initial), len(self.names))
        n = as_count(n, "n")
        contributions = self.contributions[row, :, output]
        largest = contributions.abs().argsort(descending=True, stable=True)[:n]
        return [(int(i), float(contributions[i])) for i in largest]

    def by_group(self, groups: ArrayLike) -> Tensor:
        """Sum contributions over groups of examples: (m, G, k) for groups (n,) of integers 0..G−1.

        Raises:
            InputError: ``groups`` does not have one entry per example, or this is a ledger by group, layer or step.
        """
        if self.by != "example":
            raise InputError(
                f"a ledger by {self.by}",
                expected="a ledger by example",
                hint='compute it with by="example", or with by= these groups',
            )
        groups = as_labels(groups, "groups", n=self.contributions.shape[1])
        m, _, k = self.contributions.shape
        total = torch.zeros(m, int(groups.max()) + 1, k, dtype=torch.float64)
        return total.index_add_(1, groups, self.contributions)

    def plot(
        self,
        row: int,
        *,
        output: int | None = None,
        image: ArrayLike | None = None,
        images: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        n: int = 8,
    ) -> "Figure":
        """Draw one row's ledger: the n largest contributions up and down, the images of the examples, and the other terms.

        With a history also the growth of the largest contributions during training. Arguments as in
        :func:`kernelmem.plotting.ledger.ledger_figure`.
        """
        from kernelmem.plotting.ledger import ledger_figure  # matplotlib is slow to import

        steps = None
        if self.history is not None:
            output_index = int(self.final[row].argmax()) if output is None else output
            steps = self.history[row, :, :, output_index].cumsum(0).numpy()
        names = self.sources if labels is None and self.sources else labels
        return ledger_figure(self, row, output=output, image=image, images=images, labels=names, n=n, steps=steps)

    def to_frame(self, rows: Literal["outputs", "sources"] = "outputs") -> "pd.DataFrame":
        """Return one row per row of x and output, with the terms of its change; or one per source too.

        Columns: row, output, change, contributions (sum over all sources), decay, rounding, buffers, residual, mass.
        For ``"sources"``: row, the kind of source (its name or index), output, contribution.

        Raises:
            InputError: ``rows`` is neither "outputs" nor "sources".
        """
        import pandas as pd  # slow to import

        m, n, k = self.contributions.shape
        if rows == "sources":
            levels = [range(m), self.sources or range(n), self.names]
            index = pd.MultiIndex.from_product(levels, names=["row", self.by, "output"])
            return pd.DataFrame({"contribution": self.contributions.flatten().numpy()}, index=index).reset_index()
        if rows != "outputs":
            raise InputError(f"rows={rows!r}", expected='"outputs" or "sources"', hint='pass rows="outputs"')
        terms = {"change": self.final - self.initial, **self._terms(), "mass": self.mass}
        frame = pd.DataFrame({name: value.flatten().numpy() for name, value in terms.items()})
        frame.insert(0, "output", list(self.names) * m)
        frame.insert(0, "row", np.repeat(np.arange(m), k))
        return frame

    @property
    def residual_limit(self) -> Tensor:
        """Largest |residual| of a closed ledger, (m, k): the tolerance, and rounding of its terms."""
        return residual_limit(self._scale, self.tolerance, self.inner_dtype)

    @property
    def _scale(self) -> Tensor:
        """Sum of the absolute values of all terms, (m, k)."""
        values = self.initial, self.final, self.mass, self.decay, self.buffers, self.rounding
        return torch.stack([value.abs() for value in values]).sum(0)

    def open_terms(self) -> list[str]:
        """Return a line for each term, residual or rounding, that is larger than it should be: none if the ledger is closed."""
        reasons = {
            "residual": (
                self.residual_limit,
                "the outputs jump along a step, or the quadrature did not converge",
            ),
            "rounding": (
                rounding_limit(self._scale, self.training_dtype),
                f"the recorded steps are not those of the optimizer's formula in {self.training_dtype}",
            ),
        }
        lines = []
        for name, (limit, reason) in reasons.items():
            excess = getattr(self, name).abs() / limit
            if not bool((excess <= 1.0).all()):
                worst = int(excess.nan_to_num(torch.inf).argmax())
                value, allowed = float(getattr(self, name).flatten()[worst]), float(limit.flatten()[worst])
                lines.append(f"NOT CLOSED: {name} {abs(value):.2g}, at most {allowed:.2g} is expected ({reason})")
        return lines

    def _terms(self) -> dict[str, Tensor]:
        """Return the terms that add up to the change, each (m, k)."""
        other_terms = {name: getattr(self, name) for name in ("decay", "rounding", "buffers", "residual")}
        return {"contributions": self.contributions.sum(1), **other_terms}

    def recomputed_residual(self) -> float:
        """Return the largest |change − all terms|, recomputed from the terms in the file.

        Raises:
            FileCorruptError: the recomputed residual differs from the stored residual.
        """
        terms = self.contributions.sum(1) + self.decay + self.rounding + self.buffers
        residual = self.final - self.initial - terms
        size = float(self.mass.max() + self.final.abs().max() + self.initial.abs().max())
        difference = float((residual - self.residual).abs().max())
        if not difference <= 1e-12 * max(size, 1.0):
            raise FileCorruptError(
                f"a ledger whose terms leave another residual than it states (difference {difference:.2g})",
                expected="terms that add up to the change",
                hint="compute the ledger again",
            )
        return float(residual.abs().max())

    def __str__(self) -> str:
        """Return a table of the largest absolute value of each term, the median cancellation, and what is not closed."""
        m, n, k = self.contributions.shape
        segments = _count(len(self.residuals), "segment")
        lines = [
            f"ledger of {_count(m, 'row')}, {_count(k, 'output')}, by {self.by} ({n:,}), path of {segments}",
            f"{'term':<24}{'largest |value|':>18}",
        ]
        for name, value in {"change": self.final - self.initial, **self._terms()}.items():
            lines.append(f"{name:<24}{float(value.abs().max()):>18.3g}")
            if name == "contributions" and self.sources and n <= MAX_PRINTED:
                sizes = self.contributions.abs().amax((0, 2)).tolist()
                lines += [f"  {source[:21]:<22}{size:>18.3g}" for source, size in zip(self.sources, sizes, strict=True)]
        if bool(self.mass.any()):
            median = float(self.cancellation.nanmedian())
            lines.append(f"cancellation: sum of |contributions| / |sum| = {median:.1f} (median)")
        if self.inner_dtype != "float64":
            lines.append(f"tolerance {self.tolerance:.1g}: the model computes in {self.inner_dtype} inside")
        if self.training_dtype not in ("float64", "float32"):
            lines.append(f"rounding includes that of gradients and weights in {self.training_dtype} during training")
        return "\n".join(lines + self.open_terms())


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'s' * (n != 1)}"
