"""Labeled data for training and audits: the embedded digits, and .npz files that are checked array by array."""

import zipfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.checks import as_labels, as_tensor, seed_sequence
from kernelmem.core.errors import FileCorruptError, InputError

__all__ = ["LabeledData", "digits", "labeled_data", "read_arrays", "read_npz"]

REQUIRED = ("x_train", "y_train", "x_test", "y_test")
HOW_TO_WRITE = "write it with numpy.savez(path, x_train=..., y_train=..., x_test=..., y_test=...)"
KEPT = (torch.float32, torch.float64, torch.int32, torch.int64)  # integers may be tokens; narrower ones are pictures


@dataclass(frozen=True)
class LabeledData:
    """Training and test rows with integer labels; ``flipped`` marks training labels known to be wrong."""

    name: str
    x_train: Tensor  # (n, ...)
    y_train: Tensor  # (n,) int64
    x_test: Tensor  # (m, ...)
    y_test: Tensor  # (m,) int64
    image_shape: tuple[int, ...] | None = None  # (H, W) or (H, W, 3), where rows are pictures
    flipped: Tensor | None = None  # (n,) bool

    @property
    def n_classes(self) -> int:
        """One more than the largest label."""
        return int(max(self.y_train.max(), self.y_test.max())) + 1

    def with_labels(self, y_train: Tensor, flipped: Tensor) -> "LabeledData":
        """The same rows with other training labels."""
        return replace(self, y_train=y_train, flipped=flipped)


def digits(*, n_train: int = 1000, seed: int = 0) -> LabeledData:
    """Load scikit-learn's 1,797 digits (8x8 pictures, values 0..1), split at random into training and test rows.

    Raises:
        InputError: ``n_train`` outside 1..1796.

    >>> data = digits()
    >>> tuple(data.x_train.shape), tuple(data.x_test.shape), data.n_classes
    ((1000, 64), (797, 64), 10)
    """
    from sklearn.datasets import (
        load_digits,
    )  # imported here: it costs half a second and only the default needs it

    pictures, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(np.asarray(pictures).astype(np.float32) / 16.0)
    y = torch.from_numpy(np.asarray(labels).astype(np.int64))
    if not 1 <= n_train < len(x):
        raise InputError(f"n_train={n_train}", expected=f"1..{len(x) - 1} of {len(x)} digits", hint="pass n_train=1000")
    order = torch.from_numpy(np.random.default_rng(seed_sequence(seed, ["split"])["split"]).permutation(len(x)))
    train, test = order[:n_train], order[n_train:]
    return LabeledData("scikit-learn digits", x[train], y[train], x[test], y[test], image_shape=(8, 8))


