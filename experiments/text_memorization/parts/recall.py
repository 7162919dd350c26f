"""Bits and greedy recall of the secrets of canaries in several contexts, by number of copies."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernelmem import text
from kernelmem.statistics import auroc_interval

__all__ = ["TWINS", "Recall", "recall"]

TWINS = 0  # number of copies of a canary that was not inserted


@dataclass(frozen=True)
class Recall:
    """Secrets of n pairs after C contexts; columns are both canaries of a pair.

    Attributes:
        bits: (C, n, 2), -log2 of the probability of the secret after context and head.
        greedy: (C, n, 2), greedy decoding emits the secret.
        sampled: (C, n, 2), 1,000 samples contain the secret with probability at least one half.
        copies: (n, 2), 0 for twins.
    """

    bits: Tensor
    greedy: Tensor
    sampled: Tensor
    copies: Tensor

    def record(self, copies: int) -> dict[str, float]:
        """Return means over contexts and canaries of one number of copies; the AUROC is against all twins."""
        chosen, twins = self.copies == copies, self.copies == TWINS
        bits = self.bits.mean(0)
        record = {
            "canaries": int(chosen.sum()),
            "secret_bits": float(bits[chosen].mean()),
            "greedy": float(self.greedy[:, chosen].double().mean()),
            "greedy_any": int(self.greedy[:, chosen].any(0).sum()),
            "sampled": float(self.sampled[:, chosen].double().mean()),
        }
        scores = -torch.cat([bits[chosen], bits[twins]]).numpy()
        flags = torch.arange(len(scores)).numpy() < int(chosen.sum())
        return record | {"auroc": auroc_interval(scores, flags).value if copies else math.nan}


def recall(lm: text.CausalLM, canaries: text.Canaries, contexts: Sequence[Tensor]) -> Recall:
    """Measure the recall of all secrets, whose heads have one length, after each context; without any, after BOS."""
    n = len(canaries)
    rows = [canaries.ids(pair, variant) for pair in range(n) for variant in (0, 1)]
    head = len(rows[0]) - canaries.length
    found = text.extraction(lm, rows, prefix=head, suffix=canaries.length, contexts=contexts)
    shape = (max(1, len(contexts)), n, 2)
    first = min(1, len(contexts))  # the first context of an extraction is none
    log_p = found.windows.log_p[first:]
    return Recall(
        (-log_p / math.log(2)).reshape(shape),
        found.windows.greedy[first:].reshape(shape),
        (text.emission_probability(log_p, found.sampling.n) >= found.sampling.p).reshape(shape),
        canaries.repetitions[:, None] * (torch.arange(2) == canaries.inserted[:, None]),
    )
