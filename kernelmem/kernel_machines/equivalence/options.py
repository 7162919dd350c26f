"""Options of the comparison of a trained network with kernel machines."""

import math
from dataclasses import dataclass
from typing import Literal

from kernelmem.core.checks import as_count, as_number, as_seed
from kernelmem.core.errors import InputError
from kernelmem.core.options import MEMORY, as_bytes


@dataclass(frozen=True)
class ComparisonOptions:
    """Options of :func:`kernelmem.compare_kernel_machines`.

    Attributes:
        ridge: ridge of the fits as a multiple of the kernel's largest eigenvalue; "loo": chosen by leave-one-out over rows
            (and outputs, for full kernels).
        n_nodes: number of quadrature nodes per step of the path kernel.
        stride: k >= 1; the path kernel is evaluated on every k-th step, with weight k.
        domingos_rows: number of test rows of the method "domingos".
        ledger_rows: number of test rows of the method "exact_ledger".
        checkpoints: number of steps at which the movement of the kernel is measured; 0: none.
        movement_rows: number of training rows, evenly spaced, on which the movement of the kernel is measured.
        seed: seed of the random permutations of the null controls.
        memory: bytes that kernels may allocate.

    Raises:
        InputError: a number is out of range.
    """

    ridge: float | Literal["loo"] = 1e-8
    n_nodes: int = 1
    stride: int = 1
    domingos_rows: int = 4
    ledger_rows: int = 8
    checkpoints: int = 9
    movement_rows: int = 256
    seed: int = 0
    memory: int | str = MEMORY

    def __post_init__(self) -> None:
        """Check that every option is in its range."""
        if isinstance(self.ridge, str):
            if self.ridge != "loo":
                raise InputError(f"ridge={self.ridge!r}", expected='a number > 0 or "loo"', hint='pass ridge="loo"')
        else:
            as_number(self.ridge, "ridge", exclusive=True, maximum=math.inf)
        for name in ("n_nodes", "stride", "domingos_rows", "ledger_rows", "movement_rows"):
            as_count(getattr(self, name), name)
        as_count(self.checkpoints, "checkpoints", minimum=0)
        as_seed(self.seed)
        as_bytes(self.memory)
