"""Cholesky factor of a stored kernel + ridge I in panels of columns, which take half the memory of a matrix."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernelmem.core.errors import InputError, NumericalError
from kernelmem.kernel_machines.solvers.factorization import EPS, largest_ritz_value, least_squares
from kernelmem.kernels import KernelStore

PANEL = 1024  # columns of a panel
WORK_PANELS = 4  # panels in memory besides the factor


@dataclass(frozen=True, eq=False)
class PanelFactor:
    """Cholesky factor L of K + ridge I = L Lᵀ for ridge > 0, with the products for C targets y (n, C).

    Panel k holds the columns b_k to b_{k+1} − 1 of L from row b_k on: the zeros above are not stored. In the methods, A is the
    inverse of K + ridge I and alpha = A y.
    """

    ridge: float
    panels: tuple[Tensor, ...]  # (n − b_k, width)
    whitened: Tensor  # (n, C), L⁻¹ y

    def alpha(self) -> Tensor:
        """Return the dual coefficients alpha = A y, (n, C)."""
        return self._solve_transposed(self.whitened)

    def reachable(self, targets: Tensor) -> Tensor:
        """Return the part of the targets y (n, C) in the range of K + ridge I, which is all of it."""
        return targets

    def leave_one_out_residuals(self, alpha: Tensor) -> tuple[Tensor, Tensor]:
        """Return the leave-one-out residuals alpha_i / A_ii, (n, C), and the leverages 1 − ridge A_ii, (n,)."""
        # A_ii is the squared norm of column i of L⁻¹, which is zero above i.
        A_diagonal = []
        for k, panel in enumerate(self.panels):
            unit = torch.eye(*panel.shape, dtype=panel.dtype)
            A_diagonal.append(forward_substitution(self.panels[k:], unit).square().sum(0))
        diagonal = torch.cat(A_diagonal)
        return alpha / diagonal[:, None], 1 - self.ridge * diagonal

    def block_residual(self, rows: Tensor) -> Tensor:
        """Return the residuals (A_BB)⁻¹ alpha_B, (b, C), of the b rows B = ``rows`` for the fit without these rows."""
        unit = torch.zeros(len(self.whitened), len(rows), dtype=self.whitened.dtype)
        unit[rows, torch.arange(len(rows))] = 1
        return least_squares(forward_substitution(self.panels, unit), self.whitened)

    def solve(self, rows: Tensor) -> Tensor:
        """Return the product of ``rows`` (m, n) and A, (m, n)."""
        return self._solve_transposed(forward_substitution(self.panels, rows.T.clone())).T

    def condition(self) -> float:
        """Return a lower estimate of the condition number of K + ridge I, by Lanczos steps on it and on its inverse."""
        start_vector = torch.cos(torch.arange(len(self.whitened), dtype=self.whitened.dtype))[:, None]
        largest = largest_ritz_value(lambda u: self.product(self._transposed_product(u)), start_vector)
        return largest * largest_ritz_value(
            lambda u: self._solve_transposed(forward_substitution(self.panels, u.clone())), start_vector
        )

    def product(self, u: Tensor) -> Tensor:
        """Return L u, (n, k)."""
        result, start = torch.zeros_like(u), 0
        for panel in self.panels:
            result[start:] += panel @ u[start : start + panel.shape[1]]
            start += panel.shape[1]
        return result

    def _transposed_product(self, u: Tensor) -> Tensor:
        """Return Lᵀ u, (n, k)."""
        return torch.cat([panel.T @ u[len(u) - len(panel) :] for panel in self.panels])

    def _solve_transposed(self, u: Tensor) -> Tensor:
        """Return L⁻ᵀ u, (n, k)."""
        result = u.clone()
        for panel in reversed(self.panels):
            width, start = panel.shape[1], len(u) - len(panel)
            right = result[start : start + width] - panel[width:].T @ result[start + width :]
            result[start : start + width] = torch.linalg.solve_triangular(panel[:width].T, right, upper=True)
        return result


def forward_substitution(panels: tuple[Tensor, ...], u: Tensor) -> Tensor:
    """Overwrite u (n, k) with L⁻¹ u, and return it; ``panels`` may be the last ones of a factor, for its trailing triangle."""
    start = 0
    for panel in panels:
        width = panel.shape[1]
        block = torch.linalg.solve_triangular(panel[:width], u[start : start + width], upper=False)
        u[start : start + width] = block
        u[start + width :] -= panel[width:] @ block
        start += width
    return u


def factorize_stored(store: KernelStore, targets: Tensor, ridge: float, memory: int) -> PanelFactor:
    """Compute the Cholesky factor L of K + ridge I for a stored kernel K (n, n), and L⁻¹ times the targets (n, C).

    Every entry of a triangle of K is read once or twice; float64.

    Raises:
        InputError: the factor takes more than ``memory`` bytes; checked before anything is allocated.
        NumericalError: K + ridge I is not positive definite beyond rounding.

    Cost: n³/6 multiply-adds; 4 n² bytes and four panels of 8 · 1024 n bytes.
    """
    n, width = store.shape[0], min(PANEL, store.layout.tile, store.shape[0])
    need = 4 * n * (n + width) + WORK_PANELS * 8 * n * width
    if need > memory:
        raise InputError(
            f"memory of {memory / 2**30:.2f} GiB for the Cholesky factor of {n:,} stored rows ({need / 2**30:.2f} GiB)",
            expected="a factor that fits into memory: exact leave-one-out needs it",
            hint=f'pass memory="{need / 2**30 + 0.1:.1f}GiB", or leave out rows, or solve without a factor:'
            ' km.kernel_machines.solve(store, y, ridge, solver="cg")',
        )
    panels: list[Tensor] = []
    largest_diagonal = float(store.diagonal().max()) + ridge
    for start in range(0, n, width):
        columns = torch.arange(start, min(start + width, n))
        panel = store.entries(columns, torch.arange(start, n)).T.to(torch.float64, copy=True).contiguous()
        panel[: len(columns)].diagonal().add_(ridge)
        for previous in panels:
            rows = previous[len(previous) - len(panel) :]
            panel.addmm_(rows, rows[: len(columns)].T, alpha=-1)
        L, info = torch.linalg.cholesky_ex(panel[: len(columns)])
        if int(info) or float(L.diagonal().min()) ** 2 <= n * EPS * largest_diagonal:
            raise NumericalError(
                f"stored kernel {store.shape} and ridge {ridge:.3g}",
                expected="K + ridge I positive definite, beyond rounding",
                hint=f"raise the ridge, which must exceed {n * EPS * largest_diagonal:.2g} and the size of negative eigenvalues,"
                " or compute the kernel in float64",
            )
        panel[: len(columns)] = L
        panel[len(columns) :] = torch.linalg.solve_triangular(L.T, panel[len(columns) :], upper=True, left=False)
        panels.append(panel)
    factor = tuple(panels)
    return PanelFactor(ridge, factor, forward_substitution(factor, targets.clone()))
