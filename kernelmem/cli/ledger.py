"""``kernelmem ledger verify RUN``: a recorded run and its saved ledger, checked from the files alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from kernelmem.ground.errors import FileCorruptError
from kernelmem.path.ledger import Ledger
from kernelmem.runs.run import Run

__all__ = ["LedgerCommand"]


@dataclass(frozen=True)
class LedgerCommand:
    """Check a recorded run: every hash of its tape and weights, and that the lines of its ledgers add up."""

    action: Annotated[Literal["verify"], tyro.conf.Positional]
    """What to do."""
    run_directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Directory that kernelmem.Recorder has written; ledgers are its *.safetensors files."""

    def run(self) -> None:
        """Carry it out."""
        recorded = Run.open(self.run_directory)
        recorded.verify()
        print(
            f"{self.run_directory}: {len(recorded):,} steps, {len(recorded.kept):,} checkpoints, every hash as written"
        )
        for path in sorted(self.run_directory.glob("*.safetensors")):
            ledger = Ledger.load(path)
            if ledger.tape != recorded.tape.head:
                raise FileCorruptError(
                    f"ledger {path.name} of another run, or of this one before it was altered",
                    expected="the hash that the tape ends with",
                    do="compute the ledger of this run again",
                )
            m, n, k = ledger.contributions.shape
            residual = ledger.recomputed_residual()
            print(f"{path.name}: {m} rows, {k} outputs, {n:,} examples; largest residual {residual:.2g}")
