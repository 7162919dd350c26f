"""Valid calls of the attribution of a sentence to training documents."""

import atexit
import functools
import tempfile

import torch
from torch import nn

import kernelmem as km
from kernelmem import text
from tests.border.driver import Call

DOCUMENTS = [[0, 1, 2], [3, 0]]


def language_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 4)).double()


@functools.cache
def run() -> km.Run:
    directory = tempfile.TemporaryDirectory()
    atexit.register(directory.cleanup)
    model, batch = language_model(), text.document_batch(DOCUMENTS, bos=3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"loss": lambda outputs, y: outputs[:, 0], "forward": text.document_loss}
    with km.Recorder(model, optimizer, f"{directory.name}/run", **options) as recorder:
        text.document_loss(model, batch).mean().backward()
        recorder.step(torch.arange(2), batch, torch.zeros(2))
    return km.Run.open(f"{directory.name}/run")


def arguments() -> dict[str, object]:
    return {
        "model": language_model(),
        "sentence": torch.tensor([1, 2]),
        "documents": [list(ids) for ids in DOCUMENTS],
        "bos": 3,
        "kinds": ["a", "b"],
        "own": [0],
        "decode": lambda ids: "".join("abcd"[i] for i in ids),
        "options": text.TeachersOptions(minimum=1, shown=2),
        "progress": False,
    }


CALLS = {
    "teachers": Call(
        text.teachers, lambda: {"run": run(), **arguments()}, undefined=frozenset({"excess"}), examples=0.1
    ),
    "tangent_teachers": Call(text.tangent_teachers, arguments, undefined=frozenset({"excess"}), examples=0.2),
    "Teachers.rank": Call(
        lambda document: text.tangent_teachers(**arguments()).rank(document), lambda: {"document": 1}, examples=0.1
    ),
}
