"""Pictures that are changed: turned, moved, scrambled. Rows (m, 64) of 8x8 pictures with values 0..1."""

import numpy as np
import torch
from scipy.ndimage import rotate
from torch import Tensor

from experiments.out_of_distribution.configs import Shift

__all__ = ["changed"]

SIDE = 8
BACK = 45  # degrees, there and back


def changed(x: Tensor, shift: Shift, *, seed: int) -> Tensor:
    """Change every row by ``shift``; the seed decides to which side, which order, which pixels.

    The draws are the same for all sizes: a picture that is turned left by 15° is turned left by 90°, too. What comes in from
    beyond the border is 0, interpolation is linear.
    """
    rng = np.random.default_rng(seed)
    sides, towards = rng.choice([-1, 1], len(x)), rng.integers(4, size=len(x))
    pictures = x.double().numpy().reshape(-1, SIDE, SIDE)
    if shift.kind == "rotated":
        found = [_turned(own, side * shift.size) for own, side in zip(pictures, sides, strict=True)]
    elif shift.kind == "rotated and back":
        found = [_turned(_turned(own, side * BACK), -side * BACK) for own, side in zip(pictures, sides, strict=True)]
    elif shift.kind == "shifted":
        found = [_moved(own, shift.size, turns) for own, turns in zip(pictures, towards, strict=True)]
    elif shift.kind == "pixels permuted":
        found = [rng.permuted(own.ravel()) for own in pictures]
    elif shift.kind == "uniform pixels":
        found = rng.uniform(size=pictures.shape)
    else:
        found = pictures
    return torch.from_numpy(np.stack(list(found)).reshape(len(x), -1)).to(x.dtype)


def _turned(picture: np.ndarray, degrees: int) -> np.ndarray:
    found = rotate(picture, degrees, reshape=False, order=1, mode="grid-constant", cval=0.0)
    return np.clip(found, 0.0, 1.0)


def _moved(picture: np.ndarray, pixels: int, turns: int) -> np.ndarray:
    """Moved down by ``pixels`` as seen after ``turns`` quarter turns: one of four directions."""
    turned = np.rot90(picture, turns)
    found = np.zeros_like(turned)
    found[pixels:] = turned[: SIDE - pixels]
    return np.rot90(found, -turns)
