"""Language model with a memory of documents (kNN-LM), whose memorization is known exactly by leaving documents out."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernelmem.core import ArrayLike, InputError, Progress
from kernelmem.core.checks import as_count, as_indices, as_number, check_instance
from kernelmem.core.options import MEMORY, as_bytes, as_progress
from kernelmem.text.attribution.neighbours.hidden_states import HiddenStates, StateFunction
from kernelmem.text.attribution.neighbours.nearest_states import NearestStates, Neighbours
from kernelmem.text.attribution.neighbours.result import NeighbourMemory
from kernelmem.text.documents import Documents, as_documents, check_vocabulary
from kernelmem.text.language_models import CausalLM

QUERIES = 1024  # that are searched together
SOURCES = 5  # stored documents that are kept per document
FEWEST = 2  # documents of each kind


def neighbour_memory(
    lm: CausalLM,
    store: object,
    documents: object,
    *,
    queries: ArrayLike | None = None,
    k: int = 16,
    mix: float = 0.3,
    temperature: float = 1.0,
    state: StateFunction | None = None,
    memory: int | str = MEMORY,
    progress: Progress = None,
) -> NeighbourMemory:
    """Add a memory of documents to a language model, and measure what each document gains by being in it.

    p(v) = (1 − λ) p_LM(v) + λ p_kNN(v), p_kNN(v) ∝ Σ exp(−|h − h_i|² / τ) over the k nearest stored states h_i that were
    followed by token v (kNN-LM). No training takes place: to leave a document out is to mask its states, so that its
    memorization, bits without it in the memory minus bits with it, is exact. It is the positive control of an audit: a model
    that memorizes by construction, on the same documents and with the same language model below.

    Stored states that are as near as the k-th, up to rounding, count as well. Copies of a document stay in the memory
    when it is left out.

    Args:
        lm: language model, from :func:`causal_lm`, best trained on neither store nor documents.
        store: documents of the memory.
        documents: unseen documents, at least two, drawn as the stored ones: the control.
        queries: numbers of the stored documents that are measured, at least two; None: all.
        k: number of neighbours.
        mix: weight λ of the memory, between 0 and 1.
        temperature: τ, in units of squared distances between states.
        state: function of (model, ids (n, T)) that returns hidden states (n, T, d); None: the input of the output layer,
            which must be one nn.Linear.
        memory: limit for stored states, and for the log-probabilities of a batch.
        progress: a function of (done, total) measured documents, True, False or None.

    Raises:
        InputError: a document without a loss, or to which the model gives probability 0; fewer than k states besides
            those of a document; states beyond ``memory``; an option out of range.
        UnsupportedModelError: no hidden state is found, or states look at later tokens.
        NumericalError: states that are not finite.

    Cost: one pass over all documents, and 2 d operations in float32 per pair of stored and measured tokens; neighbours are
    then compared in float64.

    Source: Khandelwal et al. 2020.

    >>> from kernelmem.text import causal_lm
    >>> lm = causal_lm(torch.nn.Sequential(torch.nn.Embedding(6, 3), torch.nn.Linear(3, 6)), bos=0)
    >>> result = neighbour_memory(lm, [[1, 2, 3], [3, 4], [5, 4, 1]], [[2, 2], [5, 1]], k=1)
    >>> bool((result.memorization[:3] > 0).all()), result.memorization[3:].tolist()
    (True, [0.0, 0.0])
    """
    check_instance(lm, "lm", CausalLM, hint="pass km.text.causal_lm(model)")
    stored, unseen = as_documents(store, "store"), as_documents(documents)
    check_vocabulary(stored, lm.vocabulary, "store")
    check_vocabulary(unseen, lm.vocabulary)
    chosen = torch.arange(len(stored)) if queries is None else as_indices(queries, "queries", len(stored))
    k = as_count(k, "k")
    mix = _open_unit(mix)
    temperature = as_number(temperature, "temperature", exclusive=True)
    _check_measured(lm, stored, chosen.tolist(), "store")
    _check_measured(lm, unseen, list(range(len(unseen))), "documents")
    states = HiddenStates(lm, state)
    limit, report = as_bytes(memory), as_progress(progress, "memory of neighbours", "document")

    keys = _read(lm, states, stored, limit, memory, "store")
    own_counts = keys.stops - keys.starts
    largest = int(own_counts[chosen].max())
    if k > len(keys.tokens) - largest:
        raise InputError(
            f"k={k} neighbours for a store of {len(keys.tokens)} states, {largest} of them of one document",
            expected=f"at most {len(keys.tokens) - largest} neighbours",
            hint="store more documents, or pass a smaller k",
        )
    new = _read(lm, states, unseen, limit, memory, "documents")
    search = NearestStates(keys.states, k)
    owners = torch.repeat_interleave(torch.arange(len(stored)), own_counts)
    measure = _Measure(search, owners, keys.tokens, len(stored), mix, temperature)
    parts: list[tuple[Tensor, ...]] = []
    done, total = 0, len(chosen) + len(unseen)
    for source, numbers, is_member in ((keys, chosen.tolist(), True), (new, list(range(len(unseen))), False)):
        for group in _groups(source, numbers, _batch_size(limit, len(keys.tokens))):
            parts.append(measure(source, group, is_member))
            done += len(group)
            report(done, total)
    columns = [torch.cat(column) for column in zip(*parts, strict=True)]
    counts = torch.cat([own_counts[chosen], new.stops - new.starts])
    is_member = torch.arange(total) < len(chosen)
    result = NeighbourMemory(
        document=torch.cat([chosen, torch.arange(len(unseen))]),
        member=is_member,
        counts=counts,
        token_lm=columns[0],
        token_bits=columns[1],
        token_left_out=columns[2],
        nearest=columns[3],
        distance=columns[4],
        sources=columns[5],
        shares=columns[6],
        k=k,
        mix=mix,
        temperature=temperature,
        n_store=len(stored),
        n_keys=len(keys.tokens),
        n_copies=_n_equal(unseen, stored),
        model=lm.name,
    )
    infinite = ~result.left_out.isfinite()
    if bool(infinite.any()):
        number = int(infinite.nonzero()[0])
        name = "store" if number < len(chosen) else "documents"
        raise InputError(
            f"{name}[{int(result.document[number])}], to which the model gives probability 0",
            expected="documents of positive probability",
            hint="leave it out",
        )
    return result


@dataclass(frozen=True)
class _Tokens:
    """Tokens with a loss of some documents: hidden state before, token, bits under the language model.

    The tokens of document i are numbers ``starts[i]`` to ``stops[i]`` (excluded).
    """

    states: Tensor
    tokens: Tensor
    bits: Tensor
    starts: Tensor
    stops: Tensor


@dataclass(frozen=True)
class _Measure:
    """Bits of tokens with the memory, with and without their own document."""

    search: NearestStates
    owners: Tensor
    tokens: Tensor
    n_store: int
    mix: float
    temperature: float

    def __call__(self, source: _Tokens, numbers: Sequence[int], is_member: bool) -> tuple[Tensor, ...]:
        """Return bits alone, with all, left out, nearest document and its distance (tokens); sources and shares (documents)."""
        spans = [slice(int(source.starts[i]), int(source.stops[i])) for i in numbers]
        queries = torch.cat([source.states[span] for span in spans])
        targets = torch.cat([source.tokens[span] for span in spans])
        alone = torch.cat([source.bits[span] for span in spans])
        counts = [span.stop - span.start for span in spans]
        ends = torch.tensor(counts).cumsum(0).tolist()
        rows = [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]
        n, search = len(queries), self.search
        query, key = search.candidates(queries, list(zip(rows, spans, strict=True)) if is_member else [])
        distance = search.distances(queries, query, key)
        others = search.neighbours(query, key, distance, n)
        weights, hits = self._weights(others, targets, n)
        left_out = self._bits(alone, others.query, weights * hits)
        every = left_out
        if is_member:
            own = [
                torch.cartesian_prod(torch.arange(row.start, row.stop), torch.arange(span.start, span.stop))
                for row, span in zip(rows, spans, strict=True)
            ]
            own_query, own_key = torch.cat(own).unbind(1)
            query, key = torch.cat([query, own_query]), torch.cat([key, own_key])
            distance = torch.cat([distance, search.distances(queries, own_query, own_key)])
            all_neighbours = search.neighbours(query, key, distance, n)
            all_weights, all_hits = self._weights(all_neighbours, targets, n)
            every = self._bits(alone, all_neighbours.query, all_weights * all_hits)
        first = torch.bincount(others.query, minlength=n).cumsum(0).roll(1)
        first[0] = 0
        nearest, near = self.owners[others.key[first]], others.distance[first].sqrt()
        shares, sources = self._credit(others, weights * hits, counts).topk(min(SOURCES, self.n_store), dim=1)
        return alone, every, left_out, nearest, near, sources, shares

    def _weights(self, found: Neighbours, targets: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """Return the normalized weight of each neighbour, and if its token is the right one."""
        smallest = torch.full((n,), math.inf, dtype=torch.float64)
        smallest.scatter_reduce_(0, found.query, found.distance, "amin")
        weights = ((smallest[found.query] - found.distance) / self.temperature).exp()
        sums = torch.zeros(n, dtype=torch.float64).index_add_(0, found.query, weights)
        return weights / sums[found.query], self.tokens[found.key] == targets[found.query]

    def _bits(self, alone: Tensor, query: Tensor, weights: Tensor) -> Tensor:
        p = torch.zeros(len(alone), dtype=torch.float64).index_add_(0, query, weights)
        return -torch.log2((1 - self.mix) * torch.exp2(-alone) + self.mix * p)

    def _credit(self, found: Neighbours, weights: Tensor, counts: Sequence[int]) -> Tensor:
        """Return the mean weight of right tokens by measured and stored document, (documents, n_store)."""
        sizes = torch.tensor(counts)
        document = torch.repeat_interleave(torch.arange(len(counts)), sizes)
        place = document[found.query] * self.n_store + self.owners[found.key]
        credit = torch.zeros(len(counts) * self.n_store, dtype=torch.float64).index_add_(0, place, weights)
        return credit.reshape(len(counts), self.n_store) / sizes[:, None]


def _read(
    lm: CausalLM, states: HiddenStates, documents: Documents, limit: int, memory: int | str, name: str
) -> _Tokens:
    """Return states, tokens and bits of all tokens with a loss.

    Raises:
        InputError: the states take more than ``limit`` bytes.
    """
    inputs = [lm.inputs(ids) for ids in documents]
    lm.check_inputs(inputs, name, memory)
    counts = torch.tensor([len(row) for row in inputs])
    stops = counts.cumsum(0)
    starts = stops - counts
    total = int(counts.sum())
    tokens = torch.cat([ids[len(ids) - len(row) :] for ids, row in zip(documents, inputs, strict=True)])
    bits = torch.zeros(total, dtype=torch.float64)
    kept: Tensor | None = None
    for rows, log_probs, hidden in states.batches(inputs, memory):
        if kept is None:
            n_bytes = total * hidden.shape[2] * (hidden.element_size() + 4)  # and their float32 copy
            if n_bytes > limit:
                raise InputError(
                    f"{name} with {total:,} tokens, whose states of {hidden.shape[2]} numbers take {n_bytes} bytes",
                    expected=f"at most memory={memory}",
                    hint=f"pass memory={n_bytes}, or fewer documents",
                )
            kept = hidden.new_zeros(total, hidden.shape[2])
        if hidden.shape[2] != kept.shape[1]:
            raise InputError(
                f"state, which gives {kept.shape[1]} and {hidden.shape[2]} numbers per token",
                expected="states of one size",
                hint="return states (n, T, d) with the same d for all ids",
            )
        for row, values, log_p in zip(rows, hidden, log_probs, strict=True):
            span = slice(int(starts[row]), int(stops[row]))
            kept[span] = values[: counts[row]]
            ids = tokens[span].to(log_p.device)
            bits[span] = -log_p[: len(ids)].gather(1, ids[:, None])[:, 0].cpu() / math.log(2)
    return _Tokens(torch.zeros(0, 1) if kept is None else kept, tokens, bits, starts, stops)


def _groups(source: _Tokens, numbers: Sequence[int], size: int) -> Iterator[list[int]]:
    """Iterate over groups of documents of at most ``size`` tokens, if they are several."""
    group: list[int] = []
    tokens = 0
    for number in numbers:
        count = int(source.stops[number] - source.starts[number])
        if group and tokens + count > size:
            yield group
            group, tokens = [], 0
        group.append(number)
        tokens += count
    if group:
        yield group


def _batch_size(limit: int, n_keys: int) -> int:
    """Return how many queries are searched together: all keys may be as near as the k-th."""
    return max(1, min(QUERIES, limit // (48 * n_keys)))


def _check_measured(lm: CausalLM, documents: Documents, numbers: Sequence[int], name: str) -> None:
    """Check the documents that are measured.

    Raises:
        InputError: fewer than two, or one without a loss.
    """
    if len(numbers) < FEWEST:
        raise InputError(
            f"{len(numbers)} documents of {name} to measure", expected=f"at least {FEWEST}", hint=f"pass more {name}"
        )
    empty = [number for number in numbers if not len(lm.inputs(documents[number]))]
    if empty:
        raise InputError(f"{name}[{empty[0]}] without a loss", expected="a token with a loss", hint="leave it out")


def _n_equal(documents: Documents, others: Documents) -> int:
    """Return the number of documents that are equal to another."""
    known = {tuple(ids.tolist()) for ids in others}
    return sum(tuple(ids.tolist()) in known for ids in documents)


def _open_unit(mix: float) -> float:
    value = as_number(mix, "mix", maximum=1.0, exclusive=True)
    if value == 1.0:
        raise InputError(
            "mix=1", expected="a weight below 1", hint="pass mix=0.3: the memory alone gives probability 0"
        )
    return value
