"""CIFAR-10 and MNIST from local files in their published formats; nothing is downloaded, no pickle is executed."""

import gzip
import io
import pickle
import struct
from pathlib import Path

import numpy as np
import torch

from kernelmem.core.errors import FileCorruptError, InputError
from kernelmem.training.datasets import LabeledData

SIDE, CHANNELS = 32, 3
ROW = 1 + CHANNELS * SIDE * SIDE  # bytes: a label, then the planes of red, green and blue
TRAIN_FILES, TEST_FILE = tuple(f"data_batch_{i}" for i in range(1, 6)), "test_batch"
ALLOWED = {  # the names that a pickled array needs
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}
IDX = {"x_train": "train-images", "y_train": "train-labels", "x_test": "t10k-images", "y_test": "t10k-labels"}


def cifar10(directory: str | Path) -> LabeledData:
    """Read CIFAR-10 from a directory: the binary version (``data_batch_1.bin``) or the Python one (``data_batch_1``).

    The training files that exist are read in order; the test file is required. Values are 0..1, float32, rows of shape
    (3, 32, 32). The Python version is a pickle: its reader constructs arrays, text and numbers only, and refuses anything
    else that a pickle may request.

    Raises:
        InputError: no such files. FileCorruptError: truncated or invalid files.

    Source: Krizhevsky 2009.
    """
    folder = Path(directory)
    for read, ending in ((_binary, ".bin"), (_python, "")):
        train = [folder / f"{name}{ending}" for name in TRAIN_FILES if (folder / f"{name}{ending}").is_file()]
        test = folder / f"{TEST_FILE}{ending}"
        if train and test.is_file():
            x, y = (np.concatenate(arrays) for arrays in zip(*(read(path) for path in train), strict=True))
            x_test, y_test = read(test)
            return _as_images("CIFAR-10", x, y, x_test, y_test, (CHANNELS, SIDE, SIDE))
    files = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) if folder.is_dir() else "no directory"
    raise InputError(
        f"CIFAR-10 in {folder} ({files or 'empty'})",
        expected="data_batch_1.bin .. data_batch_5.bin and test_batch.bin, or the same names without .bin",
        hint="unpack cifar-10-binary.tar.gz (or cifar-10-python.tar.gz) and pass the folder with these files",
    )


def mnist(directory: str | Path) -> LabeledData:
    """Read MNIST, or another data set in its format, from IDX files in a directory, plain or gzipped.

    Names are train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-..., t10k-labels-...; values 0..1, float32,
    rows of shape (1, H, W).

    Raises:
        InputError: no such files. FileCorruptError: truncated files, or not IDX files.

    Source: LeCun, Cortes, Burges 1998.
    """
    folder = Path(directory)
    arrays = {key: _idx(_find(folder, stem)) for key, stem in IDX.items()}
    x, y, x_test, y_test = arrays.values()
    return _as_images("MNIST", x, y, x_test, y_test, (1, *x.shape[1:]))


def _as_images(
    name: str, x: np.ndarray, y: np.ndarray, x_test: np.ndarray, y_test: np.ndarray, shape: tuple[int, ...]
) -> LabeledData:
    rows = [torch.from_numpy(pixels.reshape(len(pixels), *shape)).to(torch.float32).div_(255) for pixels in (x, x_test)]
    labels = [torch.from_numpy(values.astype(np.int64)) for values in (y, y_test)]
    image = shape[1:] if shape[0] == 1 else (*shape[1:], shape[0])
    return LabeledData(name, rows[0], labels[0], rows[1], labels[1], image_shape=image)


def _binary(path: Path) -> tuple[np.ndarray, np.ndarray]:
    content = np.frombuffer(path.read_bytes(), np.uint8)
    if len(content) == 0 or len(content) % ROW or content[::ROW].max() > 9:
        raise FileCorruptError(
            f"{path} of {len(content)} bytes",
            expected=f"rows of {ROW} bytes, each a label 0..9 and {ROW - 1} values",
            hint="unpack the archive again; CIFAR-100, with two labels per row, is not supported",
        )
    rows = content.reshape(-1, ROW)
    return rows[:, 1:].copy(), rows[:, 0].copy()


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it requests {module}.{name}")
        return super().find_class(module, name)


def _python(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        content = _ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        x, y = np.asarray(content[b"data"]), np.asarray(content[b"labels"])
        if x.dtype != np.uint8 or x.shape != (len(y), ROW - 1) or not len(y) or y.min() < 0 or y.max() > 9:
            raise ValueError(f"data of shape {x.shape}, dtype {x.dtype}, {len(y)} labels")
    except Exception as error:  # unpickling may raise any type
        raise FileCorruptError(
            f"{path} ({error})",
            expected="a batch of the Python version: b'data' (n, 3072) bytes and b'labels'",
            hint="unpack the archive again, or use the binary version",
        ) from error
    return x, y


def _find(folder: Path, stem: str) -> Path:
    kind = "idx3" if stem.endswith("images") else "idx1"
    names = [f"{stem}{mark}{kind}-ubyte{ending}" for mark in "-." for ending in ("", ".gz")]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"MNIST in {folder}", expected=f"{names[0]} or {names[1]}", hint="pass the folder with this file")


def _idx(path: Path) -> np.ndarray:
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        zero, kind, axes = struct.unpack(">HBB", content[:4])
        shape = struct.unpack(f">{axes}I", content[4 : 4 + 4 * axes])
        if zero or kind != 8 or axes not in (1, 3) or len(content) != 4 + 4 * axes + int(np.prod(shape)):
            raise ValueError(f"{len(content)} bytes for the shape {shape} in the header")
    except (ValueError, struct.error, OSError, EOFError) as error:
        raise FileCorruptError(
            f"{path} ({error})", expected="an IDX file of bytes, 1 or 3 axes", hint="download it again"
        ) from error
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape).copy()
