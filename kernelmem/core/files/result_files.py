"""Results: the mixin of every result class, and the .safetensors files (with a hash) that it saves to."""

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from enum import Enum
from html import escape
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, Union, cast, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.errors import FileCorruptError
from kernelmem.core.files.atomic_files import write_file
from kernelmem.core.files.hashed_files import (
    JSON,
    READ_ERRORS,
    WRITER,
    hashed_safetensors,
    load_json,
    load_safetensors,
    read_bytes,
    reason,
)

if TYPE_CHECKING:
    import pandas as pd

FRAME_ROWS = 20  # rows of the table that a notebook shows


class Result:
    """Mixin of result classes: ``save``/``load``, one-screen text, a table, and an HTML view for notebooks.

    A result class is a frozen dataclass, declared ``@dataclass(frozen=True, eq=False, repr=False)``, whose fields are
    tensors, arrays, numbers, strings, enums, None, and tuples, string-keyed dicts or dataclasses of these. It overrides
    ``__str__`` with a summary of at most one screen, and ``to_frame`` if the generic table does not fit.

    Results compare by identity: ``==`` of two tensors is not one truth value.
    """

    file_version: ClassVar[int] = 1  # raise it when the fields of the class change
    shapes: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """Sizes of fields as letters, e.g. {"x": "nd", "y": "n"}: in a file that is read, equal letters are equal sizes."""

    def save(self, path: str | Path) -> Path:
        """Write the result to one .safetensors file with a SHA-256 of its content, whole or not at all.

        Raises:
            InputError: ``path`` is a directory, or one of its parents is a file.
        """
        tensors: dict[str, Tensor] = {}
        values = _encode(self, "", tensors)
        return write_result(path, self._file_format(), tensors, values)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a result from :meth:`save`, with tensors on the CPU.

        Raises:
            FileCorruptError: the file is missing, truncated, altered, or of another result class.
        """
        with read_result(path, cls._file_format()) as (tensors, values):
            result = decode(values, cls, cls.__name__, tensors)
            check_consistent(result)
            return result

    @classmethod
    def _file_format(cls) -> str:
        return f"{cls.__name__} {cls.file_version}"

    def to_frame(self) -> "pd.DataFrame":
        """Return the vectors of the most common length as columns; one row with the scalars if there is no vector."""
        import pandas as pd

        values = {field.name: getattr(self, field.name) for field in fields(self)}  # pyright: ignore[reportArgumentType]
        vectors = {name: np.asarray(v) for name, v in values.items() if _is_vector(v)}
        lengths = [len(vector) for vector in vectors.values()]
        if lengths:
            n = max(lengths, key=lengths.count)
            return pd.DataFrame({name: vector for name, vector in vectors.items() if len(vector) == n})
        scalars = {name: _python_value(value) for name, value in values.items() if _is_scalar(value)}
        return pd.DataFrame([scalars])

    def __str__(self) -> str:
        width = max(len(field.name) for field in fields(self))  # pyright: ignore[reportArgumentType]
        lines = [
            f"  {field.name:<{width}}  {_describe(getattr(self, field.name))}"
            for field in fields(self)  # pyright: ignore[reportArgumentType]
        ]
        return "\n".join([type(self).__name__, *lines])

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        """Return the summary and the first rows of the table (called by notebooks)."""
        table = self.to_frame().head(FRAME_ROWS).to_html(border=0, float_format=lambda value: f"{value:.4g}")
        return f"<pre>{escape(str(self))}</pre>{table}"


def write_result(path: str | Path, file_format: str, tensors: Mapping[str, Tensor], values: object) -> Path:
    """Write tensors and JSON values to ``path``, either completely or not at all, and return the path.

    Numbers are stored exactly, including NaN.

    Args:
        path: path of the file.
        file_format: name and version of the content, e.g. "PathKernel 1"; :func:`read_result` requires the same.
        tensors: tensors by name.
        values: any value that JSON can represent.

    Raises:
        InputError: ``path`` is a directory, or one of its parents is a file.
    """
    metadata = {"format": f"{WRITER} {file_format}", "values": json.dumps(values)}
    return write_file(path, hashed_safetensors(tensors, metadata))


@contextmanager
def read_result(path: str | Path, file_format: str) -> Iterator[tuple[dict[str, Tensor], JSON]]:
    """Yield (tensors, values) of a file written by :func:`write_result`; the tensors are on the CPU.

    This is a context manager, so that one of ``READ_ERRORS`` raised in its body is reported as a FileCorruptError of the
    file too.

    Raises:
        FileCorruptError: the file is missing, truncated, altered (its hash differs), or has another format.
    """
    try:
        tensors, metadata = load_safetensors(read_bytes(path))
        if metadata.get("format") != f"{WRITER} {file_format}":
            raise ValueError(f"format {metadata.get('format')}, not {WRITER} {file_format}")
        yield tensors, load_json(metadata["values"])
    except READ_ERRORS as error:
        raise FileCorruptError(
            f"file {path}, read as {WRITER} {file_format} ({reason(error)})",
            expected="a file written by .save",
            hint="check the path" if isinstance(error, FileNotFoundError) else "compute the result and save it again",
        ) from error


def check_consistent(result: Result) -> None:
    """Check that the fields of a result that was read fit together: their sizes, and that it can be printed.

    Raises:
        One of ``READ_ERRORS``: they do not.
    """
    sizes: dict[str, int] = {}
    for name, letters in result.shapes.items():
        value = getattr(result, name)
        shape = tuple(value.shape) if isinstance(value, Tensor | np.ndarray) else (len(value),)
        if len(shape) != len(letters) or any(
            sizes.setdefault(*axis) != axis[1] for axis in zip(letters, shape, strict=True)
        ):
            raise ValueError(f"{name} of shape {shape} does not fit the other fields")
    try:
        with warnings.catch_warnings(action="ignore"):  # of values that have no mean or logarithm
            str(result)
    except (AttributeError, RuntimeError) as error:
        raise ValueError(f"its fields do not fit together: {error}") from error


def _encode(value: object, path: str, tensors: dict[str, Tensor]) -> JSON:
    """Return ``value`` as JSON, with a reference in place of every tensor and array.

    The tensors and arrays are added to the dict ``tensors`` under their ``path``, the names of the fields that lead to
    them.
    """
    if isinstance(value, Tensor | np.ndarray):
        tensors[path] = value if isinstance(value, Tensor) else torch.from_numpy(np.ascontiguousarray(value))
        return {"tensor": path}
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value):
        return {
            field.name: _encode(getattr(value, field.name), f"{path}.{field.name}" if path else field.name, tensors)
            for field in fields(value)
        }
    if isinstance(value, Mapping):
        return {str(key): _encode(item, f"{path}.{key}", tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encode(item, f"{path}.{key}", tensors) for key, item in enumerate(value)]
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{path} of type {type(value).__name__} cannot be saved")


def decode(
    value: JSON, annotation: object, field_path: str, tensors: Mapping[str, Tensor] = MappingProxyType({})
) -> Any:
    """Return a JSON value converted to the type ``annotation``: the inverse of :func:`_encode`.

    Types are dataclasses, named tuples, enums, tensors, arrays, tuples, lists, dicts, literals, unions and plain types.
    Where any value is allowed, lists become tuples.

    Raises:
        TypeError, ValueError: the value is not of this type; the message names the field by ``field_path``.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is Any:
        annotation = _type_of(value)
        origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in (Tensor, np.ndarray):
        tensor = tensors.get(_typed(_typed(value, dict, field_path).get("tensor"), str, field_path))
        if tensor is None:
            raise ValueError(f"{field_path} without its tensor")
        return tensor if annotation is Tensor else tensor.numpy()
    if isinstance(annotation, type) and is_dataclass(annotation):
        field_types = get_type_hints(annotation)
        values = _typed(value, dict, field_path)
        names = [field.name for field in fields(annotation)]
        if values.keys() != set(names):
            missing, unexpected = sorted(set(names) - values.keys()), sorted(values.keys() - set(names))
            raise ValueError(f"{field_path} with missing fields {missing}, unexpected fields {unexpected}"[:200])
        return annotation(
            **{name: decode(values[name], field_types[name], f"{field_path}.{name}", tensors) for name in names}
        )
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return annotation(value)
    if isinstance(annotation, type) and issubclass(annotation, tuple) and annotation is not tuple:  # a NamedTuple
        return annotation(*decode(value, tuple[*get_type_hints(annotation).values()], field_path, tensors))
    if origin is Literal:
        if not any(value == choice and type(value) is type(choice) for choice in arguments):
            raise ValueError(f"{field_path} is none of {arguments}")
        return value
    if origin in (Union, UnionType):
        return _decode_union(value, arguments, field_path, tensors)
    if origin in (tuple, list):
        items = _typed(value, list, field_path)
        item_types = arguments if origin is tuple and ... not in arguments else arguments[:1] * len(items)
        if len(item_types) != len(items):
            raise ValueError(f"{field_path} with {len(items)} items, not {len(item_types)}")
        return origin(decode(item, kind, field_path, tensors) for item, kind in zip(items, item_types, strict=True))
    if origin in (dict, Mapping):
        items = _typed(value, dict, field_path)
        return {key: decode(item, arguments[1], f"{field_path}.{key}", tensors) for key, item in items.items()}
    return _typed(value, cast(type, annotation), field_path)


