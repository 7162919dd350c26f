"""The spectrum of a kernel: effective dimension, condition, decay; all are exact functions of its eigenvalues."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.checks import ArrayLike, as_square_kernel
from kernelmem.core.errors import InputError, NumericalError

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

__all__ = ["PowerLaw", "Spectrum", "spectrum"]

EPS = torch.finfo(torch.float64).eps
EPS32 = torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class PowerLaw:
    """A power law λ_k ≈ scale · k^(−exponent), least squares in log λ against log k over ranks first..last.

    ``se`` is the standard error of the fitted exponent from the residuals of the fit: it says how far these eigenvalues
    are from one power law, not how they would vary over samples of rows (neighboring eigenvalues are not independent).
    """

    exponent: float
    se: float
    scale: float
    first: int
    last: int


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Eigenvalues of one kernel matrix; all figures are exact functions of them, without sampling.

    Attributes:
        eigenvalues: (n,) float64, decreasing, >= 0; negative ones, which are rounding, are set to 0.
        rounding: eigenvalues up to here are indistinguishable from 0: max(n eps λ_max, −2 λ_min), eps that of the
            kernel's dtype.
    """

    eigenvalues: Tensor = field(repr=False)
    rounding: float

    @property
    def trace(self) -> float:
        """The trace of K, Σ_k λ_k."""
        return float(self.eigenvalues.sum())

    @property
    def rank(self) -> int:
        """Number of eigenvalues above ``rounding``."""
        return int((self.eigenvalues > self.rounding).sum())

    def condition(self, ridge: float = 0.0) -> float:
        """Condition number (λ_max + ridge) / (λ_min + ridge) of K + ridge I; infinite if that is singular.

        Raises:
            InputError: ridge not a finite number >= 0.
        """
        least = float(self.eigenvalues[-1])
        floor = as_number(ridge, "ridge") + (least if least > self.rounding else 0.0)
        return (float(self.eigenvalues[0]) + ridge) / floor if floor > 0 else float("inf")

    def effective_dimension(self, ridge: float) -> float:
        """Compute d_eff = tr K (K + ridge I)⁻¹ = Σ_k λ_k / (λ_k + ridge), between 0 and n; at ridge 0 it is the rank.

        It is the trace of the hat matrix of kernel ridge with K + ridge I (not n ridge): its degrees of freedom. A ridge
        below ``rounding`` counts rounding as dimensions: there the figure is of the matrix, not of the kernel.

        Raises:
            InputError: ridge not a finite number >= 0.

        Source: Hastie and Tibshirani 1990; Zhang 2005; Caponnetto and De Vito 2007.
        """
        ridge = as_number(ridge, "ridge")
        if ridge == 0:
            return float(self.rank)
        return float((self.eigenvalues / (self.eigenvalues + ridge)).sum())

    def decay(self, *, first: int = 1, last: int | None = None) -> PowerLaw:
        """Fit log λ_k = log scale − exponent log k over ranks k = first..last (from 1, both included).

        ``last=None`` ends at half the rank, or at ``first + 2`` if that is later: the smallest eigenvalues of a finite
        sample bend below those of the population. The range is part of the result. It is never chosen by the fit.

        Raises:
            InputError: fewer than three ranks, or ranks beyond the numerical rank.
        """
        last = max(self.rank // 2, first + 2) if last is None else last
        if not (first >= 1 and first + 2 <= last <= self.rank):
            raise InputError(
                f"ranks {first}..{last} of a kernel of numerical rank {self.rank}",
                expected="at least three ranks, from 1 to the numerical rank",
                hint="choose the range where .plot() shows a straight line",
            )
        rank = np.log(np.arange(first, last + 1))
        value = self.eigenvalues[first - 1 : last].log().cpu().numpy()
        away = rank - rank.mean()
        slope = float(away @ value / (away @ away))
        level = float(value.mean() - slope * rank.mean())
        residual = value - level - slope * rank
        se = float(np.sqrt(residual @ residual / (len(rank) - 2) / (away @ away)))
        return PowerLaw(-slope, se, float(np.exp(level)), first, last)

    def to_frame(self) -> "pandas.DataFrame":
        """One row for each eigenvalue, by rank from 1: eigenvalue, cumulative share of the trace, above rounding."""
        import pandas

        values = self.eigenvalues.cpu().numpy()
        share = values.cumsum() / (values.sum() or 1.0)
        frame = pandas.DataFrame({"eigenvalue": values, "cumulative": share, "above_rounding": values > self.rounding})
        frame.index = pandas.RangeIndex(1, len(values) + 1, name="rank")
        return frame

    def plot(self) -> "Figure":
        """Eigenvalues against rank on logarithmic axes, with the rounding level and the default :meth:`decay` fit."""
        from kernelmem.plotting.spectrum import spectrum_figure  # matplotlib is slow to import

        return spectrum_figure(self.eigenvalues, self.rounding, fit=self.decay() if self.rank >= 3 else None)


def spectrum(kernel: ArrayLike) -> Spectrum:
    """Compute the eigenvalues of a kernel matrix K: (n, n) tensor or array, in float64 on its device.

    Raises:
        InputError: not square, NaN.
        NumericalError: asymmetric, or indefinite: an eigenvalue below −n eps(float32) λ_max (kernels often come from
            float32).

    Cost: 4/3 n³ operations, n² memory beside the kernel; ``km.ntk_operator`` gives the largest few of a kernel that
    is too large to form.

    >>> found = spectrum(torch.diag(torch.tensor([4.0, 1.0, 1.0])))
    >>> found.eigenvalues.tolist(), found.trace, found.rank, found.condition()
    ([4.0, 1.0, 1.0], 6.0, 3, 4.0)
    >>> found.effective_dimension(1.0)  # 4/5 + 1/2 + 1/2
    1.8
    """
    K = as_square_kernel(kernel)
    values = torch.linalg.eigvalsh(K).flip(0)
    most, least = float(values.abs().max()), float(values[-1])
    if least < -len(K) * EPS32 * most:
        raise NumericalError(
            f"kernel of shape {tuple(K.shape)} with eigenvalues from {least:.3g} to {float(values[0]):.3g}",
            expected="a positive semidefinite matrix",
            hint="check that it is a kernel of rows with themselves (a similarity or a distance need not be one)",
        )
    rounding = max(len(K) * _rounding(kernel) * most, -2 * least)
    return Spectrum(values.clamp_min(0), rounding)


def _rounding(kernel: ArrayLike) -> float:
    if isinstance(kernel, Tensor):
        return torch.finfo(kernel.dtype).eps if kernel.is_floating_point() else EPS
    dtype = np.asarray(kernel).dtype
    return float(np.finfo(dtype).eps) if dtype.kind == "f" else EPS
