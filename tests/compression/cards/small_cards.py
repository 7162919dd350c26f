"""Small data and a small card, made without random numbers of a library."""

import functools

import numpy as np

from kernelmem.compression import Card, CardOptions, card

OPTIONS = CardOptions(width=8, dimensions=12, steps=150, batch_size=50, sweeps=1)


@functools.cache
def rows() -> tuple[np.ndarray, np.ndarray]:
    """Three hundred rows of three features, and three classes that follow from the first two."""
    k = np.arange(300)
    x = np.stack([k * 37 % 1009 / 1009, k * 59 % 997 / 997, k * 7 % 13 * 1000.0], 1)
    y = (x[:, 0] > 0.5).astype(np.int64) + (x[:, 1] > 0.7)
    x.setflags(write=False)
    return x, y


@functools.cache
def small_card() -> Card:
    x, y = rows()
    return card((x, y), (x[:20] + 0.01, y[:20]), class_names=["a", "b", "c"], name="small", options=OPTIONS)
