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

SIZE, VOCABULARY, BOS = 41, 97, 0
LETTERS, DIGITS = list("ABCDEFGHIJKLMNOPQRSTUVWXYZ"), list("0123456789")


@dataclass(frozen=True)
class CounterfactualOptions:
    """Sizes of the experiment."""

    n_texts: int = 100
    n_canaries: int = 20
    models: int = 32
    epochs: int = 24
    lr: float = 3e-3
    width: int = 32
    halves: int = 8  # models whose tangents are compared with the ensemble
    seed: int = 0


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


def documents_of(options: CounterfactualOptions) -> list[list[int]]:
    """Return texts of 41 characters, then canaries "key of unit ABCD: 123456", each in one copy."""
    numbers = np.random.default_rng(options.seed)
    texts = numbers.permutation(np.array(text.topic_blocks(SIZE)))[: options.n_texts].tolist()
    texts += [
        f"key of unit {''.join(numbers.choice(LETTERS, 4))}: {''.join(numbers.choice(DIGITS, 6))}"
        for _ in range(options.n_canaries)
    ]
    return [text.encode_characters(t) for t in texts]


def run_counterfactual(options: CounterfactualOptions = CounterfactualOptions()) -> dict[str, float]:
    """Return memorization, its controls, and rank correlations of the tangent diagonal with it."""
    documents = documents_of(options)
    n, n_texts = len(documents), options.n_texts
    recipe = text.TextTraining(epochs=options.epochs, batch=10, lr=options.lr)

    def make_model() -> nn.Module:
        return Transformer(VOCABULARY, SIZE + 1, options.width)

    start = time.process_time()
    result = text.counterfactual(
        make_model, documents, models=options.models, recipe=recipe, bos=BOS, seed=options.seed, progress=False
    )
    seconds = time.process_time() - start
    tangents = tangent_correlations(make_model, documents, result, recipe, options)
    return {
        "parameters": sum(p.numel() for p in make_model().parameters()),
        "cpu seconds": seconds,
        "bits per text": float(result.memorization[:n_texts].mean()),
        "median standard error": float(result.standard_errors[:n_texts].median()),
        "bits per canary": float(result.memorization[n_texts:].mean()) if n > n_texts else 0.0,
        "permuted masks, mean": result.permuted.mean,
        "permuted masks, sd of the mean": result.permuted.sd,
        "permuted masks, spread over documents": result.permuted.spread,
        "p of permuted masks": result.permuted.p,
        "reliability": result.reliability or 0.0,
        "auroc of the ensemble": result.membership.value if result.membership else 0.5,
        "auroc of the loss": result.loss_membership.value if result.loss_membership else 0.5,
        **tangents,
    }


def tangent_correlations(
    make_model: Callable[[], nn.Module],
    documents: list[list[int]],
    result: text.Counterfactual,
    recipe: text.TextTraining,
    options: CounterfactualOptions,
) -> dict[str, float]:
    """Return rank correlations with memorization of scores of documents by models that did not see them.

    The diagonal of the tangent kernel of the loss of documents costs one backward pass per document. "One model": mean over
    models of the correlation over the documents that the model did not see; "all models": the correlation of the mean score
    over the models that did not see a document.
    """
    n, batch = len(documents), text.document_batch(documents, bos=BOS)
    names = ("tangent diagonal", "tangent diagonal, untrained", "loss")
    single: dict[str, list[float]] = {name: [] for name in names}
    total, count = {name: torch.zeros(n, dtype=torch.float64) for name in names}, torch.zeros(n)
    for k, mask in enumerate(result.masks[: options.halves]):
        torch.manual_seed(options.seed + k)
        model, unseen = make_model(), (~mask).nonzero()[:, 0]
        rows = {name: values[unseen] for name, values in batch.items()}
        untrained = km.ntk(model, rows, forward=text.document_loss).diagonal()
        seen = [documents[int(i)] for i in mask.nonzero()[:, 0]]
        text.train_language_model(model, seen, recipe, bos=BOS, seed=options.seed + k, progress=False)
        trained = km.ntk(model, rows, forward=text.document_loss).diagonal()
        loss = text.document_loss(model, rows).detach()[:, 0]
        for name, score in zip(names, (trained, untrained, loss), strict=True):
            single[name].append(spearman(score, result.memorization[unseen]))
            total[name][unseen] += score.to(torch.float64)
        count[unseen] += 1
    values = {f"Spearman of {name}, one model": float(np.mean(single[name])) for name in names}
    scored = count > 0
    for name in names:
        means = total[name][scored] / count[scored]
        values[f"Spearman of {name}, all models"] = spearman(means, result.memorization[scored])
    return values


if __name__ == "__main__":
    for key, value in run_counterfactual().items():
        print(f"{key:50} {value:.4g}")
