"""Results as files: named tensors and figures in one .safetensors file, with a hash of all that is in it."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
from torch import Tensor

from kernelmem.ground.errors import FileCorruptError
from kernelmem.store.files import array_sha256, write_file

__all__ = ["read_result", "write_result"]


def write_result(path: str | Path, kind: str, tensors: Mapping[str, Tensor], figures: Mapping[str, Any]) -> Path:
    """Write tensors and figures (what JSON holds: numbers to the bit, NaN too) to ``path``, whole or not at all.

    ``kind`` says what it is and in which format, e.g. "path kernel 1"; :func:`read_result` asks for it again.

    Raises:
        InputError: ``path`` is a directory, or a parent of it is a file.
    """
    held = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
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


def _sha256(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Of all that a file holds; the order of tensors in it does not matter."""
    words = "\n".join(metadata[key] for key in ("format", "figures"))
    return array_sha256({words: np.zeros(0), **{name: tensors[name].numpy() for name in sorted(tensors)}})
