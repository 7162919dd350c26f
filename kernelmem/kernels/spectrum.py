"""Spectrum of a kernel matrix: eigenvalues, trace, condition, effective dimension, decay."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.checks import ArrayLike, as_count, as_number, as_square_kernel
from kernelmem.core.errors import InputError, NumericalError
from kernelmem.core.files.result_files import Result
from kernelmem.kernels.store import KernelStore

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

EPS64 = torch.finfo(torch.float64).eps
EPS32 = torch.finfo(torch.float32).eps


@dataclass(frozen=True, eq=False, repr=False)
class PowerLaw(Result):
    """Power law λ_k ≈ scale · k^(−exponent), fitted by least squares of log λ on log k over ranks first..last.

    Attributes:
        exponent: exponent of the decay, positive for decreasing eigenvalues.
        se: standard error of the exponent from the residuals of the fit. It measures how far these eigenvalues are from
            one power law, not how they vary over samples of examples (neighboring eigenvalues are not independent).
        scale: fitted value at rank 1.
        first: first rank of the fit (ranks start at 1).
        last: last rank of the fit, included.
    """

    exponent: float
    se: float
    scale: float
    first: int
    last: int

    def __str__(self) -> str:
        """Return the fitted power law as text, with the standard error of its exponent."""
        return f"{self.scale:.4g} · k^−{self.exponent:.3f} (± {self.se:.2g}), ranks {self.first} to {self.last}"


@dataclass(frozen=True, eq=False, repr=False)
class Spectrum(Result):
    """Eigenvalues of one kernel matrix; all other quantities are exact functions of them, without sampling.

    Attributes:
        eigenvalues: (n,) float64, decreasing, >= 0; negative ones, which are rounding, are set to 0.
        rounding: eigenvalues up to this value are indistinguishable from 0: max(n eps λ_max, −2 λ_min), with eps of the
            kernel's dtype.
    """

    eigenvalues: Tensor
    rounding: float

    def __str__(self) -> str:
        """Return a text with the size, trace, rank, condition number and largest eigenvalues."""
        n, mean = len(self.eigenvalues), self.trace / len(self.eigenvalues)
        largest = ", ".join(f"{value:.4g}" for value in self.eigenvalues[:5].tolist())
        lines = [
            f"spectrum of a {n:,} x {n:,} kernel",
            f"  trace                {self.trace:.6g} (mean eigenvalue {mean:.4g})",
            f"  largest eigenvalues  {largest}{', ...' if n > 5 else ''}",
            f"  numerical rank       {self.rank:,} of {n:,} (eigenvalues above rounding, {self.rounding:.2g})",
            f"  condition            {self.condition():.4g}",
        ]
        if mean > 0:
            lines.append(f"  effective dimension  {self.effective_dimension(mean):.4g} at ridge = mean eigenvalue")
        if self.rank >= 3:
            lines.append(f"  decay                {self.decay()}")
        return "\n".join(lines)

    @property
    def trace(self) -> float:
        """Trace of K, Σ_k λ_k."""
        return float(self.eigenvalues.sum())

    @property
    def rank(self) -> int:
        """Number of eigenvalues above ``rounding``."""
        return int((self.eigenvalues > self.rounding).sum())

    def condition(self, ridge: float = 0.0) -> float:
        """Compute the condition number (λ_max + ridge) / (λ_min + ridge) of K + ridge I; infinite if that is singular.

        Raises:
            InputError: ridge not a finite number >= 0.
        """
        smallest = float(self.eigenvalues[-1])
        denominator = as_number(ridge, "ridge") + (smallest if smallest > self.rounding else 0.0)
        return (float(self.eigenvalues[0]) + ridge) / denominator if denominator > 0 else float("inf")

    def effective_dimension(self, ridge: float) -> float:
        """Compute d_eff = tr K (K + ridge I)⁻¹ = Σ_k λ_k / (λ_k + ridge), between 0 and n; at ridge 0 it is the rank.

        These are the degrees of freedom of kernel ridge regression with K + ridge I (not n · ridge). A ridge
        below ``rounding`` counts rounding errors as dimensions.

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

        ``last=None`` means half the rank, but at least ``first + 2``: the smallest eigenvalues of a finite sample lie
        below those of the population. The range is part of the result and never chosen by the fit.

        Raises:
            InputError: fewer than three ranks, or ranks beyond the numerical rank.
        """
        first = as_count(first, "first", minimum=0)
        last = max(self.rank // 2, first + 2) if last is None else as_count(last, "last")
        if not (first >= 1 and first + 2 <= last <= self.rank):
            raise InputError(
                f"ranks {first}..{last} of a kernel of numerical rank {self.rank}",
                expected="at least three ranks, from 1 to the numerical rank",
                hint="choose the range where .plot() shows a straight line",
            )
        log_ranks = np.log(np.arange(first, last + 1))
        log_eigenvalues = self.eigenvalues[first - 1 : last].log().cpu().numpy()
        centered_log_ranks = log_ranks - log_ranks.mean()
        slope = float(centered_log_ranks @ log_eigenvalues / (centered_log_ranks @ centered_log_ranks))
        intercept = float(log_eigenvalues.mean() - slope * log_ranks.mean())
        residuals = log_eigenvalues - intercept - slope * log_ranks
        se = float(np.sqrt(residuals @ residuals / (len(log_ranks) - 2) / (centered_log_ranks @ centered_log_ranks)))
        return PowerLaw(-slope, se, float(np.exp(intercept)), first, last)

    def to_frame(self) -> "pandas.DataFrame":
        """Return one row per eigenvalue, by rank from 1: eigenvalue, cumulative share of the trace, above rounding."""
        import pandas

        values = self.eigenvalues.cpu().numpy()
        cumulative_share = values.cumsum() / (values.sum() or 1.0)
        frame = pandas.DataFrame(
            {"eigenvalue": values, "cumulative": cumulative_share, "above_rounding": values > self.rounding}
        )
        frame.index = pandas.RangeIndex(1, len(values) + 1, name="rank")
        return frame

    def plot(self) -> "Figure":
        """Plot eigenvalues against rank on logarithmic axes, with the rounding level and the default :meth:`decay` fit."""
        from kernelmem.plotting.spectrum import spectrum_figure  # matplotlib is slow to import

        return spectrum_figure(self.eigenvalues, self.rounding, fit=self.decay() if self.rank >= 3 else None)


def spectrum(kernel: ArrayLike | KernelStore) -> Spectrum:
    """Compute the eigenvalues of a kernel matrix K, (n, n) tensor, array or KernelStore, in float64 on its device.

    Raises:
        InputError: not square, NaN.
        NumericalError: asymmetric, or indefinite: an eigenvalue below −n eps(float32) λ_max (kernels often come from
            float32).

    Cost: 4/3 n³ operations, n² memory besides the kernel; ``scipy.sparse.linalg.eigsh`` gives the largest
    eigenvalues of ``store.as_scipy()`` and of ``km.ntk_operator(...).as_scipy()``, for kernels larger than memory.

    >>> result = spectrum(torch.diag(torch.tensor([4.0, 1.0, 1.0])))
    >>> result.eigenvalues.tolist(), result.trace, result.rank, result.condition()
    ([4.0, 1.0, 1.0], 6.0, 3, 4.0)
    >>> result.effective_dimension(1.0)  # 4/5 + 1/2 + 1/2
    1.8
    """
    K = as_square_kernel(kernel)
    eigenvalues = torch.linalg.eigvalsh(K).flip(0)
    largest, smallest = float(eigenvalues.abs().max()), float(eigenvalues[-1])
    if smallest < -len(K) * EPS32 * largest:
        raise NumericalError(
            f"kernel of shape {tuple(K.shape)} with eigenvalues from {smallest:.3g} to {float(eigenvalues[0]):.3g}",
            expected="a positive semidefinite matrix",
            hint="pass the kernel of examples with themselves (a similarity or distance matrix can be indefinite)",
        )
    rounding = max(len(K) * _machine_epsilon(kernel) * largest, -2 * smallest)
    return Spectrum(eigenvalues.clamp_min(0), rounding)


def _machine_epsilon(kernel: ArrayLike | KernelStore) -> float:
    """Return the machine epsilon of the kernel's dtype; float64's for integers."""
    if isinstance(kernel, KernelStore):
        return torch.finfo(kernel.dtype).eps
    if isinstance(kernel, Tensor):
        return torch.finfo(kernel.dtype).eps if kernel.is_floating_point() else EPS64
    dtype = np.asarray(kernel).dtype
    return float(np.finfo(dtype).eps) if dtype.kind == "f" else EPS64
