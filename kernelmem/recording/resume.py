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


def last_complete_checkpoint(directory: Path, tape: Tape) -> tuple[int, Checkpoint]:
    """Return (number of steps t, checkpoint after t steps) for the last checkpoint from which the run can resume.

    A checkpoint is skipped if it was written before an update of the averaged weights that followed the same step,
    because it does not include this update.

    Raises:
        FileCorruptError: a checkpoint is missing or altered.
    """
    average_steps = [average.after_steps for average in tape.averages()]
    checkpoint_hashes = tape.checkpoints()
    for step in sorted(checkpoint_hashes, reverse=True):
        checkpoint = read_checkpoint(directory, step, checkpoint_hashes[step])
        if checkpoint.updates == bisect_right(average_steps, step):
            return step, checkpoint
    return 0, read_checkpoint(directory, 0, checkpoint_hashes[0])


def matches_last_step(
    directory: Path,
    tape: Tape,
    model: Mapping[str, Tensor],
    optimizer: Mapping[str, Mapping[str, Tensor]],
    average_tracker: AverageTracker | None,
) -> bool:
    """Return True if model, optimizer and averaged model are in the state after the last recorded step.

    ``model`` maps names to the current parameters and buffers, ``optimizer`` parameter names to states. If the result is
    True, ``average_tracker`` treats the current averaged model as the recorded one.

    Raises:
        InputError: the run has averaged weights, but no averaged model was passed.
    """
    averages = tape.averages()
    if averages and average_tracker is None:
        raise InputError(
            f"no averaged model for the run in {directory}, which has averaged weights",
            expected="averaged=, an AveragedModel of the model",
            hint="pass the averaged model: restore() puts it in its recorded state",
        )
    checkpoint_hashes = tape.checkpoints()
    if len(tape) not in checkpoint_hashes or not (average_tracker is None or average_tracker.matches(averages)):
        return False
    last_checkpoint = read_checkpoint(directory, len(tape), checkpoint_hashes[len(tape)])
    names = {**optimizer, **last_checkpoint.optimizer}
    optimizer_matches = all(
        _same_tensors(optimizer.get(name, {}), last_checkpoint.optimizer.get(name, {})) for name in names
    )
    if not (optimizer_matches and _same_tensors(model, last_checkpoint.model)):
        return False
    if average_tracker is not None:
        average_tracker.accept(averages)
    return True


def _same_tensors(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Return True if both dicts have the same names and, under each of them, equal tensors."""
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())
