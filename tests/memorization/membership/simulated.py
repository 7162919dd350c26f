"""Shadow ensembles with known statistics: φ is Gaussian with and without a row, so that AUCs have closed forms."""

import torch
from torch import Tensor

from kernelmem.memorization.shadows import ShadowEnsemble, ShadowIdentity


def logits_of(phi: Tensor, labels: Tensor) -> Tensor:
    """Two logits (..., n, 2) whose log-odds at the labels are ``phi`` (..., n)."""
    half = phi * (2 * labels - 1) / 2
    return torch.stack([-half, half], -1)


def gaussian_ensemble(
    m: int,
    n: int,
    gain: float,
    seed: int,
    *,
    balanced: bool = True,
    t: int = 0,
    spread: float = 2.0,
    share: float = 0.5,
) -> ShadowEnsemble:
    """φ_ki ~ N(b_i + gain · mask_ki, 1), b_i ~ N(0, spread²): difficult and easy rows, d′ = gain for each of them."""
    g = torch.Generator().manual_seed(seed)
    uniform = torch.rand(m, n, generator=g, dtype=torch.float64)
    masks = uniform.argsort(0) < round(share * m) if balanced else uniform < share

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    phi = spread * normal(n) + gain * masks + normal(m, n)
    labels, test_labels = torch.randint(0, 2, (n,), generator=g), torch.randint(0, 2, (t,), generator=g)
    test_phi = spread * normal(t) + normal(m, t)
    return ShadowEnsemble(
        masks, logits_of(phi, labels), labels, logits_of(test_phi, test_labels), test_labels, ShadowIdentity()
    )
