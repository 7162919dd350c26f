"""Solver result: dual coefficients, status code, residual, condition number."""

from dataclasses import dataclass
from enum import StrEnum

from torch import Tensor

from kernelmem.core.errors import NumericalError
from kernelmem.core.files.result_files import Result


class Code(StrEnum):
    """Status code of a solve; ``meaning`` explains it in one sentence."""

    solved = "solved"
    jittered = "jittered"
    conditionally_positive = "conditionally_positive"
    singular = "singular"
    approximate = "approximate"
    not_converged = "not_converged"
    indefinite = "indefinite"
    asymmetric = "asymmetric"
    not_finite = "not_finite"

    @property
    def meaning(self) -> str:
        """The sentence that explains the code."""
        return _MEANINGS[self]

    @property
    def usable(self) -> bool:
        """True if the coefficients may be used; the code then says which system they solve."""
        return self not in _REFUSED


_REFUSED = (Code.not_converged, Code.indefinite, Code.asymmetric, Code.not_finite)
_MEANINGS = {
    Code.solved: "(K + ridge I) a = y is solved as given",
    Code.jittered: "a jitter within the allowed size was added to the diagonal",
    Code.conditionally_positive: "the kernel is positive only on zero-sum vectors; solved as given, by LDLᵀ",
    Code.singular: "K + ridge I is singular up to rounding; the least-norm solution above rounding",
    Code.approximate: "the solution over landmarks alone, not that of the full system",
    Code.not_converged: "the iterations ended before the residual was small enough",
    Code.indefinite: "the kernel has negative eigenvalues beyond rounding",
    Code.asymmetric: "the kernel is not symmetric",
    Code.not_finite: "the kernel holds NaN or infinite values",
}


@dataclass(frozen=True, eq=False, repr=False)
class Solution(Result):
    """Dual coefficients a of (K + ridge I) a = y with their diagnostics.

    Attributes:
        coefficients: shaped like the targets, (n,) or (n, C), float64; NaN if the kernel was rejected.
        code: status code that states how the solve ended.
        residual: relative residual |(K + ridge I) a − y| / |y|; with sample weights, that of the weighted system.
        condition: estimate of the condition number of K + ridge I; NaN if nothing was factorized.
        iterations: products with the kernel used by the iterations; 0 for a direct solve.
        solver: the solver that produced the coefficients.
        jitter: number added to the diagonal in addition to the ridge.
        detail: numbers that explain the code, such as eigenvalues and row numbers.
    """

    coefficients: Tensor
    code: Code
    residual: float
    condition: float
    iterations: int = 0
    solver: str = "cholesky"
    jitter: float = 0.0
    detail: str = ""

    def require(self) -> "Solution":
        """Return the solution if it is usable.

        Raises:
            NumericalError: the kernel was rejected, or the iterations did not converge.
        """
        if self.code.usable:
            return self
        raise NumericalError(f"{self.code.meaning} ({self.detail})", expected=_EXPECTED, hint=_HINTS[self.code])

    def __str__(self) -> str:
        n, C = (*self.coefficients.shape, 1)[:2]
        iterations = f", {self.iterations} iterations" if self.iterations else ""
        jitter = f", jitter {self.jitter:.3g}" if self.jitter else ""
        lines = [
            f"{self.code.value}: {self.code.meaning}",
            f"{n:,} rows, {C} output{'s' * (C != 1)}, by {self.solver}{iterations}{jitter}:"
            f" relative residual {self.residual:.2g}, condition {self.condition:.2g}",
        ]
        return "\n".join([*lines, self.detail] if self.detail else lines)


_EXPECTED = "a symmetric, finite kernel that is positive semidefinite up to float32 rounding, or on zero-sum vectors"
_HINTS = {
    Code.not_converged: "raise max_iter, rank or the ridge, or use a direct solver",
    Code.indefinite: "check that it is a kernel of rows with themselves; compute it in float64 and eval mode",
    Code.asymmetric: "compute both sides on the same rows, in eval mode",
    Code.not_finite: "remove or impute these rows; if they come from a model, it has diverged",
}
