"""The machines beside the network as values: one line each, a table, a picture."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kernelmem.core.result_files import read_result, write_result
from kernelmem.kernel_machines.equivalence.fidelity import Fidelity, fidelity
from kernelmem.kernel_machines.equivalence.trajectory import KernelMovement

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

__all__ = ["MACHINES", "KernelMachineComparison", "MachineFit", "compare"]

# What each is called in tables; the order is that of the tables.
MACHINES = {
    "descent_initial": "initial kernel, same descent",
    "descent_final": "final kernel, same descent",
    "descent_path": "mean path kernel, same descent",
    "domingos_constant": "path kernel, coefficients free of x",
    "ridge_initial": "ridge on outputs, initial kernel",
    "ridge_final": "ridge on outputs, final kernel",
    "ridge_path": "ridge on outputs, path kernel",
    "null": "null: the same, outputs permuted",
    "left_ledger": "left ledger",
    "domingos": "path kernel, coefficients depend on x",
    "exact_ledger": "exact ledger",
}
FIGURES = ("kernel_change", "kernel_distance", "limit", "path_error", "cancellation", "n", "steps")
KIND = "table of equivalent machines 2"
NULLS = 32  # permutations of the network's outputs


@dataclass(frozen=True)
class MachineFit:
    """How well one machine stands for the network on rows that it was not fitted to.

    ``status`` is "computed", "diverges" (the figure in ``stability``; of cross-entropy an upper
    bound, and no descent is refused by it) or "undefined" (``note`` says why); of the last two all
    figures are NaN.
    """

    name: str  # a key of MACHINES
    status: str
    note: str = ""
    rows: int = 0  # test rows that were compared
    error: float = math.nan  # |machine − network| / |network − untrained network|, Frobenius
    agreement: float = math.nan  # share of rows with the same argmax (one output: the same sign)
    agreement_se: float = math.nan  # binomial, (k + 1)/(n + 2) rule
    r2: float = math.nan  # 1 − Σ (machine − network)² / Σ (network − its mean over rows)²
    null_error: float = math.nan  # the error beside the network's outputs permuted over rows: mean of 32
    null_agreement: float = math.nan
    stability: float = math.nan  # of frozen descent: lr times curvature; it diverges at the limit
    ridge: float = math.nan  # of a fit, in units of the kernel
    condition: float = math.nan  # of what was solved
    residual: float = math.nan  # relative, of the solve; of the ledgers what they leave of the change

    @property
    def title(self) -> str:
        """What it is called in tables."""
        return MACHINES[self.name]


@dataclass(frozen=True, eq=False)
class KernelMachineComparison:
    """Which kernel machine a trained network is: one line a machine, and how its kernel moved.

    Attributes:
        machines: in the order of :data:`MACHINES`.
        movement: the trace kernel of training rows at checkpoints.
        predictions: by name, (rows, C) float64; the first rows of the test rows, all of them for most.
        network: (m, C) the trained network on the test rows.
        initial: (m, C) the untrained one.
        kernel_change: |K_T − K_0| / |K_0| of the training rows; NaN where these kernels were not asked for.
        kernel_distance: 1 − cosine of their traces; likewise.
        limit: of the stability of frozen descent.
        path_error: estimated relative error of the path kernel.
        cancellation: median of Σ|c| / |Σ c| over rows and outputs of the exact ledger.
    """

    machines: tuple[MachineFit, ...]
    movement: tuple[KernelMovement, ...]
    predictions: dict[str, Tensor] = field(repr=False)
    network: Tensor = field(repr=False)
    initial: Tensor = field(repr=False)
    kernel_change: float
    kernel_distance: float
    limit: float
    path_error: float
    cancellation: float
    n: int
    steps: int

    def __getitem__(self, name: str) -> MachineFit:
        """The line of one machine."""
        return {own.name: own for own in self.machines}[name]

    def to_frame(self) -> "pandas.DataFrame":
        """One row a machine."""
        import pandas  # slow to import

        frame = pandas.DataFrame([vars(own) for own in self.machines])
        frame.insert(1, "title", [own.title for own in self.machines])
        return frame.set_index("name")

    def movement_frame(self) -> "pandas.DataFrame":
        """One row a checkpoint."""
        import pandas  # slow to import

        return pandas.DataFrame([vars(own) for own in self.movement]).set_index("step")

    def save(self, path: str | Path) -> Path:
        """Write everything to a .safetensors file, with a hash."""
        tensors = {f"predictions.{name}": value for name, value in self.predictions.items()}
        tensors |= {name: getattr(self, name) for name in ("network", "initial")}
        figures: dict[str, Any] = {name: getattr(self, name) for name in FIGURES}
        figures |= {"machines": [vars(own) for own in self.machines], "movement": [vars(own) for own in self.movement]}
        return write_result(path, KIND, tensors, figures)

    @classmethod
    def load(cls, path: str | Path) -> "KernelMachineComparison":
        """Read what :meth:`save` wrote.

        Raises:
            FileCorruptError: missing, truncated, altered (its hash is another), or something else.
        """
        with read_result(path, KIND) as (tensors, figures):
            machines = tuple(MachineFit(**own) for own in figures["machines"])
            movement = tuple(KernelMovement(**own) for own in figures["movement"])
            found = {own.name: tensors.get(f"predictions.{own.name}") for own in machines}
            predictions = {name: value for name, value in found.items() if value is not None}
            common = {name: figures[name] for name in FIGURES}
            return cls(machines, movement, predictions, tensors["network"], tensors["initial"], **common)

    def plot(self) -> "Figure":
        """Errors of the machines beside their nulls on a logarithmic axis, and the kernel's movement along the run."""
        from kernelmem.plotting.equivalence import comparison_figure  # matplotlib is slow to import

        return comparison_figure(self.machines, self.movement)

    def __str__(self) -> str:
        m, C = self.network.shape
        rows = [
            f"kernel machines beside a network: {self.n:,} training rows, {m:,} test rows, {C} output{'s' * (C != 1)},"
            f" {self.steps:,} steps",
            f"{'machine':<40}{'rel. error':>12}{'null':>8}{'agreement':>16}{'null':>8}{'R²':>9}",
        ]
        for own in self.machines:
            line = f"{own.title:<40}"
            if own.status == "computed":
                agreement = f"{own.agreement:.3f} ± {own.agreement_se:.3f}"
                line += (
                    f"{own.error:>12.2g}{own.null_error:>8.2g}{agreement:>16}{own.null_agreement:>8.2f}{own.r2:>9.4f}"
                )
                line += f"   on {own.rows} rows" if own.rows < m else ""
            elif own.status == "diverges":
                line += f"  diverges: {own.note}"
            else:
                line += f"  undefined: {own.note}"
            rows.append(line)
        if not math.isnan(self.kernel_change):
            rows.append(
                f"the kernel moved by {self.kernel_change:.3g} of its size, its direction by {self.kernel_distance:.3g}:"
                " near 0 where training is lazy"
            )
        if self.movement:
            rows.append(f"{'step':>8}{'distance':>12}{'change':>10}{'velocity':>12}{'alignment':>12}{'null':>16}")
            rows += [
                f"{own.step:>8}{own.distance:>12.3g}{own.change:>10.3g}{own.velocity:>12.2g}{own.alignment:>12.3f}"
                f"{f'{own.null_alignment:.3f} ± {own.null_spread:.3f}':>16}"
                for own in self.movement
            ]
        return "\n".join(rows)


