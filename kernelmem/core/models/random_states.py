"""Global random states around a user's function."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def random_states(seed: int) -> Iterator[None]:
    """Seed the random numbers of torch, NumPy and Python, and restore their states afterwards."""
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002  a user's function may use them
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(python_state)
