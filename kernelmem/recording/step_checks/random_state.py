"""Temporary states of torch's random generator."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from kernelmem.core.models.torch_func import GLOBAL_STATE


@contextmanager
def random_state(state: Tensor | None) -> Iterator[None]:
    """Set the state of torch's CPU generator to ``state`` (uint8) for a ``with`` block, and restore it afterwards.

    If ``state`` is None, the block starts from the current state. Blocks of several threads run one after the other.
    """
    with GLOBAL_STATE:
        state_before = torch.get_rng_state()
        try:
            if state is not None:
                torch.set_rng_state(state)
            yield
        finally:
            torch.set_rng_state(state_before)
