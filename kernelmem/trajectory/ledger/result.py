"""The ledger of a training run as a value: its lines, what is read off them, and its file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from kernelmem.core.atomic_files import array_sha256, write_file
from kernelmem.core.checks import as_labels
from kernelmem.core.errors import FileCorruptError, InputError
from kernelmem.trajectory.argument_checks import check_place

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["Ledger", "LedgerEntries"]

FORMAT = "kernelmem ledger 2"  # 1 had no hash of its own
SHOWN = 12  # groups that are printed one by one
TENSORS = ("contributions", "initial", "final", "decay", "rounding", "buffers", "residual", "residuals", "evaluations")


@dataclass(frozen=True)
class LedgerEntries:
    """The ledger's lines, float64."""

    contributions: Tensor  # (m, n, k): of examples, or of steps
    decay: Tensor  # (m, k)
    rounding: Tensor  # (m, k)
    residuals: Tensor  # (T, m, k): of every step
    evaluations: Tensor  # (T,): tangents of a row

    @classmethod
    def zeros(cls, m: int, sources: int, k: int, T: int) -> "LedgerEntries":
        """Nothing accounted for yet."""
        sizes = ((m, sources, k), (m, k), (m, k), (T, m, k), (T,))
        contributions, decay, rounding, residuals, evaluations = (torch.zeros(s, dtype=torch.float64) for s in sizes)
        return cls(contributions, decay, rounding, residuals, evaluations)


