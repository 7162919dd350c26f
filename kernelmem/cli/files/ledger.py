"""``kernelmem ledger verify RUN``: a recorded run and its saved ledgers, checked from the files alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from kernelmem.cli.options import default_hint

if TYPE_CHECKING:  # torch is slow to import, and --help does not need it
    from kernelmem.recording.run import Run

NOTE = """\
Residual: largest |change of the output - examples - decay - rounding - buffers|
over rows and outputs, recomputed from the file. Outputs and influences are not
recomputed: that needs the model (km.ledger, km.influence)."""


@dataclass(frozen=True)
class LedgerCommand:
    """Verify a recorded run and its ledgers from the files alone. The model is not needed, and nothing is written.

    Checked in the run: the hash chain of the tape (every step, learning rate, batch and input), every checkpoint, and that the
    weights in it are those of its step. Checked in each ledger: its hash, that it belongs to this run in its present state, and
    that its terms add up to the change that it states, and that it is closed; the largest residual is printed. Checked in each
    file of influences: its hash, and that it belongs to this run. Checked in each other file of kernelmem: its hash. The table
    says what was checked. The exit code is 0 if all checks pass, and 2 if one fails; the message names it.
    """

    action: Annotated[Literal["verify"], tyro.conf.Positional]
    """Action: verify is the only one."""
    run_directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Directory that kernelmem.Recorder has written. Its *.safetensors files are the ledgers and influences."""
    ledgers: Annotated[
        tuple[Path, ...], tyro.conf.arg(metavar="FILE [FILE ...]", help_behavior_hint=default_hint("none"))
    ] = ()
    """Ledger files in other directories."""
    tolerance: Annotated[
        float | None, tyro.conf.arg(metavar="SHARE", help_behavior_hint=default_hint("that of the ledger"))
    ] = None
    """Largest residual that passes, as a share of the largest change of an output. By default a ledger passes if it is closed:
    residual and rounding are as small as its tolerance and the types of numbers allow."""

    def run(self) -> None:
        """Verify the run, then every ledger, and print one line per ledger.

        Raises:
            FileCorruptError: a file of the run or a ledger differs from what was written.
            VerificationError: a residual exceeds the tolerance, or a ledger is not closed.
        """
        from kernelmem.core.errors import KernelmemError
        from kernelmem.recording.run import Run

        recorded_run = Run.open(self.run_directory)
        recorded_run.verify()
        print(
            f"{self.run_directory}: {len(recorded_run):,} steps, {len(recorded_run.kept):,} checkpoints, all hashes match"
        )
        paths = list(dict.fromkeys((*sorted(self.run_directory.glob("*.safetensors")), *self.ledgers)))
        if not paths:
            print('It contains no ledger; ledger.save(run.path / "ledger.safetensors") adds one.')
            return
        width = max(len("ledger"), *(len(path.name) for path in paths))
        print(
            f"{'ledger':<{width}}  {'by':<7} {'sources':>7} {'rows':>5} {'outputs':>7} {'residual':>9} {'of change':>9}"
        )
        errors: list[KernelmemError] = []
        for path in paths:
            try:
                print(f"{path.name:<{width}}  {self._check_file(path, recorded_run)}")
            except KernelmemError as error:
                print(f"{path.name:<{width}}  REFUSED")
                errors.append(error)
        print(f"{len(paths) - len(errors)} of {len(paths)} files pass.\n{NOTE}")
        if errors:
            raise errors[0]

    def _check_file(self, path: Path, recorded_run: "Run") -> str:
        """Check one file against the recorded run and return its line of the printed table."""
        from kernelmem.core.errors import VerificationError
        from kernelmem.trajectory.influence.influence import Influence
        from kernelmem.trajectory.ledger.ledger import Ledger

        kind = _kind(path)
        if kind is None and path not in self.ledgers:
            return "NOT CHECKED: kernelmem has not written it"
        if kind == Influence.__name__:
            _check_same_run(path, Influence.load(path).tape, recorded_run)
            return "influences: hash and run match"
        if kind not in (None, Ledger.__name__) and path not in self.ledgers:
            return f"{kind}: hash matches, run not compared"
        ledger = Ledger.load(path)
        _check_same_run(path, ledger.tape, recorded_run)
        m, n, k = ledger.contributions.shape
        residual = ledger.recomputed_residual()
        change = float((ledger.final - ledger.initial).abs().max())
        share = residual / change if change else float(residual > 0)
        if self.tolerance is None and not ledger.closed:
            raise VerificationError(
                f"ledger {path.name}, {'; '.join(ledger.open_terms())}",
                expected="a closed ledger: residual and rounding within their limits",
                hint="compute it with a smaller tolerance, or pass --tolerance to accept a residual",
            )
        if self.tolerance is not None and not share <= self.tolerance:
            raise VerificationError(
                f"ledger {path.name} with a residual of {residual:.2g}, {share:.2g} of the largest change",
                expected=f"at most --tolerance {self.tolerance:g}",
                hint="compute the ledger with a smaller tolerance",
            )
        return f"{ledger.by:<7} {n:>7,} {m:>5,} {k:>7,} {residual:>9.2g} {share:>9.2g}"


def _kind(path: Path) -> str | None:
    """Return the kind of result in a .safetensors file, after checking its hash; None if kernelmem has not written it.

    Raises:
        FileCorruptError: the file cannot be read, or its hash is missing or differs.
    """
    from kernelmem.core.errors import FileCorruptError
    from kernelmem.core.files.hashed_files import READ_ERRORS, WRITER, load_safetensors, read_bytes, reason

    try:
        _, metadata = load_safetensors(read_bytes(path))
    except READ_ERRORS as error:
        raise FileCorruptError(
            f"file {path} ({reason(error)})",
            expected="a ledger as ledger.save has written it",
            hint="compute the ledger again, or remove the file",
        ) from error
    words = next((value.split() for value in metadata.values() if value.startswith(f"{WRITER} ")), [])
    return words[1] if len(words) > 1 else None


def _check_same_run(path: Path, tape: str, recorded_run: "Run") -> None:
    """Raise an error if ``tape`` is not the last hash in the tape of ``recorded_run``.

    ``tape`` is the hash that the result file at ``path`` stores for the run from which it was computed.
    """
    from kernelmem.core.errors import FileCorruptError

    if tape != recorded_run.tape.head:
        raise FileCorruptError(
            f"{path.name} of another run, or of this run before it was modified or resumed (tape hash {tape[:12]})",
            expected=f"the last hash of the tape of this run, {recorded_run.tape.head[:12]}",
            hint="compute the ledger again from this run",
        )
