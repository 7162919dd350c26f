"""Ranks of secrets among all candidates: exact by a pruned tree, or relative to random candidates."""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernelmem.core.options import as_bytes
from kernelmem.text.language_models import CausalLM, Prefixes, read_prefixes

SLACK, SINGLE_SLACK = 1e-9, 1e-4
"""Nats by which log p of two batches differ at most, with logits in float64 and in float32; candidates within it are ties."""
FEW = 4  # canaries that the slack is found from
FIRST = 16  # heads that are read before the size of a state is known


@dataclass(frozen=True)
class Candidates:
    """Secrets of L symbols after a head of their own for each of k canaries.

    Attributes:
        lm: the model that is asked.
        heads: token ids before the secret, k vectors.
        secrets: (k, L) int64, symbols of each secret.
        tokens: (A,) int64, token of each symbol.
        memory: largest number of bytes of the log-probabilities of one batch.
        slack: nats within which candidates count as ties, from :func:`slack_of`.
    """

    lm: CausalLM
    heads: Sequence[Tensor]
    secrets: Tensor
    tokens: Tensor
    memory: int | str
    slack: float = SLACK

    def __len__(self) -> int:
        return len(self.secrets)

    @property
    def has_states(self) -> bool:
        """True if the model is read token by token from the state after a head, False if every prefix is read again."""
        return self.lm.stepper(torch.float64) is not None

    def log_probs(self, canaries: Tensor, secrets: Tensor) -> Tensor:
        """Return log p(secret | head of its canary), (m,) float64 in nats, of secrets (m, L), from whole documents."""
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

    def trees(self, chosen: Tensor) -> Iterator["Tree"]:
        """Iterate over the trees of secrets of some canaries: of those with heads of one length, as many as fit in memory."""
        lengths = torch.tensor([len(self.heads[i]) for i in chosen.tolist()])
        for length in lengths.unique().tolist():
            remaining, size = chosen[lengths == length], FIRST
            while len(remaining):
                part, remaining = remaining[:size], remaining[size:]
                prefixes, log_p = read_prefixes(
                    self.lm,
                    torch.stack([self.heads[i] for i in part.tolist()]),
                    dtype=torch.float64,
                    memory=self.memory,
                )
                size = prefixes.rows_at_once
                yield Tree(self, part, prefixes, log_p[:, self.tokens])


def slack_of(candidates: Candidates) -> float:
    """Return the slack for a model, from the log-probabilities of a few secrets in batches of different shapes.

    Some models compute in float32 whatever their weights, such as the logits of Mamba and the norms of Gemma.
    """
    few = torch.arange(min(FEW, len(candidates)))
    secrets = candidates.secrets[few]
    together = candidates.log_probs(few, secrets)
    others = torch.cat([candidates.log_probs(few[i : i + 1], secrets[i : i + 1]) for i in range(len(few))])
    by_prefix = torch.empty_like(together)
    for tree in candidates.trees(few):
        by_prefix[tree.canaries] = tree.secret_log_probs()
    differences = [torch.where(together == log_p, 0.0, (together - log_p).abs()) for log_p in (others, by_prefix)]
    first = torch.tensor([candidates.lm.bos or 0])
    is_double = candidates.lm.evaluate([first], torch.float64).dtype == torch.float64
    return SLACK if is_double and float(torch.cat(differences).max()) < SLACK / 10 else SINGLE_SLACK