@dataclass(frozen=True)
class Ledger:
    """The change of a network's outputs on m rows in its training, line by line: float64, (m, k) but where it says."""

    contributions: Tensor  # (m, n, k): of each source, that is each training example, group, layer or step
    initial: Tensor  # before training
    final: Tensor
    decay: Tensor  # of weight decay
    rounding: Tensor  # recorded steps less the optimizer's formula
    buffers: Tensor  # of running statistics
    residual: Tensor  # what all lines together leave
    residuals: Tensor  # (T, m, k): of the quadrature of every step; T + 1 where averaged weights are explained
    evaluations: Tensor  # (T,), or T + 1: tangents of a row that the quadrature took
    names: tuple[str, ...]  # of the k
    tape: str = ""  # the hash that the recorded run ends with
    by: str = "example"  # what the sources are
    sources: tuple[str, ...] = ()  # their names, where they have any
    history: Tensor | None = (
        None  # (m, T, n, k): of every example in every step, where it was asked for; not in the file
    )

    @property
    def largest_residual(self) -> float:
        """The certificate: max over rows and outputs of |residual|."""
        return float(self.residual.abs().max())

    @property
    def mass(self) -> Tensor:
        """Σ_i |c_i|, (m, k)."""
        return self.contributions.abs().sum(1)

    @property
    def cancellation(self) -> Tensor:
        """Σ_i |c_i| / |Σ_i c_i|, (m, k): 1 where all examples pull one way, NaN where none pulls."""
        return self.mass / self.contributions.sum(1).abs()

    def top(self, row: int, n: int = 10, *, output: int = 0) -> list[tuple[int, float]]:
        """The n sources with the largest contributions to one row's output, largest first: (ordinal, contribution).

        The ordinal is that of the training example or step, or that of the group in ``sources``.

        Raises:
            InputError: no such row or output.
        """
        check_place(row, output, len(self.initial), len(self.names))
        own = self.contributions[row, :, output]
        order = own.abs().argsort(descending=True, stable=True)[:n]
        return [(int(i), float(own[i])) for i in order]

    def by_group(self, groups: Any) -> Tensor:
        """Contributions summed over groups of examples: (m, G, k) for groups (n,) of integers 0..G-1.

        Raises:
            InputError: not one group for each example, or a ledger of something else.
        """
        if self.by != "example":
            raise InputError(
                f"a ledger by {self.by}",
                expected="one by example",
                hint='compute it with by="example", or with these groups',
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
        image: Any = None,
        images: Any = None,
        labels: Any = None,
        n: int = 8,
    ) -> "Figure":
        """Draw one row's ledger: the largest contributions up and down, with the pictures of the examples, and the other lines.

        With a history also how the largest grew over training. Arguments as in :func:`kernelmem.plotting.ledger.ledger_figure`:
        output None is the one that is largest after training; images (n, h, w) and labels are of the sources.
        """
        from kernelmem.plotting.ledger import ledger_figure  # matplotlib is slow to import

        steps = None
        if self.history is not None:
            own = int(self.final[row].argmax()) if output is None else output
            steps = self.history[row, :, :, own].cumsum(0).numpy()
        names = self.sources if labels is None and self.sources else labels
        return ledger_figure(self, row, output=output, image=image, images=images, labels=names, n=n, steps=steps)

    def to_frame(self, of: Literal["lines", "sources"] = "lines") -> "pd.DataFrame":
        """A line for each row and output: the change, what it is made of, and the mass; or one for each source too.

        Columns: row, output, then change, examples (all sources together), decay, rounding, buffers, residual, mass; of
        ``"sources"``: row, source (its name, where it has one, otherwise its ordinal), output, contribution.

        Raises:
            InputError: frames of something else.
        """
        import pandas as pd  # slow to import

        m, n, k = self.contributions.shape
        if of == "sources":
            levels = [range(m), self.sources or range(n), self.names]
            index = pd.MultiIndex.from_product(levels, names=["row", self.by, "output"])
            return pd.DataFrame({"contribution": self.contributions.flatten().numpy()}, index=index).reset_index()
        if of != "lines":
            raise InputError(f"of={of!r}", expected='"lines" or "sources"', hint="leave it out for the lines")
        lines = {"change": self.final - self.initial, **self._lines(), "mass": self.mass}
        frame = pd.DataFrame({name: value.flatten().numpy() for name, value in lines.items()})
        frame.insert(0, "output", list(self.names) * m)
        frame.insert(0, "row", [row for row in range(m) for _ in range(k)])
        return frame

    def _lines(self) -> dict[str, Tensor]:
        """What the change is made of, (m, k) each."""
        own = {name: getattr(self, name) for name in ("decay", "rounding", "buffers", "residual")}
        return {"examples": self.contributions.sum(1), **own}

    def save(self, path: str | Path) -> Path:
        """Write all lines to a .safetensors file, with the hash of the run that they account for and one of their own."""
        tensors = {name: getattr(self, name).contiguous() for name in TENSORS}
        metadata = {"names": json.dumps(self.names), "tape": self.tape, "format": FORMAT}
        metadata |= {"by": self.by, "sources": json.dumps(self.sources)}
        return write_file(path, safetensors.torch.save(tensors, metadata | {"sha256": _sha256(tensors, metadata)}))

    @classmethod
    def load(cls, path: str | Path) -> "Ledger":
        """Read what :meth:`save` wrote.

        Raises:
            FileCorruptError: missing, truncated, altered (its hash is another), or no ledger.
        """
        try:
            with safetensors.safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise ValueError(f"format {metadata.get('format')}, not {FORMAT}")
                tensors = {name: file.get_tensor(name) for name in TENSORS}
            if _sha256(tensors, metadata) != metadata["sha256"]:
                raise ValueError("its sha256 is not the one in it")
            names, sources = (tuple(json.loads(metadata[key])) for key in ("names", "sources"))
            return cls(**tensors, names=names, tape=metadata["tape"], by=metadata["by"], sources=sources)
        except (safetensors.SafetensorError, OSError, KeyError, ValueError) as error:
            raise FileCorruptError(
                f"ledger file {path} ({error})", expected="what Ledger.save wrote", hint="compute and save it again"
            ) from error

    def recomputed_residual(self) -> float:
        """The largest residual, from the lines alone: what a reader of the file can check.

        Raises:
            FileCorruptError: it is not the residual that the ledger states.
        """
        lines = self.contributions.sum(1) + self.decay + self.rounding + self.buffers
        found = self.final - self.initial - lines
        size = float(self.mass.max() + self.final.abs().max() + self.initial.abs().max())
        gap = float((found - self.residual).abs().max())
        if not gap <= 1e-12 * max(size, 1.0):
            raise FileCorruptError(
                f"a ledger whose lines leave another residual than it states, by {gap:.2g}",
                expected="lines that add up to the change",
                hint="compute the ledger again",
            )
        return float(found.abs().max())

    def __str__(self) -> str:
        m, n, k = self.contributions.shape
        path = f"path of {_count(len(self.residuals), 'segment')}"
        rows = [
            f"ledger of {_count(m, 'row')}, {_count(k, 'output')}, by {self.by} ({n:,}), {path}",
            f"{'line':<24}{'largest |value|':>18}",
        ]
        for name, value in {"change": self.final - self.initial, **self._lines()}.items():
            rows.append(f"{name:<24}{float(value.abs().max()):>18.3g}")
            if name == "examples" and self.sources and n <= SHOWN:
                sizes = self.contributions.abs().amax((0, 2)).tolist()
                rows += [f"  {source[:21]:<22}{size:>18.3g}" for source, size in zip(self.sources, sizes, strict=True)]
        if bool(self.mass.any()):
            middle = float(self.cancellation.nanmedian())
            rows.append(f"mass of the {self.by}s, over |their sum|: {middle:.1f} (median of rows and outputs)")
        rows.append("An account of the training that took place; what another training would give")
        rows.append("is another question (km.influence).")
        return "\n".join(rows)


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'s' * (n != 1)}"


def _sha256(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Of all that a file holds."""
    words = "\n".join(metadata.get(key, "") for key in ("format", "names", "tape", "by", "sources"))
    arrays = {name: value.numpy() for name, value in tensors.items()}
    return array_sha256({words: np.zeros(0), **arrays})
