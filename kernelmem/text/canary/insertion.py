"""Insertion of canaries into training rows, each copy in a row of its own after different random text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.checks import as_count, as_list, as_text, seed_sequence
from kernelmem.core.errors import InputError
from kernelmem.core.files.result_files import Result
from kernelmem.text.canary.encoding import Encode, check_encode, encode_text

if TYPE_CHECKING:
    import pandas as pd

TRIES = 200  # draws of a context before the documents count as too few
NONE = -1  # owner of a document, document of a copy


@dataclass(frozen=True, eq=False, repr=False)
class CanaryRows(Result):
    """Training rows: N documents and the copies of the inserted canaries, in random order.

    Attributes:
        ids: the token ids of each row, vectors of int64.
        owner: (rows,) int64, pair of the canary in the row; −1: a document.
        document: (rows,) int64, position of the document in the list that was passed; −1: a copy of a canary.
        start: (rows,) int64, position of the first token of the canary in its row; 0 for documents.
    """

    ids: tuple[Tensor, ...]
    owner: Tensor
    document: Tensor
    start: Tensor

    shapes: ClassVar[Mapping[str, str]] = {"ids": "r", "owner": "r", "document": "r", "start": "r"}

    @property
    def canary_share(self) -> float:
        """Share of all tokens that are tokens of canaries, without the text before them."""
        return int(self._canary_tokens().sum()) / max(1, sum(map(len, self.ids)))

    def _canary_tokens(self) -> Tensor:
        lengths = torch.tensor([len(row) for row in self.ids], dtype=torch.int64)
        return (lengths - self.start) * (self.owner >= 0)

    def to_frame(self) -> "pd.DataFrame":
        """Return one row per training row, with columns ``owner``, ``document``, ``length`` and ``start``."""
        import pandas as pd  # slow to import

        columns = {"owner": self.owner.numpy(), "document": self.document.numpy()}
        lengths = [len(row) for row in self.ids]
        return pd.DataFrame({**columns, "length": lengths, "start": self.start.numpy()}).rename_axis("row")

    def __str__(self) -> str:
        copies = self.owner >= 0
        total, rows = sum(map(len, self.ids)), len(self.ids)
        in_rows = sum(len(row) for row, is_copy in zip(self.ids, copies.tolist(), strict=True) if is_copy)
        return (
            f"{rows:,} training rows of {total:,} tokens: {rows - int(copies.sum()):,} documents, {int(copies.sum()):,} copies"
            f" of {len(self.owner[copies].unique()):,} canaries\n"
            f"  canaries are {self.canary_share:.2%} of the tokens, with the text before them {in_rows / max(1, total):.2%}"
        )


def insert_copies(
    documents: Sequence[str],
    encode: Encode,
    canaries: Sequence[tuple[Tensor, int]],
    *,
    context: int,
    separator: str,
    seed: int,
) -> CanaryRows:
    """Return training rows with copies of canaries, given as (ids, number of copies); see :meth:`Canaries.insert`."""
    context = as_count(context, "context", minimum=0)
    separator = as_text(separator, "separator")
    texts = [as_text(text, f"documents[{i}]") for i, text in enumerate(as_list(documents, "documents"))]
    check_encode(encode)
    seeds = seed_sequence(seed, ["contexts", "order"])
    source = np.random.default_rng(seeds["contexts"])
    starts_of = [_word_starts(text) if context else [] for text in texts]
    rows = [(encode_text(encode, text), NONE, i, 0) for i, text in enumerate(texts)]
    for owner, (ids, copies) in enumerate(canaries):
        drawn = _contexts(texts, starts_of, copies, context, source) if context else [""] * copies
        for text in drawn:
            before = encode_text(encode, text + separator) if context else []
            rows.append(([*before, *ids.tolist()], owner, NONE, len(before)))
    order = np.random.default_rng(seeds["order"]).permutation(len(rows))
    shuffled = [rows[i] for i in order]
    columns = ([row[k] for row in shuffled] for k in (1, 2, 3))
    ids = tuple(torch.tensor(row[0], dtype=torch.int64) for row in shuffled)
    return CanaryRows(ids, *(torch.tensor(column, dtype=torch.int64) for column in columns))


def _word_starts(text: str) -> list[int]:
    """Return the positions at which a word begins."""
    return [i for i, c in enumerate(text) if not c.isspace() and (i == 0 or text[i - 1].isspace())]


def _contexts(
    texts: Sequence[str], starts_of: Sequence[list[int]], number: int, length: int, source: np.random.Generator
) -> list[str]:
    """Return different pieces of the documents that begin and end with a word and have at most ``length`` characters.

    A word longer than that is cut.

    Raises:
        InputError: the documents do not have so many different pieces.
    """
    drawn: dict[str, None] = {}
    usable = [i for i, starts in enumerate(starts_of) if starts]
    tries = TRIES * number if usable else 0
    while len(drawn) < number and tries:
        tries -= 1
        document = usable[int(source.integers(len(usable)))]
        starts = starts_of[document]
        start = starts[int(source.integers(len(starts)))]
        piece = texts[document][start : start + length + 1]
        if len(piece) > length:  # its last character tells if a word ends before it
            whole = piece[: max((i for i, c in enumerate(piece) if c.isspace()), default=length)]
            piece = whole
        drawn[piece.rstrip()] = None
    if len(drawn) < number:
        raise InputError(
            f"{len(texts)} documents with fewer than {number} different pieces of {length} characters",
            expected="different text before each copy of a canary",
            hint="pass more or longer documents, or context=0 (the copies are then equal rows, which deduplication removes)",
        )
    return list(drawn)
