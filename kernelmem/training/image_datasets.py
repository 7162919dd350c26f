"""CIFAR-10 and MNIST from local files in their published formats; nothing is downloaded, no pickle is executed."""

import gzip
import io
import math
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import torch

from kernelmem.core.checks import as_path
from kernelmem.core.errors import FileCorruptError, InputError
from kernelmem.core.files.hashed_files import read_bytes
from kernelmem.training.datasets import LabeledData

SIDE, CHANNELS = 32, 3
ROW_BYTES = 1 + CHANNELS * SIDE * SIDE  # bytes: a label, then the planes of red, green and blue
TRAIN_FILES, TEST_FILE = tuple(f"data_batch_{i}" for i in range(1, 6)), "test_batch"
ALLOWED_GLOBALS = {  # the names that a pickled array needs
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}
IDX_STEMS = {"x_train": "train-images", "y_train": "train-labels", "x_test": "t10k-images", "y_test": "t10k-labels"}


def cifar10(directory: str | Path) -> LabeledData:
    """Read CIFAR-10 from a directory: the binary version (``data_batch_1.bin``) or the Python one (``data_batch_1``).

    The training files that exist are read in order; the test file is required. Values are 0..1, float32, rows of shape
    (3, 32, 32). The Python version is a pickle: its reader constructs arrays, text and numbers only, and refuses anything
    else that a pickle may request.

    Raises:
        InputError: the files do not exist. FileCorruptError: a file is truncated or invalid.

    Source: Krizhevsky 2009.
    """
    folder = as_path(directory, "directory")
    for read_batch, suffix in ((_read_binary_batch, ".bin"), (_read_pickled_batch, "")):
        train_paths = [folder / f"{name}{suffix}" for name in TRAIN_FILES if (folder / f"{name}{suffix}").is_file()]
        test_path = folder / f"{TEST_FILE}{suffix}"
        if train_paths and test_path.is_file():
            x, y = (np.concatenate(arrays) for arrays in zip(*(read_batch(path) for path in train_paths), strict=True))
            x_test, y_test = read_batch(test_path)
            return _labeled_images("CIFAR-10", x, y, x_test, y_test, (CHANNELS, SIDE, SIDE))
    found_files = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) if folder.is_dir() else "no directory"
    raise InputError(
        f"directory {folder} without CIFAR-10 files ({found_files or 'empty'})",
        expected="data_batch_1.bin .. data_batch_5.bin and test_batch.bin, or the same names without .bin",
        hint="unpack cifar-10-binary.tar.gz (or cifar-10-python.tar.gz) and pass the folder with these files",
    )


def mnist(directory: str | Path) -> LabeledData:
    """Read MNIST, or another data set in its format, from IDX files in a directory, plain or gzipped.

    Names are train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-..., t10k-labels-...; values 0..1, float32,
    rows of shape (1, H, W).

    Raises:
        InputError: the files do not exist. FileCorruptError: a file is truncated or not an IDX file.

    Source: LeCun, Cortes, Burges 1998.
    """
    folder = as_path(directory, "directory")
    arrays = {key: _read_idx(_find_idx_file(folder, stem)) for key, stem in IDX_STEMS.items()}
    x, y, x_test, y_test = arrays.values()
    if (x.ndim, y.ndim) != (3, 1) or y.shape != x.shape[:1] or x_test.shape != (*y_test.shape, *x.shape[1:]):
        raise FileCorruptError(
            f"files in {folder} with arrays {', '.join(f'{key} {array.shape}' for key, array in arrays.items())}",
            expected="images (n, H, W) and labels (n,) of the same numbers of rows",
            hint="download them again",
        )
    return _labeled_images("MNIST", x, y, x_test, y_test, (1, *x.shape[1:]))


