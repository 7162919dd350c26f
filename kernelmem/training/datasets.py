"""Labeled data for training and audits: scikit-learn's digits, .npz files, arrays with checks."""

import io
import math
import struct
import tokenize
import warnings
import zipfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.checks import ArrayLike, as_array, as_count, as_labels, as_path, as_tensor, as_text, seed_sequence
from kernelmem.core.errors import FileCorruptError, InputError, printable
from kernelmem.core.files.hashed_files import READ_ERRORS, read_bytes, reason
from kernelmem.core.files.result_files import Result

if TYPE_CHECKING:
    import pandas as pd

REQUIRED_ARRAYS = ("x_train", "y_train", "x_test", "y_test")
WRITE_HINT = "write it with numpy.savez(path, x_train=..., y_train=..., x_test=..., y_test=...)"
ARCHIVE_ERRORS = (
    *READ_ERRORS, zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError, EOFError, RuntimeError, SyntaxError,
)  # fmt: skip
HEADER_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # of NumPy
MAX_COMPRESSION = 1100  # deflate reaches 1032
# integers may be tokens; narrower ones are pixels
UNCONVERTED_DTYPES = (torch.float32, torch.float64, torch.int32, torch.int64)


@dataclass(frozen=True, eq=False, repr=False)
class LabeledData(Result):
    """Training and test rows with integer labels.

    Attributes:
        name: name of the data set.
        x_train, y_train: (n, ...) rows and (n,) int64 labels.
        x_test, y_test: (m, ...) rows and (m,) int64 labels.
        image_shape: (H, W) or (H, W, 3) if rows are images, else None.
        flipped: (n,) bool, training labels that are known to be wrong, or None.
    """

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    image_shape: tuple[int, ...] | None = None
    flipped: Tensor | None = None

    @property
    def n_classes(self) -> int:
        """One more than the largest label."""
        return int(max(self.y_train.max(), self.y_test.max())) + 1

    def with_labels(self, y_train: Tensor, flipped: Tensor) -> "LabeledData":
        """Return the same rows with training labels y_train (n,); ``flipped`` (n,) bool is True for known wrong labels."""
        return replace(self, y_train=y_train, flipped=flipped)

    def to_frame(self) -> "pd.DataFrame":
        """Return a data frame with one row per split and class.

        Columns: split ("train" or "test"), label, rows (their number), flipped (number of labels known to be wrong).
        """
        import pandas as pd

        frame = pd.DataFrame(
            {
                "split": ["train"] * len(self.y_train) + ["test"] * len(self.y_test),
                "label": torch.cat([self.y_train, self.y_test]).numpy(),
                "flipped": [*([False] * len(self.y_train) if self.flipped is None else self.flipped.tolist())]
                + [False] * len(self.y_test),
            }
        )
        counts = frame.groupby(["split", "label"], sort=False)["flipped"].agg(["size", "sum"])
        counts.columns = ["rows", "flipped"]
        return counts.reset_index().sort_values(["split", "label"], ascending=[False, True], ignore_index=True)

    def __str__(self) -> str:
        row = f"images {self.image_shape}" if self.image_shape else f"rows {tuple(self.x_train.shape[1:])}"
        dtype = str(self.x_train.dtype).removeprefix("torch.")
        flipped = "" if self.flipped is None else f", {int(self.flipped.sum())} training labels known to be wrong"
        return (
            f"{self.name}: {len(self.x_train)} training and {len(self.x_test)} test {row}, {dtype},"
            f" {self.n_classes} classes{flipped}"
        )


LabeledDataLike: TypeAlias = LabeledData | tuple[tuple[ArrayLike, ArrayLike], tuple[ArrayLike, ArrayLike]]
"""Labeled data, or ((x_train, y_train), (x_test, y_test))."""


def as_labeled_data(value: LabeledDataLike) -> LabeledData:
    """Return labeled data as it is, and ((x_train, y_train), (x_test, y_test)) as labeled data.

    Raises:
        InputError: ``value`` is neither; also the errors of :func:`labeled_data`.
    """
    if isinstance(value, LabeledData):
        arrays = (value.x_train, value.y_train, value.x_test, value.y_test)
        if all(isinstance(array, Tensor) for array in arrays):
            return value
        return labeled_data(*arrays, name=value.name, image_shape=value.image_shape, flipped=value.flipped)
    pairs = value if isinstance(value, tuple | list) else ()
    if len(pairs) != 2 or any(not isinstance(pair, tuple | list) or len(pair) != 2 for pair in pairs):
        raise InputError(
            f"data of type {type(value).__name__}",
            expected="LabeledData, or ((x_train, y_train), (x_test, y_test))",
            hint="pass km.training.labeled_data(x_train, y_train, x_test, y_test), or the two pairs",
        )
    (x_train, y_train), (x_test, y_test) = pairs
    return labeled_data(x_train, y_train, x_test, y_test)


