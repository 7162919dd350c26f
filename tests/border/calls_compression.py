"""Valid calls of compression estimates."""

import torch
from torch import Tensor, nn

from kernelmem import compression
from tests.border.calls_kernels import model
from tests.border.driver import Call

ROWS = torch.randn(20, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
LABELS = (ROWS @ torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64) > 0).long()


def retrain(indices: Tensor, labels: Tensor, seed: int) -> nn.Module:
    return model()


def account_arguments() -> dict[str, object]:
    return {
        "model": model(),
        "data": (ROWS, LABELS),
        "reference": "infinite_ntk",
        "retrain": retrain,
        "trained_kernel": False,
        "forward": None,
        "seed": 0,
        "memory": "1GiB",
        "progress": False,
    }


CALLS = {
    "account": Call(compression.account, account_arguments, examples=0.2),
    "account(kernel)": Call(
        compression.account,
        lambda: account_arguments() | {"reference": ROWS @ ROWS.T + torch.eye(20), "retrain": None},
        examples=0.1,
    ),
    "account(probabilities)": Call(
        compression.account,
        lambda: account_arguments() | {"reference": torch.full((20, 2), 0.4) + 0.2 * torch.eye(2)[LABELS]},
        examples=0.1,
    ),
    "compression.certificate": Call(
        compression.certificate, lambda: {"errors": 3, "n": 40, "bits": 12.0, "delta": 0.05}
    ),
    "compression.held_out_certificate": Call(
        compression.held_out_certificate, lambda: {"errors": 3, "n": 40, "candidates": 2, "delta": 0.05}
    ),
    "compression.online_certificate": Call(
        compression.online_certificate, lambda: {"mistakes": 3, "n": 40, "n_lambdas": 16, "delta": 0.05}
    ),
}
