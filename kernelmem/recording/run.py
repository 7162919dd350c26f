"""A recorded run, read: its steps, its inputs, the weights that were kept."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

from torch import Tensor

from kernelmem.core.errors import FileCorruptError, InputError
from kernelmem.recording.storage.average_log import Average
from kernelmem.recording.storage.checkpoints import Checkpoint, read_averaged, read_checkpoint, state_sha256
from kernelmem.recording.storage.tape import Step, Tape

__all__ = ["Run", "Steps"]


class Steps(Sequence[Step]):
    """The steps of a tape in order, each read when it is asked for."""

    def __init__(self, tape: Tape) -> None:
        self._tape = tape
        self._length = len(tape)

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Step: ...
    @overload
    def __getitem__(self, index: slice) -> list[Step]: ...
    def __getitem__(self, index: int | slice) -> Step | list[Step]:
        """Step ``index`` (negative: from the end), or a list of steps.

        Raises:
            IndexError: beyond the ends. FileCorruptError: the row cannot be read.
        """
        if isinstance(index, slice):
            return [self._tape.step(i) for i in range(*index.indices(self._length))]
        return self._tape.step(range(self._length)[index])


@dataclass(frozen=True, eq=False)
class Run:
    """A run of T steps as it was when it was opened. ``Run.open`` makes it; nothing here changes the files."""

    path: Path
    meta: dict[str, Any]  # the header of the tape
    steps: Steps
    optimizer: str  # class name
    loss: str  # name; "callable:..." of a callable
    reduction: str  # "mean" or "sum"
    parameters: tuple[str, ...]  # in the order of named_parameters
    buffers: tuple[str, ...]  # in the order of named_buffers
    kept: tuple[int, ...]  # t where the weights after t steps are on disk, in order
    tape: Tape
    averages: tuple[Average, ...] = ()  # the updates of averaged weights (EMA, SWA), in order

    @classmethod
    def open(cls, path: str | Path) -> "Run":
        """Open the run in directory ``path``; of a crashed process, up to its last acknowledged step.

        Raises:
            InputError: no run there, or one in a later format. FileCorruptError: not a tape.
        """
        tape = Tape(path)
        meta = tape.meta
        try:
            parameters, buffers = (tuple(name for name, *_ in meta[key]) for key in ("parameters", "buffers"))
            facts = (meta["optimizer"], meta["loss"], meta["reduction"])
        except (KeyError, TypeError, ValueError) as error:
            raise FileCorruptError(
                f"{tape.file}, its header ({error})", expected="what the recorder wrote", hint="record the run again"
            ) from error
        kept, averages = tuple(tape.checkpoints()), tape.averages()
        return cls(Path(path), meta, Steps(tape), *facts, parameters, buffers, kept, tape, averages)

    def __len__(self) -> int:
        return len(self.steps)

    def batch(self, t: int) -> tuple[Any, Tensor]:
        """The inputs x (B, ...), tensor or tree, and targets y (B, ...) of step ``t``, as handed to the recorder.

        Raises:
            IndexError: no such step. FileCorruptError: they cannot be read.
        """
        return self.tape.inputs(self.steps[t])

    def weights(self, t: int) -> dict[str, Tensor]:
        """Parameters and buffers after ``t`` steps, from disk.

        Raises:
            InputError: not kept. FileCorruptError: the file is missing or altered.
        """
        return self.checkpoint(t).model

    def checkpoint(self, t: int) -> Checkpoint:
        """All that was kept after ``t`` steps: weights, buffers, optimizer state, random state.

        Raises:
            InputError: not kept. FileCorruptError: the file is missing or altered.
        """
        if t not in self.kept:
            raise InputError(
                f"weights after {t} steps of {len(self)}, with keep={self.meta.get('keep')!r}",
                expected=f"one of the {len(self.kept)} steps in run.kept, or 0..{len(self)} through replay",
                hint="iterate over kernelmem.recording.replay.replay(run, model), which recomputes the others",
            )
        found = read_checkpoint(self.path, t, self.tape.checkpoints()[t])
        return replace(found, model=self._ordered(found.model), averaged=self._ordered(found.averaged))

    def averaged(self) -> dict[str, Tensor]:
        """Parameters and buffers of the averaged model, as they were when the recorder was left.

        The parameters are those after the last of ``averages``; buffers may be of ``update_bn`` after it.

        Raises:
            InputError: a run without averages, or one that ended (a crash) before they were written.
            FileCorruptError: the file is missing or altered.
        """
        if not self.averages:
            raise no_averages(self.path)
        sha256 = self.tape.averaged_file()
        if sha256 is None:
            raise InputError(
                f"the run in {self.path}, which ended before its averaged weights were written",
                expected="a recorder that left its with block after the last average",
                hint="go on with the run: Recorder(..., averaged=averaged, resume=True) and restore()",
            )
        return self._ordered(read_averaged(self.path, sha256))

    def _ordered(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        order = {name: i for i, name in enumerate([*self.parameters, *self.buffers])}  # a file has one of its own
        return {name: state[name] for name in sorted(state, key=lambda name: order.get(name, len(order)))}

    def verify(self) -> None:
        """Compare all hashes: the chain of the tape, every checkpoint, and the weights in it. Reads all files.

        Raises:
            FileCorruptError: names the step or average whose row, inputs or file are not what was written.
        """
        self.tape.verify()
        for t in self.kept:
            found = self.checkpoint(t)
            after = self.steps[t - 1].after if t else self.meta.get("initial")
            if state_sha256(found.model) != after:
                raise _altered(f"checkpoint of step {t} in {self.path}, whose weights")
            last = self.averages[: found.updates][-1:]
            if found.updates and self._averaged_sha256(found.averaged) != (last[0].sha256 if last else None):
                raise _altered(f"checkpoint of step {t} in {self.path}, whose averaged weights")
        written = bool(self.averages) and self.tape.averaged_file() is not None
        if written and self._averaged_sha256(self.averaged()) != self.averages[-1].sha256:
            raise _altered(f"averaged weights in {self.path}, whose parameters")

    def _averaged_sha256(self, state: dict[str, Tensor]) -> str:
        return state_sha256({name: state[name] for name in self.parameters})


def no_averages(path: Path) -> InputError:
    """The error for a run without averaged weights."""
    return InputError(
        f"the run in {path}, which has no averaged weights",
        expected="a run whose loop called recorder.average(averaged)",
        hint="record it so, in place of averaged.update_parameters(model)",
    )


def _altered(what: str) -> FileCorruptError:
    return FileCorruptError(
        f"{what} are not those of the tape",
        expected="the weights that the recorder wrote",
        hint="put the file back from a copy",
    )
