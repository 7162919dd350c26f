"""Model and rows as workers receive them: one file per computation, or its content where the file cannot be seen."""

import hashlib
import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from kernelmem.core.batches import Forward, Rows, map_tree
from kernelmem.core.errors import FileCorruptError
from kernelmem.tangents.groups.directions import TargetLike


@dataclass(frozen=True)
class Inputs:
    """What determines a kernel: the model, the rows of both sides in its dtype, and options.

    Attributes:
        side_labels: labels of x and of y.
        contradictions: parameters of each pass that contradicted the survey of the model; they are treated in a slower way.
    """

    model: nn.Module
    x: Rows
    y: Rows | None
    side_labels: tuple[Tensor | None, Tensor | None]
    outputs: str
    target: TargetLike | None
    parameters: tuple[str, ...] | None
    forward: Forward | None
    dtype: torch.dtype
    device: torch.device
    certified: bool
    contradictions: tuple[tuple[str, ...], ...] = ()

    def pickled(self, dumps: Callable[[object], bytes]) -> bytes:
        """Return the inputs as bytes, with rows on the CPU."""
        x, y = _as_arrays(self.x), None if self.y is None else _as_arrays(self.y)
        return dumps(replace(self, x=x, y=y))

    @classmethod
    def unpickled(cls, content: bytes, sha256: str) -> "Inputs":
        """Return the inputs of :meth:`pickled`, after comparing the SHA-256 of the content.

        Raises:
            FileCorruptError: the content is not what was written.
        """
        if hashlib.sha256(content).hexdigest() != sha256:
            raise FileCorruptError(
                "a file with the model and rows for workers whose SHA-256 differs",
                expected="the file that this computation has written",
                hint="check the disk, and run the same call again",
            )
        inputs: Inputs = pickle.loads(content)
        y = None if inputs.y is None else _as_tensors(inputs.y)
        return replace(inputs, x=_as_tensors(inputs.x), y=y)


@dataclass(frozen=True)
class InputsReference:
    """Where a worker finds the inputs: in its own memory, in a file, or here.

    Attributes:
        sha256: hash of the content of the file.
        file: with the pickled inputs.
        content: the same, for workers that do not see the file.
    """

    sha256: str
    file: Path
    content: bytes | None = None

    def load(self) -> Inputs | None:
        """Return the inputs; None if the file cannot be seen here."""
        content = self.content
        if content is None:
            try:
                content = self.file.read_bytes()
            except OSError:
                return None
        return Inputs.unpickled(content, self.sha256)


def _as_arrays(rows: Rows) -> Rows:
    """Return rows as NumPy arrays: pickle copies those once, and tensors three times."""
    return Rows(map_tree(rows.tree, lambda leaf: leaf.detach().cpu().numpy()), rows.n)


def _as_tensors(rows: Rows) -> Rows:
    return Rows(
        map_tree(rows.tree, lambda leaf: torch.from_numpy(leaf) if isinstance(leaf, np.ndarray) else leaf), rows.n
    )
