"""Extraction of the evaluated documents: rates, controls, power, and the extracted spans."""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from kernelmem.auditing.text.inputs import TextInputs
from kernelmem.auditing.text.options import TextAuditOptions
from kernelmem.auditing.text.redaction import Redaction
from kernelmem.auditing.text.schema import ExtractedSpan, ExtractionAnswer, ExtractionRate
from kernelmem.core.errors import InputError
from kernelmem.text import CausalLM, Extraction, extraction, suffix_array

SIGNIFICANCE = 0.005  # of each of two methods
POWER = 0.8
METHODS = ("greedy", "sampled")
KINDS = ("not extracted", "recited", "reconstructed", "recollected")
ORDER = {"recollected": 0, "recited": 1, "reconstructed": 2, "not extracted": 3}
LENGTH, SUFFIX_SHARE, LONGEST_SUFFIX = 80, 5, 16  # tokens of prefix and suffix; suffix 1 / 5 of them


@dataclass(frozen=True)
class ExtractionResult:
    """Extraction of documents.

    Attributes:
        found: windows of the evaluated documents.
        answer: the numbers; None if training and unseen documents cannot be compared, for ``reason``.
        reason: why there is no answer, or "".
    """

    found: Extraction | None
    answer: ExtractionAnswer | None
    reason: str


def extract(
    lm: CausalLM,
    inputs: TextInputs,
    reference: CausalLM | None,
    contexts: tuple[Tensor, ...],
    options: TextAuditOptions,
    memory: int | str,
) -> ExtractionResult:
    """Return what is emitted of training and of unseen documents after their beginnings, one window per document."""
    room = 2**62 if lm.context is None else lm.context - max(map(len, contexts), default=0)
    lengths = _lengths(inputs, options, room)
    if lengths is None:
        return ExtractionResult(None, None, "most documents have fewer than 2 tokens")
    prefix, suffix = lengths
    for name, group in (("training", inputs.train), ("unseen", inputs.unseen)):
        if max(map(len, group.ids)) < prefix + suffix:
            return ExtractionResult(None, None, f"no {name} document has {prefix} + {suffix} tokens")
    if prefix + suffix > room:
        raise InputError(
            f"prefix={prefix} and suffix={suffix} for a model of {lm.context} positions, contexts included",
            expected=f"at most {room} tokens",
            hint="pass TextAuditOptions with a smaller prefix, a smaller suffix or shorter contexts",
        )
    found = extraction(
        lm,
        inputs.train.ids,
        prefix=prefix,
        suffix=suffix,
        contexts=contexts,
        unseen=inputs.unseen.ids,
        reference=reference,
        sampling=options.sampling,
        memory=memory,
    )
    found = _with_all_copies(found, inputs, memory)
    counts = torch.bincount(found.classes(), minlength=len(KINDS)).tolist()
    rates = tuple(_rate(found, method) for method in METHODS)
    answer = ExtractionAnswer(
        prefix=prefix,
        suffix=suffix,
        n_documents=found.n_documents,
        n_unseen=found.n_unseen,
        n_windows=len(found.windows.document),
        n_short=found.n_short,
        n_contexts=found.n_contexts,
        sampling=f"P >= {found.sampling.p:g} in {found.sampling.n:,.0f} samples, {found.sampling}",
        rates=rates,
        n_recited=counts[1],
        n_reconstructed=counts[2],
        n_recollected=counts[3],
        n_ties=int(found.windows.tie.sum()),
        reference=found.reference_name,
        significance=SIGNIFICANCE,
        smallest_excess=_smallest_excess(rates[0], found.n_documents, found.n_unseen),
    )
    return ExtractionResult(found, answer, "")


