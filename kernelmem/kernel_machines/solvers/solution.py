"""What a solver hands back: coefficients, a code that says how they came about, and how good they are."""

from dataclasses import dataclass, field
from enum import StrEnum

from torch import Tensor

from kernelmem.core.errors import NumericalError
from kernelmem.core.result_files import Result

__all__ = ["Code", "Solution"]


class Code(StrEnum):
    """How a solve ended. The code is the message; ``meaning`` says it at length."""

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
        """One sentence on what the code says of the coefficients."""
        return _MEANINGS[self]

    @property
    def usable(self) -> bool:
        """Whether the coefficients may be used: the code then says of which system they are the solution."""
        return self not in _REFUSED


_REFUSED = (Code.not_converged, Code.indefinite, Code.asymmetric, Code.not_finite)
_MEANINGS = {
    Code.solved: "(K + ridge I) a = y is solved as given",
    Code.jittered: "a jitter that was allowed was added to the diagonal",
    Code.conditionally_positive: "the kernel is positive only on zero-sum vectors; solved as given, by LDLᵀ",
    Code.singular: "K + ridge I is singular up to rounding; the least-norm solution above rounding",
    Code.approximate: "the solution over landmarks alone, not that of the whole system",
    Code.not_converged: "the iterations ended before the residual was small enough",
    Code.indefinite: "the kernel has negative eigenvalues beyond rounding",
    Code.asymmetric: "the kernel is not symmetric",
    Code.not_finite: "the kernel holds NaN or infinite values",
}


@dataclass(frozen=True, eq=False, repr=False)
class Solution(Result):
    """Dual coefficients a of (K + ridge I) a = y, and what is known of them.

    Attributes:
        coefficients: shaped as the targets, (n,) or (n, C), float64; NaN where the system was refused.
        code: how the solve ended.
        residual: |(K + ridge I) a - y| / |y|, measured; with sample weights, of the weighted system.
        condition: estimate of the condition number of K + ridge I; NaN where nothing was factorized.
        iterations: products with the kernel that the iterations took; 0 for a direct solve.
        solver: the solver that gave the coefficients.
        jitter: what was added to the diagonal beside the ridge.
        detail: the figures behind the code: eigenvalues, rows.
    """

    coefficients: Tensor = field(repr=False)
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
            NumericalError: the system was refused, or the iterations did not converge.
        """
        if self.code.usable:
            return self
        raise NumericalError(f"{self.code.meaning} ({self.detail})", expected=_EXPECTED, hint=_REMEDIES[self.code])


_EXPECTED = "a symmetric, finite kernel that is positive semidefinite up to float32 rounding, or on zero-sum vectors"
_REMEDIES = {
    Code.not_converged: "raise max_iterations, rank or the ridge, or use a direct solver",
    Code.indefinite: "check that it is a kernel of rows with themselves; compute it in float64 and eval mode",
    Code.asymmetric: "compute both sides on the same rows, in eval mode",
    Code.not_finite: "remove or impute these rows; if they come from a model, it has diverged",
}
