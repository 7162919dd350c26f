"""Training of causal language models on documents of any lengths."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kernelmem.core import InputError, Progress
from kernelmem.core.checks import as_count, as_number, check_instance, check_model, seed_sequence
from kernelmem.core.models.random_states import random_states
from kernelmem.core.options import as_progress
from kernelmem.text.documents import as_documents
from kernelmem.text.losses.document_loss import document_batch, document_loss
from kernelmem.training import shuffled
from kernelmem.training.batching import batch_sizes
from kernelmem.training.loop import train_epochs

MAX_EPOCHS = 100_000


@dataclass(frozen=True)
class TextTraining:
    """Recipe: AdamW on the mean loss of the tokens of a batch, linear warm-up, then linear decay of the learning rate.

    Attributes:
        epochs: number of passes over the documents.
        batch: documents per step; the last batch of an epoch may be smaller.
        lr: largest learning rate.
        warm_up: steps in which the learning rate rises to ``lr``.
        final: learning rate of the last step, as a share of ``lr``.
        clip: gradients with a larger norm are scaled down to it; None: no clipping.
        weight_decay: decoupled weight decay.
    """

    epochs: int = 12
    batch: int = 13
    lr: float = 5e-3
    warm_up: int = 20
    final: float = 0.05
    clip: float | None = 1.0
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        as_count(self.epochs, "epochs", maximum=MAX_EPOCHS)
        as_count(self.batch, "batch")
        as_number(self.lr, "lr", exclusive=True)
        as_count(self.warm_up, "warm_up", minimum=0)
        as_number(self.final, "final", maximum=1.0)
        if self.clip is not None:
            as_number(self.clip, "clip", exclusive=True)
        as_number(self.weight_decay, "weight_decay")

    def lr_share(self, step: int, steps: int) -> float:
        """Return the learning rate of step 0..steps-1 as a share of ``lr``."""
        if step < self.warm_up:
            return (step + 1) / (self.warm_up + 1)
        decayed = (step - self.warm_up) / max(1, steps - 1 - self.warm_up)
        return 1 - (1 - self.final) * min(1.0, decayed)


def train_language_model(
    model: nn.Module,
    documents: object,
    recipe: TextTraining | None = None,
    *,
    bos: int | None = None,
    seed: int = 0,
    progress: Progress = None,
) -> tuple[float, ...]:
    """Train a causal language model in place, and return the mean loss of each epoch in bits per token.

    The loss of a step is the mean over all tokens of its documents, so that long documents weigh more. Documents are padded on
    the right to the longest one of their batch, with a mask; the model is left in eval mode. Batches are drawn by a separate
    generator: the same seed, versions and number of threads give the same weights to the bit.

    Args:
        model: maps token ids (n, T) to logits (n, T, V), as for :func:`kernelmem.text.causal_lm`; changed.
        documents: token ids, or training rows of :meth:`Canaries.insert` as ``rows.ids``.
        recipe: optimizer, schedule and batches; None: :class:`TextTraining` with its defaults.
        bos: token id put before every document, which has no loss itself; None: the first token of a document has no loss.
        seed: seed of the order of documents.
        progress: called with (epochs done, all epochs).

    Raises:
        InputError: no document with a loss, or an argument out of range. UnsupportedModelError: the model fails.
            NumericalError: the loss is not finite.

    Cost: epochs × tokens forward and backward passes, padding included.
    """
    check_model(model)
    recipe = TextTraining() if recipe is None else recipe
    check_instance(recipe, "recipe", TextTraining)
    batch = document_batch(as_documents(documents), bos=bos)
    counts = (batch["labels"] != -100).sum(1)
    lengths = batch["attention_mask"].sum(1)
    if not int(counts.sum()):
        raise InputError("documents without a token that has a loss", expected="at least one", hint="pass bos=")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    report = as_progress(progress, "training", "epoch")
    seeds = seed_sequence(seed, ["order", "model"])
    epochs = shuffled(len(lengths), recipe.batch, epochs=recipe.epochs, seed=seeds["order"])
    steps = recipe.epochs * len(batch_sizes(len(lengths), recipe.batch))
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise InputError(
            "a model without trainable parameters",
            expected="parameters with requires_grad",
            hint="call model.requires_grad_()",
        )
    optimizer = torch.optim.AdamW(trained, lr=recipe.lr, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: recipe.lr_share(min(step, steps - 1), steps))
    totals = [0.0]

    def batch_loss(positions: Tensor) -> Tensor:
        length = int(lengths[positions].max())
        rows = {name: values[positions, :length].to(device) for name, values in batch.items()}
        loss = document_loss(model, rows).sum()
        totals[-1] += float(loss.detach())
        return loss / max(1, int(counts[positions].sum()))

    def after_epoch(epoch: int) -> None:
        totals.append(0.0)
        report(epoch, recipe.epochs)

    model.train()
    with random_states(seeds["model"]):  # dropout draws from them
        train_epochs(
            model, optimizer, epochs, batch_loss, scheduler=schedule, clip=recipe.clip, after_epoch=after_epoch
        )
    model.eval()
    return tuple(total / int(counts.sum()) / math.log(2) for total in totals[: recipe.epochs])
