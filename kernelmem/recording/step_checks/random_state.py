"""Temporary states of torch's random generator."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_LOCK = threading.RLock()  # the generator is one per process: a thread must not change it while another one replays


@contextmanager
def random_state(state: Tensor | None) -> Iterator[None]:
    """Set the state of torch's CPU generator to ``state`` (uint8) for a ``with`` block, and restore it afterwards.

    If ``state`` is None, the block starts from the current state. Blocks of several threads run one after the other.
    """
    with _LOCK:
        state_before = torch.get_rng_state()
        try:
            if state is not None:
                torch.set_rng_state(state)
            yield
        finally:
            torch.set_rng_state(state_before)