def _decode_union(
    value: JSON, member_types: tuple[object, ...], field_path: str, tensors: Mapping[str, Tensor]
) -> object:
    """Return ``value`` as the first of the ``member_types`` that it can be decoded to."""
    errors: list[Exception] = []
    for member_type in member_types:
        try:
            return decode(value, member_type, field_path, tensors)
        except (TypeError, ValueError) as error:
            errors.append(error)
    raise errors[0]


def _type_of(value: JSON) -> object:
    """Return the annotation of a JSON value of any type."""
    if isinstance(value, dict):
        return Tensor if value.keys() == {"tensor"} else dict[str, Any]
    return tuple[Any, ...] if isinstance(value, list) else type(value)


def _typed(value: JSON, expected_type: type, field_path: str) -> Any:
    """Return ``value`` if it is of ``expected_type``: a float may be a whole number, and True is not a number."""
    number = isinstance(value, int) and not isinstance(value, bool)
    if number and abs(value) >= 2**64:
        raise ValueError(f"{field_path} is a number of more than 64 bits")
    if type(value) is not expected_type and not (number and expected_type is float):
        raise TypeError(f"{field_path} is {type(value).__name__}, not {expected_type.__name__}")
    return value


def _is_scalar(value: object) -> bool:
    if isinstance(value, Tensor | np.ndarray):
        return value.ndim == 0
    return value is None or isinstance(value, bool | int | float | str | np.generic)


def _is_vector(value: object) -> bool:
    if isinstance(value, Tensor | np.ndarray):
        return value.ndim == 1
    return isinstance(value, tuple | list) and len(value) > 0 and all(map(_is_scalar, value))


def _python_value(value: object) -> object:
    return value.item() if isinstance(value, Tensor | np.ndarray | np.generic) else value


def _describe(value: object) -> str:
    """Return one line that describes a field of a result.

    For a tensor it states shape, dtype and range; any other value is shown itself, cut to 100 characters.
    """
    if isinstance(value, Tensor | np.ndarray):
        if value.ndim == 0:
            return f"{_python_value(value):.6g}"
        tensor = torch.as_tensor(value)
        description = f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
        if tensor.numel() == 0 or tensor.is_complex():
            return description
        return f"{description}, {float(tensor.min()):.4g} to {float(tensor.max()):.4g}"
    if isinstance(value, float):
        return f"{value:.6g}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 100 else f"{text[:97]}..."
