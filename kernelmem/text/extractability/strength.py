"""Extraction strength: share of a document that greedy decoding completes."""

import torch
from torch import Tensor

from kernelmem.core.checks import check_instance
from kernelmem.text.losses import TokenLosses


def extraction_strength(losses: TokenLosses) -> Tensor:
    """Return the share of each document's targets that greedy decoding emits from the targets before them, (n,) in [0, 1].

    1 − k / N, with k the fewest of N targets that must be given so that greedy decoding emits all others. It is 0 if the last
    token is not the most probable one, and for a document without targets. A token that ties with another is not emitted.

    Args:
        losses: from :func:`token_losses`, in one pass (with windows the context of a token is cut).

    Raises:
        InputError: another kind of value.

    Source: Carlini et al. 2021; as a number for unlearning: Wang et al. 2025.

    >>> from kernelmem.text import causal_lm, token_losses
    >>> table = torch.nn.Embedding.from_pretrained(5 * torch.eye(4).roll(1, 1))  # token i is followed by i + 1
    >>> extraction_strength(token_losses(causal_lm(table, bos=0), [[1, 2, 3], [3, 1, 2], [1, 2, 2], []])).tolist()
    [1.0, 0.3333333333333333, 0.0, 0.0]
    """
    check_instance(losses, "losses", TokenLosses, hint="pass km.text.token_losses(lm, documents)")
    right = [correct.flip(0).to(torch.float64).cumprod(0).sum() for correct in losses.correct]
    return torch.stack(right) / losses.counts.clamp(min=1)
