"""Token spans that documents share with a sentence."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernelmem.text.documents import Documents
from kernelmem.text.overlap import suffix_array


@dataclass(frozen=True, eq=False)
class SharedSpans:
    """Maximal spans that D documents share with a sentence, by document and position.

    Attributes:
        longest: (D,) int64, tokens of the longest span that each document shares with the sentence.
        document, start: (S,) int64, document of each span and its first token there.
        place: (S,) int64, first token of the span in the sentence; one of them if it occurs there several times.
        length: (S,) int64, number of tokens.
    """

    longest: Tensor
    document: Tensor
    start: Tensor
    place: Tensor
    length: Tensor

    def __post_init__(self) -> None:
        sizes = {len(column) for column in (self.document, self.start, self.place, self.length)}
        if len(sizes) > 1 or (len(self.document) and int(self.document.max()) >= len(self.longest)):
            raise ValueError("spans of different numbers")

    def of(self, document: int) -> list[tuple[int, int, int]]:
        """Return (start, place, length) of the spans of one document, in order."""
        chosen = (self.document == document).nonzero()[:, 0]
        columns = (self.start[chosen].tolist(), self.place[chosen].tolist(), self.length[chosen].tolist())
        return list(zip(*columns, strict=True))


def shared_spans(sentence: Tensor, documents: Documents, minimum: int, memory: int | str) -> SharedSpans:
    """Find the spans of at least ``minimum`` tokens that documents share with a sentence, and the longest of each document.

    From every token of a document on, the longest match with the sentence is the larger common prefix with the nearest
    suffixes of the sentence before and after it in the suffix array. A match that is part of the one before it is no span.

    Cost: that of a suffix array of all tokens.
    """
    array = suffix_array([sentence, *documents], memory=memory)
    sequences = array.sequences
    n = len(sequences.symbols)
    length, place = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
    in_sentence = array.order < len(sentence)
    for ranks in (range(n), range(n - 1, -1, -1)):
        common, nearest, step = 0, -1, ranks.step
        for rank in ranks:
            if rank != ranks.start:
                common = min(common, int(array.lcp[rank if step > 0 else rank + 1]))
            suffix = int(array.order[rank])
            if in_sentence[rank]:
                common, nearest = len(sentence), suffix
            elif nearest >= 0 and common > length[suffix]:
                length[suffix], place[suffix] = common, nearest
    owners = sequences.documents - 1
    longest = np.zeros(len(documents), dtype=np.int64)
    outside = owners >= 0
    np.maximum.at(longest, owners[outside], length[outside])
    before = np.concatenate([[0], length[:-1]])
    starts = np.flatnonzero(outside & (length >= minimum) & (length > before - 1))
    columns = owners[starts], starts - sequences.starts[owners[starts] + 1], place[starts], length[starts]
    return SharedSpans(torch.from_numpy(longest), *(torch.from_numpy(column.copy()) for column in columns))
