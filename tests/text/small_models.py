"""Small language models for tests: known in closed form, recurrent, attention."""

import torch
from torch import Tensor, nn

V = 11  # words; BOS is one more


class Uniform(nn.Module):
    """Equal logits for every token."""

    def forward(self, ids: Tensor) -> Tensor:
        return torch.full((*ids.shape, V), 3.25)


class Bigram(nn.Module):
    """Next-token probabilities that depend on the token before only; row V is that of BOS."""

    def __init__(self, seed: int = 0, *, zeros: bool = False) -> None:
        super().__init__()
        table = torch.rand(V + 1, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 3
        if zeros:
            table[:, 4] = 0
        self.register_buffer("table", table / table.sum(1, keepdim=True))

    def forward(self, ids: Tensor) -> Tensor:
        return self.table[ids].log()


class Recurrent(nn.Module):
    """Embedding, recurrent layer, linear layer."""

    def __init__(self, kind: type[nn.RNNBase] = nn.LSTM, **options: object) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(V + 1, 8)
        self.layer = kind(8, 8, **{"batch_first": True, **options})
        self.head = nn.Linear(16 if options.get("bidirectional") else 8, V)
        with torch.no_grad():
            self.head.weight *= 4  # probabilities that are far from uniform

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.layer(self.embedding(ids))[0])


class Stepping(Recurrent):
    """Recurrent model that is also read one token at a time."""

    def step(self, tokens: Tensor, state: object) -> tuple[Tensor, object]:
        hidden, state = self.layer(self.embedding(tokens[:, None]), state)
        return self.head(hidden[:, 0]), state


class Attention(nn.Module):
    """One transformer layer with learned positions, for at most 16 tokens."""

    def __init__(self, *, causal: bool = True, size: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.positions = nn.Embedding(V + 1, size), nn.Embedding(16, size)
        self.layer = nn.TransformerEncoderLayer(size, 2, 2 * size, 0.0, batch_first=True, norm_first=True)
        self.head = nn.Linear(size, V)
        self.causal = causal

    def forward(self, ids: Tensor) -> Tensor:
        length = ids.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=ids.device, dtype=self.head.weight.dtype)
        x = self.embedding(ids) + self.positions(torch.arange(length, device=ids.device))
        return self.head(self.layer(x, src_mask=mask if self.causal else None, is_causal=self.causal))


MODELS = {"Bigram": Bigram, "LSTM": Recurrent, "GRU": lambda: Recurrent(nn.GRU), "attention": Attention}


def random_documents(*lengths: int, seed: int = 0) -> list[Tensor]:
    """Documents of these lengths, of all V words."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(V, (length,), generator=generator) for length in lengths]
