"""Rows of image data as PNG data URIs, embedded in the report."""

import base64
import io

import numpy as np
from PIL import Image

from kernelmem.core.errors import InputError

PREFIX = "data:image/png;base64,"
MIN_SIDE = 96


def png_data_uri(
    array: np.ndarray,
    image_shape: tuple[int, ...],
    *,
    low: float,
    high: float,
    longest_side: int = 160,
) -> str:
    """Encode one row of image data as a PNG data URI; equal arguments give equal bytes.

    Pixels of small images are repeated, so that they stay sharp in print.

    Args:
        array: one row: (H, W), (H, W, 1), (1, H, W), (H, W, 3), (3, H, W), or flat, according to ``image_shape``.
        image_shape: (H, W) for gray, (H, W, 3) for color.
        low: smallest value of the whole data set, drawn as black; values outside are clipped.
        high: largest value of the whole data set, drawn as white.
        longest_side: larger images are shrunk to this many pixels (a report holds dozens).

    Raises:
        InputError: the row does not have this shape; ``low`` and ``high`` are not finite or not in order.

    Example:
        >>> uri = png_data_uri(np.eye(8), (8, 8), low=0.0, high=1.0)
        >>> uri[:30]
        'data:image/png;base64,iVBORw0K'
    """
    pixels = _as_image(np.asarray(array, dtype=np.float64), tuple(image_shape))
    if not (np.isfinite([low, high]).all() and low <= high):
        raise InputError(
            f"low={low}, high={high}",
            expected="finite numbers with low <= high",
            hint="pass the smallest and the largest value of the whole data set",
        )
    brightness = (pixels - low) / (high - low) if high > low else np.zeros_like(pixels)
    image = Image.fromarray(np.rint(255 * np.clip(brightness, 0, 1)).astype(np.uint8))
    if max(image.size) > longest_side:
        # BOX averages whole pixels: no ringing, no values out of range
        image.thumbnail((longest_side, longest_side), Image.Resampling.BOX)
    elif (scale := MIN_SIDE // max(image.size)) > 1:
        # Printers and PDF viewers blur small images despite the style sheet; large pixels stay sharp
        image = image.resize((scale * image.width, scale * image.height), Image.Resampling.NEAREST)
    stream = io.BytesIO()
    image.save(stream, format="PNG", optimize=True)
    return PREFIX + base64.b64encode(stream.getvalue()).decode("ascii")


def _as_image(array: np.ndarray, image_shape: tuple[int, ...]) -> np.ndarray:
    """Return one row as an array of shape ``image_shape``: (H, W) or (H, W, 3).

    The row may be flat or have its channels first or last. An InputError is raised if its size does not fit.
    """
    is_gray = len(image_shape) == 2
    if not (is_gray or (len(image_shape) == 3 and image_shape[2] == 3)) or min(image_shape) < 1:
        raise InputError(
            f"image_shape {image_shape}",
            expected="(H, W) or (H, W, 3)",
            hint="put the channels last; omit a single channel",
        )
    if array.shape == image_shape:
        return array
    channels_first = (1, *image_shape) if is_gray else (3, *image_shape[:2])
    if array.shape == channels_first:
        return array[0] if is_gray else np.moveaxis(array, 0, -1)
    if array.shape in {(*image_shape, 1), (int(np.prod(image_shape)),)}:
        return array.reshape(image_shape)
    raise InputError(
        f"a row of shape {array.shape}",
        expected=f"{image_shape}, {channels_first} or flat ({int(np.prod(image_shape))},)",
        hint="pass one row and its image_shape",
    )
