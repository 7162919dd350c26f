"""Exposure of secrets: exact ranks against enumeration, node bound, nulls of both kinds of ranks."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

import kernelmem as km
from kernelmem.text import SecretExposure, causal_lm
from kernelmem.text.canary import canaries, exposure
from kernelmem.text.canary.null import rank_moments, refined_moments
from kernelmem.text.canary.search import SLACK, Candidates, exact_ranks
from tests.profiles import examples
from tests.text.canary.tables import N_CHARACTERS, Table, encode, memory_lm, table_lm, table_step


def enumerated_log_probs(lm, head, tokens, length):
    """Log-probabilities of all A^L secrets, (A, ..., A), one factor at a time."""
    A = len(tokens)
    total = torch.zeros(1, dtype=torch.float64)
    for place in range(length):
        prefixes = [torch.cat([head, *map(torch.atleast_1d, p)]) for p in itertools.product(tokens, repeat=place)]
        total = (total[:, None] + lm.next_log_probs(prefixes)[:, tokens]).reshape(-1)
    return total.reshape([A] * length)


@examples(0.5)
@given(
    st.sampled_from([("01", 1), ("01", 4), ("012", 3), ("0123456789", 2), ("0123456789", 3), ("abcdef", 3)]),
    st.sampled_from([0.0, 0.5, 2.0, 6.0]),
    st.integers(0, 2**32),
    st.sampled_from([None, table_step]),
)
def test_the_exact_rank_is_that_of_enumeration_and_the_bound_of_nodes_holds(secret, scale, seed, step):
    alphabet, length = secret
    lm = table_lm(scale=scale, seed=seed, step=step)
    design = canaries(2, encode, alphabet=alphabet, length=length, seed=seed)
    result = exposure(lm, design, method="exact", max_nodes=10**5)
    for pair, variant in itertools.product(range(2), range(2)):
        head = torch.tensor(design.heads[pair][variant])
        log_probs = enumerated_log_probs(lm, head, design.tokens, length)
        own = log_probs[tuple(design.secrets[pair, variant])]
        assert int(result.rank[pair, variant]) == int((log_probs >= own - SLACK).sum())
        assert int(result.nodes[pair, variant]) <= 1 + (length - 1) * math.exp(SLACK - float(own))
        assert math.isclose(float(result.bits[pair, variant]), -float(own) / math.log(2), rel_tol=1e-12, abs_tol=1e-12)
    assert bool(result.exact.all())
    assert torch.equal(result.p, torch.exp2(-result.exposure))
    assert torch.allclose(result.p, result.rank.double() / len(alphabet) ** length, rtol=1e-12)


def test_the_rank_in_single_precision_does_not_lose_the_secret():
    """Secrets are compared in float64 with a slack, so that a model in float32 gives the memorized secret rank 1."""
    design = canaries(6, encode, length=3)
    lm = causal_lm(Table(scale=1.0, dtype=torch.float32))
    result = exposure(lm, design, method="exact")
    assert int(result.rank.min()) >= 1
    sampled = exposure(lm, design, method="sampled", samples=500)
    # 500 references estimate the relative rank with standard deviation <= .0224
    assert float((sampled.p - result.p).abs().max()) < 5 * 0.0224


def test_ties_count_against_memorization():
    design = canaries(3, encode, length=3)
    for method in ("exact", "sampled", "auto"):
        result = exposure(table_lm(scale=0.0), design, method=method, max_nodes=10**4)
        assert float(result.exposure.abs().max()) == 0
        assert [tier.p for tier in result.tiers] == [1.0] * len(result.tiers)


def test_an_impossible_secret_has_the_last_rank():
    class Without(Table):
        def forward(self, ids):
            logits = super().forward(ids)
            logits[..., encode("3")[0]] = -math.inf
            return logits

    design = canaries(20, encode, alphabet="35", length=3)
    result = exposure(causal_lm(Without()), design, method="exact")
    has_three = (design.secrets == 0).any(2)
    assert bool((result.rank[has_three] == 8).all())
    assert bool((result.rank[~has_three] == 1).all())
    assert bool(result.bits[has_three].isinf().all())


def test_memorized_secrets_are_found_among_a_million_by_few_nodes():
    design = canaries(6, encode, tiers=(1, 4))
    result = exposure(memory_lm(design, range(6), strength=6.0), design)
    copies = result.copies.flatten()
    assert bool(result.exact.flatten()[copies > 0].all())
    assert torch.equal(result.rank.flatten()[copies > 0], torch.ones(6, dtype=torch.int64))
    assert float(result.exposure.max()) == math.log2(10**6)
    assert int(result.nodes.max()) <= 1 + 5 * 2 ** float(result.bits.flatten()[copies > 0].max())
    twins = result.exposure.flatten()[copies == 0]
    assert float(twins.abs().max()) == 0  # all secrets are equally probable after heads that the model does not know
    assert result.tiers[1].p < 1e-10
    text = str(result)
    assert "1,000,000 secrets (at most 19.93 bits" in text
    assert "at most 8.00 bits" in text


def test_nothing_is_extrapolated():
    design = canaries(4, encode, tiers=(1,))
    lm = memory_lm(design, range(4))
    assert float(exposure(lm, design, method="sampled", samples=63).exposure.max()) == 6.0
    # a search that would be too long keeps the sampled rank
    result = exposure(lm, design, samples=63, max_nodes=2)
    assert float(result.exposure.max()) == 6.0
    assert not bool(result.exact.any())
    with pytest.raises(km.InputError, match=r"canary . of pair 0.*max_nodes=2 .*suffice"):
        exposure(lm, design, method="exact", max_nodes=2)


def test_the_number_that_the_error_names_suffices():
    design = canaries(1, encode, length=2)
    result = exposure(table_lm(scale=2.0), design, method="exact")
    most = int(result.nodes.max())
    assert torch.equal(exposure(table_lm(scale=2.0), design, method="exact", max_nodes=most).rank, result.rank)
    with pytest.raises(km.InputError):
        exposure(table_lm(scale=2.0), design, method="exact", max_nodes=most - 1)


@pytest.mark.parametrize("candidates", [2, 10, 100, 1000])
def test_moments_of_uniform_ranks(candidates):
    bits = [math.log2(candidates / k) for k in range(1, candidates + 1)]
    mean, sd = rank_moments(candidates)
    assert math.isclose(mean, math.log2(candidates) - math.lgamma(candidates + 1) / math.log(2) / candidates)
    assert math.isclose(sd, math.sqrt(sum((b - mean) ** 2 for b in bits) / candidates))


def test_moments_for_many_candidates_tend_to_log2_e():
    mean, sd = rank_moments(10**6)
    assert abs(mean - math.log2(math.e)) < 20**2 / 10**6
    assert abs(sd - math.log2(math.e)) < 20**2 / 10**6
    assert rank_moments(10**6 + 1) == (math.log2(math.e),) * 2


@pytest.mark.parametrize("m", [1, 7, 255])
def test_moments_and_p_values_of_sampled_ranks_that_are_refined(m):
    """A sampled rank, replaced by the exact one where no reference is above: P(p <= x) <= x, moments of the theory."""
    source = np.random.default_rng(m)
    u = source.random(200_000)
    above = source.binomial(m, u)
    p = np.where(above == 0, u, (1 + above) / (m + 1))
    e = -np.log2(p)
    mean, sd = refined_moments(m)
    assert abs(e.mean() - mean) < 5 * sd / math.sqrt(len(e))
    assert abs(e.std() - sd) < 0.03 * sd
    p = np.where((above == 0) & (u > 0.001), 1 / (m + 1), p)  # searches that were given up
    for x in (0.001, 0.01, 1 / (m + 1), 0.05, 0.3, 0.7):
        assert (p <= x).mean() <= x + 5 * math.sqrt(x / len(p))


def test_exposures_of_canaries_that_no_model_saw_have_the_moments_of_the_theory():
    design = canaries(30, encode, length=3, tiers=(1,), seed=11)
    for method in ("exact", "sampled"):
        result = exposure(table_lm(scale=3.0), design, method=method, samples=63)
        for tier in result.tiers:
            assert abs(tier.mean - tier.null_mean) < 4 * tier.null_se
            own = result.exposure[result.copies == tier.repetitions]
            assert math.isclose(tier.mean, float(own.mean()), rel_tol=1e-12)
            assert math.isclose(tier.p, chi2.sf(2 * math.log(2) * float(own.sum()), 2 * len(own)), rel_tol=1e-9)
            assert tier.p > 1e-4


def test_the_context_precedes_the_head():
    design = canaries(2, encode, length=2)
    memory = memory_lm(design, [0, 1])
    plain, moved = exposure(memory, design), exposure(memory, design, context=encode("one "))
    assert float(plain.exposure.max()) > 6
    assert float(moved.exposure.max()) == 0  # this model remembers nothing after other text


@pytest.mark.parametrize("step", [None, table_step])
def test_little_memory_changes_the_order_of_the_search_and_nothing_else(step):
    """Breadth first in 1 GiB; in 20 kB at most 4 prefixes at a time and depth first."""
    lm, alphabet = table_lm(scale=1.0, step=step), torch.tensor(encode("01234"))
    secrets = torch.randint(5, (5, 4), generator=torch.Generator().manual_seed(0))
    heads = [torch.tensor(encode(text)) for text in ("a", "b", "cd", "ef", "g")]
    every, few = (
        lambda limit, memory=memory: exact_ranks(
            Candidates(lm, heads, secrets, alphabet, memory), torch.arange(5), limit
        )
        for memory in ("1GiB", 20_000)
    )
    ranks, nodes, log_p = every(10**6)
    assert bool((nodes > 20).any())
    assert all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip((ranks, nodes, log_p), few(10**6), strict=True))
    most = int(nodes.median())
    for found, count, _ in (every(most), few(most)):
        assert torch.equal(found, ranks * (nodes <= most))
        assert int(count.max()) <= most


def test_heads_of_other_lengths_are_searched_together():
    lm, alphabet = table_lm(scale=2.0), torch.tensor(encode("0123"))
    heads = [torch.tensor(encode(text)) for text in ("a", "some longer head ", "two")]
    secrets = torch.tensor([[0, 1, 2], [3, 3, 3], [1, 0, 1]])
    candidates = Candidates(lm, heads, secrets, alphabet, "1GiB")
    together = exact_ranks(candidates, torch.arange(3), 10**4)
    for i in range(3):
        alone = exact_ranks(Candidates(lm, [heads[i]], secrets[i : i + 1], alphabet, "1GiB"), torch.tensor([0]), 10**4)
        assert [int(alone[k][0]) for k in (0, 1)] == [int(together[k][i]) for k in (0, 1)]
        assert math.isclose(float(alone[2][0]), float(together[2][i]), rel_tol=1e-12)


def test_results_are_saved_tabulated_and_drawn(tmp_path):
    design = canaries(6, encode, length=2, tiers=(1, 2))
    result = exposure(table_lm(), design)
    loaded = SecretExposure.load(result.save(tmp_path / "exposure"))
    assert str(loaded) == str(result)
    frame = result.to_frame()
    assert len(frame) == 12
    assert int((frame["repetitions"] > 0).sum()) == 6
    assert result.plot().axes


def test_other_arguments_are_refused():
    design = canaries(2, encode, length=2)
    lm = table_lm()
    for options in ({"method": "skew"}, {"samples": 0}, {"max_nodes": 0}, {"context": [N_CHARACTERS]}, {"level": 1.0}):
        with pytest.raises(km.InputError):
            exposure(lm, design, **options)
    with pytest.raises(km.InputError, match="lm="):
        exposure(Table(), design)
    with pytest.raises(km.InputError, match="ids in 0"):
        exposure(table_lm(vocabulary=20), design)


@pytest.mark.soak
def test_twins_of_many_designs_have_uniform_ranks():
    from scipy.stats import kstest

    ranks, values, expected, errors = [], [], [], []
    for seed in range(5):
        design = canaries(80, encode, length=3, tiers=(1,), seed=seed)
        result = exposure(table_lm(scale=3.0, seed=seed), design, method="exact")
        twins = result.tiers[0]
        values.append(twins.mean)
        expected.append(twins.null_mean)
        errors.append(twins.null_se)
        ranks += ((result.rank[result.copies == 0] - 0.5) / 1000).tolist()
    assert all(abs(v - e) < 3 * s for v, e, s in zip(values, expected, errors, strict=True))
    assert kstest(ranks, "uniform").pvalue > 0.01
