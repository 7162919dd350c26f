"""Checks that weights and optimizer state have changed in recorded steps only."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kernelmem.core.errors import InputError


def refuse_used_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Check that the optimizer has not taken steps yet, whose gradients would act on the recorded steps.

    Raises:
        InputError: its state, ``state`` by parameter name and name of the state, is not the initial one.
    """
    for name, values in state.items():
        if "momentum_buffer" in values or float(values.get("step", torch.zeros(())).max()) > 0:
            raise InputError(
                f"an optimizer that has already taken steps ({type(optimizer).__name__} with the state"
                f" {', '.join(values)} of {name})",
                expected="an optimizer without momentum from gradients that the run does not hold",
                hint="make a new optimizer when recording starts, or record from the first step",
            )


def check_unchanged(
    parameters: Mapping[str, nn.Parameter], state: dict[str, Tensor] | None, n_steps: int
) -> dict[str, Tensor]:
    """Check that the parameters are those in ``state``, after ``n_steps`` recorded steps, and return ``state``.

    Raises:
        InputError: a parameter has changed, or ``state`` is None: the model differs from the last recorded step.
    """
    if state is None:
        raise InputError(
            f"model or optimizer state that differs from the last recorded step (step {n_steps})",
            expected="the state after the last recorded step",
            hint="call recorder.restore() before the first step: it returns the index of the next step",
        )
    for name, parameter in parameters.items():
        if not torch.equal(parameter, state[name]):
            raise InputError(
                f"parameter {name}, which has changed since the last recorded step (step {n_steps})",
                expected="weights that change only in recorder.step",
                hint="call recorder.step(index, x, y) instead of optimizer.step(), and load other weights outside the with"
                " block; recorder.restore() returns to the last kept step",
            )
    return state
