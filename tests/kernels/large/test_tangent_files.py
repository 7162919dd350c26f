"""kernelmem.kernels.large.tangent_files."""

import pytest
import torch

from kernelmem.core.errors import InputError
from kernelmem.kernels.large.tangent_files import TangentFiles

TANGENTS = [
    {"activations": torch.randn(3, 5), "gradients": torch.randn(3, 2, 4).transpose(1, 2)},
    {},
    {"tokens": torch.arange(6).view(3, 2), "empty": torch.zeros(3, 0, dtype=torch.float64)},
]


def equal(left, right):
    assert [list(buffers) for buffers in left] == [list(buffers) for buffers in right]
    for a, b in zip(left, right, strict=True):
        assert all(torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype for key in a)
    return True


def test_tangents_are_read_as_they_were_written(tmp_path):
    TangentFiles(tmp_path / "new").write("a", TANGENTS)
    assert equal(TangentFiles(tmp_path / "new").read("a"), TANGENTS)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.tangents"]
    assert TangentFiles(tmp_path).read("a") is None


def test_what_is_read_can_be_changed_without_changing_the_file(tmp_path):
    files = TangentFiles(tmp_path)
    files.write("a", TANGENTS)
    files.read("a")[0]["activations"].zero_()
    assert equal(files.read("a"), TANGENTS)


def test_a_damaged_file_counts_as_missing(tmp_path):
    TangentFiles(tmp_path).write("a", TANGENTS)
    path = TangentFiles(tmp_path).path("a")
    content = path.read_bytes()
    for position in range(0, len(content), 7):
        path.write_bytes(content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :])
        assert TangentFiles(tmp_path).read("a") is None
    for size in (0, 5, 100, len(content) - 1):
        path.write_bytes(content[:size])
        assert TangentFiles(tmp_path).read("a") is None


def test_a_directory_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file"):
        TangentFiles(tmp_path / "file").write("a", TANGENTS)
