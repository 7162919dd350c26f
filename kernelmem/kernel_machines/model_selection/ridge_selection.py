"""Ridge with the smallest leave-one-out error, by one eigendecomposition."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kernelmem.core.checks import ArrayLike, as_square_kernel, as_tensor
from kernelmem.core.errors import InputError, NumericalError
from kernelmem.core.files.result_files import Result
from kernelmem.core.options import MEMORY, as_bytes
from kernelmem.kernel_machines.solvers.factorization import EPS, check_positive, eigensystem
from kernelmem.kernel_machines.solvers.linear_system import in_memory, require_square
from kernelmem.kernel_machines.solvers.panel_factor import factorize_stored
from kernelmem.kernel_machines.solvers.tridiagonal import tridiagonal_bytes, tridiagonalize
from kernelmem.kernel_machines.targets import as_targets
from kernelmem.kernels import KernelStore

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

TIE_TOLERANCE = 1e-10  # relative difference of errors below which rounding, not data, would choose
FEW_RIDGES = 4  # cost less by factorizations than by a tridiagonal form
MATRICES = 4  # n x n in float64: the kernel, its eigenvectors and the work of LAPACK


@dataclass(frozen=True, eq=False, repr=False)
class RidgeChoice(Result):
    """The chosen ridge, and the estimated errors of the G ridges that were compared.

    Attributes:
        ridge: the chosen ridge, in units of the kernel: grid[index].
        index: index of the chosen ridge in the grid.
        grid: (G,) ridges compared, ascending, float64.
        errors: (G,) mean squared leave-one-out residual over rows and outputs (or another estimate of the error on new
            rows); infinite if K + ridge I is not positive definite beyond rounding.
    """

    ridge: float
    index: int
    grid: Tensor
    errors: Tensor

    @property
    def at_edge(self) -> bool:
        """True if the smallest error lies at an end of the usable grid, which should then be extended there."""
        return self.index in (int(torch.isinf(self.errors).sum()), len(self.grid) - 1)

    def __str__(self) -> str:
        edge = ", at the edge of the grid" if self.at_edge else ""
        return (
            f"ridge {self.ridge:.4g} (units of the kernel){edge}: estimated error {float(self.errors[self.index]):.4g};"
            f" {len(self.grid)} ridges from {float(self.grid[0]):.3g} to {float(self.grid[-1]):.3g} compared"
        )

    def to_frame(self) -> "pd.DataFrame":
        """Return a data frame with one row per ridge and the columns "ridge", "error" and "chosen"."""
        import pandas as pd

        frame = pd.DataFrame({"ridge": self.grid.cpu().numpy(), "error": self.errors.cpu().numpy()})
        frame["chosen"] = frame.index == self.index
        return frame

    def plot(self) -> "Figure":
        """Return a figure of error against ridge on logarithmic axes; the choice is marked, unusable ridges are shaded."""
        from kernelmem.plotting.ridge import ridge_figure  # matplotlib is slow to import

        return ridge_figure(self)


def choose_ridge(
    kernel: ArrayLike | KernelStore, y: ArrayLike, *, grid: ArrayLike | None = None, memory: int | str = MEMORY
) -> RidgeChoice:
    """Choose the ridge with the smallest mean squared leave-one-out residual.

    The residual of every row and output is alpha_i / A_ii with A = (K + ridge I)⁻¹ and alpha = A y. Among tied ridges the
    largest is chosen. Only the kernel and y are used, no test set. The choice scales with the kernel.

    Args:
        kernel: (n, n) tensor, array or KernelStore, symmetric, positive semidefinite. Computed in float64 on its device.
        y: labels or real targets, as in ``leave_one_out``.
        grid: ridges > 0, in any order. None: 53 ridges from 1e-9 to 1e4 times the mean diagonal of the kernel, four per
            decade; on handwritten digits with 0 to 90 % wrong labels, a grid 25 times finer lowered the error by at most
            0.12 %.
        memory: bytes that the work with a KernelStore may allocate. If its eigendecomposition takes more (32 n² bytes), a
            tridiagonal form in the memory of one matrix (8 n²) gives the same errors to rounding. If that takes more, too,
            ``grid`` must be given: each of its ridges costs one Cholesky factorization in panels, as in ``leave_one_out``.

    Raises:
        InputError: a ridge of the grid is not positive, the kernel is zero and there is no grid, or y is invalid as in
            ``leave_one_out``.
        NumericalError: the kernel has an eigenvalue below −n eps(float32) λ_max, or no ridge of the grid exceeds its
            negative eigenvalues.

    Cost: one eigendecomposition, then O(n² C) per ridge; two n x n matrices in addition to the kernel.

    Source: Allen 1974 (PRESS); Rifkin and Lippert 2007; tridiagonal form: Eldén 1984.

    >>> import torch
    >>> x = torch.linspace(0, 3, 20, dtype=torch.float64)
    >>> kernel = torch.exp(-(x[:, None] - x) ** 2)
    >>> noise = 0.3 * torch.cos(37 * torch.arange(20) ** 2)
    >>> clean, noisy = choose_ridge(kernel, x.sin()), choose_ridge(kernel, x.sin() + noise)
    >>> clean.ridge < noisy.ridge, noisy.at_edge
    (True, False)
    """
    return choose_ridges(kernel, [y], grid=grid, memory=memory)[0]


def choose_ridges(
    kernel: ArrayLike | KernelStore,
    ys: Sequence[ArrayLike],
    *,
    grid: ArrayLike | None = None,
    memory: int | str = MEMORY,
) -> list[RidgeChoice]:
    """Choose a ridge for each of several targets, as :func:`choose_ridge` does, by one decomposition of the kernel."""
    max_bytes = as_bytes(memory)
    if isinstance(kernel, KernelStore):
        require_square(kernel)
    is_streamed = (
        isinstance(kernel, KernelStore) and kernel.symmetric and 8 * MATRICES * kernel.shape[0] ** 2 > max_bytes
    )
    if isinstance(kernel, KernelStore) and not is_streamed:
        kernel = in_memory(kernel, max_bytes, matrices=MATRICES, work="the eigendecomposition")
    K = kernel if isinstance(kernel, KernelStore) else as_square_kernel(kernel)
    n, device = K.shape[0], torch.device("cpu") if isinstance(K, KernelStore) else K.device
    if n < 2:
        raise InputError("kernel of one row", expected="n >= 2 rows", hint="pass the kernel of at least two rows")
    targets = [as_targets(y, n, device)[0] for y in ys]
    ridges = _default_grid(K.diagonal()) if grid is None else _check_grid(grid).to(device)
    if isinstance(K, KernelStore):
        errors = _streamed_errors(K, torch.cat(targets, 1), ridges, max_bytes, few=grid is not None)
    else:
        errors = _errors_by_eigenvalues(K, torch.cat(targets, 1), ridges)
    return [_smallest_error(ridges, part.mean(1)) for part in errors.split([y.shape[1] for y in targets], 1)]


def _errors_by_eigenvalues(K: Tensor, targets: Tensor, ridges: Tensor) -> Tensor:
    """Return the mean squared leave-one-out residuals (G, C) of a kernel (n, n) at G ridges; infinite if it is singular.

    Raises:
        NumericalError: the kernel is not positive semidefinite, or no ridge of the grid exceeds its negative eigenvalues.
    """
    eigenvalues, V = eigensystem(K)
    singular = _singular(eigenvalues, ridges)
    inverse_eigenvalues = 1 / (eigenvalues[:, None] + ridges)  # (n, G), eigenvalues of A
    A_diagonal = V.square() @ inverse_eigenvalues  # (n, G)
    target_modes = V.T @ targets
    errors = torch.stack(
        [
            ((V @ (target_modes * inverse_eigenvalues[:, [g]])) / A_diagonal[:, [g]]).square().mean(0)
            for g in range(len(ridges))
        ]
    )
    return torch.where(singular[:, None], torch.inf, errors)


def _singular(eigenvalues: Tensor, ridges: Tensor) -> Tensor:
    """Return for G ridges whether K + ridge I, with the ascending eigenvalues (n,) of K, is singular up to rounding, (G,).

    Raises:
        NumericalError: it is so at all of them.
    """
    singular = eigenvalues[0] + ridges <= len(eigenvalues) * EPS * eigenvalues[-1]
    if bool(singular.all()):
        raise NumericalError(
            f"grid with largest ridge {float(ridges[-1]):.3g}, and a kernel with smallest eigenvalue {float(eigenvalues[0]):.3g}",
            expected="a ridge that makes K + ridge I positive definite, beyond rounding",
            hint="add larger ridges to the grid, or compute the kernel in float64",
        )
    return singular


def _streamed_errors(store: KernelStore, targets: Tensor, ridges: Tensor, memory: int, *, few: bool) -> Tensor:
    """Return the mean squared leave-one-out residuals (G, C) of a stored kernel at G ridges, within ``memory`` bytes.

    By a tridiagonal form, in the memory of one matrix. If there are ``few`` ridges, which the user has chosen, and that does
    not fit, by one Cholesky factorization for each, in half of it.

    Raises:
        InputError: neither fits.
        NumericalError: no ridge makes K + ridge I positive definite beyond rounding.
    """
    need = tridiagonal_bytes(store)
    if few and (need > memory or len(ridges) <= FEW_RIDGES):
        return _errors_by_factorizations(store, targets, ridges, memory)
    if need > memory:
        raise InputError(
            f"memory of {memory / 2**30:.2f} GiB for the choice of a ridge for {store.shape[0]:,} stored rows",
            expected=f"{need / 2**30:.2f} GiB, a matrix in float64 and some columns",
            hint=f'pass memory="{need / 2**30 + 0.1:.1f}GiB", fewer rows: store.entries(rows, rows), or a short grid=[...], of'
            " which each ridge costs a factorization in half of that",
        )
    factor = tridiagonalize(store)
    eigenvalues = factor.eigenvalues()
    check_positive(eigenvalues)
    singular = _singular(eigenvalues, ridges)
    errors = torch.full((len(ridges), targets.shape[1]), torch.inf, dtype=torch.float64)
    errors[~singular] = factor.squared_errors(ridges[~singular], targets)
    return errors


def _smallest_error(ridges: Tensor, errors: Tensor) -> RidgeChoice:
    """Return the choice of the largest ridge whose error is the smallest, up to rounding; both are (G,)."""
    ridge_index = int((errors <= errors.min() * (1 + TIE_TOLERANCE)).nonzero()[-1])
    return RidgeChoice(float(ridges[ridge_index]), ridge_index, ridges, errors)


def _errors_by_factorizations(store: KernelStore, targets: Tensor, ridges: Tensor, memory: int) -> Tensor:
    """Return the mean squared leave-one-out residuals (G, C) at G ridges (G,), ascending, by a Cholesky factorization each.

    Raises:
        InputError: a factor takes more than ``memory`` bytes.
        NumericalError: no ridge makes K + ridge I positive definite beyond rounding.
    """
    errors = torch.full((len(ridges), targets.shape[1]), torch.inf, dtype=torch.float64)
    for g in reversed(range(len(ridges))):  # a smaller ridge than one that fails would fail, too
        try:
            factor = factorize_stored(store, targets, float(ridges[g]), memory)
        except NumericalError:
            if g == len(ridges) - 1:
                raise
            break
        errors[g] = factor.leave_one_out_residuals(factor.alpha())[0].square().mean(0)
    return errors


def _default_grid(diagonal: Tensor) -> Tensor:
    """Return 53 ridges from 1e-9 to 1e4 times the mean of the diagonal (n,) of a kernel, ascending, (53,).

    Raises:
        InputError: the mean diagonal is not positive.
    """
    mean_diagonal = float(diagonal.to(torch.float64).mean())
    if mean_diagonal <= 0:
        raise InputError(
            f"kernel with mean diagonal {mean_diagonal:.3g}",
            expected="a positive mean diagonal, which sets the scale of the ridge",
            hint="check that the kernel is not zero, or pass grid=[...]",
        )
    return mean_diagonal * torch.logspace(-9, 4, 53, dtype=torch.float64, device=diagonal.device)


def _check_grid(grid: ArrayLike) -> Tensor:
    """Check the G ridges given by the user and return them as (G,) float64, ascending.

    Raises:
        InputError: there are none, or one is not positive.
    """
    ridges = as_tensor(grid, "grid")
    if ridges.is_complex() or ridges.ndim != 1 or len(ridges) == 0 or bool((ridges <= 0).any()):
        raise InputError(
            f"grid of shape {tuple(ridges.shape)} and dtype {ridges.dtype}".replace("torch.", ""),
            expected="at least one ridge, all > 0 (ridge 0 is the minimum-norm fit)",
            hint="pass grid=[1e-6, 1e-3, 1.0], or None",
        )
    return ridges.to(torch.float64).sort().values
