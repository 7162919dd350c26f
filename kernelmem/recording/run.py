"""A recorded run, opened for reading: steps, inputs, kept weights."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np
from torch import Tensor

from kernelmem.core.batches import Tree
from kernelmem.core.checks import as_count, check_instance, describe
from kernelmem.core.errors import FileCorruptError, InputError
from kernelmem.recording.storage.average_log import Average
from kernelmem.recording.storage.checkpoints import Checkpoint, read_averaged, read_checkpoint, state_sha256
from kernelmem.recording.storage.header import Header, check_header
from kernelmem.recording.storage.tape import Step, Tape

if TYPE_CHECKING:
    import pandas as pd


class Steps(Sequence[Step]):
    """The steps of a run in order, each read from disk on access."""

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
        """Return step ``index`` (a negative index counts from the end), or a list of steps for a slice.

        Raises:
            IndexError: ``index`` is out of range. FileCorruptError: the step cannot be read.
        """
        if isinstance(index, slice):
            return [self._tape.step(i) for i in range(*index.indices(self._length))]
        return self._tape.step(range(self._length)[index])

    def __repr__(self) -> str:
        return f"Steps({self._length} steps of {self._tape.file.parent})"


def check_run(run: object) -> None:
    """Check that ``run`` is a recorded run, or an object with its interface.

    Raises:
        InputError: it is not.
    """
    if isinstance(run, type) or not all(hasattr(run, name) for name in ("steps", "weights", "kept", "loss")):
        raise InputError(
            f"run={describe(run)} of type {type(run).__name__}",
            expected="a kernelmem.Run",
            hint="pass km.Run.open(directory)",
        )


@dataclass(frozen=True, eq=False, repr=False)
class Run:
    """A run of T steps, as of the time when ``Run.open`` opened it. Reading it never changes the files.

    Attributes:
        path: directory of the run.
        meta: header of the tape: facts about the whole run.
        steps: the T recorded steps, read from disk on access.
        optimizer: class name of the optimizer.
        loss: name of the loss (of a loss module of torch.nn with its options), or "callable:" and the qualified name of a
            callable.
        reduction: "mean" or "sum".
        parameters, buffers: names of parameters and buffers, in the order of ``named_parameters`` and ``named_buffers``.
        kept: step counts t whose weights (after t steps) are on disk, in increasing order.
        tape: the SQLite file of the run.
        averages: updates of averaged weights (EMA, SWA), in order.
    """

    path: Path
    meta: Header
    steps: Steps
    optimizer: str
    loss: str
    reduction: str
    parameters: tuple[str, ...]
    buffers: tuple[str, ...]
    kept: tuple[int, ...]
    tape: Tape
    averages: tuple[Average, ...] = ()

    @classmethod
    def open(cls, path: str | Path) -> "Run":
        """Open the run in directory ``path``; after a crash, up to its last acknowledged step.

        Raises:
            InputError: ``path`` holds no run, or one in a later format. FileCorruptError: the file is not a tape.
        """
        tape = Tape(path)
        meta = tape.meta
        try:
            check_header(meta)
        except (KeyError, TypeError, ValueError) as error:
            raise FileCorruptError(
                f"an unreadable header of {tape.file} ({error})",
                expected="the header that the recorder wrote",
                hint="restore the file from a copy, or record the run again",
            ) from error
        parameters, buffers = (tuple(name for name, *_ in meta[key]) for key in ("parameters", "buffers"))
        options = (meta["optimizer"], meta["loss"], meta["reduction"])
        kept, averages = tuple(tape.checkpoints()), tape.averages()
        return cls(Path(path), meta, Steps(tape), *options, parameters, buffers, kept, tape, averages)

    def __len__(self) -> int:
        return len(self.steps)

    def __reduce__(self):
        return (Run.open, (self.path,))  # a pickle holds the path; opening it again sees the steps recorded since

    def __str__(self) -> str:
        sizes = [math.prod(shape) for _, shape, _ in self.meta["parameters"]]
        dtypes = ", ".join(dict.fromkeys(dtype for *_, dtype in self.meta["parameters"]))
        kept = "all" if len(self.kept) == len(self) + 1 else f"{len(self.kept)} of {len(self) + 1}"
        averages = f", {len(self.averages)} updates of averaged weights" if self.averages else ""
        device = self.meta.get("device", "cpu")
        place = "" if device == "cpu" else f", recorded on {device} ({self.meta.get('device_name') or 'unnamed'})"
        return (
            f"Run of {len(self)} steps in {self.path}{place}\n"
            f"  {self.optimizer}, {self.reduction} of {self.loss.removeprefix('callable:').partition('(')[0]}\n"
            f"  {sum(sizes):,} parameters in {len(sizes)} tensors ({dtypes}), {len(self.buffers)} buffers\n"
            f"  weights kept: {kept}{averages}"
        )

    def __repr__(self) -> str:
        return str(self)

    def to_frame(self) -> "pd.DataFrame":
        """Return a data frame with one row per step.

        Columns: step, batch_size, lr (learning rate of the first parameter group), scale (gradient used over gradient of the
        batch loss), kept (True if the weights after the step are on disk).
        """
        import pandas as pd

        kept = frozenset(self.kept)
        rows = [
            (step.index, len(step.examples), step.groups[0].get("lr"), step.scale, step.index + 1 in kept)
            for step in self.steps
        ]
        return pd.DataFrame(rows, columns=["step", "batch_size", "lr", "scale", "kept"])

    def batch(self, t: int) -> tuple[Tree, Tensor]:
        """Return inputs x (B, ...), a tensor or a tree of tensors, and targets y (B, ...) of the B examples of step ``t``.

        Raises:
            InputError: the step does not exist. FileCorruptError: the inputs cannot be read.
        """
        return self.tape.inputs(self.steps[as_count(t, "t", minimum=-len(self), maximum=len(self) - 1)])

    def weights(self, t: int) -> dict[str, Tensor]:
        """Return a dict from name to parameter or buffer after ``t`` steps, read from disk.

        Raises:
            InputError: these weights were not kept. FileCorruptError: the file is missing or altered.
        """
        return self.checkpoint(t).model

    def checkpoint(self, t: int) -> Checkpoint:
        """Return the checkpoint after ``t`` steps: weights, buffers, optimizer state, random state.

        Raises:
            InputError: these weights were not kept. FileCorruptError: the file is missing or altered.
        """
        check_instance(t, "t", (int, np.integer), hint="count the steps from 0")
        if t not in self.kept:
            raise InputError(
                f"weights after {t} steps of {len(self)}, with keep={self.meta.get('keep')!r}",
                expected=f"one of the {len(self.kept)} steps in run.kept, or 0..{len(self)} through replay",
                hint="iterate over kernelmem.recording.replay(run, model), which recomputes the others",
            )
        checkpoint = read_checkpoint(self.path, t, self.tape.checkpoints()[t])
        model, averaged = self._in_model_order(checkpoint.model), self._in_model_order(checkpoint.averaged)
        return replace(checkpoint, model=model, averaged=averaged)

    def averaged(self) -> dict[str, Tensor]:
        """Return a dict from name to parameter or buffer of the averaged model at the end of the recorder's ``with`` block.

        The parameters are those after the last of ``averages``; buffers may come from ``update_bn`` after it.

        Raises:
            InputError: the run has no averaged weights, or crashed before they were written.
            FileCorruptError: the file is missing or altered.
        """
        if not self.averages:
            raise no_averages(self.path)
        sha256 = self.tape.averaged_file()
        if sha256 is None:
            raise InputError(
                f"the run in {self.path}, which ended before its averaged weights were written",
                expected="a recorder that left its with block after the last average",
                hint="resume the run: Recorder(..., averaged=averaged, resume=True) and restore()",
            )
        return self._in_model_order(read_averaged(self.path, sha256))

    def _in_model_order(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the dict ``state`` with its names in the order of the model's parameters and buffers, others last."""
        # safetensors files are in another order
        positions = {name: position for position, name in enumerate([*self.parameters, *self.buffers])}
        return {name: state[name] for name in sorted(state, key=lambda name: positions.get(name, len(positions)))}

    def verify(self) -> None:
        """Check all hashes: the chain of the tape, every checkpoint, and the weights in it. Reads all files.

        Raises:
            FileCorruptError: names the step or average whose row, inputs or file was altered.
        """
        self.tape.verify()
        for t in self.kept:
            checkpoint = self.checkpoint(t)
            recorded_sha256 = self.steps[t - 1].after if t else self.meta.get("initial")
            if state_sha256(checkpoint.model) != recorded_sha256:
                raise _weights_differ(f"checkpoint of step {t} in {self.path}, whose weights")
            last_update = self.averages[: checkpoint.updates][-1:]
            recorded_sha256 = last_update[0].sha256 if last_update else None
            if checkpoint.updates and self._averaged_parameters_sha256(checkpoint.averaged) != recorded_sha256:
                raise _weights_differ(f"checkpoint of step {t} in {self.path}, whose averaged weights")
        averaged_is_saved = bool(self.averages) and self.tape.averaged_file() is not None
        if averaged_is_saved and self._averaged_parameters_sha256(self.averaged()) != self.averages[-1].sha256:
            raise _weights_differ(f"averaged weights in {self.path}, whose parameters")

    def _averaged_parameters_sha256(self, state: dict[str, Tensor]) -> str:
        """Return the SHA-256 of the parameters in ``state``, a state of the averaged model; buffers are not included."""
        return state_sha256({name: state[name] for name in self.parameters})


def no_averages(path: Path) -> InputError:
    """Return the error for a run without averaged weights."""
    return InputError(
        f"the run in {path}, which has no averaged weights",
        expected="a run whose loop called recorder.average(averaged)",
        hint="call recorder.average(averaged) instead of averaged.update_parameters(model) while recording",
    )


def _weights_differ(description: str) -> FileCorruptError:
    """Return the error for a file whose weights, named by ``description``, are not the recorded ones."""
    return FileCorruptError(
        f"{description} differ from those recorded on the tape",
        expected="the weights that the recorder wrote",
        hint="put the file back from a copy",
    )
