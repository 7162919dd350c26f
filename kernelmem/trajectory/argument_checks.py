"""What every analysis of a run is given, checked before the run is read."""

import math
from typing import Any

from torch import nn

from kernelmem.core.errors import InputError
from kernelmem.trajectory.integration.quadrature import MOST_NODES

__all__ = ["check_place", "check_quadrature", "check_run", "number_of_examples", "read_between"]


def check_run(run: Any, model: Any) -> None:
    """Refuse what is no run or no module, and a run of no step.

    Raises:
        InputError: says how to open a run.
    """
    if not hasattr(run, "steps"):  # what reads a run need not be one
        raise InputError(
            f"run of type {type(run).__name__}", expected="a kernelmem.Run", hint="pass km.Run.open(directory)"
        )
    if len(run) == 0:
        raise InputError("a run of no step", expected="at least one", hint="record a step")
    if not isinstance(model, nn.Module):
        raise InputError(f"model of type {type(model).__name__}", expected="a torch.nn.Module", hint="wrap it in one")


def check_quadrature(tolerance: Any, order: Any) -> None:
    """Refuse a tolerance that nothing meets, and a number of nodes that is none.

    Raises:
        InputError: names the argument.
    """
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not 0 <= tolerance < math.inf:
        raise InputError(
            f"tolerance={tolerance!r}",
            expected="a number >= 0: the largest residual (0: as small as rounding lets it be)",
            hint="leave it out",
        )
    if order is not None and (isinstance(order, bool) or not isinstance(order, int) or not 1 <= order <= MOST_NODES):
        raise InputError(
            f"order={order!r}", expected=f"a whole number of nodes, 1..{MOST_NODES}, or None", hint="leave it out"
        )


def read_between(between: Any, T: int) -> tuple[int, int]:
    """The steps (a, b) after which the change begins and ends; None: all T.

    Raises:
        InputError: not two whole numbers 0 <= a <= b <= T.
    """
    if between is None:
        return 0, T
    ends = list(between) if isinstance(between, tuple | list) else []
    whole = len(ends) == 2 and all(isinstance(t, int) and not isinstance(t, bool) for t in ends)
    if not whole or not 0 <= ends[0] <= ends[1] <= T:
        raise InputError(
            f"between={between!r}",
            expected=f"two whole numbers of steps (a, b), 0 <= a <= b <= {T}",
            hint="count steps from 0: (0, 5) is what the first five did",
        )
    return ends[0], ends[1]


def number_of_examples(data: Any, met: int) -> int:
    """How many training examples there are, by ``data`` (x, y); None: the ``met`` ones.

    Raises:
        InputError: no pair, or fewer examples than the run met.
    """
    if data is None:
        return met
    if not isinstance(data, tuple | list) or len(data) != 2 or not hasattr(data[1], "__len__"):
        raise InputError(
            f"data of type {type(data).__name__}", expected="a pair (x, y)", hint="pass data=(x_train, y_train)"
        )
    if len(data[1]) < met:
        raise InputError(
            f"data of {len(data[1])} examples for a run that met example {met - 1}",
            expected="all training examples, in the order of the recorded indices",
            hint="pass the data that the run was trained on, or data=None",
        )
    return len(data[1])


def check_place(row: int, output: int, m: int, k: int) -> None:
    """Refuse a row or an output that a result has not; negative ones count from the end.

    Raises:
        InputError: names it.
    """
    for name, value, size in (("row", row, m), ("output", output, k)):
        if not -size <= value < size:
            raise InputError(
                f"{name}={value} of a result for {m} rows and {k} outputs",
                expected=f"0..{size - 1}",
                hint="count from 0, in the order of x",
            )
