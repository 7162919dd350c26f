"""Kernel ridge machines as the training algorithm: outputs of all models, on every subset of a few rows."""

import itertools
from functools import cache

import torch
from torch import Tensor

from kernelmem.memorization import ShadowEnsemble

N, N_TEST, C, RIDGE = 10, 4, 3, 0.1


def problem(seed: int, n: int = N) -> tuple[Tensor, Tensor]:
    """Kernel of n training and N_TEST test rows, and their labels, of C classes."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n + N_TEST, 3, generator=generator, dtype=torch.float64)
    return torch.exp(-torch.cdist(x, x).square() / 2), torch.randint(0, C, (n + N_TEST,), generator=generator)


def outputs(kernel: Tensor, labels: Tensor, subset: Tensor) -> Tensor:
    """Outputs (rows, C) on all rows of the machine that is fitted to the row numbers ``subset``."""
    targets = torch.eye(C, dtype=torch.float64)[labels] - 1 / C
    ridge = RIDGE * torch.eye(len(subset), dtype=torch.float64)
    return 4 * kernel[:, subset] @ torch.linalg.solve(kernel[subset][:, subset] + ridge, targets[subset])


def ensemble_of(kernel: Tensor, labels: Tensor, masks: Tensor) -> ShadowEnsemble:
    n = masks.shape[1]
    logits = torch.stack([outputs(kernel, labels, mask.nonzero()[:, 0]) for mask in masks])
    return ShadowEnsemble.from_logits(
        masks, logits[:, :n], labels[:n], test_logits=logits[:, n:], test_labels=labels[n:]
    )


@cache
def all_subsets(seed: int, size: int = 7) -> ShadowEnsemble:
    """Machines on all subsets of ``size`` of the N rows: means over these models are expectations."""
    masks = torch.zeros(0, N, dtype=torch.bool)
    for subset in itertools.combinations(range(N), size):
        mask = torch.zeros(1, N, dtype=torch.bool)
        mask[0, list(subset)] = True
        masks = torch.cat([masks, mask])
    return ensemble_of(*problem(seed), masks)


def random_models(everything: ShadowEnsemble, m: int, generator: torch.Generator) -> ShadowEnsemble:
    """m models with independent random subsets, such that every row is estimable."""
    while True:
        chosen = torch.randint(0, everything.n_models, (m,), generator=generator)
        counts = everything.masks[chosen].sum(0)
        if int(counts.min()) >= 2 and int(counts.max()) <= m - 2:
            return everything.select(chosen)
