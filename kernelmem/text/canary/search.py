"""Ranks of secrets among all candidates: exact by a pruned tree, or relative to random candidates."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernelmem.text.language_models import CausalLM

SLACK = 1e-9  # nats; log p of two batches in float64 differ by less, and candidates within it count as ties
CHUNK_BYTES = 2**28  # of the log-probabilities that one call returns


@dataclass(frozen=True)
class Candidates:
    """Secrets of L symbols after a head of their own for each of k canaries.

    Attributes:
        lm: the model that is asked.
        heads: token ids before the secret, k vectors.
        secrets: (k, L) int64, symbols of each secret.
        tokens: (A,) int64, token of each symbol.
        memory: largest number of bytes of the log-probabilities of one batch.
    """

    lm: CausalLM
    heads: Sequence[Tensor]
    secrets: Tensor
    tokens: Tensor
    memory: int | str

    def __len__(self) -> int:
        return len(self.secrets)

    def log_probs(self, canaries: Tensor, secrets: Tensor) -> Tensor:
        """Return log p(secret | head of its canary), (m,) float64 in nats, of secrets (m, L) of the given canaries (m,)."""
        length, targets = secrets.shape[1], self.tokens[secrets]
        heads = [self.heads[i] for i in canaries.tolist()]
        inputs = [self.lm.inputs(torch.cat([head, row])) for head, row in zip(heads, targets, strict=True)]
        first = torch.tensor([len(row) - length for row in inputs])  # position that predicts the first symbol
        result = torch.zeros(len(secrets), dtype=torch.float64)
        for rows, values in self.lm.batches(inputs, dtype=torch.float64, memory=self.memory):
            places = first[rows][:, None] + torch.arange(length)
            chosen = values.cpu()[torch.arange(len(rows))[:, None], places, targets[rows]]
            result[rows] = chosen.sum(1)
        return result

    def next_symbols(self, prefixes: Sequence[Tensor]) -> Tensor:
        """Return the log-probability of every symbol after each prefix, (number of prefixes, A)."""
        size = max(1, CHUNK_BYTES // (8 * self.lm.vocabulary))
        parts = [
            self.lm.next_log_probs(prefixes[i : i + size], dtype=torch.float64, memory=self.memory)[:, self.tokens]
            for i in range(0, len(prefixes), size)
        ]
        return torch.cat(parts)


def exceedances(candidates: Candidates, canary: int, references: Tensor) -> tuple[int, float]:
    """Return the number of references (m, L) at least as probable as the secret of a canary, and log p of the secret.

    The secret is evaluated in the same batch as the references.
    """
    secrets = torch.cat([candidates.secrets[canary : canary + 1], references])
    log_probs = candidates.log_probs(torch.full((len(secrets),), canary), secrets)
    return int((log_probs[1:] >= log_probs[0] - SLACK).sum()), float(log_probs[0])


def exact_ranks(candidates: Candidates, chosen: Tensor, max_nodes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return (ranks, nodes, log p) of the secrets of a few canaries (k,), ranks among all R = A^L secrets.

    A prefix of secrets is kept while its probability is at least that of the secret, since log p only falls along a branch.
    The probabilities of the prefixes of one length add up to at most 1, so that at most 1 + (L − 1) / p(secret) are evaluated.
    Candidates as probable as the secret, within 1e-9 nats, count as more probable.

    Args:
        candidates: canaries and model.
        chosen: positions of the canaries; their trees are held in memory together.
        max_nodes: largest number of prefixes to evaluate per canary.

    Returns:
        (k,) int64 ranks, 0 where more than ``max_nodes`` would be needed; (k,) int64 numbers of nodes; (k,) float64 in nats.

    Source: Carlini et al. 2019 (shortest-path search).
    """
    secrets, A = candidates.secrets[chosen], len(candidates.tokens)
    k, length = secrets.shape
    nodes, alive = torch.zeros(k, dtype=torch.int64), torch.ones(k, dtype=torch.bool)
    secret_log_p = candidates.log_probs(chosen, secrets)
    threshold = secret_log_p - SLACK
    impossible = threshold.isneginf()  # every candidate is at least as probable
    owner = (~impossible).nonzero()[:, 0]
    paths, log_p = torch.zeros(len(owner), 0, dtype=torch.int64), torch.zeros(len(owner), dtype=torch.float64)
    for _ in range(length):
        count = torch.bincount(owner, minlength=k)
        alive &= nodes + count <= max_nodes
        keep = alive[owner]
        owner, paths, log_p = owner[keep], paths[keep], log_p[keep]
        if not len(owner):
            break
        nodes += torch.bincount(owner, minlength=k)
        heads = [candidates.heads[i] for i in chosen[owner].tolist()]
        prefixes = [torch.cat([head, row]) for head, row in zip(heads, candidates.tokens[paths], strict=True)]
        total = log_p[:, None] + candidates.next_symbols(prefixes)
        row, symbol = (total >= threshold[owner][:, None]).nonzero(as_tuple=True)
        owner, log_p = owner[row], total[row, symbol]
        paths = torch.cat([paths[row], symbol[:, None]], 1)
    others = (paths != secrets[owner]).any(1) if len(owner) else torch.zeros(0, dtype=torch.bool)
    ranks = 1 + torch.bincount(owner[others], minlength=k)
    ranks[impossible] = A**length
    return ranks * alive, nodes, secret_log_p
