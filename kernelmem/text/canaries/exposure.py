"""Exposure of inserted secrets and their twins: bits of an exact p-value, by number of copies."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from kernelmem.core import InputError, Progress, Result, seed_sequence
from kernelmem.core.checks import as_count, as_list, check_choice, check_instance
from kernelmem.core.options import MEMORY, as_progress
from kernelmem.memorization.canaries import exposure_group
from kernelmem.statistics import as_level
from kernelmem.text.canaries.design import Canaries
from kernelmem.text.canaries.null import rank_moments, refined_moments
from kernelmem.text.canaries.search import Candidates, exact_ranks, exceedances
from kernelmem.text.documents import Documents, check_vocabulary
from kernelmem.text.language_models import CausalLM

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

MAX_SAMPLES, MAX_NODES = 10**6, 10**9
GROUP = 32  # canaries whose trees are searched together


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
        """Return a figure of exposure against the number of copies, with the expectation without insertion."""
        from kernelmem.plotting.memorization import exposure_figure  # matplotlib is slow to import

        return exposure_figure(
            _Drawn(self.exposure.flatten(), self.copies.flatten(), self.tiers, self.n_candidates, self.tiers[0].null_mean)
        )

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
        lines.append(f"  expected without insertion {twins.null_mean:.2f} ± {twins.null_se:.2g} bits (twins: z = {z:+.2f})")
        if self.samples:
            lines.append(
                f"  ranks that are not exact: among {self.samples:,} random secrets, at most {math.log2(self.samples + 1):.2f} bits"
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
    e = −log2 p has no unit but bits. A sampled rank counts the m references at least as probable as the secret::

        exact    e = log2 R − log2 rank
        sampled  e = log2 (m + 1) − log2 (1 + #{references ≥ secret})

    Ties count against memorization. Nothing is extrapolated: a sampled exposure is at most log2 (m + 1).

    "exact" searches the tree of all secrets and drops prefixes less probable than the secret, which evaluates at most
    1 + (L − 1) / p(secret) prefixes: few for a memorized secret, nearly all for an unlikely one. "auto" searches if the whole
    tree has at most ``max_nodes`` nodes; otherwise it samples, and searches where no reference is as probable as the secret,
    keeping the sampled rank where the search would need more nodes. That p-value is valid too: it is at most 1 / (m + 1) only
    if no reference is, and then either 1 / (m + 1) or rank / R. Its twins have a mean exposure between that of sampled ranks
    and 0.83 / (m + 1) bits more.

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

    Cost: one pass over head and secret per reference and per evaluated prefix.

    Source: Carlini et al. 2019.
    """
    check_instance(lm, "lm", CausalLM, hint="pass kernelmem.text.causal_lm(model)")
    check_instance(canaries, "canaries", Canaries, hint="pass the canaries that were inserted")
    check_choice(method, "method", ("auto", "exact", "sampled"))
    m, max_nodes = as_count(samples, "samples", maximum=MAX_SAMPLES), as_count(max_nodes, "max_nodes", maximum=MAX_NODES)
    level = as_level(level)
    before = [as_count(i, "context", minimum=0, maximum=lm.vocabulary - 1) for i in as_list(context, "context")]
    report = as_progress(progress, "exposure", "canary")
    source = np.random.default_rng(seed_sequence(seed, ["references"])["references"])
    A, length, R, n = len(canaries.alphabet), canaries.length, canaries.n_candidates, len(canaries)
    heads = [torch.tensor([*before, *head], dtype=torch.int64) for pair in canaries.heads for head in pair]
    candidates = Candidates(lm, heads, canaries.secrets.reshape(2 * n, length), canaries.tokens, memory)
    check_vocabulary(Documents((*heads, canaries.tokens)), lm.vocabulary, "canaries")
    lm.check_inputs([lm.inputs(torch.cat([head, canaries.secrets[0, 0]])) for head in heads], "canaries", memory)
    is_small = (A**length - 1) // (A - 1) <= max_nodes
    sampling = method == "sampled" or (method == "auto" and not is_small)
    rank, nodes = (torch.zeros(2 * n, dtype=torch.int64) for _ in range(2))
    log_p = torch.zeros(2 * n, dtype=torch.float64)
    for i in range(2 * n if sampling else 0):
        references = torch.from_numpy(source.integers(A, size=(m, length)))
        above, log_p[i] = exceedances(candidates, i, references)
        rank[i] = 1 + above
        report(i + 1, 2 * n)
    searched = (rank <= 1).nonzero()[:, 0] if method != "sampled" else torch.zeros(0, dtype=torch.int64)
    exact = torch.zeros(2 * n, dtype=torch.bool)
    for chosen in searched.split(GROUP):
        ranks, nodes[chosen], log_p[chosen] = exact_ranks(candidates, chosen, max_nodes)
        exact[chosen] = ranks > 0
        if method == "exact" and not bool((ranks > 0).all()):
            failed = int(chosen[ranks == 0][0])
            raise _too_many_nodes(failed, float(log_p[failed]), length, max_nodes)
        rank[chosen] = torch.where(ranks > 0, ranks, rank[chosen])
        if not sampling:
            report(int(chosen[-1]) + 1, 2 * n)
    bits = math.log2(R) - torch.log2(rank.double())
    bits = torch.where(exact, bits, math.log2(m + 1) - torch.log2(rank.double())).clamp(min=0)
    if not sampling:
        null = rank_moments(R)
    else:
        null = rank_moments(m + 1) if method == "sampled" else refined_moments(m)
    copies = copies_of(canaries.inserted, canaries.repetitions).flatten()
    maximum = math.log2(R if bool(exact.any()) else m + 1)
    tiers = tuple(
        _tier(int(value), bits[copies == value], exact[copies == value], maximum, null, level) for value in copies.unique()
    )
    square = ((t.reshape(n, 2)) for t in (bits, rank, exact, nodes, -log_p / math.log(2)))
    used = m if sampling else 0
    return SecretExposure(*square, canaries.inserted, canaries.repetitions, R, used, tiers, level)


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
