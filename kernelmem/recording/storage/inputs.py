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
    """One batch of B examples of the training loop, as tensors."""

    examples: Tensor  # (B,) int64
    x: Tree  # (B, ...), or a tree of such tensors
    y: Tensor  # (B, ...)
    sample_weight: Tensor | None  # (B,) float64; None: all ones

    def to(self, device: torch.device) -> "RecordedBatch":
        """Return the batch with inputs, targets and loss weights on ``device``; the positions stay on the CPU."""
        weight = None if self.sample_weight is None else self.sample_weight.to(device)
        return RecordedBatch(self.examples, map_tree(self.x, lambda leaf: leaf.to(device)), self.y.to(device), weight)


@dataclass(frozen=True)
class StoredInput:
    """One input of an example as bytes; ``version`` counts the distinct inputs of the example."""

    example: int
    version: int
    x: bytes
    y: bytes
    sha256: str


def read_batch(index: ArrayLike, x: Batch, y: ArrayLike, sample_weight: ArrayLike | None) -> RecordedBatch:
    """Check the arguments of ``Recorder.step`` and return them as tensors.

    Mappings, tuples and lists in x become plain dicts, tuples and lists. Loss weights that are all 1 become None.

    Raises:
        InputError: lengths differ, there are no rows, values are NaN, indices are not whole numbers >= 0, or inputs are
            in bfloat16.
    """
    leaves = [(name, as_tensor(leaf, name)) for name, leaf in named_leaves(x, "x")]
    leaf_iterator = iter([leaf for _, leaf in leaves])
    tree = map_tree(x, lambda _: next(leaf_iterator))
    targets, examples = as_tensor(y, "y"), as_tensor(index, "index")
    named_tensors = [*leaves, ("y", targets), ("index", examples)]
    loss_weights = None
    if sample_weight is not None:
        loss_weights = as_tensor(sample_weight, "sample_weight", dtype=torch.float64)
        named_tensors.append(("sample_weight", loss_weights))
    lengths = [len(value) if value.ndim else 0 for _, value in named_tensors]
    if not leaves or len(set(lengths)) != 1 or 0 in lengths:
        counts = ", ".join(f"{length} rows of {name}" for length, (name, _) in zip(lengths, named_tensors, strict=True))
        raise InputError(
            f"a batch with {counts}" if leaves else "x without a tensor in it",
            expected="the same number of rows, at least one",
            hint="pass the examples of this step, all its micro-batches concatenated",
        )
    for name, value in named_tensors:
        if value.dtype == torch.bfloat16:
            raise InputError(
                f"{name} of dtype bfloat16",
                expected="numbers of a dtype that NumPy has",
                hint="pass float32 and convert inside the model",
            )
    is_integer_vector = examples.ndim == 1 and not examples.is_floating_point() and examples.dtype != torch.bool
    if not is_integer_vector or len(examples) == 0 or int(examples.min()) < 0:
        raise InputError(
            f"index of shape {tuple(examples.shape)} and dtype {examples.dtype}"
            + (f", minimum {examples.min().item()}" if examples.numel() else ""),
            expected="the position of each row in the training data: whole numbers >= 0, shape (B,)",
            hint="let the data loader return the index together with x and y",
        )
    if loss_weights is not None and loss_weights.ndim != 1:
        raise InputError(
            f"sample_weight of shape {tuple(loss_weights.shape)}", expected="shape (B,)", hint="pass one number per row"
        )
    if loss_weights is not None and bool((loss_weights == 1).all()):
        loss_weights = None
    return RecordedBatch(examples.to("cpu", torch.int64, copy=True), tree, targets, loss_weights)


def stored_sha256(x: bytes, y: bytes) -> str:
    """Return the SHA-256 of one stored input, whose bytes x and y include the shapes and dtypes of its arrays."""
    return hashlib.sha256(len(x).to_bytes(8, "little") + x + y).hexdigest()


class InputRegistry:
    """Registry of the inputs that are already on the tape, by example and SHA-256; about 200 bytes of memory per input."""

    def __init__(self, known_inputs: Iterable[tuple[int, int, str]] = ()) -> None:
        """Register the (example, version, sha256) of the inputs that are already on a tape."""
        self._versions: dict[tuple[int, bytes], int] = {}
        self._n_versions: dict[int, int] = {}
        for example, version, sha256 in known_inputs:
            self._register(example, version, sha256)

    def versions(self, batch: RecordedBatch) -> tuple[Tensor, list[StoredInput]]:
        """Return the version (B,) int64 of the input of each of the B rows, and a list of the inputs not yet on the tape.

        A new input that occurs several times in the batch is listed once. The registry does not change.

        Raises:
            InputError: NumPy does not have a dtype, or a dict has keys that are not strings.
        """
        versions: list[int] = []
        new_inputs: dict[tuple[int, bytes], StoredInput] = {}
        n_new: dict[int, int] = {}  # number of new inputs of each example
        rows = zip(batch.examples.tolist(), tree_row_bytes(batch.x), tree_row_bytes(batch.y), strict=True)
        for example, x_bytes, y_bytes in rows:
            sha256 = stored_sha256(x_bytes, y_bytes)
            key = (example, bytes.fromhex(sha256))
            version = self._versions.get(key)
            if version is None and key in new_inputs:
                version = new_inputs[key].version
            if version is None:
                version = self._n_versions.get(example, 0) + n_new.get(example, 0)
                n_new[example] = n_new.get(example, 0) + 1
                new_inputs[key] = StoredInput(example, version, x_bytes, y_bytes, sha256)
            versions.append(version)
        return torch.tensor(versions, dtype=torch.int64), list(new_inputs.values())

    def add(self, new_inputs: Iterable[StoredInput]) -> None:
        """Add inputs that are now on the tape."""
        for stored_input in new_inputs:
            self._register(stored_input.example, stored_input.version, stored_input.sha256)

    def _register(self, example: int, version: int, sha256: str) -> None:
        """Register one input of an example: its version, and the SHA-256 of its bytes."""
        self._versions[example, bytes.fromhex(sha256)] = version
        self._n_versions[example] = max(self._n_versions.get(example, 0), version + 1)
