"""Valid calls of membership inference."""

import torch

from kernelmem.memorization import membership
from kernelmem.memorization.shadows import ShadowEnsemble, ShadowIdentity
from tests.border.driver import Call

GENERATOR = torch.Generator().manual_seed(0)
M, N, T = 7, 24, 12
MASKS = torch.rand(M, N, generator=GENERATOR).argsort(0) < 3
PHI = torch.randn(M, N, generator=GENERATOR) + MASKS
LOGITS = torch.stack([-PHI, PHI], 2)
TEST_LOGITS = torch.randn(M, T, 2, generator=GENERATOR)
SHADOWS = ShadowEnsemble(
    MASKS[1:],
    LOGITS[1:],
    torch.ones(N, dtype=torch.int64),
    TEST_LOGITS[1:],
    torch.ones(T, dtype=torch.int64),
    ShadowIdentity(),
)
OPTIONS = membership.MembershipOptions(quantile=0.5)
ROWS = torch.randn(20, 2, generator=GENERATOR)
SEVERAL = {"scores": PHI[:3], "members": MASKS[:3]}
CALLS = {
    "membership": Call(
        membership.membership,
        lambda: {
            "shadows": SHADOWS,
            "attack": "best",
            "target": (LOGITS[0], MASKS[0], TEST_LOGITS[0]),
            "seed": 0,
            "progress": False,
            "options": OPTIONS,
        },
        examples=0.25,
    ),
    "MembershipOptions": Call(
        membership.MembershipOptions,
        lambda: {
            "statistic": "margin",
            "offline": True,
            "variance": "pooled",
            "gamma": 2.0,
            "offline_a": 0.3,
            "quantile": 0.9,
            "quantile_model": "boosting",
            "features": (ROWS, ROWS),
            "fprs": (0.1,),
            "level": 0.9,
        },
    ),
    "attack_scores": Call(
        membership.attack_scores,
        lambda: {
            "shadows": SHADOWS,
            "target_logits": LOGITS[0],
            "attack": "rmia",
            "test_logits": TEST_LOGITS[0],
            "seed": 0,
            "options": OPTIONS,
        },
    ),
    "tpr_at_fpr": Call(membership.tpr_at_fpr, lambda: {**SEVERAL, "fpr": 0.1, "level": 0.9, "variance_factor": 2.0}),
    "equivalence_test": Call(
        membership.equivalence_test,
        lambda: {**SEVERAL, "auc_margin": 0.6, "tpr_factor": 3.0, "fprs": (0.1, 0.2), "alpha": 0.1},
    ),
    "blind_baseline": Call(
        membership.blind_baseline,
        lambda: {"x_members": ROWS, "x_nonmembers": ROWS + 0.1, "seed": 0, "level": 0.9, "max_rows": 100},
        examples=0.1,
    ),
    "shadow_fidelity": Call(
        membership.shadow_fidelity,
        lambda: {"shadows": SHADOWS, "target_logits": LOGITS[0], "members": MASKS[0], "statistic": "logit"},
    ),
}