@dataclass(frozen=True)
class Tree:
    """Trees of the secrets of k canaries with heads of one length, at their roots.

    Attributes:
        candidates: the canaries.
        canaries: (k,) their positions.
        prefixes: the heads, which the model has read.
        log_p: (k, A) log-probability of each symbol after a head.
    """

    candidates: Candidates
    canaries: Tensor
    prefixes: Prefixes
    log_p: Tensor

    def descend(self, owner: Tensor, secrets: Tensor, floor: Tensor) -> Tensor:
        """Return log p (m,) of secrets (m, L) after the heads ``owner`` (m,), −inf where it is below ``floor`` (m,).

        Every prefix that several secrets share is read once, and no secret is read on when its prefix is below the floor.
        """
        tokens = self.candidates.tokens
        result = torch.full((len(secrets),), -math.inf, dtype=torch.float64)
        for part in torch.arange(len(secrets)).split(self.prefixes.rows_at_once):
            kept, row, prefixes, log_p = part, owner[part], self.prefixes, self.log_p
            total = torch.zeros(len(part), dtype=torch.float64)
            for place in range(secrets.shape[1]):
                if place:
                    codes, row = (row * len(tokens) + secrets[kept, place - 1]).unique(return_inverse=True)
                    prefixes, after = prefixes.extend(codes // len(tokens), tokens[codes % len(tokens)])
                    log_p = after[:, tokens]
                total = total + log_p[row, secrets[kept, place]]
                above = total >= floor[kept]
                kept, row, total = kept[above], row[above], total[above]
                if not len(kept):
                    break
            result[kept] = total
        return result

    def secret_log_probs(self) -> Tensor:
        """Return log p (k,) of the secrets of the canaries."""
        owner, secrets = torch.arange(len(self.canaries)), self.candidates.secrets[self.canaries]
        return self.descend(owner, secrets, torch.full((len(owner),), -math.inf, dtype=torch.float64))


@dataclass(frozen=True)
class _Frontier:
    """Prefixes that are evaluated next: one more symbol (m,) after some rows (m,) of prefixes that the model has read."""

    prefixes: Prefixes
    rows: Tensor
    symbols: Tensor
    owner: Tensor
    log_p: Tensor
    own: Tensor  # True where the prefix is that of the secret
    depth: int

    def part(self, places: Tensor) -> "_Frontier":
        """Return some of the prefixes."""
        columns = (self.rows, self.symbols, self.owner, self.log_p, self.own)
        rows, symbols, owner, log_p, own = (column[places] for column in columns)
        return _Frontier(self.prefixes, rows, symbols, owner, log_p, own, self.depth)


def exceedances(candidates: Candidates, canaries: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
    """Return the number of references (k, m, L) at least as probable as the secret of their canary, (k,), and log p of it.

    Secret and references are evaluated in the same way: from the state after the head if the model has one, otherwise in the
    same batch.
    """
    k, m, length = references.shape
    above, secret_log_p = torch.zeros(k, dtype=torch.int64), torch.zeros(k, dtype=torch.float64)
    if not candidates.has_states:
        for i in range(k):
            secrets = torch.cat([candidates.secrets[canaries[i : i + 1]], references[i]])
            log_probs = candidates.log_probs(canaries[i : i + 1].expand(m + 1), secrets)
            above[i], secret_log_p[i] = (log_probs[1:] >= log_probs[0] - candidates.slack).sum(), log_probs[0]
        return above, secret_log_p
    place_of = torch.empty(len(candidates), dtype=torch.int64)
    place_of[canaries] = torch.arange(k)
    for tree in candidates.trees(canaries):
        places, own = place_of[tree.canaries], tree.secret_log_probs()
        owner = torch.arange(len(places)).repeat_interleave(m)
        log_probs = tree.descend(owner, references[places].reshape(-1, length), (own - candidates.slack)[owner])
        secret_log_p[places] = own
        above[places] = (log_probs.reshape(-1, m) >= (own - candidates.slack)[:, None]).sum(1)
    return above, secret_log_p


def exact_ranks(candidates: Candidates, chosen: Tensor, max_nodes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return (ranks, nodes, log p) of the secrets of a few canaries (k,), ranks among all R = A^L secrets.

    A prefix of secrets is kept while its probability is at least that of the secret, since log p only falls along a branch.
    The probabilities of the prefixes of one length add up to at most 1, so that at most 1 + (L − 1) / p(secret) are evaluated.
    Candidates as probable as the secret, within the slack, count as more probable.

    Args:
        candidates: canaries and model.
        chosen: positions of the canaries, each once.
        max_nodes: largest number of prefixes to evaluate per canary.

    Returns:
        (k,) int64 ranks, 0 where more than ``max_nodes`` would be needed; (k,) int64 numbers of nodes; (k,) float64 in nats.

    Source: Carlini et al. 2019 (shortest-path search).
    """
    place_of = torch.empty(len(candidates), dtype=torch.int64)
    place_of[chosen] = torch.arange(len(chosen))
    ranks, nodes = (torch.zeros(len(chosen), dtype=torch.int64) for _ in range(2))
    log_p = torch.zeros(len(chosen), dtype=torch.float64)
    for tree in candidates.trees(chosen):
        places = place_of[tree.canaries]
        log_p[places] = tree.secret_log_probs()
        ranks[places], nodes[places] = _Search(tree, log_p[places], max_nodes).run()
    return ranks, nodes, log_p


class _Search:
    """Search of the trees of k secrets, each of probability ``secret_log_p`` (k,), with at most ``max_nodes`` nodes per tree.

    Breadth first, which finds early that there are too many nodes, while the states of all prefixes fit in memory; beyond
    that depth first, where at most one state per level and row of a batch is held.
    """

    def __init__(self, tree: Tree, secret_log_p: Tensor, max_nodes: int) -> None:
        k = len(tree.canaries)
        self.tree, self.max_nodes = tree, max_nodes
        self.tokens, self.secrets = tree.candidates.tokens, tree.candidates.secrets[tree.canaries]
        self.threshold = secret_log_p - tree.candidates.slack
        self.nodes, self.pending, self.others = (torch.zeros(k, dtype=torch.int64) for _ in range(3))
        self.queue: deque[_Frontier] = deque()
        self.held, self.limit = 0, as_bytes(tree.candidates.memory)

    @property
    def alive(self) -> Tensor:
        """True for the secrets that need at most ``max_nodes`` nodes, as far as is known, (k,)."""
        return self.nodes + self.pending <= self.max_nodes

    def run(self) -> tuple[Tensor, Tensor]:
        """Return (ranks, nodes) of the secrets, as :func:`exact_ranks`."""
        impossible = self.threshold.isneginf()  # every candidate is at least as probable
        owner = (~impossible).nonzero()[:, 0]
        root = _Frontier(self.tree.prefixes, owner, owner, owner, torch.zeros(len(owner)).double(), owner >= 0, 0)
        self._evaluated(root, self.tree.prefixes, self.tree.log_p[owner])
        while self.queue:
            frontier = self._next()
            if len(frontier.rows):
                self.pending -= torch.bincount(frontier.owner, minlength=len(self.pending))
                prefixes, log_p = frontier.prefixes.extend(frontier.rows, self.tokens[frontier.symbols])
                self._evaluated(frontier, prefixes, log_p[:, self.tokens])
        ranks = (1 + self.others) * self.alive
        ranks[impossible] = len(self.tokens) ** self.secrets.shape[1]
        return ranks, self.nodes

    def _next(self) -> _Frontier:
        """Return the prefixes to evaluate next, at most one batch of them, without those of secrets that were given up."""
        by_breadth = self.held < self.limit
        frontier = self.queue.popleft() if by_breadth else self.queue.pop()
        kept = self.alive[frontier.owner].nonzero()[:, 0]
        size = self.tree.prefixes.rows_at_once
        if len(kept) > size:
            rest = frontier.part(kept[size:])
            (self.queue.appendleft if by_breadth else self.queue.append)(rest)
        else:
            self.held -= frontier.prefixes.n_bytes
        return frontier.part(kept[:size])

    def _evaluated(self, frontier: _Frontier, prefixes: Prefixes, log_p: Tensor) -> None:
        """Count prefixes that were evaluated, with the log-probabilities (m, A) after them, and queue their continuations."""
        k, owner = len(self.nodes), frontier.owner
        self.nodes += torch.bincount(owner, minlength=k)
        total = frontier.log_p[:, None] + log_p
        row, symbol = (total >= self.threshold[owner][:, None]).nonzero(as_tuple=True)
        own = frontier.own[row] & (self.secrets[owner[row], frontier.depth] == symbol)
        if frontier.depth == self.secrets.shape[1] - 1:
            self.others += torch.bincount(owner[row[~own]], minlength=k)
        elif len(row):
            self.pending += torch.bincount(owner[row], minlength=k)
            self.queue.append(_Frontier(prefixes, row, symbol, owner[row], total[row, symbol], own, frontier.depth + 1))
            self.held += prefixes.n_bytes