def extracted_spans(
    found: Extraction, inputs: TextInputs, redaction: Redaction, *, claimed: bool, count: int
) -> tuple[ExtractedSpan, ...]:
    """Return the first ``count`` extracted suffixes: recollected, recited, reconstructed; most bits saved first."""
    greedy = found.extracted("greedy")
    kinds = torch.where(greedy, found.classes("greedy"), found.classes("sampled"))
    chosen = (greedy | found.extracted("sampled")).nonzero()[:, 0].tolist()
    best = found.windows.log_p.amax(0)
    assert found.reference is not None
    saved = (best - found.reference.log_p.amax(0)) / math.log(2)
    order = sorted(chosen, key=lambda w: (ORDER[KINDS[kinds[w]]], -_sortable(float(saved[w])), w))[:count]
    queries = found.to_frame()["log10_queries"].to_numpy()
    windows = found.windows
    places = [(int(windows.document[w]), int(windows.start[w])) for w in order]
    suffixes = [inputs.train.ids[d][start : start + found.suffix] for d, start in places]
    return tuple(
        ExtractedSpan(
            sha256=redaction.hash(suffix),
            document=inputs.train.index[document],
            offset=start,
            length=found.suffix,
            score=_finite(float(saved[w])),
            kind=KINDS[kinds[w]],
            copies=int(found.copies[w]),
            holders=int(found.holders[w]),
            greedy=bool(greedy[w]),
            contexts=int(windows.greedy[:, w].sum()),
            log10_queries=_finite(float(queries[w])),
            tie=bool(windows.tie[w]),
            claimed=claimed,
            text=redaction.span(suffix, rank),
        )
        for rank, (w, (document, start), suffix) in enumerate(zip(order, places, suffixes, strict=True))
    )


def _lengths(inputs: TextInputs, options: TextAuditOptions, room: int) -> tuple[int, int] | None:
    """Return numbers of tokens of prefix and suffix, from the options or from the lower quartile of the lengths."""
    lengths = [len(ids) for ids in (*inputs.train.ids, *inputs.unseen.ids)]
    total = min(LENGTH, room, int(np.quantile(lengths, 0.25)))
    if options.prefix is not None and options.suffix is not None:
        return options.prefix, options.suffix
    if options.prefix is not None:
        return options.prefix, max(1, min(LONGEST_SUFFIX, total - options.prefix))
    suffix = options.suffix if options.suffix is not None else max(1, total // SUFFIX_SHARE)
    return (total - suffix, suffix) if total > suffix else None


def _rate(found: Extraction, method: str) -> ExtractionRate:
    """Return the rates of one method with intervals, and Fisher's p-value."""
    from scipy.stats import hypergeom  # slow to import

    name = "greedy" if method == "greedy" else "sampled"
    members, unseen = found.rate(name), found.unseen_rate(name)
    k, m = round(members.value * found.n_documents), round(unseen.value * found.n_unseen)
    total = found.n_documents + found.n_unseen
    p = float(hypergeom.sf(k - 1, total, k + m, found.n_documents)) if k + m else 1.0
    return ExtractionRate(name, members, unseen, found.excess(name), min(1.0, p))


def _smallest_excess(rate: ExtractionRate, n: int, n_unseen: int) -> float | None:
    """Return the smallest excess that Fisher's test finds with probability .8 next to the unseen rate as measured."""
    from scipy.stats import beta, hypergeom  # slow to import

    m = round(rate.unseen.value * n_unseen)
    counts = np.arange(1, n + 1)
    rejects = np.flatnonzero(hypergeom.sf(counts - 1, n + n_unseen, counts + m, n) <= SIGNIFICANCE)
    if not len(rejects):
        return None
    k = int(counts[rejects[0]])
    needed = float(beta.ppf(POWER, k, n - k + 1)) if k < n else POWER ** (1 / n)
    return max(0.0, needed - rate.unseen.value)


def _with_all_copies(found: Extraction, inputs: TextInputs, memory: int | str) -> Extraction:
    """Return the windows with copies in all training documents, not only in those that are evaluated."""
    if len(inputs.train.ids) == len(inputs.all_train):
        return found
    windows = zip(found.windows.document.tolist(), found.windows.start.tolist(), strict=True)
    suffixes = [inputs.train.ids[document][start : start + found.suffix] for document, start in windows]
    copies, holders = suffix_array(inputs.all_train, memory=memory).count(suffixes)
    return replace(found, copies=torch.from_numpy(copies), holders=torch.from_numpy(holders))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _sortable(value: float) -> float:
    return 0.0 if math.isnan(value) else value
