"""Probes of a model on a few tokens: size of the vocabulary, causality, independence of batch and padding."""

from typing import Protocol

import torch
from torch import Tensor

from kernelmem.core import NumericalError, UnsupportedModelError

LENGTHS = (4, 2, 3)  # of the documents of a probe
KEPT = 2  # first tokens, which stay when later ones change
CHANGED, REBATCHED = 32, 2048 * torch.finfo(torch.float32).eps
"""Differences that rounding explains, relative to the largest logit: in eps, of passes of the same shape; of another shape,
in float32, in which some models compute parts of every pass (the scan of Mamba-2)."""


class Evaluate(Protocol):
    """Function that returns the logits (n, T, V) of the right-padded batch of several documents.

    ``skip`` is how many random numbers are drawn before.
    """

    def __call__(self, ids: list[Tensor], skip: int = 0) -> Tensor:
        """Return the logits."""
        ...  # pragma: no cover


def probe_ids(vocabulary: int, first: int) -> list[Tensor]:
    """Return token ids of a few short documents, which start with the id ``first``."""
    numbers = torch.Generator().manual_seed(0)
    ids = [torch.randint(vocabulary, (length,), generator=numbers) for length in LENGTHS]
    for row in ids:
        row[0] = first
    return ids


def check_causal(evaluate: Evaluate, vocabulary: int, first: int, name: str) -> None:
    """Check that logits depend only on the tokens before, and not on other documents, on padding or on chance.

    Raises:
        UnsupportedModelError: a model that draws random numbers, that looks at later tokens (bidirectional), or whose
            output for a document depends on the batch.
    """
    ids = probe_ids(vocabulary, first)
    logits = evaluate(ids)
    eps = torch.finfo(logits.dtype).eps
    finite = logits[torch.isfinite(logits)]
    scale = max(float(finite.abs().max()), 1e-30) if len(finite) else 1.0
    if bool(torch.cat([rows[: len(row)] for rows, row in zip(logits, ids, strict=True)]).isnan().any()):
        raise NumericalError(
            f"a {name} with logits that are NaN", expected="numbers", hint="train a model that has not diverged"
        )
    if _difference(evaluate(ids, skip=1), logits) > CHANGED * eps * scale:
        raise UnsupportedModelError(
            f"a {name} whose logits differ between two passes on the same tokens",
            expected="a model that computes the same in eval mode, without dropout or other random numbers",
            hint="use nn.Dropout, which eval mode switches off, instead of F.dropout",
        )
    if vocabulary > 1:
        changed = [torch.cat([row[:KEPT], (row[KEPT:] + 1) % vocabulary]) for row in ids]
        difference = _difference(evaluate(changed)[:, :KEPT], logits[:, :KEPT])
        if difference > CHANGED * eps * scale:
            raise UnsupportedModelError(
                f"a bidirectional {name}: changing tokens from number {KEPT} on changes its logits before them by"
                f" {difference:.2g}",
                expected="a causal model: logits at a position depend on the tokens up to it only",
                hint="pass a causal language model (a decoder, e.g. AutoModelForCausalLM with is_decoder=True for BERT), or"
                " a mask for nn.TransformerEncoder",
            )
    for row, document in zip(logits, ids, strict=True):
        for length in (KEPT, len(document)):
            difference = _difference(evaluate([document[:length]])[0], row[:length])
            if difference > REBATCHED * scale:
                raise UnsupportedModelError(
                    f"a {name} whose logits for a document change by {difference:.2g} with the other documents of the"
                    " batch or with tokens that follow",
                    expected="a causal model whose rows do not depend on each other",
                    hint="build recurrent layers with batch_first=True, and leave out statistics of the batch",
                )


def _difference(a: Tensor, b: Tensor) -> float:
    """Return the largest absolute difference, 0 where both are the same infinity, infinite if only one is finite."""
    difference = torch.where(a == b, 0.0, (a - b).abs().to(torch.float64))
    return float(torch.nan_to_num(difference, nan=torch.inf).max())
