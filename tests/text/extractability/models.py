"""Language models whose probabilities are known: a table of what follows each token."""

import torch
from torch import nn

from kernelmem.text import causal_lm


class Table(nn.Module):
    """Logits after a token are a row of a table (V, V)."""

    def __init__(self, table):
        super().__init__()
        self.table = nn.Parameter(table)

    def forward(self, ids):
        return self.table[ids]


class PairTable(nn.Module):
    """Logits after two tokens are a row of a table (V, V, V); token 0 precedes the first."""

    def __init__(self, table):
        super().__init__()
        self.table = nn.Parameter(table)

    def forward(self, ids):
        before = torch.cat([torch.zeros_like(ids[:, :1]), ids[:, :-1]], 1)
        return self.table[before, ids]


def pair_lm(seed=0, vocabulary=5, scale=3.0):
    """A language model in float64 with a random table of pairs; token 0 is BOS."""
    generator = torch.Generator().manual_seed(seed)
    table = scale * torch.randn(vocabulary, vocabulary, vocabulary, generator=generator, dtype=torch.float64)
    return causal_lm(PairTable(table), bos=0)


def table_lm(seed=0, vocabulary=5, scale=3.0):
    """A language model in float64 with a random table; token 0 is BOS."""
    generator = torch.Generator().manual_seed(seed)
    table = scale * torch.randn(vocabulary, vocabulary, generator=generator, dtype=torch.float64)
    return causal_lm(Table(table), bos=0)


def cycle_lm(vocabulary=6, strength=8.0):
    """A language model that follows token i by i + 1 (and the last by 0)."""
    table = strength * torch.eye(vocabulary, dtype=torch.float64).roll(1, 1)
    return causal_lm(Table(table), bos=0)
