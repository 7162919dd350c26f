"""Find the point from which an interrupted run can resume: its last checkpoint, or the current model and optimizer."""

from bisect import bisect_right
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from kernelmem.core.errors import InputError
from kernelmem.recording.averaging import AverageTracker
from kernelmem.recording.storage.checkpoints import Checkpoint, read_checkpoint
from kernelmem.recording.storage.tape import Tape


def last_whole_checkpoint(directory: Path, tape: Tape) -> tuple[int, Checkpoint]:
    """Return step and content of the last checkpoint that includes all averages of its step.

    A checkpoint may have been written before an average that followed the same step.

    Raises:
        FileCorruptError: the checkpoint is missing or altered.
    """
    average_steps = [average.after_steps for average in tape.averages()]
    kept = tape.checkpoints()
    for step in sorted(kept, reverse=True):
        checkpoint = read_checkpoint(directory, step, kept[step])
        if checkpoint.updates == bisect_right(average_steps, step):
            return step, checkpoint
    return 0, read_checkpoint(directory, 0, kept[0])


def matches_last_step(
    directory: Path,
    tape: Tape,
    model: Mapping[str, Tensor],
    optimizer: Mapping[str, Mapping[str, Tensor]],
    averaging: AverageTracker | None,
) -> bool:
    """Return True if model, optimizer and averaged model are in the state after the last recorded step.

    ``averaging`` then accepts its current state.

    Raises:
        InputError: no averaged model for a run that has one.
    """
    averages = tape.averages()
    if averages and averaging is None:
        raise InputError(
            f"no averaged model for the run in {directory}, which has averaged weights",
            expected="averaged=, an AveragedModel of the model",
            hint="pass the averaged model: restore() puts it in its recorded state",
        )
    kept = tape.checkpoints()
    if len(tape) not in kept or not (averaging is None or averaging.matches(averages)):
        return False
    last = read_checkpoint(directory, len(tape), kept[len(tape)])
    names = {**optimizer, **last.optimizer}
    same_optimizer = all(_equal(optimizer.get(name, {}), last.optimizer.get(name, {})) for name in names)
    if not (same_optimizer and _equal(model, last.model)):
        return False
    if averaging is not None:
        averaging.accept(averages)
    return True


def _equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())