def compare(name: str, found: Tensor, network: Tensor, initial: Tensor, *, seed: int, **more: Any) -> MachineFit:
    """Hold a machine's outputs (rows, C) against the network's on the same rows, and against permuted ones."""
    rows = len(found)
    network, initial = network[:rows], initial[:rows]
    size = float((network - initial).norm())
    error = float((found - network).norm())
    spread = float((network - network.mean(0)).square().sum())
    same = _agreement(found, network)
    generator = torch.Generator().manual_seed(seed)
    others = [network[torch.randperm(rows, generator=generator)] for _ in range(NULLS)]
    return MachineFit(
        name,
        "computed",
        rows=rows,
        error=error / size if size else math.inf,
        agreement=same.agreement,
        agreement_se=same.agreement_se,
        r2=1 - error**2 / spread if spread else math.nan,
        null_error=sum(float((found - other).norm()) for other in others) / NULLS / size if size else math.nan,
        null_agreement=sum(_agreement(found, other).agreement for other in others) / NULLS,
        **more,
    )


def _agreement(first: Tensor, second: Tensor) -> Fidelity:
    """Of the argmax; one output is read as two, −f and f, so that the sign decides."""
    if first.shape[1] == 1:
        first, second = (torch.cat([-own, own], 1) for own in (first, second))
    return fidelity(first, second)
