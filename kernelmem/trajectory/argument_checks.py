"""Checks of the arguments that every analysis of a recorded run takes."""

from collections.abc import Callable, Sized

from torch import nn

from kernelmem.core.errors import InputError
from kernelmem.core.options import Progress, as_progress


def check_run(run: object, model: object) -> None:
    """Validate ``run`` (a non-empty Run) and ``model`` (an nn.Module).

    Raises:
        InputError: says how to open a run.
    """
    steps = getattr(run, "steps", None)  # anything that reads like a Run will do
    if steps is None:
        raise InputError(
            f"run of type {type(run).__name__}", expected="a kernelmem.Run", hint="pass km.Run.open(directory)"
        )
    if len(steps) == 0:
        raise InputError("run with no recorded steps", expected="at least one step", hint="record a step")
    if not isinstance(model, nn.Module):
        raise InputError(
            f"model of type {type(model).__name__}", expected="a torch.nn.Module", hint="wrap it in a module"
        )


def read_steps(steps: object, T: int) -> tuple[int, int]:
    """Return the numbers (a, b) of steps after which the change begins and ends; None: (0, T).

    Raises:
        InputError: not two whole numbers 0 <= a <= b <= T.
    """
    if steps is None:
        return 0, T
    ends = list(steps) if isinstance(steps, tuple | list) else []
    valid = len(ends) == 2 and all(isinstance(t, int) and not isinstance(t, bool) for t in ends)
    if not valid or not 0 <= ends[0] <= ends[1] <= T:
        raise InputError(
            f"steps={steps!r}",
            expected=f"two whole numbers of steps (a, b), 0 <= a <= b <= {T}",
            hint="count steps from 0: (0, 5) is the change made by the first five",
        )
    return ends[0], ends[1]


def number_of_examples(data: tuple[object, object] | None, n_recorded: int) -> int:
    """Return the number of training examples: the length of ``data`` (x, y), or ``n_recorded`` for None.

    Raises:
        InputError: not a pair, or fewer examples than the run used.
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


def check_place(row: int, output: int, m: int, k: int) -> None:
    """Check that a result of m rows and k outputs has this row and output; negative ones count from the end.

    Raises:
        InputError: names the one that is out of range.
    """
    for name, value, size in (("row", row, m), ("output", output, k)):
        if not -size <= value < size:
            raise InputError(
                f"{name}={value} of a result for {m} rows and {k} outputs",
                expected=f"0..{size - 1}",
                hint="count from 0, in the order of x",
            )


def step_counter(progress: Progress, label: str, total: int) -> Callable[[int], None]:
    """Return a function that adds a number of steps to those done and reports (done, total)."""
    report, done = as_progress(progress, label, "step"), 0

    def advance(steps: int) -> None:
        nonlocal done
        done += steps
        report(done, total)

    return advance
