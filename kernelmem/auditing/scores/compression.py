"""Account of the training labels in bits, with a control that must be zero."""

from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from kernelmem.auditing.data_checks import AuditInputs
from kernelmem.auditing.schema import Compression, RowFinding, RowTable
from kernelmem.compression import account
from kernelmem.core.errors import KernelmemError

# A network that never saw the labels has d bits of them with probability at most 2^−d: .001
LARGEST_NULL = 10.0


@dataclass(frozen=True)
class LabelBits:
    """Account of the training labels, with the bits of each row.

    Attributes:
        account: plain values.
        left_out: (n,) bits of each label by the other rows; NaN if there is no number.
        memorized: (n,) bits of each label that only the row itself and the network have; NaN if there is no number.
    """

    account: Compression
    left_out: np.ndarray
    memorized: np.ndarray

    def added_to(self, table: RowTable) -> RowTable:
        """Return the row table with these bits."""
        return replace(table, left_out_bits=self.left_out, memorized_bits=self.memorized)

    def added_to_findings(self, findings: tuple[RowFinding, ...]) -> tuple[RowFinding, ...]:
        """Return the findings with the memorized bits of their rows."""
        bits = [self.memorized[finding.index] for finding in findings]
        return tuple(
            replace(finding, memorized_bits=None if np.isnan(value) else float(value))
            for finding, value in zip(findings, bits, strict=True)
        )


def label_bits(model: nn.Module, inputs: AuditInputs, *, seed: int, memory: int | str) -> LabelBits:
    """Account for the training labels; the untrained network is reference and control.

    Cost: the kernel of the n training rows for a re-initialized network, one eigendecomposition and a few Cholesky
    factorizations.
    """
    n = len(inputs.data.y_train)
    missing = np.full(n, np.nan)
    try:
        result = account(
            model, (inputs.rows[0].tree, inputs.data.y_train), forward=inputs.forward, seed=seed, memory=memory,
            progress=False,
        )  # fmt: skip
    except KernelmemError as error:
        return LabelBits(Compression("not run", f"Not run: {error}"), missing, missing)
    if not result.estimable:
        return LabelBits(Compression("not estimable", result.sentence, result.reference), missing, missing)
    nulls = tuple((name, float(bits)) for name, bits in result.nulls.items())
    failed = [f"{name}: {bits:,.0f} bits" for name, bits in nulls if not abs(bits) <= LARGEST_NULL]
    if failed or not nulls:
        sentence = f"No number: a control that must be zero is not ({'; '.join(failed) or 'it was not computed'})."
        return LabelBits(Compression("control failed", sentence, result.reference, nulls=nulls), missing, missing)
    return LabelBits(
        Compression(
            "estimated",
            result.sentence,
            result.reference,
            uniform=result.uniform,
            online=result.online,
            left_out=result.left_out,
            network=result.network,
            memorized=result.memorized,
            noise_rate=result.noise_rate,
            noise_rate_error=result.noise_rate_error,
            noise=result.noise,
            nulls=nulls,
        ),
        result.left_out_rows.numpy(),
        result.memorized_rows.numpy(),
    )
