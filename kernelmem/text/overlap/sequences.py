"""Texts or token ids of several documents as one array of symbols with unique separators."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import torch

from kernelmem.core.checks import as_list, describe
from kernelmem.core.errors import InputError
from kernelmem.text.documents import Documents, as_documents

Texts: TypeAlias = object
"""Several documents: a list of texts (str), or token ids in any form that ``as_documents`` reads."""

LARGEST_ID = 2**31


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

    def decode(self) -> list[str] | list[torch.Tensor]:
        """Return the documents: texts, or token ids."""
        n_documents = len(self.starts) - 1
        parts = [self.symbols[a : b - 1] - n_documents for a, b in pairwise(self.starts.tolist())]
        if self.is_text:
            return [part.astype("<u4").tobytes().decode("utf-32-le", "surrogatepass") for part in parts]
        return [torch.from_numpy(part) for part in parts]

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
        symbols = _code_points(span) if isinstance(span, str) else as_documents([span], name)[0].numpy()
        return symbols + (len(self.starts) - 1)


def as_sequences(texts: Texts, name: str = "texts") -> Sequences:
    """Return documents as symbols.

    Text is read by code points, so that no character is cut, and positions are those of Python's ``text[start:stop]``.

    Raises:
        InputError: one text instead of several, text mixed with token ids, what :func:`as_documents` refuses, ids from 2³¹
            on.
    """
    has_ids = isinstance(texts, Documents | Mapping | torch.Tensor)
    items = [] if has_ids else as_list(texts, name)
    is_text = bool(items) and all(isinstance(item, str) for item in items)
    if not is_text and any(isinstance(item, str) for item in items):
        raise InputError(
            f"{name}, texts mixed with token ids",
            expected="documents that are all text, or all token ids",
            hint=f'pass {name}=["first text", "second text"]',
        )
    if is_text:
        parts = [_code_points(item) for item in items]
    else:
        parts = [ids.numpy() for ids in as_documents(texts if has_ids else items, name)]
    n_documents = len(parts)
    starts = np.concatenate([[0], np.cumsum([len(part) + 1 for part in parts])]).astype(np.int64)
    symbols = np.empty(starts[-1], dtype=np.int64)
    for i, part in enumerate(parts):
        if len(part) and int(part.max()) >= LARGEST_ID:
            raise InputError(
                f"{name}[{i}] with token id {int(part.max())}", expected=f"ids below {LARGEST_ID}", hint="check the ids"
            )
        symbols[starts[i] : starts[i + 1] - 1] = part + n_documents
        symbols[starts[i + 1] - 1] = i
    return Sequences(symbols, starts, is_text)


def _code_points(text: str) -> np.ndarray:
    """Return the code points of a text, (T,) int64."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.int64)
