"""Valid calls of compression estimates."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

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


KERNEL = ROWS @ ROWS.T + torch.eye(20)
ONLINE = compression.OnlineOptions(ridges=(0.1, 1.0), temperatures=(0.5,), floors=(0.1,), first_block=4, growth=2.0)


def train(x: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
    share = torch.bincount(y, minlength=2) / len(y)
    return lambda rows: share.expand(len(rows), 2)


SMALL_CARD = compression.CardOptions(width=4, dimensions=5, steps=20, batch_size=10, sweeps=1)
MADE_CARD = compression.card((ROWS, LABELS), options=SMALL_CARD)


def card_arguments() -> dict[str, object]:
    return {
        "train": (ROWS, LABELS),
        "test": (ROWS[:5] + 0.1, LABELS[:5]),
        "n_classes": 2,
        "class_names": ["a", "b"],
        "name": "rows",
        "seed": 0,
        "options": SMALL_CARD,
        "progress": False,
    }


def card_file() -> str:
    return str(MADE_CARD.save(Path(tempfile.gettempdir()) / f"kernelmem-border-{os.getpid()}" / "card.km"))


ENCODED = compression.online_code(KERNEL, LABELS, options=ONLINE).encode()

CALLS = {
    "OnlineOptions": Call(
        compression.OnlineOptions,
        lambda: {
            "ridges": [0.1, 1.0],
            "temperatures": [0.5, 1.0],
            "floors": [0.1],
            "uniform": 0.5,
            "first_block": 4,
            "growth": 2.0,
        },
    ),
    "online_code": Call(
        compression.online_code,
        lambda: {
            "source": KERNEL,
            "y": LABELS,
            "x": None,
            "n_classes": 2,
            "order_seed": 1,
            "options": ONLINE,
            "memory": "1GiB",
            "progress": False,
        },
        examples=0.5,
    ),
    "online_code(learner)": Call(
        compression.online_code,
        lambda: {"source": train, "y": LABELS, "x": ROWS, "n_classes": 2, "options": ONLINE, "progress": False},
        examples=0.5,
    ),
    "compression.lengths_over_orders": Call(
        compression.lengths_over_orders,
        lambda: {"source": KERNEL, "y": LABELS, "n_orders": 2, "options": ONLINE, "progress": False},
        examples=0.2,
    ),
    "OnlineCode": Call(
        compression.OnlineCode.decode,
        lambda: {"data": ENCODED, "source": KERNEL, "x": None, "memory": "1GiB", "progress": False},
    ),
    "compression.KernelPredictor": Call(
        lambda kernel_function, n_classes, options, x, y: compression.KernelPredictor(
            kernel_function, n_classes, options
        )(x, y),
        lambda: {
            "kernel_function": lambda x: x @ x.T,
            "n_classes": 2,
            "options": ONLINE,
            "x": ROWS,
            "y": LABELS,
        },
        examples=0.3,
    ),
    "compression.LearnerPredictor": Call(
        lambda train, n_classes, options, x, y: compression.LearnerPredictor(train, n_classes, options)(x, y),
        lambda: {"train": train, "n_classes": 2, "options": ONLINE, "x": ROWS, "y": LABELS},
        examples=0.3,
    ),
    "verify_code": Call(
        compression.verify_code,
        lambda: {
            "predictor": lambda x, y: torch.full(
                (len(y), 2), 0.6, dtype=torch.float64
            ),  # no distribution, so that no process has to start
            "x": ROWS,
            "y": LABELS,
            "positions": 4,
            "seed": 0,
            "n_classes": 2,
            "claimed": 20.0,
            "timeout": 5.0,
            "progress": False,
        },
        undefined=frozenset({"ideal", "stream"}),
        examples=0.5,
    ),
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
    "compression.CardOptions": Call(
        compression.CardOptions,
        lambda: {"width": 4, "dimensions": 5, "steps": 20, "batch_size": 10, "lr": 0.5, "sweeps": 1},
    ),
    "compression.card": Call(compression.card, card_arguments, examples=0.15),
    "compression.open_card": Call(compression.open_card, lambda: {"path": card_file(), "x": ROWS}),
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
