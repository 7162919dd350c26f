"""Text of some documents that occurs in other ones, too."""

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.checks import as_count
from kernelmem.core.errors import InputError
from kernelmem.core.options import MEMORY
from kernelmem.text.overlap.duplicates import covered
from kernelmem.text.overlap.sequences import Texts, as_sequences
from kernelmem.text.overlap.suffix_array import suffix_array


def shared_text(documents: Texts, others: Texts, *, length: int = 50, memory: int | str = MEMORY) -> Tensor:
    """Return how many symbols of each of some other documents lie in a string that occurs in the documents, (n,) int64.

    Strings of ``length`` symbols count, and no shorter ones. Held-out documents that share text with training documents are
    not new to a model.

    Args:
        documents: texts (symbols are code points), or token ids.
        others: n documents of the same kind.
        length: number of symbols, at least 1.
        memory: limit of what is allocated, about 160 bytes per symbol.

    Raises:
        InputError: no document, texts and token ids, a length out of range, too many symbols for ``memory``.

    Cost: O(N log² N) for N symbols of both.

    >>> shared_text(["the cat sat"], ["a cat sat down", "no dog"], length=7)
    tensor([8, 0])
    """
    length = as_count(length, "length")
    first, second = as_sequences(documents, "documents"), as_sequences(others, "others")
    if first.is_text != second.is_text:
        kinds = ["texts" if sequences.is_text else "token ids" for sequences in (first, second)]
        raise InputError(
            f"documents with {kinds[0]}, and others with {kinds[1]}",
            expected="both texts, or both token ids",
            hint="tokenize both, or neither",
        )
    joined = [sequences.decode() for sequences in (first, second)]
    array = suffix_array([*joined[0], *joined[1]], memory=memory)
    sequences, n = array.sequences, len(joined[0])
    symbols, place = len(sequences.symbols), sequences.documents
    group = np.empty(symbols, dtype=np.int64)  # of equal windows, and of suffixes that end before
    group[array.order] = np.cumsum(array.lcp < length) - 1
    is_window = np.arange(symbols) + length < sequences.starts[1:][place]
    in_documents = np.zeros(int(group.max()) + 1, dtype=bool)
    in_documents[group[is_window & (place < n)]] = True
    shared = covered(is_window & (place >= n) & in_documents[group], length)
    return torch.from_numpy(np.bincount(place[shared] - n, minlength=len(joined[1])).astype(np.int64))
