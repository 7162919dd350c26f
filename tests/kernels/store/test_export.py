"""Export of a store to array files: equal values, block by block, whole or absent."""

import os
import sys

import numpy as np
import pytest
import torch

from kernelmem import FileCorruptError, InputError, KernelStore
from tests.kernels.store.stores import FACTS, kernel, stored


@pytest.fixture
def store(tmp_path):
    with stored(tmp_path / "k", kernel(5, 7, torch.float64, symmetric=False), tile=3) as store:
        yield store


def test_npy(store, tmp_path):
    calls = []
    path = store.export(tmp_path / "new" / "kernel.npy", progress=lambda *call: calls.append(call))
    array = np.load(path, mmap_mode="r")
    assert array.dtype == np.float64
    assert np.array_equal(array, np.asarray(store))
    assert calls == [(1, 2), (2, 2)]


def test_hdf5(store, tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(store.export(tmp_path / "kernel.h5")) as file:
        assert np.array_equal(file["kernel"][:], np.asarray(store))


@pytest.mark.filterwarnings("ignore")  # zarr's own
def test_zarr(store, tmp_path):
    zarr = pytest.importorskip("zarr")
    array = zarr.open_array(store.export(tmp_path / "kernel.zarr"), mode="r")
    assert array.chunks == (3, 3)
    assert np.array_equal(array[:], np.asarray(store))


@pytest.mark.parametrize("suffix", [".h5", ".zarr"])
def test_a_package_that_is_not_installed_is_named(store, tmp_path, suffix, monkeypatch):
    monkeypatch.setitem(sys.modules, {".h5": "h5py", ".zarr": "zarr"}[suffix], None)
    with pytest.raises(InputError, match="is not installed") as error:
        store.export(tmp_path / f"kernel{suffix}")
    assert "pip install" in error.value.hint


@pytest.mark.parametrize("name", ["kernel.txt", "k", "kernel"])
def test_other_names_are_refused(store, tmp_path, name):
    with pytest.raises(InputError):
        store.export(tmp_path / name)


def test_an_existing_file_is_kept(store, tmp_path):
    (tmp_path / "kernel.npy").write_text("mine")
    with pytest.raises(InputError, match="exists"):
        store.export(tmp_path / "kernel.npy")
    assert (tmp_path / "kernel.npy").read_text() == "mine"


def test_after_an_error_nothing_is_left(tmp_path, monkeypatch):
    with KernelStore.create(tmp_path / "k", FACTS, 4, 4, tile=2) as store:
        for index in ((0, 0), (0, 1), (1, 1)):
            store.put(*index, torch.zeros(2, 2))
        with pytest.raises(InputError, match=r"without tile \(1, 0\)"):
            store.export(tmp_path / "kernel.npy")
        store.put(1, 0, torch.zeros(2, 2))
        monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(OSError, match="No space"):
            store.export(tmp_path / "kernel.npy")
        monkeypatch.undo()
        store._connection.execute("UPDATE tiles SET data = zeroblob(16) WHERE tile = 3")
        store._connection.execute("UPDATE tiles SET sha256 = zeroblob(32) WHERE tile = 3")
        with pytest.raises(FileCorruptError):
            store.export(tmp_path / "kernel.npy")
    assert [p.name for p in tmp_path.iterdir()] == ["k"]
