"""Thumbnails have the pixels of their row."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from kernelmem.auditing.report.thumbnails import PREFIX, png_data_uri
from kernelmem.core.errors import InputError


def decode(uri: str) -> np.ndarray:
    assert uri.startswith(PREFIX)
    with Image.open(io.BytesIO(base64.b64decode(uri.removeprefix(PREFIX)))) as image:
        return np.asarray(image)


def pixels(uri: str, height: int) -> np.ndarray:
    """One value for each pixel of the row, after a check that the square it became holds nothing else."""
    shown = decode(uri)
    times = len(shown) // height
    kept = shown[::times, ::times]
    assert (kept.repeat(times, 0).repeat(times, 1) == shown).all()
    return kept


@pytest.fixture
def gray() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 3, (5, 7))


@pytest.fixture
def color() -> np.ndarray:
    return np.random.default_rng(1).uniform(0, 1, (5, 7, 3))


@pytest.mark.parametrize("shape", [(5, 7), (1, 5, 7), (5, 7, 1), (35,)])
def test_gray_pixels_are_the_scaled_values_whichever_way_the_row_lies(gray, shape):
    expected = np.rint(255 * (gray + 1) / 4)
    assert (pixels(png_data_uri(gray.reshape(shape), (5, 7), low=-1, high=3), 5) == expected).all()


def test_color_channels_keep_their_place(color):
    expected = np.rint(255 * color)
    for row in (color, np.moveaxis(color, -1, 0), color.ravel()):
        assert (pixels(png_data_uri(row, (5, 7, 3), low=0, high=1), 5) == expected).all()


def test_the_range_is_that_of_the_data_set_and_not_of_the_row(gray):
    faint = decode(png_data_uri(gray, (5, 7), low=-100, high=100))
    assert faint.min() > 120
    assert faint.max() < 140
    assert decode(png_data_uri(gray, (5, 7), low=0, high=1)).max() == 255  # clipped, not wrapped


def test_constant_data_are_black():
    assert decode(png_data_uri(np.full((4, 4), 7.0), (4, 4), low=7, high=7)).max() == 0


def test_large_images_shrink_and_small_ones_are_repeated_in_whole_pixels(gray):
    assert decode(png_data_uri(gray, (5, 7), low=0, high=1)).shape == (5 * 13, 7 * 13)
    assert decode(png_data_uri(np.zeros((70, 90)), (70, 90), low=0, high=1)).shape == (70, 90)
    large = np.random.default_rng(2).uniform(size=(300, 200, 3))
    assert decode(png_data_uri(large, (300, 200, 3), low=0, high=1, longest_side=60)).shape == (60, 40, 3)


def test_same_row_same_bytes(color):
    assert png_data_uri(color, (5, 7, 3), low=0, high=1) == png_data_uri(color, (5, 7, 3), low=0, high=1)


@pytest.mark.parametrize(
    ("shape", "image_shape", "value_range"),
    [
        ((5, 7), (7, 5), (0, 1)),
        ((35,), (5,), (0, 1)),
        ((5, 7, 4), (5, 7, 4), (0, 1)),
        ((5, 7), (5, 7), (1, 0)),
        ((5, 7), (5, 7), (0, float("nan"))),
    ],
)
def test_rows_that_are_not_images_are_refused(shape, image_shape, value_range):
    with pytest.raises(InputError):
        png_data_uri(np.zeros(shape), image_shape, low=value_range[0], high=value_range[1])
