"""Documents: ragged token ids."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from kernelmem.core import ArrayLike, InputError
from kernelmem.core.checks import as_list, as_tensor, describe

T = TypeVar("T")
HINT = "pass one list of token ids per document: documents=[[5, 2, 7], [1, 2]]"


@dataclass(frozen=True)
class Documents:
    """Token ids of n documents of any lengths.

    Attributes:
        ids: one int64 tensor (T_i,) on the CPU per document; empty documents are allowed.
    """

    ids: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.ids)

    def __getitem__(self, index: int) -> Tensor:
        """Return the token ids (T_i,) of one document."""
        return self.ids[index]

    @property
    def lengths(self) -> Tensor:
        """Number of tokens of each document (n,)."""
        return torch.tensor([len(ids) for ids in self.ids], dtype=torch.int64)


def as_documents(value: object, name: str = "documents", *, lengths: ArrayLike | None = None) -> Documents:
    """Read token ids as documents.

    Padding is recognized by ``lengths`` or by an attention mask, never by the id: an id used for padding may be a word too.

    Args:
        value: a list of documents (lists, arrays or tensors of token ids); an array (n, T); a dict with "input_ids" and
            possibly "attention_mask", such as the output of a Hugging Face tokenizer; or :class:`Documents`.
        name: name of the argument, for error messages.
        lengths: number of tokens (n,) of each row of an array (n, T) that is padded on the right.

    Raises:
        InputError: text, ids that are not whole numbers >= 0, one document instead of a list, no document, a mask with
            gaps, or ``lengths`` that do not fit.

    >>> as_documents([[5, 2, 7], []]).lengths
    tensor([3, 0])
    >>> as_documents({"input_ids": [[0, 5, 2], [1, 1, 3]], "attention_mask": [[0, 1, 1], [1, 1, 1]]}).ids[0]
    tensor([5, 2])
    """
    if isinstance(value, Documents):
        if lengths is not None:
            raise InputError(
                f"lengths= for {name} that are Documents already",
                expected="lengths of an array (n, T)",
                hint="leave out lengths",
            )
        return Documents(tuple(_as_ids(ids, f"{name}[{i}]") for i, ids in enumerate(_not_empty(value.ids, name))))
    mask = None
    if isinstance(value, Mapping):
        if "input_ids" not in value:
            raise InputError(
                f"{name}, a dict with the keys {', '.join(map(repr, list(value)[:5])) or 'none'}",
                expected='a dict with "input_ids"',
                hint="pass the output of the tokenizer, or a list of token ids per document",
            )
        mask = value.get("attention_mask")
        value = value["input_ids"]
    if lengths is not None and mask is not None:
        raise InputError(f"lengths= and an attention_mask in {name}", expected="one of both", hint="leave out lengths")
    rows = _rows(value, name)
    if lengths is not None:
        return Documents(tuple(_cut(rows, lengths, name)))
    if mask is not None:
        masks = as_list(mask, f"{name}.attention_mask")
        if len(masks) != len(rows):
            raise InputError(
                f"{name} with {len(rows)} rows of input_ids and {len(masks)} of attention_mask",
                expected="one mask per document",
                hint="pass the dict as the tokenizer returned it",
            )
        return Documents(
            tuple(_masked(row, mask, f"{name}[{i}]") for i, (row, mask) in enumerate(zip(rows, masks, strict=True)))
        )
    return Documents(rows)


def check_vocabulary(documents: Documents, vocabulary: int, name: str = "documents") -> None:
    """Check that all token ids are below ``vocabulary``.

    Raises:
        InputError: an id is not; the message names the first.
    """
    for i, ids in enumerate(documents):
        if len(ids) and int(ids.max()) >= vocabulary:
            raise InputError(
                f"{name}[{i}] with token id {int(ids.max())} for a model of {vocabulary} tokens",
                expected=f"ids in 0..{vocabulary - 1}",
                hint="tokenize the text with the tokenizer of this model",
            )


def _rows(value: object, name: str) -> tuple[Tensor, ...]:
    """Return one int64 tensor per document."""
    if isinstance(value, str | bytes):
        raise _is_text(name)
    if isinstance(value, Tensor) or (isinstance(value, np.ndarray) and value.dtype != object):
        array = as_tensor(value, name)
        if array.ndim != 2:
            raise InputError(
                f"{name} of shape {tuple(array.shape)}",
                expected="ids (n, T) of n documents, or a list of documents",
                hint=f"pass {name}=[ids] for one document",
            )
        return tuple(_as_ids(array, name, ndim=2))
    rows = _not_empty(as_list(value, name), name)
    return tuple(_as_ids(row, f"{name}[{i}]") for i, row in enumerate(rows))


def _is_text(name: str) -> InputError:
    """Return an error that does not quote the text, which may be private."""
    return InputError(f"{name} with text", expected="token ids", hint="tokenize the text: " + HINT)


def _not_empty(rows: list[T] | tuple[T, ...], name: str) -> list[T] | tuple[T, ...]:
    if not len(rows):
        raise InputError(f"{name} without documents", expected="at least one document", hint=HINT)
    return rows


def _as_ids(value: object, name: str, *, ndim: int = 1) -> Tensor:
    """Return token ids as a contiguous int64 tensor on the CPU.

    Raises:
        InputError: text, a single number, fractions, negative numbers, or other dimensions.
    """
    if isinstance(value, str | bytes) or (isinstance(value, list | tuple) and any(isinstance(v, str) for v in value)):
        raise _is_text(name)
    if isinstance(value, list | tuple) and not value:
        return torch.zeros(0, dtype=torch.int64)
    ids = as_tensor(value, name).cpu()  # pyright: ignore[reportArgumentType]
    if ids.ndim != ndim:
        raise InputError(f"{name} of shape {tuple(ids.shape)}", expected="token ids (T,) of one document", hint=HINT)
    if not ids.numel():
        if ndim == 2 and not len(ids):
            _not_empty([], name)
        return ids.to(torch.int64)
    if ids.is_floating_point() or ids.dtype == torch.bool or int(ids.min()) < 0:
        kind = f"dtype {ids.dtype}" if ids.is_floating_point() or ids.dtype == torch.bool else f"id {int(ids.min())}"
        raise InputError(
            f"{name} with {kind}".replace("torch.", ""),
            expected="token ids: whole numbers >= 0",
            hint="padding is given by lengths= or attention_mask, not by a negative id" if kind[0] == "i" else HINT,
        )
    return ids.to(torch.int64).clone()  # the caller may change its own tensor later


def _cut(rows: tuple[Tensor, ...], lengths: ArrayLike, name: str) -> list[Tensor]:
    """Return the first ``lengths`` ids of each row."""
    counts = as_tensor(lengths, "lengths").cpu()
    widths = torch.tensor([len(row) for row in rows])
    if (
        counts.shape != widths.shape
        or counts.is_floating_point()
        or counts.dtype == torch.bool
        or bool((counts < 0).any())
        or bool((counts > widths).any())
    ):
        raise InputError(
            f"lengths={describe(lengths)} for {len(rows)} documents in {name} of up to {int(widths.max())} tokens",
            expected="one whole number per document, at most the number of its columns",
            hint=f"pass lengths of shape ({len(rows)},)",
        )
    return [row[:count] for row, count in zip(rows, counts.tolist(), strict=True)]


def _masked(ids: Tensor, mask: object, name: str) -> Tensor:
    """Return the ids where the attention mask is 1: one run of tokens, padded on either side."""
    values = as_tensor(mask, f"{name}.attention_mask").cpu()  # pyright: ignore[reportArgumentType]
    is_mask = values.shape == ids.shape and bool(((values == 0) | (values == 1)).all())
    chosen = values.nonzero()[:, 0] if is_mask else values
    if not is_mask or (len(chosen) and int(chosen[-1] - chosen[0]) + 1 != len(chosen)):
        raise InputError(
            f"{name} with an attention_mask of shape {tuple(values.shape)} that is not one run of ones",
            expected=f"zeros and ones of shape ({len(ids)},), the ones next to each other",
            hint="pass each document by itself if the rows are packed",
        )
    return ids[chosen]
