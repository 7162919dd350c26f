"""kernelmem.core.result_files: round trips to the bit, whole files, and every kind of damage refused."""

import json
import math
from dataclasses import dataclass

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernelmem.core.errors import FileCorruptError, InputError
from kernelmem.core.result_files import read_result, read_value, write_result, write_value


@dataclass(frozen=True, eq=False)
class Thing:
    """All kinds of fields."""

    values: Tensor
    other: Tensor | None
    names: tuple[str, ...]
    error: float
    count: int


def thing(**changes):
    values = torch.arange(6, dtype=torch.float64).reshape(2, 3) / 7
    return Thing(**({"values": values, "other": None, "names": ("a", "b"), "error": 0.1, "count": 3} | changes))


@settings(max_examples=30, deadline=None)
@given(st.floats(), st.integers(-(2**60), 2**60), st.lists(st.text(max_size=5), max_size=3))
def test_figures_come_back_to_the_bit(tmp_path_factory, error, count, names):
    path = tmp_path_factory.mktemp("results") / "thing.safetensors"
    write_value(path, "thing 1", thing(error=error, count=count, names=tuple(names)))
    found = read_value(path, "thing 1", Thing)
    assert found.error == error or math.isnan(found.error) == math.isnan(error) is True
    assert math.copysign(1, found.error) == math.copysign(1, error) or math.isnan(error)
    assert (found.count, found.names) == (count, tuple(names))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.bool])
def test_tensors_come_back_to_the_bit_whatever_their_layout(tmp_path, dtype):
    base = torch.arange(24).reshape(4, 6).to(dtype)
    for values in (base, base.T, base[1:, ::2], base[:0], base[0, 0]):
        found = read_value(write_value(tmp_path / "a", "thing 1", thing(values=values)), "thing 1", Thing)
        assert found.values.dtype == dtype
        assert torch.equal(found.values, values)
        assert found.other is None
    odd = torch.tensor([math.nan, -0.0, math.inf, 5e-324], dtype=torch.float64)
    found = read_value(write_value(tmp_path / "a", "thing 1", thing(values=odd)), "thing 1", Thing)
    assert torch.equal(found.values.view(torch.int64), odd.view(torch.int64))


def test_views_of_one_memory_are_written_apart(tmp_path):
    base = torch.arange(10.0)
    found = read_value(write_value(tmp_path / "a", "thing 1", thing(values=base[:6], other=base[3:])), "thing 1", Thing)
    assert torch.equal(found.values, base[:6])
    assert torch.equal(found.other, base[3:])


def test_every_single_altered_byte_is_noticed(tmp_path):
    path = write_value(tmp_path / "thing.safetensors", "thing 1", thing())
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 0x01
        path.write_bytes(bytes(damaged))
        try:
            found = read_value(path, "thing 1", Thing)
        except FileCorruptError:
            continue
        # What is left: a space of the padding, which means nothing.
        assert torch.equal(found.values, thing().values)
        assert (found.other, found.names, found.error, found.count) == (None, ("a", "b"), 0.1, 3)
        assert place < header


@pytest.mark.parametrize("length", [0, 7, 8, 100, -1])
def test_a_truncated_file_is_refused(tmp_path, length):
    path = write_value(tmp_path / "thing.safetensors", "thing 1", thing())
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(FileCorruptError, match=r"given: file .*thing 1.*; expected: .*; do: "):
        read_value(path, "thing 1", Thing)


def test_a_missing_file_another_kind_and_other_fields_are_refused(tmp_path):
    path = write_value(tmp_path / "thing.safetensors", "thing 1", thing())
    for wrong in (tmp_path / "none", tmp_path):
        with pytest.raises(FileCorruptError):
            read_value(wrong, "thing 1", Thing)
    with pytest.raises(FileCorruptError, match="format kernelmem thing 1, not kernelmem thing 2"):
        read_value(path, "thing 2", Thing)
    write_result(path, "thing 1", {"values": torch.zeros(1)}, {"names": []})
    with pytest.raises(FileCorruptError, match="missing"):
        read_value(path, "thing 1", Thing)
    write_result(path, "thing 1", {"values": torch.zeros(1)}, {"more": 1})
    with pytest.raises(FileCorruptError, match="unexpected"):
        read_value(path, "thing 1", Thing)
    with pytest.raises(FileCorruptError), read_result(path, "thing 1") as (tensors, _):
        tensors["not there"]
    path.write_bytes(safetensors.torch.save({"values": torch.zeros(1)}))
    with pytest.raises(FileCorruptError, match="format None"):
        read_value(path, "thing 1", Thing)
    path.write_bytes(
        safetensors.torch.save({"values": torch.zeros(1)}, {"format": "kernelmem thing 1", "figures": json.dumps({})})
    )
    with pytest.raises(FileCorruptError, match="sha256"):
        read_value(path, "thing 1", Thing)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = write_value(tmp_path / "thing.safetensors", "thing 1", thing())
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_value(path, "thing 1", thing(names=object()))
    assert path.read_bytes() == before
    with pytest.raises(InputError):
        write_value(tmp_path, "thing 1", thing())
    assert [own.name for own in tmp_path.iterdir()] == ["thing.safetensors"]
