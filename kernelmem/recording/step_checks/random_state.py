"""States of torch's random generators: that of the CPU, followed by that of the device where a model runs."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from kernelmem.core.errors import InputError
from kernelmem.core.models.torch_func import GLOBAL_STATE

CPU = torch.device("cpu")


def get_random_state(device: torch.device) -> Tensor:
    """Return the state of torch's CPU generator, and after it that of the generator of ``device``: (n,) uint8."""
    state = torch.get_rng_state()
    if device.type == "cpu":
        return state
    return torch.cat([state, torch.get_device_module(device).get_rng_state(device)])


def set_random_state(state: Tensor, device: torch.device) -> None:
    """Set the generators to ``state``, as :func:`get_random_state` returned it on a device of the same type.

    Raises:
        InputError: the state is that of another type of device, whose random numbers ``device`` cannot draw.
    """
    n_cpu, current = len(torch.get_rng_state()), get_random_state(device)
    if len(state) != len(current):
        raise InputError(
            f"random numbers that were recorded on {'the CPU' if len(state) == n_cpu else 'an accelerator'}, to be drawn"
            f" again on {'the CPU' if device.type == 'cpu' else device}",
            expected="a pass on the type of device that the run was recorded on",
            hint="move the model there; ledgers compute on the CPU: for them, record models with dropout on the CPU",
        )
    torch.set_rng_state(state[:n_cpu].clone())
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state[n_cpu:].clone(), device)


@contextmanager
def random_state(state: Tensor | None, device: torch.device = CPU) -> Iterator[None]:
    """Set the state of torch's generators to ``state`` (uint8) for a ``with`` block, and restore it afterwards.

    If ``state`` is None, the block starts from the current state. Blocks of several threads run one after the other.
    """
    with GLOBAL_STATE:
        state_before = get_random_state(device)
        try:
            if state is not None:
                set_random_state(state, device)
            yield
        finally:
            set_random_state(state_before, device)
