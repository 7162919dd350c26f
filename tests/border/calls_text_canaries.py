"""Valid calls of canaries in text."""

import torch
from torch import nn

from kernelmem import text
from tests.border.driver import Call

TEXTS = ["the same text twice", "the same text again", "", "another"]


def encode(value):
    return [ord(c) % 128 for c in value]


torch.manual_seed(0)
CANARIES = text.canaries(4, encode, length=2, tiers=(1, 2))
SCORES = torch.rand(4, 2, dtype=torch.float64)
ROWS = CANARIES.insert(TEXTS, encode, context=10)
LM = text.causal_lm(nn.Sequential(nn.Embedding(128, 2), nn.Linear(2, 128)))

CALLS = {
    "canaries": Call(
        text.canaries,
        lambda: {
            "n": 3,
            "encode": encode,
            "format": "{code} {secret}",
            "alphabet": "01",
            "length": 3,
            "tiers": (1, 2),
            "seed": 0,
        },
    ),
    "Canaries.insert": Call(
        CANARIES.insert,
        lambda: {"documents": list(TEXTS), "encode": encode, "context": 10, "separator": " ", "seed": 0},
    ),
    "coverage": Call(
        text.coverage,
        lambda: {"canaries": CANARIES, "batches": [list(row) for row in ROWS.ids], "epochs": 1, "ignored": -100},
    ),
    "coverage(labels)": Call(
        lambda ids, labels, weights: text.coverage(CANARIES, [(ids, labels, weights), *ROWS.ids]),
        lambda: {"ids": torch.ones(2, 5).long(), "labels": torch.ones(2, 5).long(), "weights": torch.ones(2)},
    ),
    "exposure(secrets)": Call(
        text.exposure,
        lambda: (
            {
                "lm": LM,
                "canaries": CANARIES,
                "method": "auto",
                "samples": 7,
                "max_nodes": 5,
                "context": [1],
                "level": 0.9,
            }
            | {"seed": 0, "memory": "1GiB", "progress": False}
        ),
        examples=0.3,
    ),
    "paired_test": Call(
        text.paired_test,
        lambda: {"scores": SCORES, "canaries": CANARIES, "permutations": 9, "level": 0.9, "seed": 0},
    ),
}
