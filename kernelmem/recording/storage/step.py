"""One training step as a value, as the columns of a row, and as a link in the chain of hashes."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernelmem.recording.storage.npy import array_bytes, array_from_bytes

__all__ = ["Row", "Step", "decode_step", "digest", "encode_step", "link", "seal"]

Row = tuple[str, bytes, bytes, bytes, bytes | None]  # facts (JSON), examples, versions, weights (.npy), random


@dataclass(frozen=True, eq=False)
class Step:
    """What one training step did, but for its inputs and weights, which are stored by example and by checkpoint."""

    index: int  # 0..T-1
    examples: Tensor  # (B,) int64: whose rows were in the batch, in its order
    versions: Tensor  # (B,) int64: which stored input of each example (0: as first seen; more with augmentation)
    sample_weight: Tensor  # (B,) float64 loss weights (ones if not given)
    groups: tuple[dict[str, Any], ...]  # {"parameters": [names], "lr": ..., "betas": [...], ...} as used in this step
    scale: float  # gradient used / gradient of the recomputed batch loss (clipping, loss scaling)
    skipped: frozenset[str]  # parameters of the optimizer whose grad was None
    random: bytes | None  # torch CPU generator state before the forward pass; None where it drew nothing
    after: str  # sha256 of parameters and buffers after the step
    buffers_changed: bool  # whether any buffer changed in the step
    evaluating: frozenset[str] = frozenset()  # modules that were in eval mode ("" is the model itself)


def encode_step(step: Step) -> Row:
    """The columns of a step: what is short as JSON, arrays as .npy bytes."""
    facts = {
        "groups": step.groups,
        "scale": step.scale,
        "skipped": sorted(step.skipped),
        "after": step.after,
        "buffers_changed": step.buffers_changed,
        "evaluating": sorted(step.evaluating),
    }
    arrays = (step.examples, step.versions, step.sample_weight)
    examples, versions, weights = (array_bytes(value.numpy()) for value in arrays)
    return json.dumps(facts, sort_keys=True), examples, versions, weights, step.random


def decode_step(index: int, row: Sequence[Any]) -> Step:
    """The step of a row that was read from a tape.

    Raises:
        ValueError, TypeError, KeyError: altered.
    """
    facts = json.loads(row[0])
    examples, versions, weights = (torch.from_numpy(array_from_bytes(column)) for column in row[1:4])
    return Step(
        index,
        examples,
        versions,
        weights,
        groups=tuple(facts["groups"]),
        scale=float(facts["scale"]),
        skipped=frozenset(facts["skipped"]),
        random=row[4],
        after=facts["after"],
        buffers_changed=bool(facts["buffers_changed"]),
        evaluating=frozenset(facts["evaluating"]),
    )


def link(chain: str, row: Sequence[Any], inputs: Iterable[tuple[int, int, str]]) -> str:
    """The hash of a row, of the inputs (example, version, sha256) first seen in it, and of the hash before it."""
    facts, examples, versions, weights, random = row
    new = (f"{example} {version} {sha256}".encode() for example, version, sha256 in sorted(inputs))
    drawn = b"absent" if random is None else b"random" + random
    return digest(chain.encode(), facts.encode(), examples, versions, weights, drawn, *new)


def seal(chain: str, step: int, sha256: str) -> str:
    """The hash that ties the checkpoint after ``step`` steps to the rows before it."""
    return digest(chain.encode(), f"checkpoint {step} {sha256}".encode())


def digest(*parts: bytes) -> str:
    """SHA-256 of a sequence of byte strings, each with its length, so that no byte moves to its neighbor unseen."""
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(len(part).to_bytes(8, "little"))
        hashed.update(part)
    return hashed.hexdigest()
