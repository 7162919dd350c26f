"""Valid calls of the comparison of two language models, and of a memory of documents."""

import torch
from torch import nn

from kernelmem import text
from tests.border.driver import Call


def language_model(seed: int) -> text.CausalLM:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Embedding(128, 3), nn.Linear(3, 128)).requires_grad_(requires_grad=False)
    return text.causal_lm(model, bos=0)


BEFORE, AFTER = language_model(0), language_model(1)
CANARIES = text.canaries(3, lambda content: [ord(c) for c in content], length=2, tiers=(1, 2))
GROUPS = {"new": [[1, 2, 3], [2, 2]], "other": [[3, 1], [2]]}


def arguments() -> dict[str, object]:
    return {
        "before": BEFORE,
        "after": AFTER,
        "groups": dict(GROUPS),
        "membership": ("new", "other"),
        "canaries": CANARIES,
        "context": [1],
        "texts": {"new": ["abc", "d"]},
        "level": 0.9,
        "memory": "1MiB",
        "progress": False,
    }


def memory_arguments() -> dict[str, object]:
    return {
        "lm": BEFORE,
        "store": [[1, 2, 3], [3, 2, 1], [2, 5]],
        "documents": [[1, 4], [2, 2]],
        "queries": [0, 2],
        "k": 2,
        "mix": 0.5,
        "temperature": 2.0,
        "state": lambda model, ids: model[0](ids),
        "memory": "1MiB",
        "progress": False,
    }


CALLS = {
    "neighbour_memory": Call(text.neighbour_memory, memory_arguments, examples=0.2),
    "compare": Call(text.compare, arguments, examples=0.2),
    "compare(group)": Call(
        lambda documents: text.compare(BEFORE, AFTER, groups={"new": documents}),
        lambda: {"documents": [[1, 2], [3, 1]]},
    ),
    "Change.extremes": Call(text.compare(BEFORE, AFTER, groups=GROUPS).extremes, lambda: {"group": "new", "n": 1}),
}
