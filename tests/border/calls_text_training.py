"""Valid calls of the training of language models, and of the built-in demonstration."""

from kernelmem import text
from tests.border.calls_text import language_model
from tests.border.driver import Call


def train(model, documents, recipe, bos, seed, progress):
    """Training of some parameters only leaves junk models without any."""
    return text.train_language_model(model, documents, recipe, bos=bos, seed=seed, progress=progress)


CALLS = {
    "topic_blocks": Call(text.topic_blocks, lambda: {"size": 5000}),
    "encode_characters": Call(text.encode_characters, lambda: {"text": "one\ntwo"}),
    "decode_characters": Call(text.decode_characters, lambda: {"ids": [0, 35, 2]}),
    "CharacterLSTM": Call(
        text.CharacterLSTM, lambda: {"vocabulary": 5, "embedding": 3, "hidden": 2, "seed": 0}, examples=0.3
    ),
    "train_language_model": Call(
        train,
        lambda: {
            "model": language_model(),
            "documents": [[0, 1, 2], [3], []],
            "recipe": text.TextTraining(epochs=1, batch=2),
            "bos": 1,
            "seed": 0,
            "progress": False,
        },
        changes=frozenset({"model"}),
        examples=0.2,
    ),
    "demonstration": Call(
        text.demonstration,
        lambda: {
            **{"seed": 0, "n_documents": 5, "epochs": 1, "n_canaries": 2, "hidden": 2, "reference": False},
            "progress": False,
        },
        examples=0.05,
    ),
}
