"""The ledger of a training run as a value: its lines, what is read off them, and its file."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from kernelmem.ground.checks import as_labels
from kernelmem.ground.errors import FileCorruptError, InputError
from kernelmem.store.files import write_file

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["Ledger"]

TENSORS = ("contributions", "initial", "final", "decay", "rounding", "buffers", "residual", "residuals", "evaluations")


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
    residuals: Tensor  # (T, m, k): of the quadrature of every step
    evaluations: Tensor  # (T,): tangents of a row that the quadrature took
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
        """Σ_i |c_i| / |Σ_i c_i|, (m, k): 1 where all examples pull one way."""
        return self.mass / self.contributions.sum(1).abs()

    def top(self, row: int, n: int = 10, *, output: int = 0) -> list[tuple[int, float]]:
        """The n sources with the largest contributions to one row's output: (source, contribution), largest first."""
        own = self.contributions[row, :, output]
        order = own.abs().argsort(descending=True)[:n]
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
                do='compute it with by="example", or with these groups',
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

        With a history also how the largest grew over training. Arguments as in :func:`kernelmem.path.picture.ledger_figure`:
        output None is the one that is largest after training; images (n, h, w) and labels are of the sources.
        """
        from kernelmem.path.picture import ledger_figure  # matplotlib is slow to import

        steps = None
        if self.history is not None:
            own = int(self.final[row].argmax()) if output is None else output
            steps = self.history[row, :, :, own].cumsum(0).numpy()
        names = self.sources if labels is None and self.sources else labels
        return ledger_figure(self, row, output=output, image=image, images=images, labels=names, n=n, steps=steps)

    def to_frame(self) -> "pd.DataFrame":
        """One line a row, output and kind: examples, decay, rounding, buffers, residual, and the change they make up."""
        import pandas as pd  # slow to import

        lines = {
            "change": self.final - self.initial,
            "examples": self.contributions.sum(1),
            "decay": self.decay,
            "rounding": self.rounding,
            "buffers": self.buffers,
            "residual": self.residual,
            "mass": self.mass,
        }
        m, k = self.initial.shape
        frame = pd.DataFrame({name: value.flatten().numpy() for name, value in lines.items()})
        frame.insert(0, "output", list(self.names) * m)
        frame.insert(0, "row", [row for row in range(m) for _ in range(k)])
        return frame

    def save(self, path: str | Path) -> Path:
        """Write all lines to a .safetensors file, with the hash of the run that they account for."""
        tensors = {name: getattr(self, name).contiguous() for name in TENSORS}
        metadata = {"names": json.dumps(self.names), "tape": self.tape, "format": "kernelmem ledger 1"}
        metadata |= {"by": self.by, "sources": json.dumps(self.sources)}
        return write_file(path, safetensors.torch.save(tensors, metadata))

    @classmethod
    def load(cls, path: str | Path) -> "Ledger":
        """Read what :meth:`save` wrote.

        Raises:
            FileCorruptError: truncated, altered beyond reading, or no ledger.
        """
        try:
            with safetensors.safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in TENSORS}
            names, sources = (tuple(json.loads(metadata.get(key, "[]"))) for key in ("names", "sources"))
            return cls(**tensors, names=names, tape=metadata["tape"], by=metadata.get("by", "example"), sources=sources)
        except (safetensors.SafetensorError, OSError, KeyError, ValueError) as error:
            raise FileCorruptError(
                f"ledger file {path} ({error})", expected="what Ledger.save wrote", do="compute and save it again"
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
                do="compute the ledger again",
            )
        return float(found.abs().max())

    def __str__(self) -> str:
        m, n, k = self.contributions.shape
        change = self.final - self.initial
        rows = [
            f"ledger of {m} rows, {k} output{'s' * (k != 1)}, by {self.by} ({n:,}), {len(self.residuals):,} steps",
            f"{'line':<14}{'largest |value|':>18}",
        ]
        for name, value in (
            ("change", change),
            ("examples", self.contributions.sum(1)),
            ("decay", self.decay),
            ("rounding", self.rounding),
            ("buffers", self.buffers),
            ("residual", self.residual),
        ):
            rows.append(f"{name:<14}{float(value.abs().max()):>18.3g}")
        rows.append(f"mass / |sum| of the {self.by}s: {float(self.cancellation.median()):.1f} (median)")
        rows.append("an account of the training that took place; what another training would give is another question")
        return "\n".join(rows)
