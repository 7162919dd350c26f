"""Interpolated n-gram model: what counts of short contexts alone predict, the control of a language model."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.checks import as_count
from kernelmem.core.errors import InputError
from kernelmem.core.options import MEMORY, as_bytes
from kernelmem.text.documents import as_documents, check_vocabulary

MAX_VOCABULARY = 2**31 - 2  # a context and a token are one 64-bit integer
BYTES_PER_TOKEN = 100  # of the training text, per order


@dataclass(frozen=True)
class _Table:
    """Counts after the contexts of one length.

    Attributes:
        contexts: sorted keys (number of the context one token shorter) · (V + 1) + token before it; the index is the number.
        pairs: sorted keys (number of the context) · V + next token. counts: their counts.
        first: where the pairs of every context start, and their number.
        total: number of next tokens of every context.
    """

    contexts: np.ndarray
    pairs: np.ndarray
    counts: np.ndarray
    first: np.ndarray
    total: np.ndarray


class NgramModel:
    """Interpolated n-gram model, made by :func:`ngram_model`; it is used like a :class:`CausalLM`.

    Attributes:
        order: largest number of tokens of an n-gram.
        vocabulary: number V of tokens.
        n_tokens: number of tokens that it was fitted to.
    """

    def __init__(self, tables: tuple[_Table, ...], order: int, vocabulary: int, n_tokens: int) -> None:
        self._tables = tables  # fewer than ``order`` if the documents are shorter
        self.order, self.vocabulary, self.n_tokens = order, vocabulary, n_tokens

    def __repr__(self) -> str:
        return f"NgramModel of order {self.order}, {self.vocabulary:,} tokens, fitted to {self.n_tokens:,}"

    def log_probs(self, documents: object, *, memory: int | str = MEMORY) -> Iterator[Tensor]:
        """Iterate over the documents: log p(· | start of the document, tokens before t), (T_i, V) float64.

        Raises:
            InputError: not documents, ids outside the vocabulary, or a document too large for ``memory``.

        Cost: O(order T V) per document.
        """
        limit, checked = as_bytes(memory), as_documents(documents)
        check_vocabulary(checked, self.vocabulary)
        longest = int(checked.lengths.max())
        if 16 * longest * self.vocabulary > limit:
            raise InputError(
                f"documents with up to {longest:,} tokens",
                expected=f"probabilities of {self.vocabulary:,} tokens after each that fit in memory={memory!r}",
                hint="pass shorter documents, or a larger memory=",
            )
        return (torch.from_numpy(np.log(self._probabilities(ids.numpy()))) for ids in checked)

    def next_log_probs(self, prefixes: object, *, memory: int | str = MEMORY) -> Tensor:
        """Return log p(· | start of the document, prefix) after each prefix, (n, V) float64; errors of :meth:`log_probs`."""
        checked = as_documents(prefixes, "prefixes")
        any_token = torch.zeros(1, dtype=torch.int64)  # what follows the prefix does not matter
        rows = self.log_probs([torch.cat([ids, any_token]) for ids in checked], memory=memory)
        return torch.stack([row[-1] for row in rows])

    def _probabilities(self, ids: np.ndarray) -> np.ndarray:
        """Return the probabilities of the next token at every position (T, V)."""
        V = self.vocabulary
        tokens = np.concatenate([[V], ids])
        target = np.arange(1, len(tokens))
        p = np.full((len(ids), V), 1 / V)
        context = np.zeros(len(ids), dtype=np.int64)
        for length, table in enumerate(self._tables):
            if length:
                key = context * (V + 1) + tokens[np.maximum(target - length, 0)]
                place = np.minimum(np.searchsorted(table.contexts, key), len(table.contexts) - 1)
                known = (context >= 0) & (target >= length) & (table.contexts[place] == key)
                context = np.where(known, place, -1)
            rows = np.flatnonzero(context >= 0)
            number = context[rows]
            types = table.first[number + 1] - table.first[number]
            scale = (table.total[number] + types).astype(np.float64)
            p[rows] *= (types / scale)[:, None]
            entries = np.arange(types.sum()) + np.repeat(table.first[number] - (np.cumsum(types) - types), types)
            p[np.repeat(rows, types), table.pairs[entries] % V] += table.counts[entries] / np.repeat(scale, types)
        return p


def ngram_model(
    documents: object, *, order: int = 5, vocabulary: int | None = None, memory: int | str = MEMORY
) -> NgramModel:
    """Fit an interpolated n-gram model to documents.

    p(w | h) = (c(h w) + t(h) p(w | h′)) / (c(h) + t(h)), with c the counts in the documents, t(h) the number of different
    tokens that follow h, and h′ the context h without its first token; after no token at all, h′ gives 1 / V. The start of a
    document is a token of contexts. A context that did not occur is skipped. Probabilities are positive and sum to 1.

    Args:
        documents: token ids, as :func:`as_documents` reads them.
        order: largest number n of tokens of an n-gram: n − 1 of context and the next one.
        vocabulary: number V of tokens; None: the largest id + 1.
        memory: limit of what is allocated, about 100 ``order`` bytes per token.

    Raises:
        InputError: not documents, no token, ids outside the vocabulary, too little ``memory``.

    Cost: O(order N log N) for N tokens.

    Source: Witten and Bell 1991 (method C); interpolation: Chen and Goodman 1999.

    >>> ngram_model([[0, 1, 0, 1]], order=1).next_log_probs([[0]]).exp()
    tensor([[0.5000, 0.5000]], dtype=torch.float64)
    """
    order, limit = as_count(order, "order", maximum=100), as_bytes(memory)
    checked = as_documents(documents)
    n_tokens = int(checked.lengths.sum())
    if n_tokens == 0:
        raise InputError("documents without a token", expected="at least one token", hint="pass other documents")
    if n_tokens * order * BYTES_PER_TOKEN > limit:
        raise InputError(
            f"documents with {n_tokens:,} tokens for order={order}",
            expected=f"at most {limit // (order * BYTES_PER_TOKEN):,} tokens for memory={memory!r}",
            hint="pass fewer documents, a smaller order=, or a larger memory=",
        )
    largest = max(int(ids.max()) for ids in checked if len(ids))
    V = as_count(largest + 1 if vocabulary is None else vocabulary, "vocabulary", maximum=MAX_VOCABULARY)
    check_vocabulary(checked, V)
    tokens = np.concatenate([part for ids in checked for part in ([V], ids.numpy())])
    position = np.concatenate([np.arange(len(ids) + 1) for ids in checked])
    target = np.flatnonzero(position > 0)
    context = np.zeros(len(target), dtype=np.int64)
    tables = []
    for length in range(order):
        contexts = np.zeros(1, dtype=np.int64)
        if length:
            exists = position[target] >= length
            target = target[exists]
            if not len(target):
                break
            key = context[exists] * (V + 1) + tokens[target - length]
            contexts, context = np.unique(key, return_inverse=True)
        pairs, counts = np.unique(context * V + tokens[target], return_counts=True)
        first = np.searchsorted(pairs, np.arange(len(contexts) + 1) * V)
        tables.append(_Table(contexts, pairs, counts, first, np.bincount(context, minlength=len(contexts))))
    return NgramModel(tuple(tables), order, V, n_tokens)
