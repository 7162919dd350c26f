"""Result of the comparison with kernel machines: one line per method, a table, a plot."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kernelmem.core.files.result_files import Result
from kernelmem.kernel_machines.equivalence.fidelity import fidelity
from kernelmem.kernel_machines.equivalence.trajectory import KernelMovement

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

# Titles of the methods, in the order of the tables.
METHODS = {
    "sgd_initial": "SGD with the initial kernel",
    "sgd_final": "SGD with the final kernel",
    "sgd_path": "SGD with the mean path kernel",
    "domingos_constant": "Domingos, constant coefficients",
    "ridge_initial": "ridge on outputs, initial kernel",
    "ridge_final": "ridge on outputs, final kernel",
    "ridge_path": "ridge on outputs, path kernel",
    "null": "null: path kernel, outputs permuted",
    "first_order_ledger": "first-order ledger",
    "domingos": "Domingos, coefficients depend on x",
    "exact_ledger": "exact ledger",
}
N_PERMUTATIONS = 32  # permutations of the network's outputs


@dataclass(frozen=True)
class MachineFit:
    """How well one kernel machine reproduces the network on rows that it was not fitted to.

    ``status`` is "computed", "diverges" (with ``stability``; for cross-entropy that is an upper bound, and nothing is
    refused because of it) or "undefined" (``note`` says why). Unless it is "computed", all errors are NaN.
    """

    name: str  # a key of METHODS
    status: str
    note: str = ""
    rows: int = 0  # test rows that were compared
    error: float = math.nan  # |machine − network| / |network − untrained network|, Frobenius
    agreement: float = math.nan  # share of rows with the same argmax (one output: the same sign)
    agreement_se: float = math.nan  # binomial, (k + 1)/(n + 2) rule
    r2: float = math.nan  # 1 − Σ (machine − network)² / Σ (network − its mean over rows)²
    null_error: float = math.nan  # error against the network's outputs permuted over rows: mean of 32
    null_agreement: float = math.nan
    stability: float = math.nan  # of frozen kernels: lr times curvature; SGD diverges at the limit
    ridge: float = math.nan  # in units of the kernel
    condition: float = math.nan  # of the system that was solved
    residual: float = math.nan  # relative, of the solve; for ledgers the part of the change that they do not explain

    @property
    def title(self) -> str:
        """The title of the method in tables and plots."""
        return METHODS[self.name]


@dataclass(frozen=True, eq=False, repr=False)
class KernelMachineComparison(Result):
    """A trained network compared with the kernel machines of its run, and the movement of its kernel.

    Attributes:
        fits: result of each method, in the order of :data:`METHODS`.
        movement: change of the trace kernel of training rows at each checkpoint.
        predictions: outputs of each method, (rows, C) float64, on the first ``rows`` test rows (all rows for most methods).
        network: (m, C) outputs of the trained network on the test rows.
        initial: (m, C) outputs of the untrained network.
        kernel_change: |K_T − K_0| / |K_0| of the training rows; NaN unless both kernels were computed.
        kernel_distance: 1 − cosine of the trace kernels of K_T and K_0; NaN unless both kernels were computed.
        limit: stability limit of the recorded SGD.
        path_error: estimated relative error of the path kernel.
        cancellation: median of Σ|c| / |Σ c| over rows and outputs of the exact ledger.
        n: number of training rows.
        steps: number of recorded steps.
    """

    fits: tuple[MachineFit, ...]
    movement: tuple[KernelMovement, ...]
    predictions: dict[str, Tensor]
    network: Tensor
    initial: Tensor
    kernel_change: float
    kernel_distance: float
    limit: float
    path_error: float
    cancellation: float
    n: int
    steps: int

    def __getitem__(self, name: str) -> MachineFit:
        """Return the result of the method called ``name``, a key of :data:`METHODS`."""
        return {fit.name: fit for fit in self.fits}[name]

    def to_frame(self) -> "pd.DataFrame":
        """Return a data frame with one row per method, indexed by name; columns are the fields of :class:`MachineFit`."""
        import pandas as pd

        frame = pd.DataFrame([vars(fit) for fit in self.fits])
        frame.insert(1, "title", [fit.title for fit in self.fits])
        return frame.set_index("name")

    def movement_frame(self) -> "pd.DataFrame":
        """Return a data frame with one row per checkpoint, indexed by step; columns describe how the kernel moved."""
        import pandas as pd

        return pd.DataFrame([vars(checkpoint) for checkpoint in self.movement]).set_index("step")

    def plot(self) -> "Figure":
        """Return a figure of the errors and null errors on a logarithmic axis, and of the movement of the kernel."""
        from kernelmem.plotting.equivalence import comparison_figure

        return comparison_figure(self.fits, self.movement)

    def __str__(self) -> str:
        n_test, C = self.network.shape
        lines = [
            f"network compared with kernel machines: {self.n:,} training rows, {n_test:,} test rows,"
            f" {C} output{'s' * (C != 1)}, {self.steps:,} steps",
            f"{'method':<40}{'rel. error':>12}{'null':>8}{'agreement':>16}{'null':>8}{'R²':>9}",
        ]
        for fit in self.fits:
            line = f"{fit.title:<40}"
            if fit.status == "computed":
                agreement = f"{fit.agreement:.3f} ± {fit.agreement_se:.3f}"
                line += (
                    f"{fit.error:>12.2g}{fit.null_error:>8.2g}{agreement:>16}{fit.null_agreement:>8.2f}{fit.r2:>9.4f}"
                )
                line += f"   on {fit.rows} rows" if fit.rows < n_test else ""
            else:
                line += f"  {fit.status}: {fit.note}"
            lines.append(line)
        if not math.isnan(self.kernel_change):
            lines.append(
                f"relative change of the kernel {self.kernel_change:.3g}, of its direction {self.kernel_distance:.3g}"
                " (near 0 in lazy training)"
            )
        if self.movement:
            lines.append(f"{'step':>8}{'distance':>12}{'change':>10}{'velocity':>12}{'alignment':>12}{'null':>16}")
            movement_lines = [
                f"{checkpoint.step:>8}{checkpoint.distance:>12.3g}{checkpoint.change:>10.3g}{checkpoint.velocity:>12.2g}"
                f"{checkpoint.alignment:>12.3f}{f'{checkpoint.null_alignment:.3f} ± {checkpoint.null_spread:.3f}':>16}"
                for checkpoint in self.movement
            ]
            max_lines = 39 - len(lines)
            lines += (
                movement_lines
                if len(movement_lines) <= max_lines
                else [*movement_lines[: max_lines - 2], f"{'...':>8}", movement_lines[-1]]
            )
        return "\n".join(lines)


def score_fit(name: str, predictions: Tensor, network: Tensor, initial: Tensor, *, seed: int) -> MachineFit:
    """Return the errors of the method ``name``, whose ``predictions`` (rows, C) belong to the first rows of the test set.

    ``network`` and ``initial`` (m, C) are the outputs of the trained and of the untrained network on all m test rows. The
    null errors compare the predictions with the network's outputs in randomly permuted row order. R² is NaN if the network's
    outputs do not vary over rows.
    """
    n_rows = len(predictions)
    network, initial = network[:n_rows], initial[:n_rows]
    change_norm = float((network - initial).norm())
    error_norm = float((predictions - network).norm())
    variance = float((network - network.mean(0)).square().sum())
    network_agreement = fidelity(predictions, network)
    generator = torch.Generator().manual_seed(seed)
    permuted_networks = [network[torch.randperm(n_rows, generator=generator)] for _ in range(N_PERMUTATIONS)]
    null_error = sum(float((predictions - permuted).norm()) for permuted in permuted_networks) / N_PERMUTATIONS
    return MachineFit(
        name,
        "computed",
        rows=n_rows,
        error=error_norm / change_norm if change_norm else math.inf,
        agreement=network_agreement.agreement,
        agreement_se=network_agreement.agreement_se,
        r2=1 - error_norm**2 / variance if variance else math.nan,
        null_error=null_error / change_norm if change_norm else math.nan,
        null_agreement=sum(fidelity(predictions, permuted).agreement for permuted in permuted_networks)
        / N_PERMUTATIONS,
    )
