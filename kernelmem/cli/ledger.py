"""``kernelmem ledger verify RUN``: a recorded run and its saved ledgers, checked from the files alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import safetensors
import tyro

from kernelmem.core.errors import FileCorruptError, KernelmemError, VerificationError
from kernelmem.recording.run import Run
from kernelmem.trajectory.influence.influence import Influence
from kernelmem.trajectory.ledger.ledger import Ledger

__all__ = ["LedgerCommand"]

READ = """\
Residual: the largest residual of a row and output, with all lines added up
again: change of the output - examples - decay - rounding - buffers. The hash of
every ledger and that of the run in it were compared. Outputs are not computed
again: that takes the model (km.ledger)."""


@dataclass(frozen=True)
class LedgerCommand:
    """Check a recorded run and its ledgers from the files alone; the model is not needed, nothing is written.

    Of the run: the hash chain of the tape (every step, learning rate, batch and input), every checkpoint, and that the
    weights in it are those of its step. Of each ledger: its own hash, that it belongs to this run as it stands, and that its
    lines add up to the change that it states; the largest residual is printed. Exit code 0: all of that holds; 2: something
    does not, and the message says what.
    """

    action: Annotated[Literal["verify"], tyro.conf.Positional]
    """What to do."""
    run_directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Directory that kernelmem.Recorder has written; ledgers are its *.safetensors files."""
    ledgers: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FILE [FILE ...]")] = ()
    """Ledgers in other places, checked too."""
    tolerance: Annotated[float | None, tyro.conf.arg(metavar="SHARE")] = None
    """Largest residual that passes, as a share of the largest change of an output. Default: it is only printed."""

    def run(self) -> None:
        """Carry it out.

        Raises:
            FileCorruptError: a file of the run or a ledger that is not what was written. VerificationError: a residual
                beyond the tolerance.
        """
        recorded = Run.open(self.run_directory)
        recorded.verify()
        print(
            f"{self.run_directory}: {len(recorded):,} steps, {len(recorded.kept):,} checkpoints, every hash as written"
        )
        paths = [*sorted(self.run_directory.glob("*.safetensors")), *self.ledgers]
        if not paths:
            print('No ledger beside it: ledger.save(run.path / "ledger.safetensors") puts one there.')
            return
        width = max(len("ledger"), *(len(path.name) for path in paths))
        print(
            f"{'ledger':<{width}}  {'by':<7} {'sources':>7} {'rows':>5} {'outputs':>7} {'residual':>9} {'of change':>9}"
        )
        wrong: list[KernelmemError] = []
        for path in paths:
            try:
                print(f"{path.name:<{width}}  {self._checked(path, recorded)}")
            except KernelmemError as error:
                print(f"{path.name:<{width}}  REFUSED")
                wrong.append(error)
        print(READ)
        if wrong:
            raise wrong[0]

    def _checked(self, path: Path, recorded: Run) -> str:
        if _format(path) == f"kernelmem {Influence._format()}":
            _check_run(path, Influence.load(path).tape, recorded)
            return "influence of this run; it has no residual"
        ledger = Ledger.load(path)
        _check_run(path, ledger.tape, recorded)
        m, n, k = ledger.contributions.shape
        residual = ledger.recomputed_residual()
        change = float((ledger.final - ledger.initial).abs().max())
        share = residual / change if change else float(residual > 0)
        if self.tolerance is not None and not share <= self.tolerance:
            raise VerificationError(
                f"ledger {path.name} with a residual of {residual:.2g}, {share:.2g} of the largest change",
                expected=f"at most --tolerance {self.tolerance:g}",
                hint="compute it with a smaller tolerance=",
            )
        return f"{ledger.by:<7} {n:>7,} {m:>5,} {k:>7,} {residual:>9.2g} {share:>9.2g}"


def _format(path: Path) -> str | None:
    try:
        with safetensors.safe_open(path, "pt") as file:
            return (file.metadata() or {}).get("format")
    except (safetensors.SafetensorError, OSError):
        return None  # Ledger.load says why


def _check_run(path: Path, tape: str, recorded: Run) -> None:
    if tape != recorded.tape.head:
        raise FileCorruptError(
            f"{path.name} of another run, or of this one before it was altered or gone on with",
            expected="the hash that the tape ends with",
            hint="compute it again from this run",
        )