def _labeled_images(
    name: str, x: np.ndarray, y: np.ndarray, x_test: np.ndarray, y_test: np.ndarray, shape: tuple[int, ...]
) -> LabeledData:
    """Return labeled data with rows of ``shape`` (channels, H, W), float32 values 0..1, and int64 labels.

    The pixels in x and x_test are bytes 0..255.
    """
    rows = [torch.from_numpy(pixels.reshape(len(pixels), *shape)).to(torch.float32).div_(255) for pixels in (x, x_test)]
    labels = [torch.from_numpy(values.astype(np.int64)) for values in (y, y_test)]
    image_shape = shape[1:] if shape[0] == 1 else (*shape[1:], shape[0])
    return LabeledData(name, rows[0], labels[0], rows[1], labels[1], image_shape=image_shape)


def _read_binary_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels (n, 3072) and labels (n,), both uint8, of the n images in a file of CIFAR-10's binary version."""
    content = np.frombuffer(path.read_bytes(), np.uint8)
    if len(content) == 0 or len(content) % ROW_BYTES or content[::ROW_BYTES].max() > 9:
        raise FileCorruptError(
            f"{path} of {len(content)} bytes",
            expected=f"rows of {ROW_BYTES} bytes, each a label 0..9 and {ROW_BYTES - 1} values",
            hint="unpack the archive again; CIFAR-100, with two labels per row, is not supported",
        )
    records = content.reshape(-1, ROW_BYTES)
    return records[:, 1:].copy(), records[:, 0].copy()


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickler that constructs arrays, text and numbers only."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in ALLOWED_GLOBALS:
            raise pickle.UnpicklingError(f"it requests {module}.{name}")
        return super().find_class(module, name)


def _read_pickled_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels (n, 3072) uint8 and labels (n,) of the n images in a file of CIFAR-10's Python version."""
    try:
        content = _ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        x, y = np.asarray(content[b"data"]), np.asarray(content[b"labels"])
        if x.dtype != np.uint8 or x.shape != (len(y), ROW_BYTES - 1) or not len(y) or y.min() < 0 or y.max() > 9:
            raise ValueError(f"data of shape {x.shape}, dtype {x.dtype}, {len(y)} labels")
    except Exception as error:  # unpickling may raise any type
        raise FileCorruptError(
            f"{path} ({error})",
            expected="a batch of the Python version: b'data' (n, 3072) bytes and b'labels'",
            hint="unpack the archive again, or use the binary version",
        ) from error
    return x, y


def _find_idx_file(folder: Path, stem: str) -> Path:
    """Return the path of the file in ``folder`` whose name begins with ``stem`` ("train-images", ...), plain or gzipped."""
    idx_type = "idx3" if stem.endswith("images") else "idx1"
    file_names = [f"{stem}{separator}{idx_type}-ubyte{suffix}" for separator in "-." for suffix in ("", ".gz")]
    for file_name in file_names:
        if (folder / file_name).is_file():
            return folder / file_name
    raise InputError(
        f"directory {folder} without the MNIST file {file_names[0]}",
        expected=f"{file_names[0]} or {file_names[1]}",
        hint="pass the folder with this file",
    )


def _read_idx(path: Path) -> np.ndarray:
    """Return the uint8 array in an IDX file: (n, H, W) for n images, or (n,) for n labels."""
    try:
        content = read_bytes(path)
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        magic_zero, dtype_code, n_axes = struct.unpack(">HBB", content[:4])
        shape = struct.unpack(f">{n_axes}I", content[4 : 4 + 4 * n_axes])
        is_valid_header = magic_zero == 0 and dtype_code == 8 and n_axes in (1, 3)
        if not is_valid_header or len(content) != 4 + 4 * n_axes + math.prod(shape):
            raise ValueError(f"{len(content)} bytes for the shape {shape} in the header")
    except (ValueError, struct.error, OSError, EOFError, MemoryError, zlib.error) as error:
        raise FileCorruptError(
            f"{path} ({error})", expected="an IDX file of bytes, 1 or 3 axes", hint="download it again"
        ) from error
    return np.frombuffer(content, np.uint8, offset=4 + 4 * n_axes).reshape(shape).copy()
