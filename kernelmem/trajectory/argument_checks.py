"""Checks of the arguments that every analysis of a recorded run takes."""

from collections.abc import Callable, Sized

import numpy as np

from kernelmem.core.checks import check_model, describe
from kernelmem.core.errors import InputError
from kernelmem.core.options import Progress, as_progress
from kernelmem.recording import run as run_module
from kernelmem.recording.run import Run


def check_run(run: Run, model: object) -> None:
    """Validate ``run`` (a non-empty Run) and ``model`` (an nn.Module).

    Raises:
        InputError: ``run`` is not a recorded run or has no steps, or ``model`` is not a module.
    """
    run_module.check_run(run)
    if len(run.steps) == 0:
        raise InputError("run with no recorded steps", expected="at least one step", hint="record a step")
    check_model(model)


def read_steps(steps: object, T: int) -> tuple[int, int]:
    """Validate ``steps=`` and return it as (a, b): the numbers of steps before and after the explained change; None: (0, T).

    Raises:
        InputError: ``steps`` is not a pair of integers with 0 <= a <= b <= T.
    """
    if steps is None:
        return 0, T
    step_range = list(steps) if isinstance(steps, tuple | list) else []
    valid = len(step_range) == 2 and all(isinstance(t, int) and not isinstance(t, bool) for t in step_range)
    if not valid or not 0 <= step_range[0] <= step_range[1] <= T:
        raise InputError(
            f"steps={describe(steps)}",
            expected=f"two whole numbers of steps (a, b), 0 <= a <= b <= {T}",
            hint="count steps from 0: (0, 5) is the change made by the first five",
        )
    return step_range[0], step_range[1]


def number_of_examples(data: tuple[object, object] | None, n_recorded: int) -> int:
    """Return the number of training examples: the length of ``data`` (x, y), or ``n_recorded`` for None.

    Raises:
        InputError: ``data`` is not a pair, or has fewer examples than the run used.
    """
    if data is None:
        return n_recorded
    if not isinstance(data, tuple | list) or len(data) != 2 or not isinstance(data[1], Sized):
        raise InputError(
            f"data of type {type(data).__name__}", expected="a pair (x, y)", hint="pass data=(x_train, y_train)"
        )
    if len(data[1]) < n_recorded:
        raise InputError(
            f"data of {len(data[1])} examples for a run that used example {n_recorded - 1}",
            expected="all training examples, in the order of the recorded indices",
            hint="pass the data that the run was trained on, or data=None",
        )
    return len(data[1])


def check_row_and_output(row_index: int, output_index: int, n_rows: int, n_outputs: int) -> None:
    """Check that the indices of a row and an output are in range; negative indices count from the end, as in Python.

    Raises:
        InputError: an index is out of range; the message names it and the valid range.
    """
    for name, value, size in (("row", row_index, n_rows), ("output", output_index, n_outputs)):
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or not -size <= value < size:
            raise InputError(
                f"{name}={describe(value)} of a result for {n_rows} rows and {n_outputs} outputs",
                expected=f"a whole number 0..{size - 1}",
                hint="count from 0, in the order of x",
            )


def step_counter(progress: Progress, label: str, total: int) -> Callable[[int], None]:
    """Return a function that is called with the number of newly finished steps and reports (finished, total)."""
    report, done = as_progress(progress, label, "step"), 0

    def advance(steps: int) -> None:
        nonlocal done
        done += steps
        report(done, total)

    return advance
