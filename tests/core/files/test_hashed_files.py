"""kernelmem.core.files.hashed_files: every altered byte is noticed, equal content gives equal bytes, no file is trusted."""

import json
import os
import subprocess
import sys

import pytest
import safetensors
import safetensors.torch
import torch

from kernelmem.core.files.hashed_files import (
    READ_ERRORS,
    check_json,
    hashed_json,
    hashed_safetensors,
    load_json,
    load_safetensors,
    read_bytes,
)

METADATA = {"format": "kernelmem Thing 1", "values": '{"kernelmem_sha256":"a","é":1}'}


def content():
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {"b": base.T, "a": base[1:], "kernelmem_sha256": torch.ones(2, dtype=torch.int8), "c": base[:0]}
    return tensors, hashed_safetensors(tensors, METADATA)


def test_safetensors_come_back_and_other_programs_can_read_them(tmp_path):
    tensors, data = content()
    loaded, metadata = load_safetensors(data)
    assert metadata == METADATA
    for found in (loaded, safetensors.torch.load(data)):
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    (tmp_path / "a").write_bytes(data)
    with safetensors.safe_open(tmp_path / "a", "pt") as file:
        assert file.metadata().items() >= METADATA.items()


def test_equal_content_gives_equal_bytes_in_another_process():
    program = (
        "from tests.core.files.test_hashed_files import content; import sys; sys.stdout.buffer.write(content()[1])"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert run.stdout == content()[1]


def test_every_altered_bit_is_noticed():
    _, data = content()
    for place in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[place] ^= 1 << bit
            with pytest.raises(READ_ERRORS):
                load_safetensors(bytes(damaged))


def test_files_of_other_programs_need_no_hash():
    data = safetensors.torch.save({"a": torch.ones(2)}, {"format": "pt", "sha256": "of something else"})
    assert load_safetensors(data)[0]["a"].tolist() == [1, 1]
    with pytest.raises(ValueError, match="no sha256"):
        load_safetensors(safetensors.torch.save({"a": torch.ones(2)}, {"format": "kernelmem weights 1"}))


def header_bytes(entries, data=b""):
    header = json.dumps(entries).encode() if not isinstance(entries, bytes) else entries
    return len(header).to_bytes(8, "little") + header + data


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 8,
        (2**63).to_bytes(8, "little") + b"{}",
        header_bytes(b"[" * 100_000),
        header_bytes([1, 2]),
        header_bytes({"__metadata__": 3}),
        header_bytes({"__metadata__": {"a": 1}}),
        header_bytes({"a": None}),
        header_bytes({"a": {"dtype": "F32", "shape": [10**15], "data_offsets": [0, 4 * 10**15]}}),
        header_bytes({"a": {"dtype": "F32", "shape": [0, 2**62], "data_offsets": [0, 0]}}),
        header_bytes({"a": {"dtype": "F32", "shape": [0, 2**63], "data_offsets": [0, 0]}}),
        header_bytes({"a": {"dtype": "F32", "shape": [1] * 70, "data_offsets": [0, 4]}}, b"abcd"),
        header_bytes({"a": {"dtype": "F77", "shape": [1], "data_offsets": [0, 4]}}, b"abcd"),
        header_bytes(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"I32"}}', b"abcd"),
        header_bytes(b'{"\xff":{}}'),
    ],
)
def test_hostile_headers_are_refused(data):
    with pytest.raises(READ_ERRORS):
        load_safetensors(data)


def test_json_comes_back_whatever_its_spaces():
    values = {"b": [1, 2.5, None, "é"], "a": {"x": True}}
    text = hashed_json(values)
    assert check_json(load_json(text)) == values
    assert check_json(load_json(json.dumps(json.loads(text)).encode())) == values
    for change in (("2.5", "2.6"), ("true", "1"), ('"b"', '"c"'), ('"é"', '"e"')):
        with pytest.raises(ValueError, match="differs"):
            check_json(load_json(text.replace(*change)))
    with pytest.raises(ValueError, match="no sha256"):
        check_json(values)


@pytest.mark.parametrize(
    "text", ["", "{", "[" * 100_000, '{"a":1,"a":2}', '{"a":{"b":1,"b":1}}', b"\xff", "9" * 5000, "nul"]
)
def test_hostile_json_is_refused(text):
    with pytest.raises(ValueError):  # noqa: PT011 (messages of json)
        load_json(text)


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", '{"a":-Infinity}', "1e999"])
def test_numbers_that_are_not_finite_are_refused_on_request(text):
    load_json(text)
    with pytest.raises(ValueError, match="the number"):
        load_json(text, finite=True)


def test_only_regular_files_are_read(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("file")
    assert read_bytes(tmp_path / "file") == read_bytes(str(tmp_path / "link")) == b"abc"
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for path in (
        tmp_path,
        tmp_path / "none",
        tmp_path / "pipe",
        tmp_path / "loop",
        "/dev/zero",
        tmp_path / ("x" * 300),
    ):
        with pytest.raises(OSError):  # noqa: PT011 (messages of the system)
            read_bytes(path)
    with pytest.raises(ValueError, match="null"):
        read_bytes("a\0b")
