"""Training documents that the model knows better than a reference does, token by token."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernelmem.auditing.text.inputs import TextInputs
from kernelmem.auditing.text.redaction import Redaction
from kernelmem.auditing.text.schema import DocumentFinding
from kernelmem.statistics import Interval
from kernelmem.text import TokenLosses, ngram_model

LARGEST = 2 * 10**8  # tokens times vocabulary for which the n-gram model is evaluated
ORDER = 5
SPAN = 16  # tokens
FEWEST_EXPECTED = 40  # unseen documents for quantiles of 2.5 %
LEVEL = 0.95


@dataclass(frozen=True)
class Baseline:
    """Bits of every token under a model that was not trained on the training documents.

    Attributes:
        bits: of each evaluated document, training documents first.
        name: name of that model.
        is_fair: True if it was not fitted to the unseen documents either, so that they show what is to be expected.
    """

    bits: tuple[Tensor, ...]
    name: str
    is_fair: bool


def token_baseline(
    losses: TokenLosses,
    reference: TokenLosses | None,
    name: str,
    inputs: TextInputs,
    vocabulary: int,
    memory: int | str,
) -> Baseline | None:
    """Return the bits under the reference, or under an n-gram model of unseen documents; None if that costs too much."""
    if reference is not None:
        return Baseline(reference.bits, name, True)
    documents = [*inputs.train.ids, *inputs.unseen.ids]
    if vocabulary * sum(map(len, documents)) > LARGEST:
        return None
    model = ngram_model(inputs.unseen.ids, order=ORDER, vocabulary=vocabulary, memory=memory)
    bits = []
    for ids, count, log_probs in zip(
        documents, losses.counts.tolist(), model.log_probs(documents, memory=memory), strict=True
    ):
        chosen = log_probs.gather(1, ids[:, None])[:, 0]
        bits.append(-chosen[len(ids) - count :] / math.log(2))
    return Baseline(tuple(bits), repr(model), False)


def document_findings(
    losses: TokenLosses, baseline: Baseline, inputs: TextInputs, redaction: Redaction, count: int
) -> tuple[DocumentFinding, ...]:
    """Return the ``count`` training documents on which the model saves most bits compared with the baseline, more than 0."""
    saved = [base - own for base, own in zip(baseline.bits, losses.bits, strict=True)]
    n = len(inputs.train.ids)
    totals = [float(part.sum()) for part in saved]
    rates = np.array([total / len(part) for total, part in zip(totals[n:], saved[n:], strict=True)])
    known = [i for i in range(n) if totals[i] > 0 and bool(saved[i].isfinite().all())]
    chosen = sorted(known, key=lambda i: (-totals[i], i))[:count]
    expects = baseline.is_fair and len(rates) >= FEWEST_EXPECTED and bool(np.isfinite(rates).all())
    findings = []
    for i in chosen:
        ids, bits = inputs.train.ids[i], saved[i]
        first, start = len(ids) - len(bits), _best_span(bits)
        findings.append(
            DocumentFinding(
                sha256=redaction.hash(ids),
                document=inputs.train.index[i],
                n_tokens=len(ids),
                bits_saved=totals[i],
                first=first,
                saved=tuple(round(value, 3) for value in bits.tolist()),
                span=(first + start, first + min(start + SPAN, len(bits))),
                expected=_expected(rates, len(bits)) if expects else None,
                text=redaction.tokens(ids[first:]),
            )
        )
    return tuple(findings)


def _best_span(saved: Tensor) -> int:
    """Return the start of the 16 tokens that save most bits."""
    if len(saved) <= SPAN:
        return 0
    sums = torch.cat([torch.zeros(1, dtype=saved.dtype), saved.cumsum(0)])
    return int((sums[SPAN:] - sums[:-SPAN]).argmax())


def _expected(rates: np.ndarray, tokens: int) -> Interval:
    """Return mean and quantiles of the bits saved on one unseen document of this many tokens."""
    low, high = np.quantile(rates, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(tokens * float(rates.mean()), tokens * float(low), tokens * float(high), LEVEL)
