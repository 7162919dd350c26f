"""Documents of random words, and language models that store trigrams of them, or nothing."""

import torch
from torch import nn

ALPHABET = "\nabcdefghijklmnopqrstuvwxyz0123456789:"  # id 0 is also BOS
V = len(ALPHABET)


def encode(text):
    return [ALPHABET.index(character) for character in text.lower()]


def decode(ids):
    return "".join(ALPHABET[i] for i in ids)


def random_texts(number, length, seed):
    """Texts of random letters."""
    letters = torch.randint(1, 27, (number, length), generator=torch.Generator().manual_seed(seed))
    return [decode(row) for row in letters.tolist()]


class Recall(nn.Module):
    """A random table of bigrams, and a bonus for the token that followed the three tokens before in its documents."""

    def __init__(self, documents=(), bonus=8.0, seed=0, dtype=torch.float64):
        super().__init__()
        table = torch.randn(V, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        self.table = nn.Parameter(table.to(dtype), requires_grad=False)
        following = torch.full((V, V, V), V)
        for ids in documents:
            row = [0, 0, 0, *ids]
            for a, b, c, d in zip(row, row[1:], row[2:], row[3:], strict=False):
                following[a, b, c] = d
        self.register_buffer("following", following)
        self.bonus = bonus

    def forward(self, ids):
        one, two = (torch.cat([torch.zeros_like(ids[:, :k]), ids[:, :-k]], 1)[:, : ids.shape[1]] for k in (1, 2))
        stored = nn.functional.one_hot(self.following[two, one, ids], V + 1)[..., :V]
        return self.table[ids] + self.bonus * stored
