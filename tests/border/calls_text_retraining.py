"""Valid calls of the training of many language models: counterfactual memorization, capacity."""

import torch

from kernelmem import text
from tests.border.calls_text import language_model
from tests.border.driver import Call

MASKS = torch.tensor([[True, False, True], [False, True, False]]).repeat(4, 1)
ROUGH = 0.1

CALLS = {
    "counterfactual": Call(
        text.counterfactual,
        lambda: {
            "make_model": language_model,
            "documents": [[0, 1, 2], [3], [2, 2]],
            "models": 4,
            "recipe": text.TextTraining(epochs=1, batch=2),
            "bos": 1,
            "level": 0.9,
            "seed": 0,
            "memory": "1GiB",
            "progress": False,
        },
        examples=ROUGH,
    ),
    "Counterfactual.of": Call(
        text.Counterfactual.of,
        lambda: {
            "masks": MASKS.clone(),
            "bits": torch.arange(24.0).view(8, 3),
            "tokens": [3, 2, 2],
            "level": 0.9,
            "permutations": 3,
            "seed": 0,
        },
        examples=0.3,
    ),
    "capacity": Call(
        text.capacity,
        lambda: {
            "make_model": language_model,
            "strings": [4, 2],
            "symbols": 3,
            "length": 2,
            "steps": 1,
            "models": 1,
            "recipe": text.TextTraining(batch=2),
            "seed": 0,
            "memory": "1GiB",
            "progress": False,
        },
        examples=ROUGH,
    ),
}
