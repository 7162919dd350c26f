"""Shifts of images: rotation, translation, permuted pixels. Rows (m, 64) of 8x8 images with values 0..1."""

import numpy as np
import torch
from scipy.ndimage import rotate
from torch import Tensor

from experiments.out_of_distribution.configs import Shift

__all__ = ["changed"]

SIDE = 8
BACK = 45  # degrees, there and back


def changed(x: Tensor, shift: Shift, *, seed: int) -> Tensor:
    """Apply ``shift`` to every row; the seed determines directions, permutations and random pixels.

    The draws are the same for all sizes: an image that is rotated left by 15° is also rotated left by 90°. Pixels from
    outside the image are 0, interpolation is linear.
    """
    rng = np.random.default_rng(seed)
    sides, towards = rng.choice([-1, 1], len(x)), rng.integers(4, size=len(x))
    images = x.double().numpy().reshape(-1, SIDE, SIDE)
    if shift.kind == "rotated":
        result = [_rotated(image, side * shift.size) for image, side in zip(images, sides, strict=True)]
    elif shift.kind == "rotated and back":
        result = [
            _rotated(_rotated(image, side * BACK), -side * BACK) for image, side in zip(images, sides, strict=True)
        ]
    elif shift.kind == "shifted":
        result = [_translated(image, shift.size, turns) for image, turns in zip(images, towards, strict=True)]
    elif shift.kind == "pixels permuted":
        result = [rng.permuted(image.ravel()) for image in images]
    elif shift.kind == "uniform pixels":
        result = rng.uniform(size=images.shape)
    else:
        result = images
    return torch.from_numpy(np.stack(list(result)).reshape(len(x), -1)).to(x.dtype)


def _rotated(image: np.ndarray, degrees: int) -> np.ndarray:
    result = rotate(image, degrees, reshape=False, order=1, mode="grid-constant", cval=0.0)
    return np.clip(result, 0.0, 1.0)


def _translated(image: np.ndarray, pixels: int, turns: int) -> np.ndarray:
    """Shift an image by ``pixels`` in one of four directions: down after ``turns`` quarter turns."""
    turned = np.rot90(image, turns)
    result = np.zeros_like(turned)
    result[pixels:] = turned[: SIDE - pixels]
    return np.rot90(result, -turns)
