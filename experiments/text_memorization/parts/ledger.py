"""Ledger of secrets: the share of its own copies in what a small model learned of each canary."""

import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import kernelmem as km
from kernelmem import text
from kernelmem.core import seed_sequence

__all__ = ["Ledgers", "ledgers"]

CONTEXT = "the text of\n"


@dataclass(frozen=True)
class Ledgers:
    """Model, rows and training; all rows are trained on equally often."""

    n_rows: int = 72
    pairs_per_tier: int = 3
    tiers: tuple[int, ...] = (1, 2, 4, 8)
    size: int = 40
    """Characters of a document."""
    context: int = 12
    """Characters before each copy."""
    embedding: int = 16
    hidden: int = 64
    steps: int = 64
    batch: int = 16
    lr: float = 0.01


def output(outputs: Tensor, y: Tensor) -> Tensor:
    """Return the output, the loss of a document, as the loss."""
    return outputs[:, 0]


def ledgers(setting: Ledgers, seed: int) -> list[dict]:
    """Return a record for each number of copies: bits of secrets by their own copies, by those of others, of twins."""
    seeds = seed_sequence(seed, ["documents", "canaries", "rows", "weights", "order"])
    n = setting.pairs_per_tier * len(setting.tiers)
    pairs = text.canaries(n, text.encode_characters, tiers=setting.tiers, seed=seeds["canaries"])
    blocks = text.topic_blocks(setting.size)
    n_texts = setting.n_rows - int(pairs.repetitions.sum())
    chosen = np.random.default_rng(seeds["documents"]).permutation(len(blocks))[:n_texts]
    rows = pairs.insert(
        [blocks[i] for i in chosen], text.encode_characters, context=setting.context, seed=seeds["rows"]
    )
    batch = text.document_batch(rows.ids, bos=0)
    model = text.CharacterLSTM(97, setting.embedding, setting.hidden, seed=seeds["weights"]).double()
    order = np.random.default_rng(seeds["order"])
    optimizer = torch.optim.Adam(model.parameters(), lr=setting.lr)
    start = time.process_time()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "run"
        with km.Recorder(model, optimizer, path, loss=output, forward=text.document_loss) as recorder:
            remaining: list[int] = []
            for _ in range(setting.steps):
                if not remaining:
                    remaining = order.permutation(setting.n_rows).tolist()
                index, remaining = torch.tensor(remaining[: setting.batch]), remaining[setting.batch :]
                part = {name: values[index] for name, values in batch.items()}
                optimizer.zero_grad()
                text.document_loss(model, part).mean().backward()
                recorder.step(index, part, torch.zeros(len(index), dtype=torch.int64))
        recorded = time.process_time()
        ledger = km.ledger(
            km.Run.open(path),
            model,
            secrets(pairs),
            loss=output,
            forward=text.document_loss,
            progress=False,
        )
    seconds = {"recording_seconds": recorded - start, "ledger_seconds": time.process_time() - recorded}
    return [record | seconds for record in shares(setting, pairs, rows.owner, ledger)]


def secrets(pairs: text.Canaries) -> dict[str, Tensor]:
    """Return a row per canary, inserted ones first, whose loss is that of its secret after a context."""
    before = text.encode_characters(CONTEXT)
    inserted = pairs.inserted.tolist()
    variants = [(pair, inserted[pair] ^ twin) for twin in (0, 1) for pair in range(len(pairs))]
    rows = [[*before, *pairs.ids(pair, variant).tolist()] for pair, variant in variants]
    masks = [[i >= len(row) - pairs.length for i in range(len(row))] for row in rows]
    return text.document_batch(rows, bos=0, targets=masks)


def shares(setting: Ledgers, pairs: text.Canaries, owner: Tensor, ledger: km.Ledger) -> list[dict]:
    """Return bits by which copies changed the secrets; negative: they shortened them."""
    n = len(pairs)
    bits = ledger.contributions[:, :, 0] / math.log(2)  # (2n, rows)
    by_canary = torch.stack([bits[:, owner == pair].sum(1) for pair in range(n)], 1)  # (2n, n)
    change = (ledger.final - ledger.initial)[:, 0] / math.log(2)
    rank = 1 + (bits[:, None] < bits[:, :, None]).sum(2)  # 1: shortened most
    records = []
    for copies in setting.tiers:
        tier = (pairs.repetitions == copies).nonzero()[:, 0]
        own = by_canary[tier, tier]
        block = by_canary[tier][:, tier]
        others = (block.sum(1) - own) / max(1, len(tier) - 1)
        best = torch.stack([rank[pair, owner == pair].min() for pair in tier])
        records.append(
            {
                "copies": copies,
                "change": float(change[tier].mean()),
                "change_twins": float(change[n + tier].mean()),
                "own": float(own.mean()),
                "other_canaries": float(others.mean()),
                "own_minus_others": float((own - others).mean()),
                "own_on_twin": float(by_canary[n + tier, tier].mean()),
                "documents": float(bits[tier][:, owner < 0].sum(1).mean()),
                "best_rank_of_own": float(best.double().mean()),
                "residual": ledger.largest_residual,
            }
        )
    return records
