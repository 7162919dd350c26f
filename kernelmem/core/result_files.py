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

JSON: TypeAlias = Any  # what json.loads returns

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
        return write_result(path, self._format(), tensors, values)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a result from :meth:`save`, with tensors on the CPU.

        Raises:
            FileCorruptError: missing, truncated, altered, or the file of another class.
        """
        with read_result(path, cls._format()) as (tensors, values):
            return cast(Self, _decode(values, tensors, cls))

    @classmethod
    def _format(cls) -> str:
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
        scalars = {name: _plain(value) for name, value in values.items() if _is_scalar(value)}
        return pd.DataFrame([scalars])

    def __str__(self) -> str:
        width = max(len(field.name) for field in fields(self))  # pyright: ignore[reportArgumentType]
        lines = [
            f"  {field.name:<{width}}  {_shown(getattr(self, field.name))}"
            for field in fields(self)  # pyright: ignore[reportArgumentType]
        ]
        return "\n".join([type(self).__name__, *lines])

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        """Return the summary and the first rows of the table (called by notebooks)."""
        table = self.to_frame().head(FRAME_ROWS).to_html(border=0, float_format=lambda value: f"{value:.4g}")
        return f"<pre>{escape(str(self))}</pre>{table}"


def write_result(path: str | Path, kind: str, tensors: Mapping[str, Tensor], values: object) -> Path:
    """Write tensors and JSON values (numbers to the bit, NaN too) to ``path``, whole or not at all.

    Args:
        path: the file.
        kind: what it holds and in which format, e.g. "PathKernel 1"; :func:`read_result` asks for the same.
        tensors: by name.
        values: what JSON can hold.

    Raises:
        InputError: ``path`` is a directory, or one of its parents is a file.
    """
    stored: dict[str, Tensor] = {}
    for name, value in tensors.items():
        tensor = value.detach().cpu().contiguous()
        shared = any(tensor.untyped_storage().data_ptr() == x.untyped_storage().data_ptr() for x in stored.values())
        stored[name] = tensor.clone() if shared else tensor  # safetensors refuses views of one memory
    metadata = {"format": f"kernelmem {kind}", "values": json.dumps(values)}
    return write_file(path, safetensors.torch.save(stored, metadata | {"sha256": _sha256(stored, metadata)}))


@contextmanager
def read_result(path: str | Path, kind: str) -> Iterator[tuple[dict[str, Tensor], dict[str, JSON]]]:
    """Read a file of :func:`write_result`: (tensors, values), on the CPU.

    A context manager, so that what its body misses (KeyError, TypeError, ValueError) is reported as an error of the
    file too.

    Raises:
        FileCorruptError: missing, truncated, altered (its hash differs), or of another kind.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != f"kernelmem {kind}":
                raise ValueError(f"format {metadata.get('format')}, not kernelmem {kind}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        if _sha256(tensors, metadata) != metadata["sha256"]:
            raise ValueError("its sha256 differs from the recorded one")
        yield tensors, json.loads(metadata["values"])
    except (safetensors.SafetensorError, OSError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise FileCorruptError(
            f"file {path} of a kernelmem {kind} ({error})",
            expected="a file written by .save",
            hint="compute the result and save it again",
        ) from error


def _encode(value: object, path: str, tensors: dict[str, Tensor]) -> JSON:
    """Return ``value`` as JSON, with tensors and arrays moved to ``tensors`` under their path."""
    if isinstance(value, Tensor | np.ndarray):
        tensors[path] = value if isinstance(value, Tensor) else torch.from_numpy(np.ascontiguousarray(value))
        return {"tensor": path}
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value):
        return {
            f.name: _encode(getattr(value, f.name), f"{path}.{f.name}" if path else f.name, tensors)
            for f in fields(value)
        }
    if isinstance(value, Mapping):
        return {"items": {str(k): _encode(v, f"{path}.{k}", tensors) for k, v in value.items()}}
    if isinstance(value, list | tuple):
        return [_encode(v, f"{path}.{k}", tensors) for k, v in enumerate(value)]
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{path} of type {type(value).__name__} cannot be saved")


def _decode(data: JSON, tensors: Mapping[str, Tensor], hint: object) -> object:
    """Rebuild what :func:`_encode` made of a value annotated with ``hint``; lists become tuples."""
    hint = _without_none(hint)
    origin, arguments = get_origin(hint), get_args(hint)
    if isinstance(data, dict) and data.keys() == {"tensor"}:
        tensor = tensors[data["tensor"]]
        return tensor.numpy() if hint is np.ndarray else tensor
    if isinstance(data, dict) and data.keys() == {"items"}:
        of = arguments[1] if len(arguments) == 2 else Any
        return {key: _decode(item, tensors, of) for key, item in data["items"].items()}
    if isinstance(data, dict):
        if not (isinstance(hint, type) and is_dataclass(hint)):
            raise ValueError(f"fields {sorted(data)} where {hint} is expected")
        hints = get_type_hints(hint)
        if unexpected := data.keys() - hints.keys():
            raise ValueError(f"unexpected fields {sorted(unexpected)}")
        return hint(**{name: _decode(item, tensors, hints[name]) for name, item in data.items()})
    if isinstance(data, list):
        each = arguments if origin is tuple and len(arguments) == len(data) and ... not in arguments else None
        of = arguments[0] if arguments else Any
        decoded = [_decode(item, tensors, each[k] if each else of) for k, item in enumerate(data)]
        return decoded if origin is list else tuple(decoded)
    if isinstance(hint, type) and issubclass(hint, Enum) and data is not None:
        return hint(data)
    return data


def _without_none(hint: object) -> object:
    """``X`` for ``X | None``."""
    if get_origin(hint) in (Union, types.UnionType):
        kinds = [kind for kind in get_args(hint) if kind is not types.NoneType]
        return kinds[0] if len(kinds) == 1 else hint
    return hint


def _sha256(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Hash of the whole content of a file; the order of its tensors does not matter."""
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


def _plain(value: object) -> object:
    return value.item() if isinstance(value, Tensor | np.ndarray | np.generic) else value


def _shown(value: object) -> str:
    """One line for a field: shape, dtype and range of a tensor, the value of anything short."""
    if isinstance(value, Tensor | np.ndarray):
        if value.ndim == 0:
            return f"{_plain(value):.6g}"
        tensor = torch.as_tensor(value)
        described = f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
        if tensor.numel() == 0 or tensor.is_complex():
            return described
        return f"{described}, {float(tensor.min()):.4g} to {float(tensor.max()):.4g}"
    if isinstance(value, float):
        return f"{value:.6g}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 100 else f"{text[:97]}..."
