"""Exposure of inserted secrets and their twins: bits of an exact p-value, by number of copies."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, TypeAlias

import numpy as np
import torch
from torch import Tensor

from kernelmem.core import InputError, Progress, Result, seed_sequence
from kernelmem.core.checks import as_count, as_list, check_choice, check_instance
from kernelmem.core.options import MEMORY, as_progress
from kernelmem.memorization.canaries import exposure_group
from kernelmem.statistics import as_level
from kernelmem.text.canary.design import Canaries
from kernelmem.text.canary.null import rank_moments, refined_moments
from kernelmem.text.canary.search import Candidates, exact_ranks, exceedances, slack_of
from kernelmem.text.documents import Documents, check_vocabulary
from kernelmem.text.language_models import CausalLM

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

MAX_SAMPLES, MAX_NODES = 10**6, 10**9
GROUP = 64  # canaries whose trees are searched together
CHUNK = 2**14  # references that are ranked together

Report: TypeAlias = Callable[[int, int], object]


@dataclass(frozen=True)
class ExposureTier:
    """Canaries with the same number of copies.

    Attributes:
        repetitions: number of copies; 0: the twins, which were not inserted.
        n_canaries: number of canaries.
        n_exact: number of canaries with an exact rank.
        mean: mean exposure in bits.
        low, high: interval of ``mean`` for other canaries.
        null_mean: expected exposure of a canary that was not inserted.
        null_se: standard error of ``mean`` for canaries that were not inserted, from the theory.
        p: p-value of the hypothesis that none was memorized: 2 ln 2 Σ e compared with chi-square of 2 n degrees of freedom.
    """

    repetitions: int
    n_canaries: int
    n_exact: int
    mean: float
    low: float
    high: float
    null_mean: float
    null_se: float
    p: float


@dataclass(frozen=True, eq=False, repr=False)
class SecretExposure(Result):
    """Exposure of n pairs of canaries, in bits; larger = more memorized. It speaks of this one model.

    Columns are the two canaries of a pair in the order of the design, whichever was inserted.

    Attributes:
        exposure: (n, 2) float64, e = −log2 p.
        rank: (n, 2) int64, among all R secrets if ``exact``, otherwise among the references and the secret.
        exact: (n, 2) bool.
        nodes: (n, 2) int64, prefixes that the search evaluated; 0 without search.
        bits: (n, 2) float64, −log2 of the probability of the secret after its head.
        inserted: (n,) int64, which canary of the pair was inserted.
        repetitions: (n,) int64, number of its copies.
        n_candidates: number R of possible secrets.
        samples: number m of references per canary; 0: all ranks are exact.
        tiers: mean exposure of the twins, then by number of copies.
        level: confidence level of the intervals.
    """

    exposure: Tensor
    rank: Tensor
    exact: Tensor
    nodes: Tensor
    bits: Tensor
    inserted: Tensor
    repetitions: Tensor
    n_candidates: int
    samples: int
    tiers: tuple[ExposureTier, ...]
    level: float

    shapes: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("exposure", "rank", "exact", "nodes", "bits"), "n2"),
        **{"inserted": "n", "repetitions": "n"},
    }

    @property
    def p(self) -> Tensor:
        """P-value of the hypothesis that the canary was not memorized, 2^−e, (n, 2)."""
        return torch.exp2(-self.exposure)

    @property
    def copies(self) -> Tensor:
        """Number of copies of every canary, 0 for twins, (n, 2)."""
        return copies_of(self.inserted, self.repetitions)

    def to_frame(self) -> "pd.DataFrame":
        """Return one row per canary: pair, variant, repetitions (0: twin), exposure, p, rank, exact, bits."""
        import pandas as pd  # slow to import

        n = len(self.inserted)
        columns = {"repetitions": self.copies, "exposure": self.exposure, "p": self.p, "rank": self.rank}
        columns |= {"exact": self.exact, "bits": self.bits}
        pairs = {"pair": np.repeat(np.arange(n), 2), "variant": np.tile([0, 1], n)}
        return pd.DataFrame(pairs | {name: values.flatten().numpy() for name, values in columns.items()})

    def plot(self) -> "Figure":
        """Return a figure of exposure against the number of copies, with mean and 95 % band without insertion."""
        from kernelmem.plotting.memorization import exposure_figure  # matplotlib is slow to import

        largest = self.n_candidates if bool(self.exact.any()) else self.samples + 1
        drawn = _Drawn(self.exposure.flatten(), self.copies.flatten(), self.tiers, largest, self.tiers[0].null_mean)
        return exposure_figure(drawn, [tier.null_se for tier in self.tiers])

    def __str__(self) -> str:
        """Return the mean exposure by number of copies, the control, and how ranks were found."""
        lines = [
            f"exposure of {len(self.inserted):,} pairs of canaries among {self.n_candidates:,} secrets"
            f" (at most {math.log2(self.n_candidates):.2f} bits, {self.level:.0%} intervals)",
            f"  {'copies':>6}  {'canaries':>8}  {'exact':>5}  {'exposure in bits':<24}  {'p':<8}  secret in bits",
        ]
        for tier in self.tiers:
            mean_bits = float(self.bits[self.copies == tier.repetitions].mean())
            interval = f"{tier.mean:5.2f} ({tier.low:.2f} to {tier.high:.2f})"
            name = "twins" if tier.repetitions == 0 else f"{tier.repetitions:,}"
            lines.append(
                f"  {name:>6}  {tier.n_canaries:>8,}  {tier.n_exact:>5,}  {interval:<24}  {tier.p:<8.2g}  {mean_bits:.2f}"
            )
        twins = self.tiers[0]
        z = (twins.mean - twins.null_mean) / twins.null_se
        lines.append(
            f"  expected without insertion {twins.null_mean:.2f} ± {twins.null_se:.2g} bits (twins: z = {z:+.2f})"
        )
        if self.samples:
            lines.append(
                f"  ranks that are not exact: among {self.samples:,} random secrets,"
                f" at most {math.log2(self.samples + 1):.2f} bits"
            )
        return "\n".join(lines)


@dataclass(frozen=True)
class _Drawn:
    """Fields that the figure reads, one row per canary."""

    exposure: Tensor
    repetitions: Tensor
    groups: tuple[ExposureTier, ...]
    n_candidates: int
    expected_control: float


def copies_of(inserted: Tensor, repetitions: Tensor) -> Tensor:
    """Return the number of copies of every canary, (n, 2): that of its pair if it was inserted, otherwise 0."""
    return repetitions[:, None] * (torch.arange(2) == inserted[:, None])


def exposure(
    lm: CausalLM,
    canaries: Canaries,
    *,
    method: str = "auto",
    samples: int = 255,
    max_nodes: int = 20_000,
    context: Sequence[int] = (),
    level: float = 0.95,
    seed: int = 0,
    memory: int | str = MEMORY,
    progress: Progress = None,
) -> SecretExposure:
    """Rank every secret among the secrets that could have been drawn, after the head of its canary.

    A secret that was not inserted has a uniform rank whatever the model is, so that p = rank / R is an exact p-value and
    e = −log2 p. A sampled rank counts the m references, random secrets, that are at least as probable as the secret::

        exact    e = log2 R − log2 rank
        sampled  e = log2 (m + 1) − log2 (1 + #{references ≥ secret})

    Ties count against memorization: candidates within 1e-9 nats, or 1e-4 if parts of the model compute in float32 whatever
    its weights. Nothing is extrapolated: a sampled exposure is at most log2 (m + 1).

    "exact" searches the tree of all secrets and drops prefixes less probable than the secret, which evaluates at most
    1 + (L − 1) / p(secret) prefixes: few for a memorized secret, nearly all for an unlikely one. "auto" searches if the whole
    tree has at most ``max_nodes`` nodes; otherwise it samples, and searches where no reference is as probable as the secret,
    keeping the sampled rank where the search would need more nodes. This p-value is valid too, P(p ≤ x) ≤ x: below 1 / (m + 1)
    it is the exact one, and from there on it is at most x only if the sampled one is. Expectations without insertion assume
    that every search ends, and are at most 0.83 / (m + 1) bits too large if none does.

    Args:
        lm: from :func:`kernelmem.text.causal_lm`; computes in float64.
        canaries: from :func:`canaries`.
        method: "auto", "exact" or "sampled".
        samples: number m of references per canary.
        max_nodes: largest number of prefixes to evaluate per canary.
        context: token ids before every canary. Memory depends on context: try the beginning of a document and other text.
        level: confidence level of the intervals of means.
        seed: seed of the references.
        memory: largest number of bytes of the log-probabilities of one batch.
        progress: function of (done, total) canaries, True, False or None.

    Raises:
        InputError: an option out of range; "exact", and a secret needs more than ``max_nodes``; ids outside the vocabulary.
        NumericalError: NaN in the logits.

    Cost: one token per evaluated prefix and one pass over every head if the model is read from a state (``step`` of
    :func:`kernelmem.text.causal_lm`, caches of Hugging Face models); otherwise one pass over head and secret for each of
    them and for each reference. References end where they are less probable than the secret.

    Source: Carlini et al. 2019.
    """
    check_instance(lm, "lm", CausalLM, hint="pass kernelmem.text.causal_lm(model)")
    check_instance(canaries, "canaries", Canaries, hint="pass the canaries that were inserted")
    check_choice(method, "method", ("auto", "exact", "sampled"))
    m = as_count(samples, "samples", maximum=MAX_SAMPLES)
    max_nodes = as_count(max_nodes, "max_nodes", maximum=MAX_NODES)
    level = as_level(level)
    before = [as_count(i, "context", minimum=0, maximum=lm.vocabulary - 1) for i in as_list(context, "context")]
    report = as_progress(progress, "exposure", "canary")
    A, length, R, n = len(canaries.alphabet), canaries.length, canaries.n_candidates, len(canaries)
    heads = [torch.tensor([*before, *head], dtype=torch.int64) for pair in canaries.heads for head in pair]
    check_vocabulary(Documents((*heads, canaries.tokens)), lm.vocabulary, "canaries")
    lm.check_inputs([lm.inputs(torch.cat([head, canaries.secrets[0, 0]])) for head in heads], "canaries", memory)
    candidates = Candidates(lm, heads, canaries.secrets.reshape(2 * n, length), canaries.tokens, memory)
    candidates = replace(candidates, slack=slack_of(candidates))
    is_sampled = method == "sampled" or (method == "auto" and (A**length - 1) // (A - 1) > max_nodes)
    null = rank_moments(R) if not is_sampled else rank_moments(m + 1) if method == "sampled" else refined_moments(m)
    ranks = _Ranks(2 * n)
    if is_sampled:
        source = np.random.default_rng(seed_sequence(seed, ["references"])["references"])
        ranks.sample(candidates, m, source, report)
    if method != "sampled":
        ranks.search(candidates, max_nodes, None if is_sampled else report)
    if method == "exact" and not bool(ranks.exact.all()):
        failed = int((~ranks.exact).nonzero()[0, 0])
        raise _too_many_nodes(failed, float(ranks.log_p[failed]), length, max_nodes)
    largest = torch.full((2 * n,), math.log2(m + 1), dtype=torch.float64).masked_fill(ranks.exact, math.log2(R))
    bits = (largest - torch.log2(ranks.rank.double())).clamp(min=0)
    copies = copies_of(canaries.inserted, canaries.repetitions).flatten()
    maximum = math.log2(R if bool(ranks.exact.any()) else m + 1)
    return SecretExposure(
        exposure=bits.reshape(n, 2),
        rank=ranks.rank.reshape(n, 2),
        exact=ranks.exact.reshape(n, 2),
        nodes=ranks.nodes.reshape(n, 2),
        bits=(-ranks.log_p / math.log(2)).reshape(n, 2),
        inserted=canaries.inserted,
        repetitions=canaries.repetitions,
        n_candidates=R,
        samples=m if is_sampled else 0,
        tiers=tuple(
            _tier(int(k), bits[copies == k], ranks.exact[copies == k], maximum, null, level) for k in copies.unique()
        ),
        level=level,
    )


class _Ranks:
    """Ranks of k secrets, sampled and then exact where that is possible."""

    def __init__(self, k: int) -> None:
        self.rank, self.nodes = (torch.zeros(k, dtype=torch.int64) for _ in range(2))
        self.exact, self.log_p = torch.zeros(k, dtype=torch.bool), torch.zeros(k, dtype=torch.float64)

    def sample(self, candidates: Candidates, m: int, source: np.random.Generator, report: Report) -> None:
        """Rank every secret among m random ones."""
        for chosen in torch.arange(len(candidates)).split(max(1, CHUNK // m)):
            size = len(chosen), m, candidates.secrets.shape[1]
            references = torch.from_numpy(source.integers(len(candidates.tokens), size=size))
            above, self.log_p[chosen] = exceedances(candidates, chosen, references)
            self.rank[chosen] = 1 + above
            report(int(chosen[-1]) + 1, len(candidates))

    def search(self, candidates: Candidates, max_nodes: int, report: Report | None) -> None:
        """Replace the ranks up to 1, those without any reference as probable, by exact ones, up to ``max_nodes`` nodes."""
        for chosen in (self.rank <= 1).nonzero()[:, 0].split(GROUP):
            ranks, self.nodes[chosen], self.log_p[chosen] = exact_ranks(candidates, chosen, max_nodes)
            self.exact[chosen] = ranks > 0
            self.rank[chosen] = torch.where(ranks > 0, ranks, self.rank[chosen])
            if report is not None:
                report(int(chosen[-1]) + 1, len(candidates))


def _tier(
    repetitions: int, bits: Tensor, exact: Tensor, maximum: float, null: tuple[float, float], level: float
) -> ExposureTier:
    """Return the mean of the exposures (k,) of one tier; ``null`` is mean and standard deviation without memorization."""
    from scipy.stats import chi2  # slow to import

    k, (null_mean, null_sd) = len(bits), null
    group = exposure_group(repetitions, bits.numpy(), maximum, level)
    p = float(chi2.sf(2 * math.log(2) * float(bits.sum()), 2 * k))
    return ExposureTier(
        repetitions, k, int(exact.sum()), group.mean, group.low, group.high, null_mean, null_sd / math.sqrt(k), p
    )


def _too_many_nodes(canary: int, log_p: float, length: int, max_nodes: int) -> InputError:
    bound = f"{1 + (length - 1) * math.exp(-log_p):.2g}" if log_p > -700 else "more than 1e300"
    return InputError(
        f"canary {canary % 2} of pair {canary // 2}, whose exact rank needs more than max_nodes={max_nodes:,} nodes",
        expected=f"max_nodes large enough ({bound} suffice)",
        hint='pass method="auto", which keeps a sampled rank there, or a larger max_nodes',
    )
