"""kernelmem.text.attribution.neighbours: leave-out equals a store without the document; brute force; closed forms; refusals."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kernelmem import InputError, NumericalError, UnsupportedModelError
from kernelmem.text import NeighbourMemory, causal_lm, neighbour_memory, token_losses
from kernelmem.text.attribution.neighbours.nearest_states import NearestStates
from tests.profiles import examples
from tests.text.small_models import Attention, Bigram, Recurrent, V, random_documents

STORE, UNSEEN = random_documents(7, 1, 9, 12, 4), random_documents(5, 1, 8, seed=1)
LM = causal_lm(Recurrent().double(), bos=V)
FIELDS = ("token_lm", "token_bits", "token_left_out", "distance")


def states_of(lm, ids):
    """Hidden states before each token of a document, of the recurrent model, one document at a time."""
    model = lm.module()
    with torch.no_grad():
        return model.layer(model.embedding(torch.cat([torch.tensor([V]), ids[:-1]])[None]))[0][0]


def brute_force(lm, store, queries, k, mix, temperature, *, left_out=None):
    """Bits of the tokens of a document, one token at a time; ties with the k-th neighbour count."""
    keys = [(state, int(token)) for j, ids in enumerate(store) if j != left_out
            for state, token in zip(states_of(lm, ids), ids, strict=True)]  # fmt: skip
    bits = []
    for state, token, lm_bits in zip(
        states_of(lm, queries), queries.tolist(), token_losses(lm, [queries]).token_bits.tolist(), strict=True
    ):
        distances = [float(((state.double() - key.double()) ** 2).sum()) for key, _ in keys]
        limit = sorted(distances)[k - 1] + 1e-9
        near = [(d, v) for d, (_, v) in zip(distances, keys, strict=True) if d <= limit]
        p = sum(math.exp(-d / temperature) for d, v in near if v == token) / sum(
            math.exp(-d / temperature) for d, _ in near
        )
        bits.append(-math.log2((1 - mix) * 2**-lm_bits + mix * p))
    return bits


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_bits_are_those_of_brute_force(dtype, tolerance):
    lm = causal_lm(Recurrent().to(dtype), bos=V)
    result = neighbour_memory(lm, STORE, UNSEEN, k=3, mix=0.4, temperature=0.1)
    bits, left_out = (
        result.token_bits.split(result.counts.tolist()),
        result.token_left_out.split(result.counts.tolist()),
    )
    for i, ids in enumerate([*STORE, *UNSEEN]):
        expected = brute_force(lm, STORE, ids, 3, 0.4, 0.1)
        assert bits[i].tolist() == pytest.approx(expected, abs=tolerance)
        if i < len(STORE):
            expected = brute_force(lm, STORE, ids, 3, 0.4, 0.1, left_out=i)
        assert left_out[i].tolist() == pytest.approx(expected, abs=tolerance)
    losses = token_losses(lm, [*STORE, *UNSEEN])
    torch.testing.assert_close(result.token_lm, losses.token_bits, rtol=0, atol=tolerance)


@examples(0.4)
@given(st.integers(0, 10**6), st.integers(1, 6), st.sampled_from([0.05, 1.0, 30.0]))
def test_leaving_out_equals_a_store_without_the_document(seed, k, temperature):
    store = random_documents(6, 3, 6, 9, 2, seed=seed)
    store.append(store[0].clone())  # a copy stays
    result = neighbour_memory(LM, store, UNSEEN, k=k, temperature=temperature)
    i = seed % len(store)
    others, options = store[:i] + store[i + 1 :], {"queries": [0, 1], "k": k, "temperature": temperature}
    rebuilt = neighbour_memory(LM, others, [store[i], UNSEEN[0]], **options)
    rows = slice(int(result.counts[:i].sum()), int(result.counts[: i + 1].sum()))
    expected = rebuilt.token_bits[int(rebuilt.counts[:2].sum()) :][: len(store[i])]
    torch.testing.assert_close(result.token_left_out[rows], expected, rtol=0, atol=1e-12)


def test_all_neighbours_at_one_distance_give_frequencies():
    """Equal states: every stored token is a neighbour, whatever k is, and p_kNN is its frequency in the store."""
    result = neighbour_memory(LM, STORE, UNSEEN, k=1, mix=0.5, state=lambda model, ids: torch.zeros(*ids.shape, 2))
    counts = torch.bincount(torch.cat(STORE), minlength=V).double()
    tokens = torch.cat([*STORE, *UNSEEN])
    expected = -torch.log2(0.5 * torch.exp2(-result.token_lm) + 0.5 * (counts / counts.sum())[tokens])
    torch.testing.assert_close(result.token_bits, expected, rtol=1e-12, atol=0)
    large = neighbour_memory(
        LM, STORE, UNSEEN, k=21, mix=0.5, temperature=1e15
    )  # 33 states, 12 of the longest document
    small = neighbour_memory(LM, STORE, UNSEEN, k=21, mix=0.5, temperature=1e15, memory=60_000)
    for name in FIELDS:
        torch.testing.assert_close(getattr(small, name), getattr(large, name), rtol=0, atol=1e-12)


def test_a_single_near_neighbour_is_the_document_itself():
    """At temperature 0 p_kNN of a member is 1 where its contexts are its own, so that it saves log2(1 + λ / (1 − λ) / p)."""
    store = [torch.tensor([i, *row.tolist()]) for i, row in enumerate(random_documents(6, 7, 6))]
    result = neighbour_memory(LM, store, UNSEEN, k=1, mix=0.25, temperature=1e-9)
    first = torch.zeros(len(result.token_lm), dtype=torch.bool)
    first[result.counts.cumsum(0) - result.counts] = True  # the context of first tokens is the same in all documents
    own = ~first & torch.repeat_interleave(result.member, result.counts)
    torch.testing.assert_close(
        result.token_bits[own], -torch.log2(0.75 * torch.exp2(-result.token_lm[own]) + 0.25), rtol=1e-12, atol=0
    )
    assert bool((result.memorization[:3] > 0).all())
    assert bool((result.memorization[3:] == 0).all())


def test_sources_are_documents_with_the_same_text():
    copies = [STORE[0], *random_documents(8, 8, 8, seed=5), STORE[0].clone(), UNSEEN[2]]
    result = neighbour_memory(LM, copies, [*UNSEEN, *random_documents(6, seed=9)], k=1, temperature=1e-9)
    assert result.sources[[0, 4, 8], 0].tolist() == [4, 0, 5]  # UNSEEN[2] is stored as number 5
    nearest = result.nearest.split(result.counts.tolist())
    assert nearest[4][1:].tolist() == [0] * 6
    assert float(result.distance.split(result.counts.tolist())[4].max()) < 1e-12
    assert result.n_copies == 1
    assert "1 unseen documents are equal to stored ones" in str(result)
    gains = (result.token_left_out - result.token_bits).split(result.counts.tolist())
    assert (
        float(gains[0][1:].abs().max()) < 1e-9
    )  # its copy stays in the memory; the first state is that of all documents


@examples(0.4)
@given(st.integers(0, 10**6), st.sampled_from([torch.float32, torch.float64]), st.sampled_from([1e-6, 1.0, 1e6]))
def test_the_filter_keeps_all_neighbours(seed, dtype, offset):
    """States with a large common part, where float32 distances have few digits, and repeated states."""
    generator = torch.Generator().manual_seed(seed)
    keys = (torch.randint(-3, 4, (400, 3), generator=generator) + offset * torch.randn(3, generator=generator)).to(
        dtype
    )
    queries = (keys[:40] + torch.randint(-1, 2, (40, 3), generator=generator)).to(dtype)
    search = NearestStates(keys, 5)
    query, key = search.candidates(queries, [(slice(0, 20), slice(100, 300))])
    found = search.neighbours(query, key, search.distances(queries, query, key), 40)
    exact = ((queries.double()[:, None] - keys.double()) ** 2).sum(2)
    exact[:20, 100:300] = torch.inf
    expected = exact.sqrt() <= exact.sort(dim=1).values[:, 4:5].sqrt() + search.tie
    assert set(zip(found.query.tolist(), found.key.tolist(), strict=True)) == {
        tuple(p) for p in expected.nonzero().tolist()
    }


def test_results(tmp_path):
    result = neighbour_memory(LM, STORE, UNSEEN, queries=[2, 0], k=2)
    assert result.document.tolist() == [2, 0, 0, 1, 2]
    every = neighbour_memory(LM, STORE, UNSEEN, k=2)
    torch.testing.assert_close(result.memorization[:2], every.memorization[[2, 0]], rtol=0, atol=1e-12)
    assert result.auroc(calibrated=True).value == 1
    assert result.mean_memorization().low < float(result.memorization[:2].mean())
    assert result.to_frame()["memorization"].tolist() == result.memorization.tolist()
    loaded = NeighbourMemory.load(result.save(tmp_path / "memory.safetensors"))
    assert str(loaded) == str(result)


# Hidden states


class Tied(nn.Module):
    """Head with the weights of the embedding, which is not a layer."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(V + 1, 4)

    def forward(self, ids):
        return self.embedding(ids).cumsum(1) @ self.embedding.weight.T


