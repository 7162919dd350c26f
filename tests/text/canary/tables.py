"""Table models: log-probabilities of the next token from the last two, and a code of characters."""

import torch
from torch import nn

from kernelmem.text import causal_lm

CHARACTERS = "\n .,:abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"

N_CHARACTERS = len(CHARACTERS)


def encode(text):
    return [CHARACTERS.index(c) for c in text]


class Table(nn.Module):
    """Logits of the next token: a random table of the last two tokens."""

    def __init__(self, vocabulary=N_CHARACTERS, *, scale=1.0, seed=0, dtype=torch.float64):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        table = scale * torch.randn(vocabulary, vocabulary, vocabulary, generator=generator, dtype=torch.float64)
        self.table = nn.Parameter(table.to(dtype))

    def forward(self, ids):
        before = torch.cat([torch.zeros_like(ids[:, :1]), ids[:, :-1]], 1)
        return self.table[before, ids]


def table_step(model, tokens, state):
    """Read one token; the state is the token before."""
    before = torch.zeros_like(tokens) if state is None else state
    return model.table[before, tokens], tokens


class Memory(nn.Module):
    """Logits 0 for all tokens, and ``strength`` for the next token of the texts that it remembers, after their head."""

    def __init__(self, memorized, *, strength=6.0):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.strength = strength
        self.next = {}
        for ids, head in memorized:
            for end in range(head, len(ids)):
                self.next[tuple(ids[:end].tolist())] = int(ids[end])

    def forward(self, ids):
        logits = torch.zeros(*ids.shape, N_CHARACTERS, dtype=torch.float64) + 0 * self.weight
        for row, tokens in enumerate(ids.tolist()):
            for end in range(1, len(tokens) + 1):
                following = self.next.get(tuple(tokens[:end]))
                if following is not None:
                    logits[row, end - 1, following] = self.strength
        return logits


def table_lm(*, step=None, **options):
    return causal_lm(Table(**options), step=step)


def memory_lm(canaries, pairs, *, strength=6.0):
    """A model that remembers the inserted canaries of some pairs."""
    memorized = []
    for pair in pairs:
        variant = int(canaries.inserted[pair])
        memorized.append((canaries.ids(pair, variant), len(canaries.heads[pair][variant])))
    return causal_lm(Memory(memorized, strength=strength))
