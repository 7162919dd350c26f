"""Results as files: named tensors and figures in one .safetensors file, with a hash of all that is in it."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import safetensors
import safetensors.torch
from torch import Tensor

from kernelmem.core.atomic_files import array_sha256, write_file
from kernelmem.core.errors import FileCorruptError

__all__ = ["read_result", "read_value", "write_result", "write_value"]

Value = TypeVar("Value")


def write_result(path: str | Path, kind: str, tensors: Mapping[str, Tensor], figures: Mapping[str, Any]) -> Path:
    """Write tensors and figures (what JSON holds: numbers to the bit, NaN too) to ``path``, whole or not at all.

    ``kind`` says what it is and in which format, e.g. "path kernel 1"; :func:`read_result` asks for it again.

    Raises:
        InputError: ``path`` is a directory, or a parent of it is a file.
    """
    held: dict[str, Tensor] = {}
    for name, value in tensors.items():
        own = value.detach().cpu().contiguous()
        shared = any(own.untyped_storage().data_ptr() == other.untyped_storage().data_ptr() for other in held.values())
        held[name] = own.clone() if shared else own  # safetensors refuses views of one memory
    metadata = {"format": f"kernelmem {kind}", "figures": json.dumps(dict(figures))}
    return write_file(path, safetensors.torch.save(held, metadata | {"sha256": _sha256(held, metadata)}))


@contextmanager
def read_result(path: str | Path, kind: str) -> Iterator[tuple[dict[str, Tensor], dict[str, Any]]]:
    """Read what :func:`write_result` wrote: (tensors, figures), on the CPU.

    A context, so that what its body does not find (KeyError, TypeError, ValueError) is an error of the file too.

    Raises:
        FileCorruptError: missing, truncated, altered (its hash is another), or something else.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != f"kernelmem {kind}":
                raise ValueError(f"format {metadata.get('format')}, not kernelmem {kind}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        if _sha256(tensors, metadata) != metadata["sha256"]:
            raise ValueError("its sha256 is not the one in it")
        yield tensors, json.loads(metadata["figures"])
    except (safetensors.SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise FileCorruptError(
            f"file {path} of a kernelmem {kind} ({error})",
            expected="what .save wrote",
            do="compute and save it again",
        ) from error


def write_value(path: str | Path, kind: str, value: Any) -> Path:
    """Write a frozen dataclass whose fields are tensors (or None) and what JSON holds, as :func:`write_result` does."""
    held = {own.name: getattr(value, own.name) for own in fields(value)}
    tensors = {name: own for name, own in held.items() if isinstance(own, Tensor)}
    return write_result(path, kind, tensors, {name: own for name, own in held.items() if name not in tensors})


def read_value(path: str | Path, kind: str, of: Callable[..., Value]) -> Value:
    """Read what :func:`write_value` wrote, and hand every field to ``of``; lists come as tuples, tensors on the CPU.

    Raises:
        FileCorruptError: as :func:`read_result`; fields that are missing, or that ``of`` has not.
    """
    with read_result(path, kind) as (tensors, figures):
        plain = {name: tuple(own) if isinstance(own, list) else own for name, own in figures.items()}
        return of(**tensors, **plain)


def _sha256(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Of all that a file holds; the order of tensors in it does not matter."""
    words = "\n".join(metadata[key] for key in ("format", "figures"))
    return array_sha256({words: np.zeros(0), **{name: tensors[name].numpy() for name in sorted(tensors)}})
