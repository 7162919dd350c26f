"""Membership scores of documents, from the losses of their tokens; larger = more like a training document."""

import math
import sys
import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from kernelmem.core.errors import InputError
from kernelmem.text.losses import TokenLosses

NAMES = ("loss", "reference", "min_k", "min_k++", "zlib")


def document_scores(
    name: str, losses: TokenLosses, reference: TokenLosses | None, k: float, texts: Sequence[str] | None
) -> Tensor:
    """Return the scores (n,) of one of ``NAMES``, float64; every document has at least one loss.

    Raises:
        InputError: "reference" without a reference, "zlib" without texts or with texts of different lengths.
    """
    counts = losses.counts.to(torch.float64)
    if name == "loss":
        return -losses.per_document() / counts
    if name == "reference":
        if reference is None:
            raise InputError(
                'scores with "reference", without a reference',
                expected="a model that was not trained on the members",
                hint="pass reference=, such as the model before the fine-tune, or leave the score out",
            )
        return reference.per_document() - losses.per_document()
    if name == "zlib":
        return -losses.per_document() / _compressed(texts)
    if name == "min_k":
        return _lowest_means([-bits for bits in losses.bits], k)
    z = [
        torch.where(sigma > 0, (-bits - mu) / sigma.clamp_min(torch.finfo(torch.float64).tiny), 0.0)
        for bits, mu, sigma in zip(losses.bits, losses.mu, losses.sigma, strict=True)
    ]
    return _lowest_means(z, k)


def _lowest_means(values: Sequence[Tensor], k: float) -> Tensor:
    """Return the mean of the lowest ⌈k T⌉ values of every document, (n,)."""
    return torch.stack([v.topk(_share(k, len(v)), largest=False).values.mean() for v in values])


def _share(k: float, n: int) -> int:
    """Return ⌈k n⌉; a product that rounding put above a whole number counts as that: 7 for 0.07 times 100."""
    return max(1, math.ceil(k * n * (1 - 4 * sys.float_info.epsilon)))


def _compressed(texts: Sequence[str] | None) -> Tensor:
    """Return the number of bytes of every text compressed by zlib, (n,).

    Raises:
        InputError: no texts, or texts of different lengths, of which this score is a detector.
    """
    if texts is None:
        raise InputError(
            'scores with "zlib", without texts',
            expected="the texts of members and unseen documents",
            hint="pass texts=(member_texts, unseen_texts), or leave the score out",
        )
    sizes = [len(text.encode("utf-8", "surrogatepass")) for text in texts]
    if min(sizes) != max(sizes):
        raise InputError(
            f'scores with "zlib" for texts of {min(sizes):,} to {max(sizes):,} bytes',
            expected="texts of one length: compressed size per byte falls with the length, and so would this score",
            hint="cut all texts to one length, or leave the score out",
        )
    return torch.tensor([len(zlib.compress(text.encode("utf-8", "surrogatepass"))) for text in texts]).double()
