"""Text that occurs more than once in a collection of documents."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.checks import as_count
from kernelmem.core.files.result_files import Result
from kernelmem.core.options import MEMORY
from kernelmem.text.overlap.sequences import Texts
from kernelmem.text.overlap.suffix_array import SuffixArray, suffix_array

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False, repr=False)
class Duplicates(Result):
    """Spans of D documents in which every window of ``length`` symbols occurs elsewhere, too. It holds positions, no text.

    Attributes:
        length: number of symbols (characters or tokens) from which on a repetition counts.
        unit: "character" or "token".
        sizes: (D,) int64, symbols of every document.
        repeated: (D,) int64, symbols of every document that lie in a span.
        document, start, stop: (S,) int64, the spans: symbols start..stop−1 of a document, in order; spans do not overlap.
        copies: (S,) int64, occurrences of the most frequent window of the span, this one included.
        documents: (S,) int64, number of documents that contain that window.
        earlier: (S,) int64, symbols of the span in windows that occur before, in this or an earlier document.
        keep: (K,) int64, documents left if one copy of everything is to remain, in order: a document is dropped only if every
            window of it occurs in an earlier document (a document shorter than ``length``: if an earlier one equals it).
    """

    length: int
    unit: str
    sizes: Tensor
    repeated: Tensor
    document: Tensor
    start: Tensor
    stop: Tensor
    copies: Tensor
    documents: Tensor
    earlier: Tensor
    keep: Tensor

    shapes: ClassVar[Mapping[str, str]] = {
        "sizes": "d",
        "repeated": "d",
        "document": "s",
        "start": "s",
        "stop": "s",
        "copies": "s",
        "documents": "s",
        "earlier": "s",
        "keep": "k",
    }

    @property
    def share(self) -> float:
        """Share of all symbols that lie in a repeated span; 0 without symbols."""
        return int(self.repeated.sum()) / max(1, int(self.sizes.sum()))

    @property
    def share_earlier(self) -> float:
        """Share of all symbols that lie in a window that occurs before."""
        return int(self.earlier.sum()) / max(1, int(self.sizes.sum()))

    def to_frame(self) -> "pd.DataFrame":
        """Return one row per span, in order: document, start, stop, copies, documents, earlier."""
        import pandas as pd  # slow to import

        names = ("document", "start", "stop", "copies", "documents", "earlier")
        return pd.DataFrame({name: getattr(self, name).numpy() for name in names}).rename_axis("span")

    def __str__(self) -> str:
        """Return shares, and the spans with most copies."""
        n, spans = len(self.sizes), len(self.start)
        lines = [
            f"repeated text: {self.share:.1%} of {int(self.sizes.sum()):,} {self.unit}s in {n:,} documents lie in a"
            f" {self.length}-{self.unit} string that occurs elsewhere, too",
            f"  {self.share_earlier:.1%} repeat earlier text; {n - len(self.keep):,} documents add no new string of this length",
            f"  {spans:,} spans" + (", the most frequent:" if spans else ""),
        ]
        for i in self.copies.argsort(descending=True, stable=True)[:5].tolist():
            size = int(self.stop[i] - self.start[i])
            lines.append(
                f"    document {int(self.document[i])}, {self.unit} {int(self.start[i]):,}: {size:,} {self.unit}s,"
                f" {int(self.copies[i]):,} copies in {int(self.documents[i]):,} documents"
            )
        return "\n".join(lines)


def duplicates(texts: Texts, *, length: int = 50, memory: int | str = MEMORY) -> Duplicates:
    """Find the spans of documents that occur elsewhere in the documents, from ``length`` symbols on.

    A window of ``length`` symbols is repeated if it occurs at least twice, in one document or in several; occurrences may
    overlap, and none crosses the border of a document. Spans are unions of overlapping or adjacent repeated windows.

    Args:
        texts: documents: texts (symbols are code points), or token ids.
        length: number of symbols, at least 1.
        memory: limit of what is allocated, about 160 bytes per symbol.

    Raises:
        InputError: no document, other kinds of values, a length out of range, too many symbols for ``memory``.

    Cost: O(N log² N) for N symbols.

    Source: exact-substring deduplication, Lee et al. 2022.

    >>> repeated = duplicates(["the cat sat", "a cat sat"], length=8)
    >>> repeated.to_frame().values.tolist()
    [[0, 3, 11, 2, 2, 0], [1, 1, 9, 2, 2, 8]]
    """
    length = as_count(length, "length")
    return _repeated(suffix_array(texts, memory=memory), length)


def _repeated(array: SuffixArray, length: int) -> Duplicates:
    sequences = array.sequences
    n, n_documents = len(sequences.symbols), len(sequences.lengths)
    place = sequences.documents
    group = np.empty(n, dtype=np.int64)  # of equal windows, and of suffixes that end before
    group[array.order] = np.cumsum(array.lcp < length) - 1
    counts = np.bincount(group)
    is_window = np.arange(n) + length < sequences.starts[1:][place]  # a separator follows the last symbol of a document
    copies = np.where(is_window, counts[group], 0)
    first = np.full(len(counts), n)
    np.minimum.at(first, group, np.arange(n))
    pairs = np.unique(group * n_documents + place)
    documents = np.bincount(pairs // n_documents, minlength=len(counts))[group]

    repeated = covered(copies > 1, length)
    is_earlier = is_window & (first[group] < np.arange(n))
    earlier = covered(is_earlier, length)
    starts, stops = _runs(repeated)
    span = (np.cumsum(np.isin(np.arange(n), starts)) - 1)[copies > 1]
    # the most frequent window of each span, the first of several: windows sorted by span and decreasing copies
    windows = np.flatnonzero(copies > 1)
    by_copies = np.lexsort((-copies[windows], span))
    best = windows[by_copies[np.searchsorted(span[by_copies], np.arange(len(starts)))]]
    document = place[starts]

    def totals(mask: np.ndarray) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(mask)])

    lacks_new = _lacks_new_window(array, length, is_window & (place[first[group]] == place), place)
    columns = {
        "sizes": sequences.lengths,
        "repeated": np.bincount(place, repeated, minlength=n_documents).astype(np.int64),
        "document": document,
        "start": starts - sequences.starts[document],
        "stop": stops - sequences.starts[document],
        "copies": copies[best],
        "documents": documents[best],
        "earlier": totals(earlier)[stops] - totals(earlier)[starts],
        "keep": np.flatnonzero(~lacks_new),
    }
    unit = "character" if sequences.is_text else "token"
    return Duplicates(length, unit, **{name: torch.from_numpy(column) for name, column in columns.items()})


def _lacks_new_window(array: SuffixArray, length: int, is_new: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Return True for documents (D,) all of whose windows occur in an earlier document, from the new windows (N,)."""
    sequences = array.sequences
    n_documents = len(sequences.lengths)
    lacks_new = np.bincount(place, is_new, minlength=n_documents) == 0
    seen: set[bytes] = set()
    for i in np.flatnonzero(sequences.lengths < length):
        content = sequences.symbols[sequences.starts[i] : sequences.starts[i + 1] - 1].tobytes()
        lacks_new[i] = content in seen
        seen.add(content)
    return lacks_new


def covered(starts: np.ndarray, length: int) -> np.ndarray:
    """Return True for each symbol within ``length`` symbols from a start (N,) bool on."""
    last = np.maximum.accumulate(np.where(starts, np.arange(len(starts)), -length))
    return np.arange(len(starts)) - last < length


def _runs(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return starts and stops of the runs of True in a mask (N,) that ends with False."""
    change = np.diff(np.concatenate([[0], mask.astype(np.int8)]))
    return np.flatnonzero(change == 1), np.flatnonzero(change == -1)
