"""kernelmem.core.files.result_files: round trips to the bit, whole files, and every kind of damage refused."""

import dataclasses
import importlib
import json
import math
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import kernelmem
from kernelmem.core.errors import FileCorruptError, InputError
from kernelmem.core.files.result_files import Result, read_result, write_result
from tests.profiles import examples


class Color(StrEnum):
    """A field that is one of a few words."""

    RED = "red"


@dataclass(frozen=True)
class Part:
    """A dataclass inside a result."""

    weights: Tensor
    name: str | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Thing(Result):
    """All kinds of plain fields."""

    values: Tensor
    other: Tensor | None
    names: tuple[str, ...]
    error: float
    count: int


@dataclass(frozen=True, eq=False, repr=False)
class Other(Result):
    """Fields inside fields."""

    parts: tuple[Part, ...]
    first: Part | None
    by_name: dict[str, Part]
    pair: tuple[Tensor, int]
    array: np.ndarray
    color: Color
    steps: tuple[int, int] | None


def thing(**changes):
    values = torch.arange(6, dtype=torch.float64).reshape(2, 3) / 7
    return Thing(**({"values": values, "other": None, "names": ("a", "b"), "error": 0.1, "count": 3} | changes))


@examples(0.75)
@given(st.floats(), st.integers(-(2**60), 2**60), st.lists(st.text(max_size=5), max_size=3))
def test_figures_come_back_to_the_bit(tmp_path_factory, error, count, names):
    path = tmp_path_factory.mktemp("results") / "thing.safetensors"
    thing(error=error, count=count, names=tuple(names)).save(path)
    found = Thing.load(path)
    assert found.error == error or math.isnan(found.error) == math.isnan(error) is True
    assert math.copysign(1, found.error) == math.copysign(1, error) or math.isnan(error)
    assert (found.count, found.names) == (count, tuple(names))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.bool])
def test_tensors_come_back_to_the_bit_whatever_their_layout(tmp_path, dtype):
    base = torch.arange(24).reshape(4, 6).to(dtype)
    for values in (base, base.T, base[1:, ::2], base[:0], base[0, 0]):
        found = Thing.load(thing(values=values).save(tmp_path / "a"))
        assert found.values.dtype == dtype
        assert torch.equal(found.values, values)
        assert found.other is None
    odd = torch.tensor([math.nan, -0.0, math.inf, 5e-324], dtype=torch.float64)
    found = Thing.load(thing(values=odd).save(tmp_path / "a"))
    assert torch.equal(found.values.view(torch.int64), odd.view(torch.int64))


def test_views_of_one_memory_are_written_apart(tmp_path):
    base = torch.arange(10.0)
    found = Thing.load(thing(values=base[:6], other=base[3:]).save(tmp_path / "a"))
    assert torch.equal(found.values, base[:6])
    assert torch.equal(found.other, base[3:])


def test_every_single_altered_byte_is_noticed(tmp_path):
    path = thing().save(tmp_path / "thing.safetensors")
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 0x01
        path.write_bytes(bytes(damaged))
        try:
            found = Thing.load(path)
        except FileCorruptError:
            continue
        # What is left: a space of the padding, which means nothing.
        assert torch.equal(found.values, thing().values)
        assert (found.other, found.names, found.error, found.count) == (None, ("a", "b"), 0.1, 3)
        assert place < header


@pytest.mark.parametrize("length", [0, 7, 8, 100, -1])
def test_a_truncated_file_is_refused(tmp_path, length):
    path = thing().save(tmp_path / "thing.safetensors")
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(FileCorruptError, match=r"Got file .*Thing 1.*; expected .*. Hint: "):
        Thing.load(path)


def test_a_missing_file_another_kind_and_other_fields_are_refused(tmp_path):
    path = thing().save(tmp_path / "thing.safetensors")
    for wrong, hint in ((tmp_path / "none", "check the path"), (tmp_path, "save it again")):
        with pytest.raises(FileCorruptError, match=hint):
            Thing.load(wrong)
    with pytest.raises(FileCorruptError, match="format kernelmem Thing 1, not kernelmem Other 1"):
        Other.load(path)
    write_result(path, "Thing 1", {"values": torch.zeros(1)}, {"names": []})
    with pytest.raises(FileCorruptError, match="missing"):
        Thing.load(path)
    write_result(path, "Thing 1", {"values": torch.zeros(1)}, {"more": 1})
    with pytest.raises(FileCorruptError, match="unexpected"):
        Thing.load(path)
    with pytest.raises(FileCorruptError), read_result(path, "Thing 1") as (tensors, _):
        tensors["not there"]
    path.write_bytes(safetensors.torch.save({"values": torch.zeros(1)}))
    with pytest.raises(FileCorruptError, match="format None"):
        Thing.load(path)
    path.write_bytes(
        safetensors.torch.save({"values": torch.zeros(1)}, {"format": "kernelmem Thing 1", "values": json.dumps({})})
    )
    with pytest.raises(FileCorruptError, match="sha256"):
        Thing.load(path)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = thing().save(tmp_path / "thing.safetensors")
    before = path.read_bytes()
    with pytest.raises(TypeError):
        thing(names=object()).save(path)
    assert path.read_bytes() == before
    with pytest.raises(InputError):
        thing().save(tmp_path)
    assert [own.name for own in tmp_path.iterdir()] == ["thing.safetensors"]


