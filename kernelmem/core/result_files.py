"""Results: the mixin of every result class, and the .safetensors files (with a hash) that it saves to."""

import json
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from enum import Enum
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeAlias, Union, cast, get_args, get_origin, get_type_hints

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from kernelmem.core.atomic_files import array_sha256, write_file
from kernelmem.core.errors import FileCorruptError

if TYPE_CHECKING:
    import pandas as pd

JSON: TypeAlias = Any  # any value that json.loads returns

FRAME_ROWS = 20  # rows of the table that a notebook shows


class Result:
    """Mixin of result classes: ``save``/``load``, one-screen text, a table, and an HTML view for notebooks.

    A result class is a frozen dataclass, declared ``@dataclass(frozen=True, eq=False, repr=False)``, whose fields are
    tensors, arrays, numbers, strings, enums, None, and tuples, string-keyed dicts or dataclasses of these. It overrides
    ``__str__`` with a summary of at most one screen, and ``to_frame`` if the generic table does not fit.

    Results compare by identity: ``==`` of two tensors is not one truth value.
    """

    file_version: ClassVar[int] = 1  # raise it when the fields of the class change

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
            return cast(Self, _decode(values, tensors, cls))

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
    stored_tensors: dict[str, Tensor] = {}
    for name, value in tensors.items():
        tensor = value.detach().cpu().contiguous()
        shares_memory = any(
            tensor.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
            for other in stored_tensors.values()
        )
        stored_tensors[name] = tensor.clone() if shares_memory else tensor  # safetensors refuses views of one memory
    metadata = {"format": f"kernelmem {file_format}", "values": json.dumps(values)}
    return write_file(
        path, safetensors.torch.save(stored_tensors, metadata | {"sha256": _sha256(stored_tensors, metadata)})
    )


@contextmanager
def read_result(path: str | Path, file_format: str) -> Iterator[tuple[dict[str, Tensor], dict[str, JSON]]]:
    """Yield (tensors, values) of a file written by :func:`write_result`; the tensors are on the CPU.

    This is a context manager, so that a KeyError, TypeError or ValueError raised in its body is reported as a
    FileCorruptError of the file too.

    Raises:
        FileCorruptError: the file is missing, truncated, altered (its hash differs), or has another format.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != f"kernelmem {file_format}":
                raise ValueError(f"format {metadata.get('format')}, not kernelmem {file_format}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        if _sha256(tensors, metadata) != metadata["sha256"]:
            raise ValueError("its sha256 differs from the recorded one")
        yield tensors, json.loads(metadata["values"])
    except (safetensors.SafetensorError, OSError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise FileCorruptError(
            f"file {path}, read as kernelmem {file_format} ({error})",
            expected="a file written by .save",
            hint="compute the result and save it again",
        ) from error


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
        return {"items": {str(key): _encode(item, f"{path}.{key}", tensors) for key, item in value.items()}}
    if isinstance(value, list | tuple):
        return [_encode(item, f"{path}.{key}", tensors) for key, item in enumerate(value)]
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{path} of type {type(value).__name__} cannot be saved")


def _decode(encoded: JSON, tensors: Mapping[str, Tensor], annotation: object) -> object:
    """Return the value of type ``annotation`` that :func:`_encode` converted to the JSON ``encoded``.

    ``tensors`` maps the names in the JSON to tensors. Lists become tuples.
    """
    annotation = _without_none(annotation)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if isinstance(encoded, dict) and encoded.keys() == {"tensor"}:
        tensor = tensors[encoded["tensor"]]
        return tensor.numpy() if annotation is np.ndarray else tensor
    if isinstance(encoded, dict) and encoded.keys() == {"items"}:
        item_type = arguments[1] if len(arguments) == 2 else Any
        return {key: _decode(item, tensors, item_type) for key, item in encoded["items"].items()}
    if isinstance(encoded, dict):
        if not (isinstance(annotation, type) and is_dataclass(annotation)):
            raise ValueError(f"fields {sorted(encoded)} where {annotation} is expected")
        field_types = get_type_hints(annotation)
        if unexpected := encoded.keys() - field_types.keys():
            raise ValueError(f"unexpected fields {sorted(unexpected)}")
        return annotation(**{name: _decode(item, tensors, field_types[name]) for name, item in encoded.items()})
    if isinstance(encoded, list):
        item_types = arguments if origin is tuple and len(arguments) == len(encoded) and ... not in arguments else None
        item_type = arguments[0] if arguments else Any
        decoded = [
            _decode(item, tensors, item_types[index] if item_types else item_type) for index, item in enumerate(encoded)
        ]
        return decoded if origin is list else tuple(decoded)
    if isinstance(annotation, type) and issubclass(annotation, Enum) and encoded is not None:
        return annotation(encoded)
    return encoded


def _without_none(annotation: object) -> object:
    """Return ``X`` for the annotation ``X | None``; other annotations are returned as they are."""
    if get_origin(annotation) in (Union, types.UnionType):
        member_types = [member_type for member_type in get_args(annotation) if member_type is not types.NoneType]
        return member_types[0] if len(member_types) == 1 else annotation
    return annotation


def _sha256(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Return the SHA-256 of the tensors and metadata of a file; the order of the tensors does not matter."""
    header = "\n".join(metadata[key] for key in ("format", "values"))
    return array_sha256({header: np.zeros(0), **{name: tensors[name].numpy() for name in sorted(tensors)}})


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
