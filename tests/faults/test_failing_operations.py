"""The k-th operation of every writer fails: a clean error that names the file, old files whole, nothing half."""

import errno
import resource
import shutil
from contextlib import contextmanager

import numpy as np
import pytest
import torch

import kernelmem as km
from kernelmem.core import load_weights
from kernelmem.core.files.atomic_files import write_file, write_files
from kernelmem.core.files.weight_files import weights_bytes
from kernelmem.double_descent.sweeps.jobs import METRICS, read_chunk, write_chunk
from kernelmem.memorization.shadows import ShadowOptions, shadow_ensemble
from kernelmem.recording import Run
from tests.faults.conftest import X, Y, train
from tests.faults.disk import Disk
from tests.faults.test_power_loss import check_report, tree, write_report

RESULT = km.spectrum(np.eye(3))
CODES = [errno.ENOSPC, errno.EIO, errno.EACCES]
KERNEL = torch.arange(9.0).reshape(3, 3)
CHUNK = {name: torch.arange(6.0).reshape(2, 3) for name in METRICS}


class Writer:
    """Writes files below a directory; after a failure the files are old or new."""

    names = ("out", "root")  # an error names one of these
    samples = 6  # number of operations that fail in make test

    def prepare(self, root):
        """Write the older files."""

    def check(self, root, before):
        """Check the files after an error: by default nothing has changed, or one file is the new one."""
        self.write(root.parent / "whole")
        after = {
            root / path.relative_to(root.parent / "whole"): content
            for path, content in tree(root.parent / "whole").items()
        }
        for path, content in tree(root).items():
            assert content in (before.get(path, "no"), after.get(path, "no")), path
        assert before.keys() <= tree(root).keys()

    def check_whole(self, root):
        """Check that everything was written, although an operation has failed."""


class ResultFile(Writer):
    def prepare(self, root):
        (root / "out.safetensors").write_text("old")

    def write(self, root):
        RESULT.save(root / "deep" / "out.safetensors")
        RESULT.save(root / "out.safetensors")


class Files(Writer):
    def prepare(self, root):
        (root / "out1").write_text("old")

    def write(self, root):
        write_files(root, {"out1": "new", "out2": b"new"})


class Report(Writer):
    names = ("audit", "npz", "root")

    def prepare(self, root):
        write_report(root, "old")

    def write(self, root):
        write_report(root, "new")

    def check(self, root, before):
        check_report(tree(root), root, before, None, acknowledged=False)


class Weights(Writer):
    def write(self, root):
        write_file(root / "out.safetensors", weights_bytes(torch.nn.Linear(1, 1, bias=False)))

    def check(self, root, before):
        assert all(load_weights(file) for file in root.iterdir())


class Chunk(Writer):
    names = ("chunk", "root")

    def write(self, root):
        write_chunk(root / "chunks" / "chunk.safetensors", CHUNK)

    def check(self, root, before):
        file = root / "chunks" / "chunk.safetensors"
        assert not file.exists() or read_chunk(file, 2) is not None
        assert file.exists() or not file.parent.exists()


class Recording(Writer):
    names = ("run",)
    samples = 4

    def write(self, root):
        train(root / "run")

    def check(self, root, before):
        if (root / "run" / "tape.sqlite").exists():
            run = Run.open(root / "run")
            run.verify()
            run.tape.close()
            train(root / "run", resume=True)  # and it can be resumed
        else:
            train(root / "run")
        self.check_whole(root)

    def check_whole(self, root):
        run = Run.open(root / "run")
        run.verify()
        assert len(run) == 2
        run.tape.close()


class Store(Writer):
    names = ("out.sqlite", "root")
    samples = 15

    def write(self, root):
        with km.KernelStore.create(root / "out.sqlite", {"a": 1}, 3, tile=2, symmetric=False) as store:
            self.fill(store)

    @staticmethod
    def fill(store):
        for i, j in store.missing():
            store.put(i, j, KERNEL[2 * i : 2 * i + 2, 2 * j : 2 * j + 2])

    def check(self, root, before):
        file = root / "out.sqlite"
        if not file.exists():
            self.write(root)
        with km.KernelStore.open(file, {"a": 1}) as store:
            store.verify()
        with km.KernelStore.open(file, {"a": 1}, write=True) as store:
            self.fill(store)
        self.check_whole(root)

    def check_whole(self, root):
        with km.KernelStore.open(root / "out.sqlite", {"a": 1}) as store:
            assert torch.equal(store.rows(0, 3), KERNEL)


def shadows(path, memory="1MiB"):
    options = ShadowOptions(n_models=2, models_per_chunk=1, training_name="untrained")
    return shadow_ensemble((X, Y), linear, path=path, options=options, memory=memory, progress=False)


def linear(indices, seed):
    return torch.nn.Linear(2, 2)


class Shadows(Writer):
    names = ("shadows",)

    def write(self, root):
        shadows(root / "shadows", memory=1)  # the outputs are mapped from a file

    def check(self, root, before):
        assert torch.equal(shadows(root / "shadows").logits, shadows(root.parent / "again").logits)


