"""Language model of characters: embedding, LSTM, linear layer."""

from typing import TypeAlias

import torch
from torch import Tensor, nn

from kernelmem.core.checks import as_count, as_seed
from kernelmem.core.models.random_states import random_states

State: TypeAlias = tuple[Tensor, Tensor]
"""Hidden and cell state of each row, both (n, hidden)."""

MAX_VOCABULARY, MAX_SIZE = 2**20, 2**12


class CharacterLSTM(nn.Module):
    """Embedding, LSTM and linear layer: token ids (n, T) to logits (n, T, V); weights are float32.

    Args:
        vocabulary: number V of tokens.
        embedding: size of the embedding.
        hidden: size of the state.
        seed: seed of the weights; the global random state is not changed.

    Raises:
        InputError: a size out of range.

    >>> model = CharacterLSTM(97)
    >>> sum(parameter.numel() for parameter in model.parameters())
    238505
    """

    def __init__(self, vocabulary: int, embedding: int = 64, hidden: int = 200, *, seed: int = 0) -> None:
        super().__init__()
        vocabulary = as_count(vocabulary, "vocabulary", maximum=MAX_VOCABULARY)
        embedding = as_count(embedding, "embedding", maximum=MAX_SIZE)
        hidden = as_count(hidden, "hidden", maximum=MAX_SIZE)
        with random_states(as_seed(seed)):
            self.embedding = nn.Embedding(vocabulary, embedding, dtype=torch.float32)
            self.lstm = nn.LSTM(embedding, hidden, batch_first=True, dtype=torch.float32)
            self.head = nn.Linear(hidden, vocabulary, dtype=torch.float32)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the logits (n, T, V) of the tokens after ids (n, T)."""
        return self.head(self.lstm(self.embedding(ids))[0])

    def step(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Read one token (n,) in every row, and return the logits (n, V) of the next and the state.

        Args:
            tokens: token ids.
            state: state after the tokens before, whose rows may be selected and repeated; None: at the beginning.
        """
        before = None if state is None else (state[0][None], state[1][None])
        output, (hidden, cell) = self.lstm(self.embedding(tokens)[:, None], before)
        return self.head(output[:, 0]), (hidden[0], cell[0])