class Twice(Recurrent):
    """Head called twice."""

    def forward(self, ids):
        super().forward(ids)
        return super().forward(ids)


@pytest.mark.parametrize("model", [Tied(), Twice(), Bigram()], ids=["tied", "twice", "table"])
def test_a_state_that_is_not_unique_is_refused(model):
    with pytest.raises(UnsupportedModelError, match=r"nn\.Linear.*state=lambda model, ids"):
        neighbour_memory(causal_lm(model, bos=0), STORE, UNSEEN, k=2)
    if isinstance(model, Tied):
        neighbour_memory(causal_lm(model, bos=0), STORE, UNSEEN, k=2, state=lambda m, ids: m.embedding(ids).cumsum(1))


def test_the_state_of_a_function_equals_that_of_the_output_layer():
    for lm, state in (
        (LM, lambda model, ids: model.layer(model.embedding(ids))[0]),
        (causal_lm(Attention().double(), bos=V), None),
    ):
        result = neighbour_memory(lm, STORE, UNSEEN, k=2)
        if state is not None:
            other = neighbour_memory(lm, STORE, UNSEEN, k=2, state=state)
            torch.testing.assert_close(result.token_bits, other.token_bits, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (lambda model, ids: model.embedding(ids).flip(1), "bidirectional"),
        (lambda model, ids: model.embedding(ids).cumsum(1).mean(2), "shape"),
        (lambda model, ids: model.missing(ids), "missing"),
        (lambda model, ids: model.embedding(ids) * math.inf, "NaN|infinite"),
    ],
)
def test_states_that_are_none_are_refused(state, message):
    with pytest.raises((UnsupportedModelError, NumericalError), match=message):
        neighbour_memory(LM, STORE, UNSEEN, k=2, state=state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 22}, "22 neighbours for a store of 33 states, 12 of them"),
        ({"store": [*STORE, []]}, r"store\[5\] without a loss"),
        ({"documents": UNSEEN[:1]}, "1 documents of documents"),
        ({"queries": [3]}, "1 documents of store"),
        ({"mix": 1.0}, "mix=1"),
        ({"memory": 2000}, "memory"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(InputError, match=message):
        neighbour_memory(**{"lm": LM, "store": STORE, "documents": UNSEEN, "k": 2, **options})


def test_documents_of_probability_zero_are_refused():
    lm = causal_lm(Bigram(zeros=True), bos=V)
    with pytest.raises(InputError, match=r"documents\[0\], to which the model gives probability 0"):
        neighbour_memory(lm, [[1, 2], [3]], [[4], [1]], k=1, state=lambda model, ids: torch.zeros(*ids.shape, 1))