class Export(Writer):
    """An array file; zarr and HDF5 write with calls of their own, which test_export_to_a_disk_that_is_full lets fail."""

    names = ("kernel", "out.sqlite", "root")
    suffix = ".npy"

    def prepare(self, root):
        Store().write(root)

    def write(self, root):
        with km.KernelStore.open(root / "out.sqlite") as store:
            store.export(root / f"kernel{self.suffix}")

    def check(self, root, before):
        file = root / f"kernel{self.suffix}"
        if not file.exists():
            assert tree(root) == before
            self.write(root)
        self.check_whole(root)

    def check_whole(self, root):
        assert np.array_equal(read_array(root / f"kernel{self.suffix}"), KERNEL)


class ExportZarr(Export):
    suffix = ".zarr"


class ExportHDF5(Export):
    suffix = ".h5"


def read_array(file):
    if file.suffix == ".npy":
        return np.load(file)
    if file.suffix == ".zarr":
        return pytest.importorskip("zarr").open_array(file, mode="r")[:]
    with pytest.importorskip("h5py").File(file) as opened:
        return opened["kernel"][:]


EXPORTS = [Export, ExportZarr, ExportHDF5]
WRITERS = [ResultFile, Files, Report, Weights, Chunk, Store, Shadows, Recording, *EXPORTS]
PACKAGES = {ExportZarr: "zarr", ExportHDF5: "h5py"}


def writer_of(kind):
    if kind in PACKAGES:
        pytest.importorskip(PACKAGES[kind])
    return kind()


@contextmanager
def largest_file(n_bytes):
    """Let every write beyond this size of a file fail, whoever writes."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


@pytest.mark.filterwarnings("ignore")  # zarr's own
@pytest.mark.parametrize("kind", EXPORTS, ids=lambda kind: kind.__name__)
def test_export_to_a_disk_that_is_full(tmp_path, kind):
    writer, root = writer_of(kind), tmp_path / "root"
    root.mkdir()
    writer.prepare(root)
    before = tree(root)
    writer.write(root)
    file = root / f"kernel{writer.suffix}"
    size = max(path.stat().st_size for path in [file, *file.rglob("*")] if path.is_file())
    for n_bytes in (0, 1, size // 3, size - 1, size):
        shutil.rmtree(file, ignore_errors=True)
        file.unlink(missing_ok=True)
        if n_bytes == size:
            with largest_file(n_bytes):
                writer.write(root)
        else:
            with pytest.raises((km.KernelmemError, OSError), match="kernel"), largest_file(n_bytes):
                writer.write(root)
            assert tree(root) == before
    writer.check_whole(root)


def fail(writer, root, disk):
    """Let a writer write on a failing disk, and check what it leaves; return False if it did not fail."""
    shutil.rmtree(root.parent, ignore_errors=True)
    root.mkdir(parents=True)
    writer.prepare(root)
    before = tree(root)
    try:
        with disk.mounted():
            writer.write(root)
    except (km.KernelmemError, OSError) as error:
        assert any(name in str(error) for name in writer.names), error  # noqa: PT017
        failed = True
    else:
        failed = False
    left = [path for path in root.rglob("*") if path.name.startswith(".") or path.suffix == ".tmp"]
    assert left == []
    if not failed:
        writer.check_whole(root)
    writer.check(root, before)
    return failed


def may_be_ignored(operation, path, data):
    """Return True for operations of which SQLite repeats or leaves out some, and for what is done when a file is closed."""
    return operation.startswith("sqlite ") or data.startswith((b"PRAGMA journal_mode", b"ROLLBACK"))


def operations(writer, root):
    disk = Disk()
    assert not fail(writer, root, disk)
    return disk.trace


@pytest.mark.parametrize("kind", WRITERS, ids=lambda kind: kind.__name__)
def test_every_operation_fails_once(tmp_path, kind):
    writer = writer_of(kind)
    trace = operations(writer, tmp_path / "a" / "root")
    step = max(1, len(trace) // writer.samples)  # make soak: all
    for k in range(len(trace) % step, len(trace), step):
        fails = fail(writer, tmp_path / "a" / "root", Disk(lambda i, k=k: i == k, CODES[k // step % 3]))
        assert fails or may_be_ignored(*trace[k]), trace[k]


@pytest.mark.soak
@pytest.mark.parametrize("lasting", [False, True])
@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("kind", WRITERS, ids=lambda kind: kind.__name__)
def test_every_operation_fails_with_every_error(tmp_path, kind, code, lasting):
    writer = writer_of(kind)
    trace = operations(writer, tmp_path / "a" / "root")
    for k in range(len(trace)):
        fails = fail(writer, tmp_path / "a" / "root", Disk(lambda i, k=k: i == k or (lasting and i > k), code))
        assert fails or may_be_ignored(*trace[k]), trace[k]
