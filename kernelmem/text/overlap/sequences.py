"""Texts or token ids of several documents as one array of symbols with unique separators."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from kernelmem.core.checks import as_list, describe
from kernelmem.core.errors import InputError

Texts = Sequence[object]
"""Several documents: all of them text (str), or all of them token ids (lists, arrays or tensors of whole numbers >= 0)."""


@dataclass(frozen=True)
class Sequences:
    """Symbols of D documents, one after the other, each followed by a separator that occurs nowhere else.

    Attributes:
        symbols: (N,) int64; code points or token ids plus D, separators 0..D-1. Equal symbols are equal characters or ids.
        starts: (D + 1,) int64, index of the first symbol of every document, and N.
        is_text: True for code points, False for token ids.
    """

    symbols: np.ndarray
    starts: np.ndarray
    is_text: bool

    @property
    def lengths(self) -> np.ndarray:
        """Number of symbols of every document, (D,), without separators."""
        return np.diff(self.starts) - 1

    @property
    def documents(self) -> np.ndarray:
        """Document of every symbol, (N,) int64; separators belong to the document that they end."""
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))

    def encode(self, span: object, name: str) -> np.ndarray:
        """Return the symbols of a text or of token ids that are searched for.

        Raises:
            InputError: text among token ids or the reverse, or not a document at all.
        """
        if isinstance(span, str) != self.is_text:
            raise InputError(
                f"{name}={describe(span)}",
                expected="text" if self.is_text else "token ids",
                hint="search texts for text and token ids for token ids",
            )
        return _as_symbols(span, name) + (len(self.starts) - 1)


def as_sequences(texts: Texts, name: str = "texts") -> Sequences:
    """Return documents as symbols.

    Text is read by code points, so that no character is cut, and positions are those of Python's ``text[start:stop]``.

    Raises:
        InputError: one text instead of several, text mixed with token ids, ids that are not whole numbers in 0..2³¹−1, or
            no document.
    """
    items = as_list(texts, name)
    kinds = {isinstance(item, str) for item in items}
    if len(kinds) != 1:
        raise InputError(
            f"{name}, " + ("texts mixed with token ids" if items else "no document"),
            expected="at least one document: all of them text, or all of them token ids",
            hint=f'pass {name}=["first text", "second text"]',
        )
    parts = [_as_symbols(item, f"{name}[{i}]") for i, item in enumerate(items)]
    n_documents = len(parts)
    starts = np.concatenate([[0], np.cumsum([len(part) + 1 for part in parts])]).astype(np.int64)
    symbols = np.empty(starts[-1], dtype=np.int64)
    for i, part in enumerate(parts):
        symbols[starts[i] : starts[i + 1] - 1] = part + n_documents
        symbols[starts[i + 1] - 1] = i
    return Sequences(symbols, starts, kinds.pop())


def _as_symbols(item: object, name: str) -> np.ndarray:
    """Return code points or token ids, (T,) int64.

    Raises:
        InputError: neither text nor a vector of whole numbers in 0..2³¹−1.
    """
    if isinstance(item, str):
        return np.frombuffer(item.encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.int64)
    array = item.detach().cpu().numpy() if isinstance(item, torch.Tensor) and _is_plain(item) else item
    try:
        ids = np.asarray(array)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        ids = np.empty((0, 0))
    if ids.size == 0 and ids.ndim == 1 and isinstance(item, list | tuple | np.ndarray | torch.Tensor):
        return np.empty(0, dtype=np.int64)
    if ids.ndim != 1 or ids.dtype.kind not in "iu" or int(ids.min()) < 0 or int(ids.max()) >= 2**31:
        raise InputError(
            f"{name}={describe(item)}",
            expected="text, or token ids: a vector of whole numbers in 0..2147483647",
            hint="pass the ids of one document as a list or tensor (T,)",
        )
    return ids.astype(np.int64)


def _is_plain(tensor: torch.Tensor) -> bool:
    """Return True for a dense tensor of integers that is in memory."""
    return tensor.layout is torch.strided and not (tensor.is_meta or tensor.is_nested or tensor.is_quantized)
