"""Valid calls of attribution scores."""

import torch

import kernelmem as km
from kernelmem.memorization import attribution
from kernelmem.memorization.shadows import ShadowIdentity
from tests.border.calls_kernels import K, Y
from tests.border.driver import Call

N = 8
MASKS = torch.rand(14, N, generator=torch.Generator().manual_seed(0)).argsort(1) < N // 2
PAIRS = torch.tensor([[True, True, False, False], [True, False, False, True]])
EFFECTS = torch.randn(2, N, generator=torch.Generator().manual_seed(1))


def bank() -> km.ShadowEnsemble:
    """Models whose margins on two test rows are sums of effects."""
    margins = MASKS.float() @ EFFECTS.T
    outputs, logits = torch.stack([margins, -margins], 2), torch.stack([MASKS.float(), -MASKS.float()], 2)
    labels = torch.zeros(N, dtype=torch.int64)
    return km.ShadowEnsemble(MASKS, logits, labels, outputs, labels[:2], ShadowIdentity())


def lds_arguments() -> dict[str, object]:
    return {
        "attribution": EFFECTS.numpy(),
        "shadows": bank(),
        "statistic": "margin",
        "rows": "test",
        "level": 0.95,
        "n_permutations": 2,
        "seed": 0,
    }


CALLS = {
    "lds": Call(km.lds, lds_arguments, undefined=frozenset({"per_row", "ceiling", "ceiling_error", "reliability", "replicates"})),
    "attribution.kernel_refit": Call(
        lambda **arguments: attribution.kernel_refit(**arguments)(PAIRS),
        lambda: {"kernel": K, "y": Y, "K_test": K[:2], "y_test": Y[:2], "ridge": 0.1, "statistic": "margin"},
    ),
}  # fmt: skip
