"""Pairs of documents with nearly the same text, by MinHash."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.checks import as_count, as_number, as_seed
from kernelmem.core.errors import InputError
from kernelmem.core.files.result_files import Result
from kernelmem.core.options import MEMORY, as_bytes
from kernelmem.text.overlap.sequences import Texts
from kernelmem.text.overlap.suffix_array import SuffixArray, suffix_array

if TYPE_CHECKING:
    import pandas as pd

RECALL = 0.99  # probability that a pair at the threshold becomes a candidate
BYTES_PER_PAIR = 200


@dataclass(frozen=True, eq=False, repr=False)
class NearDuplicates(Result):
    """Pairs of D documents whose sets of shingles have a Jaccard similarity of at least ``threshold``.

    Attributes:
        threshold: smallest Jaccard similarity |A ∩ B| / |A ∪ B|.
        shingle: number of symbols (characters or tokens) of a shingle.
        hashes: number h of hash functions.
        bands, rows: a pair is a candidate if all ``rows`` hashes of one of the ``bands`` agree.
        first, second: (P,) int64, documents of every pair, first < second, in order.
        jaccard: (P,) float64, exact similarity.
        estimate: (P,) float64, share of hashes that agree; unbiased for any two documents, with standard deviation
            √(J (1 − J) / h), but conditional on the pair being a candidate here.
        keep: (K,) int64, first document of every group that is connected by pairs.
        n_documents: number D of documents.
    """

    threshold: float
    shingle: int
    hashes: int
    bands: int
    rows: int
    first: Tensor
    second: Tensor
    jaccard: Tensor
    estimate: Tensor
    keep: Tensor
    n_documents: int

    shapes: ClassVar[Mapping[str, str]] = {"first": "p", "second": "p", "jaccard": "p", "estimate": "p", "keep": "k"}

    def recall(self, jaccard: float) -> float:
        """Return the probability that a pair of this similarity J becomes a candidate, 1 − (1 − J^rows)^bands."""
        return _recall(as_number(jaccard, "jaccard", maximum=1.0), self.bands, self.rows)

    def to_frame(self) -> "pd.DataFrame":
        """Return one row per pair, in order: first, second, jaccard, estimate."""
        import pandas as pd  # slow to import

        names = ("first", "second", "jaccard", "estimate")
        return pd.DataFrame({name: getattr(self, name).numpy() for name in names}).rename_axis("pair")

    def __str__(self) -> str:
        """Return the number of pairs, what is left of the documents, and the probability that a pair is missed."""
        return "\n".join(
            [
                f"near-duplicates: {len(self.first):,} pairs of {self.n_documents:,} documents with Jaccard similarity of"
                f" {self.shingle}-grams >= {self.threshold:g}",
                f"  without near-duplicates: {len(self.keep):,} documents",
                f"  probability that a pair at the threshold is missed: {1 - self.recall(self.threshold):.2g}"
                f" ({self.hashes} hashes, {self.bands} bands of {self.rows})",
            ]
        )


def near_duplicates(
    texts: Texts,
    *,
    threshold: float = 0.8,
    shingle: int = 5,
    hashes: int = 128,
    seed: int = 0,
    memory: int | str = MEMORY,
) -> NearDuplicates:
    """Find pairs of documents with Jaccard similarity J ≥ ``threshold`` of their sets of shingles.

    Every hash function is a random permutation of the shingles, and a document's hash its smallest image: two documents agree
    with probability J. Documents that agree in all hashes of a band are candidates, whose similarity is computed exactly: no
    pair is reported in error, and a pair is missed with probability (1 − J^rows)^bands. ``rows`` is the largest number with
    which a pair at the threshold is found with probability 0.99. A document shorter than a shingle is one shingle of its own;
    empty documents are equal to each other.

    Args:
        texts: documents: texts (symbols are code points), or token ids.
        threshold: similarity, in (0, 1].
        shingle: symbols of a shingle.
        hashes: number of hash functions, at least 16.
        seed: seed of the permutations.
        memory: limit of what is allocated: about 160 bytes per symbol, 8 ``hashes`` bytes per document, 200 bytes per pair.

    Raises:
        InputError: no document, other kinds of values, numbers out of range, too little ``memory``; so few hashes that no
            number of rows finds pairs at the threshold with probability 0.99.

    Cost: O(hashes N + candidates N / D) for N symbols in D documents.

    Source: Broder 1997; Broder, Charikar, Frieze and Mitzenmacher 1998; bands: Leskovec, Rajaraman and Ullman 2014.

    >>> found = near_duplicates(["the same text", "the same text!", "another one"], threshold=0.8)
    >>> found.to_frame().values.tolist()[0][:3]
    [0.0, 1.0, 0.9]
    """
    threshold = as_number(threshold, "threshold", maximum=1.0, exclusive=True)
    shingle, hashes = as_count(shingle, "shingle"), as_count(hashes, "hashes", minimum=16, maximum=2**16)
    seed, limit = as_seed(seed), as_bytes(memory)
    bands, rows = _bands(threshold, hashes)
    array = suffix_array(texts, memory=memory)
    shingles, ends = _shingle_sets(array, shingle)
    n_documents = len(ends) - 1
    if 8 * hashes * n_documents > limit:
        raise _too_large(f"{hashes} hashes of {n_documents:,} documents", memory, "use fewer hashes, or")
    signatures = _signatures(shingles, ends, hashes, seed)
    pairs = _candidates(signatures, bands, rows, limit, memory)
    jaccard = np.array([_jaccard(shingles, ends, i, j) for i, j in pairs.tolist()], dtype=np.float64)
    pairs, jaccard = pairs[jaccard >= threshold], jaccard[jaccard >= threshold]
    columns = {
        "first": pairs[:, 0].copy(),
        "second": pairs[:, 1].copy(),
        "jaccard": jaccard,
        "estimate": (signatures[:, pairs[:, 0]] == signatures[:, pairs[:, 1]]).mean(0),
        "keep": _first_of_groups(pairs, n_documents),
    }
    tensors = {name: torch.from_numpy(column) for name, column in columns.items()}
    return NearDuplicates(threshold, shingle, hashes, bands, rows, **tensors, n_documents=n_documents)


def _too_large(given: str, memory: int | str, hint: str) -> InputError:
    return InputError(given, expected=f"at most what fits in memory={memory!r}", hint=f"{hint} pass a larger memory=")


def _recall(jaccard: float, bands: int, rows: int) -> float:
    return 1.0 if jaccard == 1 else -math.expm1(bands * math.log1p(-(jaccard**rows)))


def _bands(threshold: float, hashes: int) -> tuple[int, int]:
    """Return (bands, rows), with the most rows that find pairs at the threshold with probability ``RECALL``.

    Raises:
        InputError: one row per band is not enough.
    """
    for rows in range(min(hashes, 32), 0, -1):
        if _recall(threshold, hashes // rows, rows) >= RECALL:
            return hashes // rows, rows
    needed = math.ceil(math.log1p(-RECALL) / math.log1p(-threshold))
    raise InputError(
        f"threshold={threshold:g} with hashes={hashes}",
        expected=f"enough hashes to find pairs at the threshold with probability {RECALL}",
        hint=f"pass hashes={needed}" if needed <= 2**16 else "pass a larger threshold",
    )


def _shingle_sets(array: SuffixArray, shingle: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct shingles of all documents as numbers, one document after the other, and where each ends (D + 1,).

    Shingles are numbered by the suffix array: equal ones have a common prefix of at least ``shingle`` symbols.
    """
    sequences = array.sequences
    n, n_documents = len(sequences.symbols), len(sequences.lengths)
    group = np.empty(n, dtype=np.int64)
    group[array.order] = np.cumsum(array.lcp < shingle) - 1
    place = sequences.documents
    is_window = np.arange(n) + shingle < sequences.starts[1:][place]
    short: dict[bytes, int] = {}
    keys = [group[is_window] + n_documents]  # numbers below n_documents are those of short documents
    places = [place[is_window]]
    for i in np.flatnonzero(sequences.lengths < shingle):
        content = sequences.symbols[sequences.starts[i] : sequences.starts[i + 1] - 1].tobytes()
        keys.append(np.array([short.setdefault(content, len(short))]))
        places.append(np.array([i]))
    size = n + n_documents
    distinct = np.unique(np.concatenate(places) * size + np.concatenate(keys))
    _, numbers = np.unique(distinct % size, return_inverse=True)
    return numbers, np.searchsorted(distinct // size, np.arange(n_documents + 1))


def _signatures(shingles: np.ndarray, ends: np.ndarray, hashes: int, seed: int) -> np.ndarray:
    """Return the smallest image of the shingles of every document under random permutations, (hashes, D)."""
    rng = np.random.default_rng(seed)
    n_shingles = int(shingles.max()) + 1
    return np.stack([np.minimum.reduceat(rng.permutation(n_shingles)[shingles], ends[:-1]) for _ in range(hashes)])


def _candidates(signatures: np.ndarray, bands: int, rows: int, limit: int, memory: int | str) -> np.ndarray:
    """Return the pairs (P, 2) of documents that agree in a band.

    Raises:
        InputError: more pairs than fit in memory.
    """
    pairs: set[tuple[int, int]] = set()
    for band in range(bands):
        _, bucket = np.unique(signatures[band * rows : (band + 1) * rows], axis=1, return_inverse=True)
        bucket = bucket.ravel()
        order = np.argsort(bucket, kind="stable")
        sizes = np.bincount(bucket)
        if (len(pairs) + int((sizes * (sizes - 1) // 2).sum())) * BYTES_PER_PAIR > limit:
            raise _too_large("documents with too many candidate pairs", memory, "remove exact copies first, or")
        for members in np.split(order, np.cumsum(sizes)[:-1]):
            if len(members) > 1:
                pairs.update(combinations(members.tolist(), 2))
    return np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2)


def _jaccard(shingles: np.ndarray, ends: np.ndarray, i: int, j: int) -> float:
    a, b = (shingles[ends[k] : ends[k + 1]] for k in (i, j))
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)


def _first_of_groups(pairs: np.ndarray, n_documents: int) -> np.ndarray:
    """Return the first document of every connected component."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(n_documents, n_documents))
    _, component = connected_components(graph, directed=False)
    return np.sort(np.unique(component, return_index=True)[1])
