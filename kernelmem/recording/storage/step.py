"""One training step as a value, as columns of a row, and as a link in the hash chain."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from kernelmem.core.files.hashed_files import load_json
from kernelmem.core.files.result_files import decode
from kernelmem.recording.storage.npy import array_bytes, array_from_bytes
from kernelmem.recording.storage.param_groups import ParamGroup

FACT_TYPES = {
    "groups": list[dict[str, Any]],
    "scale": float,
    "after": str,
    **dict.fromkeys(("skipped", "evaluating", "frozen"), list[str]),
    **dict.fromkeys(("buffers_changed", "exact"), bool),
    "autocast": Literal["bfloat16", "float16"] | None,
    "loss_scale": float,
}

ADDED_LATER = {"frozen": [], "exact": True, "autocast": None, "loss_scale": 1.0}  # two in format 3, two in format 4
NUMBERS = ("lr", "momentum", "dampening", "weight_decay", "eps", "alpha", "lr_decay")
Row: TypeAlias = tuple[str, bytes, bytes, bytes, bytes | None]
"""facts (JSON), examples, versions, weights (.npy), random."""


@dataclass(frozen=True, eq=False, repr=False)
class Step:
    """One of the T steps of a run, on a batch of B examples.

    It does not hold inputs and weights, which are stored by example and by checkpoint.
    """

    index: int  # 0..T-1
    examples: Tensor  # (B,) int64: positions of the batch in the training data, in order
    versions: Tensor  # (B,) int64: number of the stored input of each example (0: the first; more with augmentation)
    sample_weight: Tensor  # (B,) float64 loss weights (ones if not given)
    groups: tuple[ParamGroup, ...]  # {"parameters": [names], "lr": ..., "betas": [...], ...} as used in this step
    scale: float  # gradient used / gradient of the recomputed batch loss (clipping, loss scaling)
    skipped: frozenset[str]  # parameters of the optimizer whose .grad was None
    random: bytes | None  # state of torch's generators before the forward pass; None if the pass drew nothing
    after: str  # sha256 of parameters and buffers after the step
    buffers_changed: bool  # True if any buffer changed in the step
    evaluating: frozenset[str] = frozenset()  # modules that were in eval mode ("" is the model itself)
    frozen: frozenset[str] = frozenset()  # parameters without requires_grad that moved with a gradient of zeros
    exact: bool = True  # True if scale times the recomputed gradient equals the gradient used in every bit
    autocast: str | None = None  # dtype of torch.autocast in the forward pass: "bfloat16", "float16"
    loss_scale: float = 1.0  # of the GradScaler: the loss was multiplied by it, and the gradient divided

    def __repr__(self) -> str:
        lr = ", ".join(f"{group['lr']:g}" for group in self.groups if "lr" in group)
        return f"Step({self.index}: {len(self.examples)} examples, lr {lr}, gradient scale {self.scale:g})"


def encode_step(step: Step) -> Row:
    """Return the columns of a step in the table ``steps``: one JSON text, arrays as .npy bytes, and the random state."""
    facts = {
        "groups": step.groups,
        "scale": step.scale,
        "skipped": sorted(step.skipped),
        "after": step.after,
        "buffers_changed": step.buffers_changed,
        "evaluating": sorted(step.evaluating),
        "frozen": sorted(step.frozen),
        "exact": step.exact,
        "autocast": step.autocast,
        "loss_scale": step.loss_scale,
    }
    arrays = (step.examples, step.versions, step.sample_weight)
    examples, versions, weights = (array_bytes(value.numpy()) for value in arrays)
    return json.dumps(facts, sort_keys=True), examples, versions, weights, step.random


def decode_step(index: int, row: Row) -> Step:
    """Return step number ``index``, whose columns in the table ``steps`` are ``row``.

    Raises:
        ValueError, TypeError, KeyError: the row was altered.
    """
    facts = ADDED_LATER | load_json(row[0])
    for key, annotation in FACT_TYPES.items():
        decode(facts[key], annotation, key)
    if not facts["groups"]:
        raise ValueError("a step without parameter groups")
    for group in facts["groups"]:
        decode(group["parameters"], list[str], "parameters of a group")
        for key in NUMBERS:
            decode(group.get(key, 0.0), float, f"{key} of a group")
    examples, versions, weights = (torch.from_numpy(array_from_bytes(column)) for column in row[1:4])
    is_batch = examples.ndim == 1 and examples.shape == versions.shape == weights.shape
    if not is_batch or (examples.dtype, versions.dtype, weights.dtype) != (torch.int64, torch.int64, torch.float64):
        raise ValueError("arrays that are not those of a batch")
    if not isinstance(row[4], bytes | None):
        raise TypeError("a random state that is not binary")
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
        buffers_changed=facts["buffers_changed"],
        evaluating=frozenset(facts["evaluating"]),
        frozen=frozenset(facts["frozen"]),
        exact=facts["exact"],
        autocast=facts["autocast"],
        loss_scale=float(facts["loss_scale"]),
    )


def step_hash(previous_hash: str, row: Row, inputs: Iterable[tuple[int, int, str]]) -> str:
    """Return the SHA-256 that binds a step to all steps before it.

    It covers the hash of the previous step, the columns ``row``, and (example, version, sha256) of the step's new inputs.
    """
    facts, examples, versions, weights, random = row
    encoded_inputs = (f"{example} {version} {sha256}".encode() for example, version, sha256 in sorted(inputs))
    encoded_random = b"absent" if random is None else b"random" + random
    return digest(previous_hash.encode(), facts.encode(), examples, versions, weights, encoded_random, *encoded_inputs)


def checkpoint_hash(previous_hash: str, step: int, sha256: str) -> str:
    """Return the SHA-256 that binds a checkpoint after ``step`` steps, whose file has ``sha256``, to these steps.

    ``previous_hash`` is the hash of the last of these steps.
    """
    return digest(previous_hash.encode(), f"checkpoint {step} {sha256}".encode())


def digest(*parts: bytes) -> str:
    """Return the SHA-256 of byte strings, each preceded by its length, so that their boundaries are hashed too."""
    hasher = hashlib.sha256()
    for part in parts:
        hasher.update(len(part).to_bytes(8, "little"))
        hasher.update(part)
    return hasher.hexdigest()
