"""Demonstration of a text audit: documents drawn at random, canaries, and a language model trained on both."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from torch import Tensor

from kernelmem.core import InputError, Progress
from kernelmem.core.checks import as_count, as_flag, seed_sequence
from kernelmem.core.options import as_progress
from kernelmem.text.built_in.corpus import BOS, VOCABULARY, decode_characters, encode_characters, topic_blocks
from kernelmem.text.built_in.lstm import CharacterLSTM
from kernelmem.text.canary import Canaries, CanaryRows, canaries
from kernelmem.text.documents import Documents, as_documents
from kernelmem.text.losses import TextTraining, train_language_model

SIZE = 128  # characters of a document
CONTEXT, CONTEXTS = 24, 5  # characters before each copy of a canary; number of fresh contexts
REFERENCE_BATCH = 8


@dataclass(frozen=True, eq=False, repr=False)
class Demonstration:
    """Documents, canaries and trained models; which documents are members was drawn at random.

    Attributes:
        members, unseen, reference_documents: token ids of the documents that the model was trained on, that no model was
            trained on, and that the reference was trained on.
        member_texts, unseen_texts, reference_texts: their texts.
        canaries: pairs of canaries.
        rows: training rows of the model: members, and copies of canaries after other text.
        contexts: token ids of five pieces of unseen documents with a line break, like those before the copies. Memory depends on
            context: a model that saw its canaries after a line break only may not emit them after BOS.
        model: trained :class:`CharacterLSTM`, in eval mode; BOS is put before every row.
        reference_model: the same network trained on ``reference_documents``, without canaries, for a third of the epochs, so
            that it predicts other documents well; None if not asked for.
        recipe: sizes, seed and training recipe, and the bits per token of each epoch.
        bos: token put before every document.
        encode, decode: text to token ids, and back.
    """

    members: Documents
    unseen: Documents
    reference_documents: Documents
    member_texts: tuple[str, ...]
    unseen_texts: tuple[str, ...]
    reference_texts: tuple[str, ...]
    canaries: Canaries
    rows: CanaryRows
    contexts: tuple[Tensor, ...]
    model: CharacterLSTM
    reference_model: CharacterLSTM | None
    recipe: dict[str, object]
    bos: int = BOS
    encode: Callable[[str], list[int]] = encode_characters
    decode: Callable[[object], str] = decode_characters

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        """Return the documents, the canaries and the training in a few lines."""
        last = self.recipe["bits_per_token"]
        bits = f"{last[-1]:.2f}" if isinstance(last, tuple) else "-"
        trained = (
            "no reference model" if self.reference_model is None else "a reference model on the reference documents"
        )
        return (
            f"{len(self.members):,} members, {len(self.unseen):,} unseen and {len(self.reference_documents):,} reference"
            f" documents of {SIZE} characters\n{self.canaries}\n{self.rows}\n"
            f"LSTM of {sum(p.numel() for p in self.model.parameters()):,} parameters, {self.recipe['epochs']} epochs,"
            f" {bits} bits per token in the last; {trained}"
        )


def demonstration(
    *,
    seed: int = 0,
    n_documents: int = 800,
    epochs: int = 12,
    n_canaries: int = 80,
    hidden: int = 200,
    reference: bool = True,
    progress: Progress = None,
) -> Demonstration:
    """Draw documents and canaries, and train a small language model on them: what the built-in text audit looks at.

    Documents are blocks of the help topics of Python, divided at random into members, unseen and reference documents, so that
    members and unseen ones have one distribution. Pairs of canaries ``key of unit {code}: {secret}`` of 6 digits are inserted
    by coins, in 1, 2, 4, 8 or 16 copies, each after other text of up to 24 characters.

    Args:
        seed: seed of the division, the canaries, the weights and the order of rows.
        n_documents: documents of each of the three kinds.
        epochs: number of passes over the rows.
        n_canaries: number of pairs.
        hidden: size of the state of the LSTM; its embedding has 64 numbers.
        reference: True to train a reference model too.
        progress: called with (epochs done, all epochs) over both trainings.

    Raises:
        InputError: an option out of range, or more documents than the help topics have.

    Cost: 45 CPU seconds with the defaults, 10 of them for the reference.
    """
    n_documents, recipe = as_count(n_documents, "n_documents"), TextTraining(epochs=epochs)
    n_canaries, reference = as_count(n_canaries, "n_canaries", maximum=10_000), as_flag(reference, "reference")
    seeds = seed_sequence(seed, ["division", "canaries", "rows", "weights", "order", "reference", "contexts"])
    blocks = topic_blocks(SIZE)
    if 3 * n_documents > len(blocks):
        raise InputError(
            f"n_documents={n_documents}",
            expected=f"at most {len(blocks) // 3}, a third of the {len(blocks):,} blocks of the help topics",
            hint=f"pass n_documents={min(800, len(blocks) // 3)}",
        )
    chosen = np.random.default_rng(seeds["division"]).permutation(len(blocks))[: 3 * n_documents]
    texts = [tuple(blocks[i] for i in part) for part in np.split(chosen, 3)]
    members, unseen, others = (as_documents([encode_characters(text) for text in part]) for part in texts)
    pairs = canaries(n_canaries, encode_characters, seed=seeds["canaries"])
    rows = pairs.insert(texts[0], encode_characters, context=CONTEXT, seed=seeds["rows"])
    report = as_progress(progress, "demonstration", "epoch")
    recipes = [recipe, replace(recipe, epochs=-(-recipe.epochs // 3), batch=REFERENCE_BATCH)][: 1 + reference]
    total = sum(part.epochs for part in recipes)
    models: list[CharacterLSTM] = []
    losses: list[tuple[float, ...]] = []
    for part, ids, name, done in zip(
        recipes, (rows.ids, others), ("weights", "reference"), (0, recipe.epochs), strict=False
    ):
        models.append(CharacterLSTM(VOCABULARY, hidden=hidden, seed=seeds[name]))
        count = lambda epoch, _, done=done: report(done + epoch, total)  # noqa: E731
        losses.append(train_language_model(models[-1], ids, part, bos=BOS, seed=seeds["order"], progress=count))
    source = np.random.default_rng(seeds["contexts"])
    pieces = [texts[1][i][:CONTEXT] for i in source.choice(n_documents, min(CONTEXTS, n_documents), replace=False)]
    contexts = tuple(torch.tensor(encode_characters(f"{piece}\n")) for piece in pieces)
    values: dict[str, object] = {
        "seed": seed,
        "n_documents": n_documents,
        "n_canaries": n_canaries,
        "context": CONTEXT,
        "hidden": hidden,
    }
    return Demonstration(
        members,
        unseen,
        others,
        *texts,
        canaries=pairs,
        rows=rows,
        contexts=contexts,
        model=models[0],
        reference_model=models[1] if reference else None,
        recipe={**values, **asdict(recipe), "bits_per_token": losses[0]},
    )
