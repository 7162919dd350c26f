"""Ranks of secrets under random recurrent and attention models: equal, as integers, to counts over all candidates."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from kernelmem.text import causal_lm
from kernelmem.text.canary.search import SINGLE_SLACK, SLACK, Candidates, exact_ranks, exceedances, slack_of
from tests.text.small_models import Attention, Recurrent, Stepping, V

KINDS = (Stepping, lambda: Stepping(nn.GRU), Recurrent, lambda: Attention(size=4))  # the first two are read from states


def random_candidates(seed, most):
    """A random model, 3 canaries with heads of 1 to 4 tokens, and at most ``most`` secrets."""
    source = np.random.default_rng(seed)
    model = KINDS[seed % len(KINDS)]().double()
    with torch.no_grad():
        for parameter in model.parameters():
            scale = source.choice([0.0, 0.3, 1.0])
            parameter.copy_(torch.from_numpy(scale * source.standard_normal(parameter.shape)))
    A = int(source.integers(2, 10))
    length = int(source.integers(1, 1 + math.floor(math.log(most) / math.log(A))))
    tokens = torch.from_numpy(source.permutation(V)[:A])
    heads = [torch.from_numpy(source.integers(V, size=size)) for size in source.integers(1, 5, size=3)]
    secrets = torch.from_numpy(source.integers(A, size=(3, length)))
    lm = causal_lm(model, bos=V if seed % 2 else None)
    return Candidates(lm, heads, secrets, tokens, "1GiB"), source


def all_log_probs(candidates, canary):
    """Log-probabilities (A, ..., A) of all secrets after a head, from whole documents."""
    tokens, head = candidates.tokens, candidates.heads[canary]
    A, length = len(tokens), candidates.secrets.shape[1]
    total = torch.zeros(1, dtype=torch.float64)
    for place in range(length):
        prefixes = [torch.cat([head, torch.tensor(p).long()]) for p in itertools.product(tokens, repeat=place)]
        total = (total[:, None] + candidates.lm.next_log_probs(prefixes)[:, tokens]).reshape(-1)
    return total.reshape([A] * length)


def check(seed, most):
    candidates, source = random_candidates(seed, most)
    A, length = len(candidates.tokens), candidates.secrets.shape[1]
    chosen = torch.tensor([2, 0, 1])
    references = torch.from_numpy(source.integers(A, size=(3, 50, length)))
    ranks, nodes, log_p = exact_ranks(candidates, chosen, 10**6)
    above, sampled_log_p = exceedances(candidates, chosen, references)
    torch.testing.assert_close(sampled_log_p, log_p, rtol=0, atol=1e-12)
    for place, canary in enumerate(chosen.tolist()):
        log_probs = all_log_probs(candidates, canary)
        own = float(log_probs[tuple(candidates.secrets[canary])])
        assert abs(own - float(log_p[place])) < 1e-12
        assert int(ranks[place]) == int((log_probs >= own - SLACK).sum())
        assert int(above[place]) == int((log_probs[tuple(references[place].T)] >= own - SLACK).sum())
        assert int(nodes[place]) <= 1 + (length - 1) * math.exp(SLACK - own)


def test_exact_ranks_and_sampled_counts_are_those_of_enumeration():
    for seed in range(20):
        check(seed, 100)


@pytest.mark.soak
def test_exact_ranks_of_ten_thousand_candidates_are_those_of_enumeration():
    for seed in range(200):
        check(1000 + seed, 10**4)


def test_states_and_documents_read_again_give_equal_ranks():
    candidates, source = random_candidates(0, 1000)
    references = torch.from_numpy(source.integers(len(candidates.tokens), size=(3, 20, candidates.secrets.shape[1])))
    plain = Recurrent().double()
    plain.load_state_dict(candidates.lm.module().state_dict())
    again = Candidates(causal_lm(plain), candidates.heads, candidates.secrets, candidates.tokens, "1GiB")
    assert candidates.has_states
    assert not again.has_states
    for a, b in zip(
        (*exact_ranks(candidates, torch.arange(3), 10**6), *exceedances(candidates, torch.arange(3), references)),
        (*exact_ranks(again, torch.arange(3), 10**6), *exceedances(again, torch.arange(3), references)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


class Rounded(Recurrent):
    def forward(self, ids):
        return super().forward(ids).float()


class Rebatched(Recurrent):
    def forward(self, ids):
        return super().forward(ids) * (1 + 1e-7 * len(ids))


@pytest.mark.parametrize("model", [Rounded, Rebatched])
def test_ties_are_wider_for_models_that_compute_in_single_precision(model):
    candidates, _ = random_candidates(0, 100)
    assert slack_of(candidates) == SLACK
    single = Candidates(causal_lm(model()), candidates.heads, candidates.secrets, candidates.tokens, "1GiB")
    assert slack_of(single) == SINGLE_SLACK
