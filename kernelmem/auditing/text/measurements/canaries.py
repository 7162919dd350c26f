"""Canaries: proof that they were trained on, exposure, emission by greedy decoding, inserted ones against twins."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernelmem.auditing.text.inputs import TextInputs
from kernelmem.auditing.text.options import TextAuditOptions
from kernelmem.auditing.text.redaction import Redaction
from kernelmem.auditing.text.schema import CanaryAnswer, CanaryFinding, CanaryTier
from kernelmem.core.errors import InputError
from kernelmem.statistics import Interval, clopper_pearson
from kernelmem.text import (
    Canaries,
    CanaryRows,
    CausalLM,
    PairedTest,
    SecretExposure,
    TextCoverage,
    coverage,
    exposure,
    paired_test,
    token_losses,
)
from kernelmem.text.canary.encoding import encode_text
from kernelmem.text.losses.result import TIE

SIGNIFICANCE = 0.01
N_CONTEXTS, CONTEXT_LENGTH = 4, 24  # pieces of unseen documents, tokens
BEGINNING = "at the beginning of a document"
LARGEST_BITS = 1e4  # of a secret that the model excludes


@dataclass(frozen=True)
class CanaryResult:
    """Results of canaries.

    Attributes:
        answer: the numbers.
        exposure: exposure of every canary.
        emitted: (C, n, 2) bool, whether greedy decoding emits the secret in each context.
        bits: (n, 2), bits of the secrets, mean over contexts.
        coverage: proof of training; None if it was not checked or failed.
        problem: why coverage failed, or "".
    """

    answer: CanaryAnswer
    exposure: SecretExposure
    emitted: Tensor
    bits: Tensor
    coverage: TextCoverage | None
    problem: str


def canary_contexts(
    lm: CausalLM, canaries: Canaries, inputs: TextInputs, given: tuple[Tensor, ...] | None, *, seed: int
) -> tuple[tuple[Tensor, ...], tuple[str, ...]]:
    """Return the contexts before canaries and their names: those given, or pieces of unseen documents; none comes last.

    Pieces of unseen documents are followed by a line break if there is a tokenizer, as :meth:`Canaries.insert` does.
    """
    nothing = torch.zeros(0, dtype=torch.int64)
    longest = max(len(head) for pair in canaries.heads for head in pair) + canaries.length
    if given is not None:
        names = tuple(f"after other text {i}" for i in range(1, len(given) + 1))
        return (*given, nothing), (*names, BEGINNING)
    separator = _separator(inputs)
    source = np.random.default_rng(seed)
    contexts, names = [], []
    for _ in range(N_CONTEXTS):
        number = int(source.integers(len(inputs.unseen.ids)))
        ids = inputs.unseen.ids[number]
        start = int(source.integers(max(1, len(ids) - CONTEXT_LENGTH + 1)))
        piece = torch.cat([ids[start : start + CONTEXT_LENGTH], separator])
        if lm.context is None or len(piece) + longest + 1 <= lm.context:
            contexts.append(piece)
            names.append(f"after a piece of unseen document {inputs.unseen.index[number]}")
    return (*contexts, nothing), (*names, BEGINNING)


def measure_canaries(
    lm: CausalLM,
    canaries: Canaries,
    contexts: tuple[tuple[Tensor, ...], tuple[str, ...]],
    options: TextAuditOptions,
    *,
    seeds: dict[str, int],
    memory: int | str,
) -> CanaryResult:
    """Return the results of canaries in several contexts; the exposure is measured after the first one."""
    proof, problem = _coverage(canaries, options)
    bits, emitted = _secrets(lm, canaries, contexts[0], memory)
    exposed = exposure(
        lm,
        canaries,
        samples=options.samples,
        context=contexts[0][0].tolist(),
        seed=seeds["exposure"],
        memory=memory,
        progress=False,
    )
    mean_bits = bits.clamp(max=LARGEST_BITS).mean(0)
    pairs = paired_test(-mean_bits, canaries, seed=seeds["pairs"])
    answer = CanaryAnswer(
        n_pairs=len(canaries),
        candidate_bits=math.log2(canaries.n_candidates),
        largest_exposure=_largest_exposure(exposed),
        contexts=contexts[1],
        coverage="" if proof is None else str(proof),
        null_mean=exposed.tiers[0].null_mean,
        null_se=exposed.tiers[0].null_se,
        tiers=_tiers(exposed, pairs, emitted, bits[0].clamp(max=LARGEST_BITS)),
        n_right=pairs.all_pairs.n_right,
        n_decided=pairs.all_pairs.n_pairs - pairs.all_pairs.n_ties,
        p=pairs.permutation_p,
        permutations=pairs.permutations,
        significance=SIGNIFICANCE,
        epsilon=pairs.epsilon,
        ceiling=pairs.all_pairs.ceiling,
        epsilon_add_remove=pairs.epsilon_add_remove,
        level=pairs.level,
    )
    return CanaryResult(answer, exposed, emitted, mean_bits, proof, problem)


def canary_findings(
    result: CanaryResult, canaries: Canaries, redaction: Redaction, count: int
) -> tuple[CanaryFinding, ...]:
    """Return the first ``count`` inserted canaries, largest exposure first."""
    inserted = canaries.inserted
    pairs = torch.arange(len(canaries))
    exposed, twins = result.exposure.exposure[pairs, inserted], 1 - inserted
    order = exposed.argsort(descending=True, stable=True)[:count].tolist()
    return tuple(
        CanaryFinding(
            sha256=redaction.hash(canaries.ids(pair, int(inserted[pair]))),
            pair=pair,
            copies=int(canaries.repetitions[pair]),
            exposure=float(exposed[pair]),
            exact=bool(result.exposure.exact[pair, inserted[pair]]),
            p=float(result.exposure.p[pair, inserted[pair]]),
            contexts=int(result.emitted[:, pair, inserted[pair]].sum()),
            bits=float(result.bits[pair, inserted[pair]]),
            twin_bits=float(result.bits[pair, twins[pair]]),
            text=redaction.canary(canaries.texts[pair][int(inserted[pair])]),
        )
        for pair in order
    )


def canary_share(result: CanaryResult | None, options: TextAuditOptions) -> float | None:
    """Return the share of training tokens that are tokens of canaries, if it is known."""
    if result is not None and result.coverage is not None:
        return result.coverage.share
    return options.trained_on.canary_share if isinstance(options.trained_on, CanaryRows) else None


def _separator(inputs: TextInputs) -> Tensor:
    """Return the token ids of a line break; none without a tokenizer, or one that does not know it."""
    try:
        ids = [] if inputs.encode is None else encode_text(inputs.encode, "\n")
    except InputError:
        ids = []
    return torch.tensor(ids, dtype=torch.int64)


def _coverage(canaries: Canaries, options: TextAuditOptions) -> tuple[TextCoverage | None, str]:
    """Return the proof that canaries were trained on, or the first problem found; neither if nothing was given.

    Raises:
        InputError: ``trained_on`` is not the rows of a training.
    """
    if options.trained_on is None:
        return None, ""
    try:
        return coverage(canaries, options.trained_on, epochs=options.epochs), ""  # pyright: ignore[reportArgumentType]
    except InputError as error:
        if not error.given.startswith("canary "):  # not a canary but the form of the batches is wrong
            raise
        return None, f"{error.given}; expected {error.expected}"


def _secrets(lm: CausalLM, canaries: Canaries, contexts: Sequence[Tensor], memory: int | str) -> tuple[Tensor, Tensor]:
    """Return bits of the secrets (C, n, 2) in each context, and whether greedy decoding emits them (C, n, 2)."""
    n, length = len(canaries), canaries.length
    ids = [canaries.ids(pair, variant) for pair in range(n) for variant in (0, 1)]
    rows = [torch.cat([context, row]) for context in contexts for row in ids]
    targets = [torch.arange(len(row)) >= len(row) - length for row in rows]
    losses = token_losses(lm, rows, targets=targets, dtype=torch.float64, memory=memory, progress=False)
    shape = (len(contexts), n, 2)
    margins = torch.stack([part.min() for part in losses.split(losses.token_margins)])
    return losses.per_document().reshape(shape), (margins >= TIE).reshape(shape)


def _largest_exposure(exposed: SecretExposure) -> float:
    candidates = exposed.n_candidates if bool(exposed.exact.any()) or not exposed.samples else exposed.samples + 1
    return math.log2(candidates)


def _tiers(exposed: SecretExposure, pairs: PairedTest, emitted: Tensor, bits: Tensor) -> tuple[CanaryTier, ...]:
    copies, counts = exposed.copies, {count.repetitions: count for count in pairs.tiers}
    tiers = []
    for tier in exposed.tiers:
        mask = copies == tier.repetitions
        hits, count = emitted[:, mask], counts.get(tier.repetitions)
        tiers.append(
            CanaryTier(
                copies=tier.repetitions,
                n=tier.n_canaries,
                bits=float(bits[mask].mean()),
                exposure=Interval(tier.mean, tier.low, tier.high, exposed.level),
                n_exact=tier.n_exact,
                exposure_p=tier.p,
                emitted=clopper_pearson(int(hits.any(0).sum()), tier.n_canaries),
                emitted_by_context=tuple(hits.double().mean(1).tolist()),
                n_right=count.n_right if count else 0,
                n_decided=count.n_pairs - count.n_ties if count else 0,
                epsilon=count.epsilon if count else 0.0,
                ceiling=count.ceiling if count else 0.0,
            )
        )
    return tuple(tiers)
