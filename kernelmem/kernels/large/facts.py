"""Facts of a stored kernel: hashes of the model and of the rows in their order, and the options that change its values."""

import hashlib
import re
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from kernelmem.core.batches import Rows, named_leaves
from kernelmem.core.files.hashed_files import JSON
from kernelmem.kernels.large.inputs import Inputs

HASHED_ROWS = 1024  # examples that are copied at a time
ADDRESS = re.compile(r"0x[0-9a-f]{4,}")  # in texts of functions, different in each process


def facts_of(inputs: Inputs, names: list[str]) -> dict[str, JSON]:
    """Return the facts of the kernel of ``inputs`` with respect to the parameters ``names``.

    Functions (``target``, ``forward``, the code of modules) are compared by name here; :mod:`computation` compares values.
    """
    return {
        "model": {
            "class": type(inputs.model).__qualname__,
            "structure": _text_sha256(_structure(inputs.model)),
            "values": _tensors_sha256(_state(inputs.model)),
        },
        "parameters": _text_sha256("\n".join(names)),
        "x": _rows_facts(inputs.x),
        "y": None if inputs.y is None else _rows_facts(inputs.y),
        "labels": [None if labels is None else _tensors_sha256([("labels", labels)]) for labels in inputs.side_labels],
        "outputs": inputs.outputs,
        "target": _name(inputs.target),
        "forward": _name(inputs.forward),
        "dtype": str(inputs.dtype).removeprefix("torch."),
    }


def _structure(model: nn.Module) -> str:
    """Return one line per module: its name, class and settings."""
    lines = [f"{name}: {type(module).__qualname__}({module.extra_repr()})" for name, module in model.named_modules()]
    return ADDRESS.sub("", "\n".join(lines))


def _state(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _rows_facts(rows: Rows) -> dict[str, JSON]:
    """Return the number of rows, a hash of the set of rows, and one of their order."""
    leaves = [(name, leaf) for name, leaf in named_leaves(rows.tree, "rows")]
    layout = "\n".join(f"{name} {leaf.dtype} {tuple(leaf.shape[1:])}" for name, leaf in leaves)
    digests = []
    for start in range(0, rows.n, HASHED_ROWS):
        stop = min(start + HASHED_ROWS, rows.n)
        blocks = [_bytes(leaf[start:stop]).reshape(stop - start, -1).numpy() for _, leaf in leaves]
        for i in range(stop - start):
            digest = hashlib.sha256()
            for block in blocks:
                digest.update(block[i].data)
            digests.append(digest.digest())
    return {
        "n": rows.n,
        "layout": _text_sha256(layout),
        "rows": hashlib.sha256(b"".join(sorted(digests))).hexdigest(),
        "order": hashlib.sha256(b"".join(digests)).hexdigest(),
    }


def _tensors_sha256(tensors: Iterator[tuple[str, Tensor]] | list[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(_bytes(tensor).numpy().data)
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> Tensor:
    """Return the values of a tensor as bytes, (number of bytes,)."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def _text_sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


def _name(value: object) -> JSON:
    """Return a name of an option that may be a function."""
    if callable(value):
        name = getattr(value, "__qualname__", type(value).__qualname__)
        return name.rpartition(".<locals>.")[2]
    return list(value) if isinstance(value, tuple) else value