def other():
    part = Part(torch.arange(3.0), "a")
    return Other((part, Part(torch.ones(2, 2))), None, {"b": part}, (torch.eye(2), 7), np.arange(4.0), Color.RED, None)


def test_nested_fields_come_back_with_their_types(tmp_path):
    before = other()
    after = Other.load(before.save(tmp_path / "other"))
    assert isinstance(after.parts, tuple)
    assert [type(part) for part in after.parts] == [Part, Part]
    assert torch.equal(after.parts[0].weights, before.parts[0].weights)
    assert (after.parts[0].name, after.parts[1].name, after.first, after.steps) == ("a", None, None, None)
    assert torch.equal(after.by_name["b"].weights, torch.arange(3.0))
    assert torch.equal(after.pair[0], torch.eye(2))
    assert after.pair[1] == 7
    assert type(after.array) is np.ndarray
    assert np.array_equal(after.array, before.array)
    assert after.color is Color.RED


def test_text_is_one_screen_however_large_the_fields():
    large = thing(values=torch.randn(1000, 1000), names=tuple(map(str, range(1000))))
    for text in (str(large), repr(large)):
        assert text.startswith("Thing\n")
        assert len(text.splitlines()) <= 6
        assert len(text) < 600
    assert "(1000, 1000) float32" in str(large)


def test_results_compare_by_identity_and_are_hashable():
    first, second = thing(), thing()
    assert first == first
    assert first != second
    assert len({first, second}) == 2


def test_the_table_has_the_vectors_of_the_most_common_length():
    @dataclass(frozen=True, eq=False, repr=False)
    class Curve(Result):
        x: Tensor
        y: np.ndarray
        z: tuple[float, ...]
        scalar: float

    curve = Curve(torch.arange(3.0), np.arange(3), (1.0, 2.0), 5.0)
    assert list(curve.to_frame()) == ["x", "y"]
    assert len(curve.to_frame()) == 3
    scalars = thing(names=(), values=torch.zeros(2, 2)).to_frame()
    assert list(scalars) == ["other", "error", "count"]
    assert len(scalars) == 1


def test_notebooks_show_escaped_text_and_a_short_table():
    html = thing(values=torch.arange(100.0), names=("<b>",))._repr_html_()
    assert "<b>" not in html
    assert "&lt;b&gt;" in html
    assert html.count("<tr") <= 22


def result_classes():
    """Every result class of the package."""
    for module in pkgutil.walk_packages(kernelmem.__path__, "kernelmem."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    pending, found = [Result], []
    while pending:
        subclasses = pending.pop().__subclasses__()
        pending += subclasses
        found += [kind for kind in subclasses if kind.__module__.startswith("kernelmem.")]
    return found


def is_decoded(annotation, seen=()):
    """Whether values of a type can be read from a file."""
    if annotation in seen or annotation in (Tensor, np.ndarray, Any, bool, int, float, str, type(None)):
        return True
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        names = [field.name for field in dataclasses.fields(annotation)]
        return all(is_decoded(get_type_hints(annotation)[name], (*seen, annotation)) for name in names)
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return True
    if isinstance(annotation, type) and issubclass(annotation, tuple):
        return all(is_decoded(item, seen) for item in get_type_hints(annotation).values())
    if get_origin(annotation) in (dict, Mapping):
        return get_args(annotation)[0] is str and is_decoded(get_args(annotation)[1], seen)
    is_container = get_origin(annotation) in (tuple, list, Union, UnionType)
    is_literal = get_origin(annotation) is Literal
    return is_literal or (
        is_container and all(is_decoded(item, seen) for item in get_args(annotation) if item is not ...)
    )


def test_fields_of_every_result_class_can_be_read():
    classes = result_classes()
    assert len(classes) > 30
    for kind in classes:
        assert is_decoded(kind), kind
        assert set(kind.shapes) <= {field.name for field in dataclasses.fields(kind)}