def read_npz(path: str | Path) -> LabeledData:
    """Read x_train, y_train, x_test, y_test from a .npz file (arrays only: pickled objects are refused).

    Optional arrays: ``flipped`` (n_train,) bool, training labels known to be wrong; ``image_shape`` (2 or 3 numbers).

    Raises:
        InputError: a missing array, no rows, NaN, lengths or row shapes that do not match, bad labels: the message
            names the array and its shape.
        FileCorruptError: not an .npz file, truncated, or holding pickled objects.
    """
    path = Path(path)
    arrays = read_arrays(path)
    missing = [name for name in REQUIRED if name not in arrays]
    if missing:
        held = ", ".join(f"{name} {array.shape}" for name, array in arrays.items()) or "nothing"
        raise InputError(
            f"data file {path} without {', '.join(missing)} (it holds {held})",
            expected=f"arrays {', '.join(REQUIRED)}",
            hint=HOW_TO_WRITE,
        )
    return labeled_data(
        *(arrays[name] for name in REQUIRED),
        name=path.name,
        image_shape=arrays.get("image_shape"),
        flipped=arrays.get("flipped"),
    )


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read all arrays of a .npz file, in the machine's byte order.

    Raises:
        InputError: no such file. FileCorruptError: not an .npz file, truncated, or holding pickled objects.
    """
    if not path.is_file():
        raise InputError(f"data file {path}", expected="an existing .npz file", hint="check the path")
    try:
        # asked first, because NumPy takes other files for pickles and then names the option that would run them
        with path.open("rb") as stream:
            if not zipfile.is_zipfile(stream):
                raise ValueError("no zip archive")
            stream.seek(0)
            with np.load(stream, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
        strange = [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]
        if strange:
            raise ValueError(f"{strange[0]} is no array")
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise FileCorruptError(
            f"data file {path} ({error})", expected="an .npz archive of plain arrays", hint=HOW_TO_WRITE
        ) from error
    return {name: array.astype(array.dtype.newbyteorder("="), copy=False) for name, array in arrays.items()}


def labeled_data(
    x_train, y_train, x_test, y_test, *, name: str = "data", image_shape=None, flipped=None
) -> LabeledData:
    """Check arrays or tensors and pair them: see :func:`read_npz` for what is refused."""
    rows = {}
    for key, value in (("x_train", x_train), ("x_test", x_test)):
        tensor = _numbers(value, key)
        if tensor.ndim < 2 or tensor.numel() == 0:
            raise InputError(
                f"{key} of shape {tuple(tensor.shape)}",
                expected="at least one row: shape (n, features) or (n, ...)",
                hint="give the examples along the first axis" if tensor.ndim else f"fill {key}",
            )
        wide = torch.float64 if tensor.dtype.itemsize >= 4 else torch.float32
        rows[key] = tensor if tensor.dtype in KEPT else tensor.to(wide)
    if rows["x_train"].shape[1:] != rows["x_test"].shape[1:]:
        raise InputError(
            f"x_train of shape {tuple(rows['x_train'].shape)} and x_test of shape {tuple(rows['x_test'].shape)}",
            expected="rows of the same shape",
            hint="preprocess both in the same way",
        )
    labels = {
        key: as_labels(_numbers(value, key), key, n=len(rows[x]))
        for key, value, x in (("y_train", y_train, "x_train"), ("y_test", y_test, "x_test"))
    }
    present = labels["y_train"].unique()
    if len(present) < 2:
        raise InputError(
            f"y_train of shape {tuple(labels['y_train'].shape)} with one class only ({int(present[0])})",
            expected="at least two classes",
            hint="check that the labels were read from the right column",
        )
    mask = None
    if flipped is not None:
        mask = _numbers(flipped, "flipped")
        if mask.shape != labels["y_train"].shape or not bool(((mask == 0) | (mask == 1)).all()):
            raise InputError(
                f"flipped of shape {tuple(mask.shape)} and dtype {mask.dtype}",
                expected=f"{len(labels['y_train'])} booleans, one for each training row",
                hint="leave it out where the wrong labels are unknown",
            )
        mask = mask.bool()
    shape = _image_shape(rows["x_train"], image_shape)
    return LabeledData(
        name,
        rows["x_train"],
        labels["y_train"],
        rows["x_test"],
        labels["y_test"],
        image_shape=shape,
        flipped=mask,
    )


def _numbers(value, name: str) -> Tensor:
    """As a tensor; text, dates, records and complex numbers are refused by name, shape and dtype."""
    array = value if isinstance(value, Tensor) else np.asarray(value)
    if array.is_complex() if isinstance(array, Tensor) else array.dtype.kind not in "biuf":
        do = f"number the classes: numpy.unique({name}, return_inverse=True)[1]" if name.startswith("y_") else None
        raise InputError(
            f"{name} of shape {tuple(array.shape)} and dtype {array.dtype}",
            expected="real numbers",
            hint=do or f"encode {name} as numbers",
        )
    return as_tensor(array, name)


def _image_shape(x: Tensor, given) -> tuple[int, ...] | None:
    """The picture shape of a row: as given, or read off rows of shape (H, W), (1|3, H, W) or (H, W, 3)."""
    row = tuple(x.shape[1:])
    if given is not None:
        sizes = np.asarray(given).ravel()
        shape = tuple(int(size) for size in sizes) if sizes.dtype.kind in "iu" else ()
        fits = len(shape) in (2, 3) and min(shape) >= 1 and int(np.prod(shape)) == int(np.prod(row))
        if not fits or (len(shape) == 3 and shape[2] != 3):
            raise InputError(
                f"image_shape {tuple(sizes.tolist())} for rows of shape {row}",
                expected="(H, W) or (H, W, 3) with as many values as a row",
                hint="leave it out where rows are no pictures",
            )
        return shape
    if len(row) == 2 and min(row) >= 4:
        return row
    if len(row) == 3 and row[0] in (1, 3) and min(row[1:]) >= 4:
        return (row[1], row[2]) if row[0] == 1 else (row[1], row[2], 3)
    if len(row) == 3 and row[2] == 3 and min(row[:2]) >= 4:
        return row
    return None
