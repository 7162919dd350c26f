"""kernelmem.core.files.atomic_files: whole or absent."""

from pathlib import Path

import numpy as np
import pytest

from kernelmem.core.errors import InputError
from kernelmem.core.files import atomic_files as files
from kernelmem.core.files.atomic_files import array_sha256, check_directory, write_file, write_files


def test_writes_text_and_bytes_and_makes_directories(tmp_path):
    written = write_files(tmp_path / "a" / "b", {"x.txt": "é", "y.bin": b"\0\1"})
    assert [p.name for p in written] == ["x.txt", "y.bin"]
    assert (tmp_path / "a/b/x.txt").read_text(encoding="utf-8") == "é"
    assert (tmp_path / "a/b/y.bin").read_bytes() == b"\0\1"


def test_replaces_a_file(tmp_path):
    write_file(tmp_path / "x", "old")
    write_file(tmp_path / "x", "new")
    assert (tmp_path / "x").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("when", ["fsync", "replace"])
def test_a_failure_leaves_the_old_files_and_nothing_else(tmp_path, monkeypatch, when):
    write_files(tmp_path, {"a": "old", "b": "old"})

    def fail(*_):
        raise OSError("no space left on device")

    if when == "fsync":
        monkeypatch.setattr(files.os, "fsync", fail)
    else:
        monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        write_files(tmp_path, {"a": "new", "b": "new"})
    assert sorted([p.name for p in tmp_path.iterdir()]) == ["a", "b"]
    assert (tmp_path / "a").read_text() == "old"


def test_a_failure_removes_the_directories_that_it_made(tmp_path, monkeypatch):
    monkeypatch.setattr(files.os, "fsync", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_files(tmp_path / "new" / "deep", {"a": "x"})
    assert [p.name for p in tmp_path.iterdir()] == []


def test_a_file_in_the_way_is_refused(tmp_path):
    write_file(tmp_path / "file", "x")
    with pytest.raises(InputError, match="directory"):
        write_files(tmp_path / "file", {"a": "x"})
    with pytest.raises(InputError, match="file is not a directory"):
        write_files(tmp_path / "file" / "deep" / "deeper", {"a": "x"})
    (tmp_path / "sub").mkdir()
    with pytest.raises(InputError, match="directory"):
        write_file(tmp_path / "sub", "x")


def test_a_directory_that_cannot_be_written_to_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files.os, "access", lambda *_: False)  # root may write anywhere
    for directory in (tmp_path, tmp_path / "new" / "deep"):
        with pytest.raises(InputError, match="not writable"):
            check_directory(directory)


def test_a_dangling_link_is_refused(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "absent")
    with pytest.raises(InputError, match="not a directory"):
        check_directory(tmp_path / "link")


def test_a_directory_that_can_be_made_is_not_made(tmp_path):
    assert check_directory(tmp_path / "new" / "deep") == tmp_path / "new" / "deep"
    assert not (tmp_path / "new").exists()


def test_the_hash_sees_names_types_shapes_and_bytes():
    base = {"x": np.arange(6.0)}
    different = [
        {"y": np.arange(6.0)},
        {"x": np.arange(6.0, dtype=np.float32)},
        {"x": np.arange(6.0).reshape(2, 3)},
        {"x": np.arange(6.0) + 1e-12},
    ]
    hashes = {array_sha256(case) for case in [base, *different]}
    assert len(hashes) == 5
    assert array_sha256({"x": np.arange(6.0).astype(">f8")}) == array_sha256(base)
    assert array_sha256({"x": np.arange(12.0)[::2] / 2}) == array_sha256(base)
