"""Batches of a run: checked on entry, each distinct input of an example stored once."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from kernelmem.core.batches import Batch, Tree, map_tree, named_leaves
from kernelmem.core.checks import ArrayLike, as_tensor
from kernelmem.core.errors import InputError
from kernelmem.recording.storage.pytree import tree_row_bytes


@dataclass(frozen=True, eq=False)
class RecordedBatch:
    """One batch of the training loop."""

    examples: Tensor  # (B,) int64
    x: Tree  # (B, ...), or a tree of such tensors
    y: Tensor  # (B, ...)
    sample_weight: Tensor | None  # (B,) float64; None: all ones


@dataclass(frozen=True)
class StoredInput:
    """One input of an example as bytes; ``version`` counts the distinct inputs of the example."""

    example: int
    version: int
    x: bytes
    y: bytes
    sha256: str


def read_batch(index: ArrayLike, x: Batch, y: ArrayLike, sample_weight: ArrayLike | None) -> RecordedBatch:
    """Check the arguments of ``Recorder.step``; mappings, tuples and lists of tensors become plain ones.

    Raises:
        InputError: lengths that differ, no rows, NaN, indices that are not whole numbers >= 0, inputs that are not on
            the CPU.
    """
    leaves = [(name, as_tensor(leaf, name)) for name, leaf in named_leaves(x, "x")]
    tensors = iter([leaf for _, leaf in leaves])
    tree = map_tree(x, lambda _: next(tensors))
    targets, positions = as_tensor(y, "y"), as_tensor(index, "index")
    named = [*leaves, ("y", targets), ("index", positions)]
    weights = None
    if sample_weight is not None:
        weights = as_tensor(sample_weight, "sample_weight", dtype=torch.float64)
        named.append(("sample_weight", weights))
    lengths = [len(value) if value.ndim else 0 for _, value in named]
    if not leaves or len(set(lengths)) != 1 or 0 in lengths:
        counts = ", ".join(f"{length} rows of {name}" for length, (name, _) in zip(lengths, named, strict=True))
        raise InputError(
            f"a batch with {counts}" if leaves else "x without a tensor in it",
            expected="the same number of rows, at least one",
            hint="pass the examples of this step, all its micro-batches concatenated",
        )
    for name, value in named:
        if value.device.type != "cpu" or value.dtype == torch.bfloat16:
            raise InputError(
                f"{name} of dtype {value.dtype} on {value.device}".replace("torch.", ""),
                expected="numbers on the CPU, of a dtype that NumPy has",
                hint="pass float32 and convert inside the model",
            )
    integer = positions.ndim == 1 and not positions.is_floating_point() and positions.dtype != torch.bool
    if not integer or int(positions.min()) < 0:
        raise InputError(
            f"index of shape {tuple(positions.shape)} and dtype {positions.dtype}, minimum {positions.min().item()}",
            expected="the position of each row in the training data: whole numbers >= 0, shape (B,)",
            hint="let the data loader return the index together with x and y",
        )
    if weights is not None and weights.ndim != 1:
        raise InputError(
            f"sample_weight of shape {tuple(weights.shape)}", expected="shape (B,)", hint="pass one number per row"
        )
    if weights is not None and bool((weights == 1).all()):
        weights = None
    return RecordedBatch(positions.to(torch.int64).clone(), tree, targets, weights)


def stored_sha256(x: bytes, y: bytes) -> str:
    """Return the SHA-256 of one stored input: all its arrays, with names, shapes and dtypes."""
    return hashlib.sha256(len(x).to_bytes(8, "little") + x + y).hexdigest()


class InputRegistry:
    """Inputs that are already on the tape, by example and hash; about 200 bytes of memory per input."""

    def __init__(self, known: Iterable[tuple[int, int, str]] = ()) -> None:
        """Start from the (example, version, sha256) of a tape."""
        self._versions: dict[tuple[int, bytes], int] = {}
        self._counts: dict[int, int] = {}
        for example, version, sha256 in known:
            self._add(example, version, sha256)

    def versions(self, batch: RecordedBatch) -> tuple[Tensor, list[StoredInput]]:
        """Return the version of each row (B,) int64, and the new inputs, each once; the registry does not change.

        Raises:
            InputError: a dtype that NumPy does not have, a dict with keys that are not strings.
        """
        versions: list[int] = []
        new: dict[tuple[int, bytes], StoredInput] = {}
        counts: dict[int, int] = {}  # of the new ones
        rows = zip(batch.examples.tolist(), tree_row_bytes(batch.x), tree_row_bytes(batch.y), strict=True)
        for example, x, y in rows:
            sha256 = stored_sha256(x, y)
            key = (example, bytes.fromhex(sha256))
            version = self._versions.get(key)
            if version is None and key in new:
                version = new[key].version
            if version is None:
                version = self._counts.get(example, 0) + counts.get(example, 0)
                counts[example] = counts.get(example, 0) + 1
                new[key] = StoredInput(example, version, x, y, sha256)
            versions.append(version)
        return torch.tensor(versions, dtype=torch.int64), list(new.values())

    def add(self, new: Iterable[StoredInput]) -> None:
        """Add inputs that are now on the tape."""
        for stored in new:
            self._add(stored.example, stored.version, stored.sha256)

    def _add(self, example: int, version: int, sha256: str) -> None:
        self._versions[example, bytes.fromhex(sha256)] = version
        self._counts[example] = max(self._counts.get(example, 0), version + 1)
