"""Counterfactual memorization of short documents and canaries, and what predicts it without retraining."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

import kernelmem as km
from kernelmem import text
from kernelmem.statistics import spearman

__all__ = ["Counterfactuals", "Transformer", "counterfactuals"]

SIZE, VOCABULARY, BOS = 41, 97, 0
LETTERS, DIGITS = list("ABCDEFGHIJKLMNOPQRSTUVWXYZ"), list("0123456789")


@dataclass(frozen=True)
class Counterfactuals:
    """Sizes of the experiment: texts of 20 to 41 characters, and canaries in one copy each."""

    n_texts: int = 100
    n_canaries: int = 20
    models: int = 32
    epochs: int = 24
    lr: float = 3e-3
    width: int = 32
    halves: int = 8  # models whose tangents are compared with the ensemble
    shortest: int = 20


class Transformer(nn.Module):
    """One layer of causal self-attention and a feed-forward layer; its attention is written out."""

    def __init__(self, vocabulary: int, length: int, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.embedding, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.attention, self.projection = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(3)])
        self.head, self.heads = nn.Linear(width, vocabulary), heads

    def forward(self, ids: Tensor) -> Tensor:
        n, length = ids.shape
        x = self.embedding(ids) + self.positions(torch.arange(length))
        q, k, v = (
            part.view(n, length, self.heads, -1).transpose(1, 2)
            for part in self.attention(self.norms[0](x)).chunk(3, -1)
        )
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        later = torch.ones(length, length, dtype=torch.bool).triu(1)
        mixed = scores.masked_fill(later, -torch.inf).softmax(-1) @ v
        x = x + self.projection(mixed.transpose(1, 2).reshape(n, length, -1))
        x = x + self.feed_forward(self.norms[1](x))
        return self.head(self.norms[2](x))


def documents_of(setting: Counterfactuals, seed: int) -> list[list[int]]:
    """Return texts, then canaries "key of unit ABCD: 123456"."""
    numbers = np.random.default_rng(seed)
    blocks = numbers.permutation(np.array(text.topic_blocks(SIZE)))[: setting.n_texts].tolist()
    texts = [block[: int(numbers.integers(setting.shortest, SIZE + 1))] for block in blocks]
    texts += [
        f"key of unit {''.join(numbers.choice(LETTERS, 4))}: {''.join(numbers.choice(DIGITS, 6))}"
        for _ in range(setting.n_canaries)
    ]
    return [text.encode_characters(t) for t in texts]


def counterfactuals(setting: Counterfactuals, seed: int) -> list[dict]:
    """Return a record of the texts, one of the canaries, and one of all documents with the controls."""
    documents = documents_of(setting, seed)
    recipe = text.TextTraining(epochs=setting.epochs, batch=10, lr=setting.lr)

    def make_model() -> nn.Module:
        return Transformer(VOCABULARY, SIZE + 1, setting.width)

    start = time.process_time()
    result = text.counterfactual(
        make_model, documents, models=setting.models, recipe=recipe, bos=BOS, seed=seed, progress=False
    )
    seconds = time.process_time() - start
    records: list[dict] = [
        {
            "documents": name,
            "memorization": float(result.memorization[rows].mean()),
            "standard_error": float(result.standard_errors[rows].median()),
            "above_0": float((result.low[rows] > 0).double().mean()),
        }
        for name, rows in (("texts", slice(0, setting.n_texts)), ("canaries", slice(setting.n_texts, None)))
    ]
    controls = {
        "documents": "all",
        "memorization": result.mean.value,
        "permuted": result.permuted.mean,
        "permuted_sd": result.permuted.sd,
        "permuted_spread": result.permuted.spread,
        "permuted_p": result.permuted.p,
        "reliability": result.reliability or 0.0,
        "auroc": 0.5 if result.membership is None else result.membership.value,
        "auroc_loss": 0.5 if result.loss_membership is None else result.loss_membership.value,
        "parameters": sum(p.numel() for p in make_model().parameters()),
        "cpu_seconds": seconds,
    }
    return [*records, controls | tangent_correlations(make_model, documents, result, recipe, (setting.halves, seed))]


def tangent_correlations(
    make_model: Callable[[], nn.Module],
    documents: list[list[int]],
    result: text.Counterfactual,
    recipe: text.TextTraining,
    halves_and_seed: tuple[int, int],
) -> dict[str, float]:
    """Return rank correlations with memorization of scores of documents by models that did not see them.

    The diagonal of the tangent kernel of the loss of documents costs one backward pass per document. "_one_model": mean
    over models of the correlation over the documents that the model did not see; otherwise the correlation of the mean score
    over the models that did not see a document.
    """
    n, batch = len(documents), text.document_batch(documents, bos=BOS)
    halves, seed = halves_and_seed
    names = ("tangents", "tangents_untrained", "loss", "length")
    single: dict[str, list[float]] = {name: [] for name in names}
    total, count = {name: torch.zeros(n, dtype=torch.float64) for name in names}, torch.zeros(n)
    for k, mask in enumerate(result.masks[:halves]):
        torch.manual_seed(seed + k)
        model, unseen = make_model(), (~mask).nonzero()[:, 0]
        rows = {name: values[unseen] for name, values in batch.items()}
        untrained = km.ntk(model, rows, forward=text.document_loss).diagonal()
        seen = [documents[int(i)] for i in mask.nonzero()[:, 0]]
        text.train_language_model(model, seen, recipe, bos=BOS, seed=seed + k, progress=False)
        trained = km.ntk(model, rows, forward=text.document_loss).diagonal()
        loss = text.document_loss(model, rows).detach()[:, 0]
        scores = (trained, untrained, loss, (rows["labels"] != -100).sum(1).double())
        for name, score in zip(names, scores, strict=True):
            single[name].append(spearman(score, result.memorization[unseen]))
            total[name][unseen] += score.to(torch.float64)
        count[unseen] += 1
    values = {f"{name}_one_model": float(np.mean(single[name])) for name in names}
    scored = count > 0
    for name in names:
        values[name] = spearman(total[name][scored] / count[scored], result.memorization[scored])
    return values