def digits(*, n_train: int = 1000, seed: int = 0) -> LabeledData:
    """Load scikit-learn's 1,797 digits (8x8 images, values 0..1), split at random into training and test rows.

    Raises:
        InputError: ``n_train`` is outside 1..1796.

    >>> data = digits()
    >>> tuple(data.x_train.shape), tuple(data.x_test.shape), data.n_classes
    ((1000, 64), (797, 64), 10)
    """
    from sklearn.datasets import load_digits  # imported here because it takes half a second

    images, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(np.asarray(images).astype(np.float32) / 16.0)
    y = torch.from_numpy(np.asarray(labels).astype(np.int64))
    n_train = as_count(n_train, "n_train", maximum=len(x) - 1)
    order = torch.from_numpy(np.random.default_rng(seed_sequence(seed, ["split"])["split"]).permutation(len(x)))
    train, test = order[:n_train], order[n_train:]
    return LabeledData("scikit-learn digits", x[train], y[train], x[test], y[test], image_shape=(8, 8))


def read_npz(path: str | Path) -> LabeledData:
    """Read x_train, y_train, x_test, y_test from a .npz file of arrays (pickled objects are refused).

    Optional arrays: ``flipped`` (n_train,) bool, training labels known to be wrong; ``image_shape`` (2 or 3 numbers).

    Raises:
        InputError: an array is missing or has no rows, contains NaN, lengths or row shapes are inconsistent, or labels
            are invalid; the message names the array and its shape.
        FileCorruptError: the file is not an .npz file, is truncated, or contains pickled objects.
    """
    path = as_path(path, "path", any_bytes=True)
    arrays = read_data_arrays(path)
    return labeled_data(
        *(arrays[name] for name in REQUIRED_ARRAYS),
        name=printable(path.name),
        image_shape=arrays.get("image_shape"),
        flipped=arrays.get("flipped"),
    )


def read_data_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return all arrays of a .npz file by name, after a check that x_train, y_train, x_test and y_test are among them.

    Errors are those of :func:`read_npz`.
    """
    arrays = read_arrays(path)
    missing_arrays = [name for name in REQUIRED_ARRAYS if name not in arrays]
    if missing_arrays:
        contents = ", ".join(f"{name} {array.shape}" for name, array in arrays.items()) or "nothing"
        raise InputError(
            f"data file {path} without {', '.join(missing_arrays)} (it contains {contents})",
            expected=f"arrays {', '.join(REQUIRED_ARRAYS)}",
            hint=WRITE_HINT,
        )
    return arrays


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return all arrays of a .npz file by name, in native byte order.

    Raises:
        InputError: the file does not exist.
        FileCorruptError: the file is not an .npz file, is truncated, or contains pickled objects.
    """
    try:
        content = read_bytes(path)
    except (OSError, ValueError) as error:
        raise InputError(
            f"data file {path} ({reason(error)})", expected="an existing .npz file", hint="check the path"
        ) from error
    try:
        return _unzip_arrays(content)
    except ARCHIVE_ERRORS as error:
        raise FileCorruptError(
            f"data file {path} ({reason(error)})", expected="an .npz archive of plain arrays", hint=WRITE_HINT
        ) from error


def _unzip_arrays(content: bytes) -> dict[str, np.ndarray]:
    """Return the arrays in the content of a .npz file by name.

    Not by ``numpy.load``, which allocates whatever size an array claims to have, and takes other files for pickles.

    Raises:
        One of ``ARCHIVE_ERRORS``: the content is not that of an .npz file of plain arrays.
    """
    arrays: dict[str, np.ndarray] = {}
    with zipfile.ZipFile(io.BytesIO(content)) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of headers that Python 2 wrote
        entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > MAX_COMPRESSION * len(content):
            raise ValueError("it unpacks to more than an .npz file can")
        for entry in entries:
            name = entry.filename.removesuffix(".npy")
            if name == entry.filename or name in arrays or entry.compress_type not in COMPRESSIONS:
                raise ValueError(f"{entry.filename} is not an array, or is one of two")
            arrays[name] = _plain_array(archive.read(entry))
    return arrays


def _plain_array(content: bytes) -> np.ndarray:
    """Return the array of numbers or text in the content of a .npy file, in native byte order."""
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    if version not in HEADER_READERS:
        raise ValueError(f".npy format {version}")
    shape, fortran_order, dtype = HEADER_READERS[version](stream)
    if dtype.kind not in "biufcSU" or math.prod(shape) * dtype.itemsize != len(content) - stream.tell():
        raise ValueError(f"array of shape {shape}, {dtype}, in {len(content)} bytes")
    array = np.ndarray(shape, dtype, content, stream.tell(), order="F" if fortran_order else "C")
    if dtype.kind == "b" and content[stream.tell() :].strip(b"\x00\x01"):
        raise ValueError("array of bool with other bytes than 0 and 1")
    return array.astype(dtype.newbyteorder("="))  # a copy, since the bytes are read-only


