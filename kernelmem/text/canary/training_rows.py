"""Rows of token ids in batches of training data, with the tokens on which training puts loss."""

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.checks import as_list, as_tensor, describe
from kernelmem.core.errors import InputError
from kernelmem.text.canary.insertion import CanaryRows
from kernelmem.text.documents import Documents

Row: TypeAlias = tuple[np.ndarray, np.ndarray]
"""Token ids (T,), and True for the tokens that are targets with a weight above 0 (T,)."""

HINT = (
    "pass each batch as ids, as (ids, labels) or (ids, labels, weights), or as a dict with input_ids and labels; record"
    " km.text.document_batch(documents), which has labels"
)


def rows_of_batches(batches: object, ignored: int) -> Iterator[Row]:
    """Iterate over the rows of all batches.

    Raises:
        InputError: a batch has another form; the message names it.
    """
    if isinstance(batches, CanaryRows | Documents):
        batches = list(batches.ids)
    if isinstance(batches, str | bytes | Mapping | Tensor | np.ndarray) or not isinstance(batches, Iterable):
        raise InputError(
            f"batches={describe(batches)}",
            expected="the batches of an epoch, a recorded run, or rows of ids",
            hint=HINT,
        )
    for number, batch in enumerate(batches):
        yield from rows_of_batch(batch, ignored, f"batches[{number}]")


def rows_of_batch(batch: object, ignored: int, name: str) -> Iterator[Row]:
    """Iterate over the rows of one batch: a row or an array of ids, (ids, labels[, weights]), or a dict.

    Raises:
        InputError: another form.
    """
    labels = weights = mask = None
    if isinstance(batch, Mapping):
        if "input_ids" not in batch:
            raise InputError(f"{name} with keys {sorted(map(str, batch))}", expected="input_ids", hint=HINT)
        ids, labels, mask = batch["input_ids"], batch.get("labels"), batch.get("attention_mask")
    elif isinstance(batch, tuple) and 2 <= len(batch) <= 3 and not all(isinstance(v, int) for v in batch):
        ids, labels, weights = (*batch, None)[:3]
    else:
        ids = batch
    is_ragged = isinstance(ids, list | tuple) and len(ids) > 0 and not isinstance(ids[0], int | np.integer)
    if is_ragged and labels is None and mask is None:
        for row in as_list(ids, name):
            yield from _rows(_as_array(row, name), None, None, None, name=name, ignored=ignored)
        return
    labels, weights, mask = (None if value is None else _as_array(value, name) for value in (labels, weights, mask))
    yield from _rows(_as_array(ids, name), labels, weights, mask, name=name, ignored=ignored)


def _rows(
    ids: np.ndarray,
    labels: np.ndarray | None,
    weights: np.ndarray | None,
    mask: np.ndarray | None,
    *,
    name: str,
    ignored: int,
) -> Iterator[Row]:
    """Iterate over the rows of ids (T,) or (B, T), with labels and masks of the same shape, weights also (B,).

    Raises:
        InputError: other shapes, or ids that are not whole numbers >= 0.
    """
    shapes = ", ".join(str(value.shape) for value in (ids, labels, mask) if value is not None)
    ids = np.atleast_2d(ids)
    labels, mask = (None if value is None else np.atleast_2d(value) for value in (labels, mask))
    is_ids = ids.ndim == 2 and ids.dtype.kind in "iu" and (not ids.size or int(ids.min()) >= 0)
    is_ids &= labels is None or labels.dtype.kind in "iu"
    if not is_ids or any(value is not None and value.shape != ids.shape for value in (labels, mask)):
        raise InputError(
            f"{name} with arrays of shapes {shapes}, ids of dtype {ids.dtype}",
            expected="whole token ids >= 0 of shape (B, T), and whole labels and an attention_mask of the same shape",
            hint=HINT,
        )
    targets, sequences = _targets(ids, labels, ignored, name)
    is_shifted = sequences.shape != ids.shape
    is_token = np.ones(sequences.shape, dtype=bool)
    if is_shifted:
        is_token[:, -1] = targets[:, -1]  # without a label the last token is not known
    if weights is not None:
        targets = targets & _positive(weights, ids.shape, is_shifted, name)
    if mask is not None:
        is_token[:, : ids.shape[1]] = mask != 0
    for row, target, real in zip(sequences, targets, is_token, strict=True):
        yield row[real].astype(np.int64), target[real]


def _targets(ids: np.ndarray, labels: np.ndarray | None, ignored: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return True for tokens with loss, and the sequences of tokens, (B, T) or, if the labels are the next tokens, (B, T + 1).

    Labels that are the ids themselves are those of Hugging Face, whose models predict label t from the ids before t.

    Raises:
        InputError: the labels are neither the ids nor the next ids.
    """
    if labels is None:
        return np.ones(ids.shape, dtype=bool), ids
    used = labels != ignored
    if bool((labels == ids)[used].all()):
        targets = used.copy()
        targets[:, 0] = False
        return targets, ids
    # The last label of a row may be followed by padding in the ids
    is_last = used & (np.cumsum(used[:, ::-1], axis=1)[:, ::-1] == 1)
    if bool((labels[:, :-1] == ids[:, 1:])[(used & ~is_last)[:, :-1]].all()):
        following = np.concatenate([ids[:, 1:], np.zeros_like(ids[:, :1])], axis=1)
        sequences = np.concatenate([ids[:, :1], np.where(is_last, labels, following)], axis=1)
        return np.concatenate([np.zeros((len(ids), 1), dtype=bool), used], axis=1), sequences
    raise InputError(
        f"{name} with labels that are neither its ids nor the next ids",
        expected=f"labels equal to the ids (Hugging Face) or shifted by one token, {ignored} where there is no loss",
        hint="pass the labels that the loss receives, and ignored= if it ignores another number",
    )


def _positive(weights: np.ndarray, shape: tuple[int, ...], shifted: bool, name: str) -> np.ndarray:
    """Return True for tokens whose loss has a weight, in the places of the targets.

    Raises:
        InputError: weights of another shape.
    """
    if (weights.shape == shape[:1] and shape[0] != 1) or weights.shape == (1,):
        return (weights != 0)[:, None]
    weights = np.atleast_2d(weights)
    if weights.shape != shape:
        raise InputError(
            f"{name} with weights of shape {weights.shape}", expected=f"shape {shape} or {shape[:1]}", hint=HINT
        )
    return np.concatenate([np.zeros((len(weights), 1), dtype=bool), weights != 0], axis=1) if shifted else weights != 0


def _as_array(value: object, name: str) -> np.ndarray:
    """Return numbers as an array.

    Raises:
        InputError: they are not numbers of a regular shape.
    """
    if isinstance(value, list | tuple) and not len(value):
        return np.zeros(0, dtype=np.int64)
    tensor = as_tensor(value, name).detach().cpu()  # pyright: ignore[reportArgumentType]
    return (tensor.double() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor).numpy()
