"""Ensembles with known answers for the tests of attributions."""

import torch

from kernelmem.memorization import ShadowEnsemble
from kernelmem.memorization.shadows import ShadowIdentity


def subset_masks(n_subsets, n, size, generator):
    return torch.rand(n_subsets, n, generator=generator).argsort(1) < size


def ensemble(masks, test_logits, test_labels, *, logits=None, labels=None):
    """An ensemble with the given outputs; on training rows, the margin is 1 where a row is in the mask and 0 elsewhere."""
    m, n = masks.shape
    if labels is None:
        labels = torch.zeros(n, dtype=torch.int64)
    if logits is None:
        logits = torch.zeros(m, n, test_logits.shape[2], dtype=torch.float64)
        logits[:, :, 0] = masks
    return ShadowEnsemble(masks, logits, labels, test_logits, test_labels, ShadowIdentity())


def of_margins(masks, margins):
    """An ensemble of two outputs whose margins on the test rows are ``margins`` (m, t)."""
    zeros = torch.zeros_like(margins)
    return ensemble(masks, torch.stack([margins, zeros], 2), torch.zeros(margins.shape[1], dtype=torch.int64))


def noisy_linear(seed, *, n=60, t=12, n_subsets=40, seeds=2, noise=1.0, size=None):
    """Effects (t, n) and an ensemble whose margins are sums of effects plus noise of every model."""
    generator = torch.Generator().manual_seed(seed)
    masks = subset_masks(n_subsets, n, size or n // 2, generator).repeat(seeds, 1)
    effects = torch.randn(t, n, generator=generator, dtype=torch.float64)
    margins = masks.double() @ effects.T
    margins = margins + noise * n**0.5 / 2 * torch.randn(margins.shape, generator=generator, dtype=torch.float64)
    return effects, of_margins(masks, margins)
