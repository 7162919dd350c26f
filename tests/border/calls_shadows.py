"""Valid calls of shadow ensembles and of retraining."""

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn

from kernelmem.core import SubmititExecutor
from kernelmem.memorization import ShadowEnsemble, retraining, shadows
from kernelmem.training import Recipe
from tests.border.calls_kernels import X, Y
from tests.border.driver import Call

GENERATOR = torch.Generator().manual_seed(0)
MASKS = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 0, 1], [0, 1, 1, 0]])
LOGITS = torch.randn(6, 4, 2, generator=GENERATOR, dtype=torch.float64)
TEST_LOGITS = torch.randn(6, 3, 2, generator=GENERATOR, dtype=torch.float64)
SHADOWS = ShadowEnsemble.from_logits(MASKS, LOGITS, Y, test_logits=TEST_LOGITS, test_labels=[0, 1, 1])
RETRAINING = retraining.feldman_zhang(SHADOWS, statistic="margin")
RECIPE = Recipe(steps=2, lr=0.1)
FEW = 0.3


def train(indices: torch.Tensor, seed: int) -> nn.Module:
    return nn.Linear(X.shape[1], 2, dtype=torch.float32)


def shadow_arguments(training: object) -> dict[str, object]:
    options = shadows.ShadowOptions(n_models=3, share=0.5, dtype=torch.float64)
    return {
        "train": (X, Y), "training": training, "test": (X + 0.1, Y), "path": None, "executor": None, "seed": 0,
        "memory": "1GiB", "options": options, "progress": False,
    }  # fmt: skip


CALLS = {
    "shadow_ensemble": Call(
        shadows.shadow_ensemble,
        lambda: shadow_arguments(shadows.EnsembleTraining(RECIPE, width=3)),
        examples=FEW,
    ),
    "shadow_ensemble(function)": Call(shadows.shadow_ensemble, lambda: shadow_arguments(train), examples=FEW),
    "EnsembleTraining": Call(
        shadows.EnsembleTraining, lambda: {"recipe": RECIPE, "width": 3, "make_model": None}, examples=FEW
    ),
    "ShadowOptions": Call(
        shadows.ShadowOptions,
        lambda: {
            "n_models": 3, "share": 0.5, "sampling": "balanced", "dtype": torch.float32, "device": None,
            "models_per_chunk": 2, "diverged": "drop", "n_classes": 2, "forward": None, "training_name": "a", "timeout": 60.0,
        },
        examples=FEW,
    ),
    "SubmititExecutor": Call(
        SubmititExecutor, lambda: {"executor": ThreadPoolExecutor(1), "max_workers": 2, "poll_seconds": 0.1}, examples=FEW
    ),
    "ShadowEnsemble.from_logits": Call(
        ShadowEnsemble.from_logits,
        lambda: {
            "masks": MASKS, "logits": LOGITS, "labels": Y, "test_logits": TEST_LOGITS, "test_labels": [0, 1, 1],
        },
    ),
    "feldman_zhang": Call(
        retraining.feldman_zhang, lambda: {"shadows": SHADOWS, "statistic": "margin", "level": 0.9}, examples=FEW
    ),
    "counterfactual_memorization": Call(
        retraining.counterfactual_memorization, lambda: {"shadows": SHADOWS, "statistic": "margin"}, examples=FEW
    ),
    "c_score": Call(retraining.c_score, lambda: {"shadows": [SHADOWS, SHADOWS]}, examples=FEW),
    "Retraining.agreement": Call(
        RETRAINING.agreement,
        lambda: {"score": torch.arange(4.0), "rows": [0, 1, 2, 3], "score_reliability": 0.9, "seed": 0},
    ),
    "Retraining.reliability": Call(
        RETRAINING.reliability, lambda: {"rows": [0, 1, 2, 3], "n_splits": 3, "seed": 0}, examples=FEW
    ),
    "Retraining.influence": Call(RETRAINING.influence, lambda: {"test_rows": [0, 2]}, examples=FEW),
    "Retraining.high_influence_pairs": Call(
        RETRAINING.high_influence_pairs,
        lambda: {"memorization": 0.1, "influence": 0.1, "n_null": 2, "seed": 0},
        examples=FEW,
    ),
}  # fmt: skip
