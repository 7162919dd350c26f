"""Verification: the checks of a predictor as a code, with their metrics."""

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from kernelmem.core.files.result_files import Result

if TYPE_CHECKING:
    import pandas as pd

Status = Literal["passed", "failed", "not run", "note"]


@dataclass(frozen=True)
class Check:
    """One check of a predictor.

    Attributes:
        name: name of the check.
        status: "passed", "failed", "not run", or "note" for a property that is reported and is no fault.
        measured: what was measured.
        expected: what a code has.
        explanation: what a failure means and how to repair it, or why the check was not run; else "".
    """

    name: str
    status: Status
    measured: str
    expected: str
    explanation: str = ""


@dataclass(frozen=True, eq=False, repr=False)
class Verification(Result):
    """Checks of a predictor as a code of n labels; printed as a table.

    Attributes:
        checks: the checks, each with what was measured and what was expected.
        n: number of labels.
        n_classes: number of classes C.
        uniform: n log₂ C, bits of the labels without a predictor.
        ideal: −Σ log₂ p(yᵢ) of the predictions, in bits; NaN if they are no probabilities.
        stream: bits of the stream that was decoded, NaN if there was none.
        rows_decoded: labels that the fresh process decoded one after the other from the stream and the inputs.
        carried: bits of the values that the predictor brings along.
        ok: every check passed (properties that are only reported do not count).
    """

    checks: tuple[Check, ...]
    n: int
    n_classes: int
    uniform: float
    ideal: float
    stream: float
    rows_decoded: int
    carried: int

    @property
    def ok(self) -> bool:
        """Every check passed; a check that was not run did not pass."""
        return all(check.status in ("passed", "note") for check in self.checks)

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of the checks that failed."""
        return tuple(check.name for check in self.checks if check.status == "failed")

    def to_frame(self) -> "pd.DataFrame":
        """Return one row per check."""
        import pandas as pd

        return pd.DataFrame([vars(check) for check in self.checks])

    def __str__(self) -> str:
        counts = [
            f"{sum(check.status == status for check in self.checks)} {status}" for status in ("failed", "not run")
        ]
        verdict = "OK, this is a code" if self.ok else f"NOT verified ({', '.join(c for c in counts if c[0] != '0')})"
        lines = [
            f"Verification of a predictor as a code: {verdict}",
            f"  {self.n:,} labels, {self.n_classes} classes: {self.uniform:,.1f} bits without a predictor,"
            f" {self.ideal:,.1f} by the predictor, {self.stream:,.0f} in the stream",
        ]
        rows = [("check", "result", "measured", "expected")]
        rows += [(check.name, check.status, check.measured, check.expected) for check in self.checks]
        widths = [max(len(row[k]) for row in rows) for k in range(3)]
        for row in rows:
            lines.append("  " + "  ".join(f"{row[k]:<{widths[k]}}" for k in range(3)) + "  " + row[3])
        for check in self.checks:
            if check.explanation:
                lines += textwrap.wrap(
                    f"{check.name}: {check.explanation}", 118, initial_indent="  ", subsequent_indent="    "
                )
        return "\n".join(lines)
