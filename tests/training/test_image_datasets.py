"""CIFAR-10 and MNIST from generated files: read as written; broken or dangerous files are refused."""

import gzip
import pickle
import struct

import numpy as np
import pytest
import torch

from kernelmem.core.errors import FileCorruptError, InputError
from kernelmem.training.image_datasets import cifar10, mnist

RNG = np.random.default_rng(0)


def drawn(n):
    return RNG.integers(0, 256, (n, 3072), dtype=np.uint8), RNG.integers(0, 10, n).astype(np.uint8)


def write_binary(folder, name, x, y):
    (folder / f"{name}.bin").write_bytes(np.concatenate([y[:, None], x], 1).tobytes())


def write_python(folder, name, x, y):
    (folder / name).write_bytes(
        pickle.dumps({b"data": x, b"labels": y.tolist(), b"batch_label": b"of one"}, protocol=2)
    )


@pytest.mark.parametrize("write", [write_binary, write_python])
def test_cifar_is_read_in_order(tmp_path, write):
    parts = [drawn(3), drawn(4), drawn(5)]
    for name, (x, y) in zip(["data_batch_1", "data_batch_3", "test_batch"], parts, strict=True):
        write(tmp_path, name, x, y)
    data = cifar10(tmp_path)
    assert data.x_train.shape == (7, 3, 32, 32)
    assert data.x_train.dtype == torch.float32
    assert data.image_shape == (32, 32, 3)
    want = np.concatenate([parts[0][0], parts[1][0]]).reshape(7, 3, 32, 32) / 255
    assert np.allclose(data.x_train.numpy(), want, atol=1e-7)
    assert data.y_train.tolist() == np.concatenate([parts[0][1], parts[1][1]]).tolist()
    assert np.allclose(data.x_test.numpy().reshape(5, -1), parts[2][0] / 255, atol=1e-7)
    assert data.y_test.tolist() == parts[2][1].tolist()


class Dangerous:
    def __reduce__(self):
        return (print, ("this must not run",))


def test_a_pickle_that_would_run_code_is_refused(tmp_path, capsys):
    write_python(tmp_path, "data_batch_1", *drawn(2))
    (tmp_path / "test_batch").write_bytes(pickle.dumps({b"data": Dangerous(), b"labels": [1]}))
    with pytest.raises(FileCorruptError, match="print"):
        cifar10(tmp_path)
    assert "must not run" not in capsys.readouterr().out


@pytest.mark.parametrize("cut", [1, 100, 3072])
def test_truncated_cifar_files_are_refused(tmp_path, cut):
    for name in ("data_batch_1", "test_batch"):
        write_binary(tmp_path, name, *drawn(2))
    whole = (tmp_path / "test_batch.bin").read_bytes()
    (tmp_path / "test_batch.bin").write_bytes(whole[:-cut])
    with pytest.raises(FileCorruptError, match="rows of 3073"):
        cifar10(tmp_path)


def test_labels_beyond_nine_and_wrong_shapes_are_refused(tmp_path):
    x, y = drawn(2)
    write_binary(tmp_path, "data_batch_1", x, y + 10)
    write_binary(tmp_path, "test_batch", x, y)
    with pytest.raises(FileCorruptError):
        cifar10(tmp_path)
    for path in tmp_path.iterdir():
        path.unlink()
    write_python(tmp_path, "data_batch_1", x[:, 1:], y)
    write_python(tmp_path, "test_batch", x, y)
    with pytest.raises(FileCorruptError, match="3071"):
        cifar10(tmp_path)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(InputError, match="empty"):
        cifar10(tmp_path)
    with pytest.raises(InputError, match="no directory"):
        cifar10(tmp_path / "none")
    with pytest.raises(InputError, match="train-images"):
        mnist(tmp_path)


def write_idx(path, array, packed):
    content = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()
    path.with_name(path.name + ".gz" * packed).write_bytes(gzip.compress(content) if packed else content)


@pytest.mark.parametrize("packed", [False, True])
def test_mnist_is_read_and_truncated_files_are_refused(tmp_path, packed):
    x, y = RNG.integers(0, 256, (4, 6, 5), dtype=np.uint8), RNG.integers(0, 10, 4).astype(np.uint8)
    for stem in ("train", "t10k"):
        write_idx(tmp_path / f"{stem}-images-idx3-ubyte", x, packed)
        write_idx(tmp_path / f"{stem}-labels-idx1-ubyte", y, packed)
    data = mnist(tmp_path)
    assert np.allclose(data.x_train.numpy()[:, 0], x / 255, atol=1e-7)
    assert data.image_shape == (6, 5)
    assert data.y_test.tolist() == y.tolist()
    path = next(path for path in tmp_path.iterdir() if path.name.startswith("t10k-images"))
    for cut in (1, 10, 119):
        (tmp_path / path.name).write_bytes(path.read_bytes()[:-cut])
        with pytest.raises(FileCorruptError):
            mnist(tmp_path)
