"""Valid calls of attribution scores."""

import torch

import kernelmem as km
from kernelmem.memorization import attribution
from kernelmem.memorization.shadows import ShadowIdentity
from kernelmem.training import Recipe
from tests.border.calls_kernels import LOO, K, X, Y
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


def retraining() -> dict[str, object]:
    return {
        "train": (X, Y),
        "training": km.EnsembleTraining(Recipe(steps=2), width=2),
        "test": (X[:2] + 0.1, Y[:2]),
        "seed": 0,
        "executor": None,
        "options": km.ShadowOptions(),
        "progress": False,
    }


def qld_arguments() -> dict[str, object]:
    return {"attribution": torch.eye(4)[:2], **retraining(), "share": 0.25, "pairs": 2}


def bank_arguments() -> dict[str, object]:
    return {**retraining(), "n_subsets": 10, "models_per_subset": 1, "share": 0.5}


CALLS = {
    "lds": Call(km.lds, lds_arguments, undefined=frozenset({"per_row", "ceiling", "ceiling_error", "reliability", "replicates"})),
    "qld": Call(km.qld, qld_arguments, examples=0.2),
    "attribution.subset_bank": Call(attribution.subset_bank, bank_arguments, examples=0.2),
    "attribution.leave_one_out_attribution": Call(
        attribution.leave_one_out_attribution, lambda: {"loo": LOO, "K_test": K[:2], "y_test": Y[:2]}
    ),
    "attribution.kernel_refit": Call(
        lambda **arguments: attribution.kernel_refit(**arguments)(PAIRS),
        lambda: {"kernel": K, "y": Y, "K_test": K[:2], "y_test": Y[:2], "ridge": 0.1, "statistic": "margin"},
    ),
}  # fmt: skip