def labeled_data(
    x_train: ArrayLike,
    y_train: ArrayLike,
    x_test: ArrayLike,
    y_test: ArrayLike,
    *,
    name: str = "data",
    image_shape: ArrayLike | None = None,
    flipped: ArrayLike | None = None,
) -> LabeledData:
    """Check arrays or tensors and return them as labeled data; errors are those of :func:`read_npz`."""
    rows, name = {}, as_text(name, "name")
    for array_name, value in (("x_train", x_train), ("x_test", x_test)):
        tensor = _as_numbers(value, array_name)
        if tensor.ndim < 2 or tensor.numel() == 0:
            raise InputError(
                f"{array_name} of shape {tuple(tensor.shape)}",
                expected="at least one row: shape (n, features) or (n, ...)",
                hint="put the examples along the first axis" if tensor.ndim else f"fill {array_name}",
            )
        float_dtype = torch.float64 if tensor.dtype.itemsize >= 4 else torch.float32
        rows[array_name] = tensor if tensor.dtype in UNCONVERTED_DTYPES else tensor.to(float_dtype)
    if rows["x_train"].shape[1:] != rows["x_test"].shape[1:]:
        raise InputError(
            f"x_train of shape {tuple(rows['x_train'].shape)} and x_test of shape {tuple(rows['x_test'].shape)}",
            expected="rows of the same shape",
            hint="preprocess both in the same way",
        )
    labels = {
        array_name: as_labels(value, array_name, n=len(rows[rows_name]))
        for array_name, value, rows_name in (("y_train", y_train, "x_train"), ("y_test", y_test, "x_test"))
    }
    classes = labels["y_train"].unique()
    if len(classes) < 2:
        raise InputError(
            f"y_train of shape {tuple(labels['y_train'].shape)} with one class only ({int(classes[0])})",
            expected="at least two classes",
            hint="check that the labels were read from the right column",
        )
    flipped_mask = None
    if flipped is not None:
        flipped_mask = _as_numbers(flipped, "flipped")
        if flipped_mask.shape != labels["y_train"].shape or not bool(((flipped_mask == 0) | (flipped_mask == 1)).all()):
            raise InputError(
                f"flipped of shape {tuple(flipped_mask.shape)} and dtype {flipped_mask.dtype}",
                expected=f"{len(labels['y_train'])} booleans, one per training row",
                hint="omit it if the wrong labels are unknown",
            )
        flipped_mask = flipped_mask.bool()
    row_image_shape = _infer_image_shape(rows["x_train"], image_shape)
    return LabeledData(
        name,
        rows["x_train"],
        labels["y_train"],
        rows["x_test"],
        labels["y_test"],
        image_shape=row_image_shape,
        flipped=flipped_mask,
    )


def _as_numbers(value: ArrayLike, name: str) -> Tensor:
    """Return ``value`` as a tensor of real numbers or booleans; ``name`` is its name in error messages.

    Raises:
        InputError: ``value`` holds text, dates, records or complex numbers.
    """
    array = value if isinstance(value, Tensor) else as_array(value, name)
    if array.is_complex() if isinstance(array, Tensor) else array.dtype.kind not in "biuf":
        raise InputError(
            f"{name} of shape {tuple(array.shape)} and dtype {array.dtype}",
            expected="real numbers",
            hint=f"encode {name} as numbers",
        )
    if isinstance(array, np.ndarray) and array.dtype.kind == "u" and array.dtype.itemsize == 2:
        array = array.astype(np.float32)  # exact: 16-bit pixels, not the indices that int64 would mean
    return as_tensor(array, name)


def _infer_image_shape(x: Tensor, image_shape: ArrayLike | None) -> tuple[int, ...] | None:
    """Return the image shape (H, W) or (H, W, 3) of a row of x, or None if rows are not images.

    It is ``image_shape``, if given, else inferred from rows of shape (H, W), (1, H, W), (3, H, W) or (H, W, 3).
    """
    row_shape = tuple(x.shape[1:])
    if image_shape is not None:
        sizes = as_tensor(image_shape, "image_shape").cpu().numpy().ravel()
        shape = tuple(int(size) for size in sizes) if sizes.dtype.kind in "iu" else ()
        fits_row = len(shape) in (2, 3) and min(shape) >= 1 and int(np.prod(shape)) == int(np.prod(row_shape))
        if not fits_row or (len(shape) == 3 and shape[2] != 3):
            raise InputError(
                f"image_shape {tuple(sizes.tolist())} for rows of shape {row_shape}",
                expected="(H, W) or (H, W, 3) with as many values as a row",
                hint="omit it if rows are not images",
            )
        return shape
    if len(row_shape) == 2 and min(row_shape) >= 4:
        return row_shape
    if len(row_shape) == 3 and row_shape[0] in (1, 3) and min(row_shape[1:]) >= 4:
        return (row_shape[1], row_shape[2]) if row_shape[0] == 1 else (row_shape[1], row_shape[2], 3)
    if len(row_shape) == 3 and row_shape[2] == 3 and min(row_shape[:2]) >= 4:
        return row_shape
    return None
