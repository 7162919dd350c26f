"""Result of ``compare``: bits of documents and canaries before and after a training, and what was learned and lost."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.checks import as_count, check_choice
from kernelmem.core.files.result_files import Result
from kernelmem.statistics import Interval, clopper_pearson, mean_interval

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

QUANTILES = (0.05, 0.5, 0.95)
FEWEST = 2  # documents of a group, without which there is no standard error
SHOWN = 10  # documents of each direction


@dataclass(frozen=True)
class GroupChange:
    """Change of the n documents of a group; gains are bits before minus bits after, above 0: learned, below 0: lost.

    Attributes:
        name: name of the group.
        n_documents: number of documents.
        n_tokens: number of tokens with a loss.
        before, after: bits per token, all documents together.
        gain: mean gain per document, with Student's interval.
        quantiles: 5 %, 50 % and 95 % quantiles of the gains of documents.
        worse: share of documents with a gain below 0, with its Clopper-Pearson interval.
        per_token: gain of all documents per token, with an interval from the differences between documents.
        per_byte: the same per byte; None without texts.
    """

    name: str
    n_documents: int
    n_tokens: int
    before: float
    after: float
    gain: Interval
    quantiles: tuple[float, float, float]
    worse: Interval
    per_token: Interval
    per_byte: Interval | None


@dataclass(frozen=True)
class CanaryTier:
    """Gains of the secrets of canaries with one number of copies, and of their twins, which were not inserted.

    Attributes:
        name: name of the canaries.
        repetitions: number of copies of an inserted canary; 0: all pairs.
        n_pairs: number of pairs.
        before, after: mean bits of an inserted secret after its head.
        gain: mean gain of inserted secrets.
        twins: mean gain of their twins: what the model learned without seeing the secret.
        excess: mean of the paired differences, inserted minus twin.

    Each interval is Student's; None for a single pair.
    """

    name: str
    repetitions: int
    n_pairs: int
    before: float
    after: float
    gain: float
    twins: float
    excess: float
    interval: Interval | None


@dataclass(frozen=True)
class CanaryBits:
    """Bits of the secrets of n pairs of canaries, (n, 2) float64; columns are both canaries in the order of the design.

    Attributes:
        before, after: bits of each secret after its head.
        inserted: (n,) int64, 0 or 1: which canary of the pair was inserted.
        repetitions: (n,) int64, number of its copies.
    """

    before: Tensor
    after: Tensor
    inserted: Tensor
    repetitions: Tensor

    def __post_init__(self) -> None:
        n = len(self.inserted)
        if self.before.shape != (n, 2) or self.after.shape != (n, 2) or self.repetitions.shape != (n,):
            raise ValueError("canaries of different numbers")

    def gains(self) -> Tensor:
        """Return the bits that each secret gained, (n, 2): of the inserted canary, then of its twin."""
        gain = self.before - self.after
        return torch.cat([gain.gather(1, self.inserted[:, None]), gain.gather(1, 1 - self.inserted[:, None])], 1)


@dataclass(frozen=True)
class MembershipChange:
    """AUROC of training documents of the fine-tune against unseen ones; scores are bits per token, except the gain.

    Attributes:
        members, unseen: names of the groups.
        base: of the model before alone, which saw neither: the control, .5 if documents were assigned at random.
        loss: of the model after; None if the control fails.
        gain: of the gain per document, which takes the model before as reference; None if the control fails.
    """

    members: str
    unseen: str
    base: Interval
    loss: Interval | None
    gain: Interval | None


@dataclass(frozen=True, eq=False, repr=False)
class Change(Result):
    """What a model learned and lost between two states. It holds numbers of documents, no text.

    Attributes:
        names: names of the g groups.
        group: (n,) int64, number of the group of each document.
        document: (n,) int64, number of each document in its group.
        tokens: (n,) int64, number of its tokens with a loss.
        n_bytes: (n,) int64, number of its bytes; 0 for documents of groups without texts.
        before, after: (n,) float64, code length of each document in bits.
        canaries: bits of the secrets of canaries, by name.
        membership: what the groups of members and unseen documents tell apart; None without these groups.
        models: names of the models.
        level: confidence level.
    """

    names: tuple[str, ...]
    group: Tensor
    document: Tensor
    tokens: Tensor
    n_bytes: Tensor
    before: Tensor
    after: Tensor
    canaries: dict[str, CanaryBits]
    membership: MembershipChange | None
    models: tuple[str, str]
    level: float

    shapes: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("group", "document", "tokens", "n_bytes", "before", "after"), "n"
    )

    def __post_init__(self) -> None:
        numbers = (self.group, self.document, self.tokens, self.n_bytes)
        if any(t.dtype != torch.int64 or t.ndim != 1 or not len(t) or int(t.min()) < 0 for t in numbers):
            raise ValueError("numbers of documents that are none")
        sizes = [int((self.group == number).sum()) for number in range(len(self.names))]
        if sum(sizes) != len(self.group) or min(sizes) < FEWEST or int(self.tokens.min()) < 1:
            raise ValueError("groups of fewer than two documents, or documents without tokens")

    @property
    def gain(self) -> Tensor:
        """Bits before minus bits after of each document, (n,): above 0 it was learned, below 0 lost."""
        return self.before - self.after

    @property
    def groups(self) -> tuple[GroupChange, ...]:
        """Summary of each group."""
        return tuple(self._summary(number) for number in range(len(self.names)))

    @property
    def tiers(self) -> tuple[CanaryTier, ...]:
        """Gains of canaries by name and number of copies, then of all of each name (repetitions 0)."""
        rows: list[CanaryTier] = []
        for name, bits in self.canaries.items():
            for copies in [*bits.repetitions.unique().tolist(), 0]:
                rows.append(self._tier(name, bits, copies))
        return tuple(rows)

    def extremes(self, group: str, n: int = SHOWN) -> tuple[Tensor, Tensor]:
        """Return the numbers of the documents of a group that lost most bits, and of those that gained most.

        Args:
            group: name of the group.
            n: largest number of documents of each direction. Documents without a loss or gain are not among them.

        Raises:
            InputError: an unknown group, or ``n`` is not a whole number.
        """
        check_choice(group, "group", self.names)
        n = as_count(n, "n")
        chosen = self.group == self.names.index(group)
        gain, documents = self.gain[chosen], self.document[chosen]
        order = gain.argsort(stable=True)
        lost, gained = order[gain[order] < 0], order.flip(0)
        return documents[lost[:n]], documents[gained[gain[gained] > 0][:n]]

    def to_frame(self) -> "pd.DataFrame":
        """Return one row per document: group, document, tokens, before, after, gain, gain_per_token."""
        import pandas as pd  # slow to import

        columns = {"group": np.array(self.names)[self.group.numpy()], "document": self.document.numpy()}
        values = {"tokens": self.tokens, "before": self.before, "after": self.after, "gain": self.gain}
        values["gain_per_token"] = self.gain / self.tokens
        return pd.DataFrame(columns | {name: value.numpy() for name, value in values.items()})

    def plot(self) -> "Figure":
        """Return a figure: gain per token of every document by group; secrets of canaries compared with twins."""
        from kernelmem.plotting.text import change_figure  # matplotlib is slow to import

        gains = {
            name: (self.gain / self.tokens)[self.group == number].numpy() for number, name in enumerate(self.names)
        }
        means = [(row.per_token.value, row.per_token.low, row.per_token.high) for row in self.groups]
        tiers = [(name, bits.repetitions.numpy(), bits.gains().numpy()) for name, bits in self.canaries.items()]
        return change_figure(gains, means, tiers, level=self.level)

    def __str__(self) -> str:
        """Return the change of every group, of canaries by copies, and the membership of the fine-tune."""
        width = max(len(name) for name in (*self.names, *self.canaries, "group"))
        lines = [
            f"change from {self.models[0]} to {self.models[1]}: {len(self.group):,} documents;"
            f" gain = bits before - bits after ({self.level:.0%} intervals)",
            f"  {'group':<{width}}  {'documents':>9}  {'bits/token':<15}  {'gain per token':<26}  gain per document, mean"
            f" (5 %, 50 %, 95 %)  worse",
        ]
        for row in self.groups:
            rates = f"{row.before:.3f} -> {row.after:.3f}"
            spread = ", ".join(f"{value:+.1f}" for value in row.quantiles)
            half = (row.gain.high - row.gain.low) / 2
            lines.append(
                f"  {row.name:<{width}}  {row.n_documents:>9,}  {rates:<15}  {_signed(row.per_token, 3):<26}"
                f"  {row.gain.value:+.1f} +- {half:.1f} ({spread})  {row.worse.value:.0%}"
                + (f"  per byte {_signed(row.per_byte, 3)}" if row.per_byte else "")
            )
        for name in self.names:
            lost, gained = (documents.tolist() for documents in self.extremes(name))
            both = [f"{label} {', '.join(map(str, ids))}" for label, ids in (("lost", lost), ("gained", gained)) if ids]
            lines.append(f"  {name:<{width}}  documents that {' | '.join(both) or 'changed: none'}")
        if self.canaries:
            lines.append(
                f"  {'canaries':<{width}}  {'copies':>6}  {'pairs':>5}  {'bits of secret':<17}  {'gain':>6}  {'twins':>6}"
                "  gain - twin"
            )
        for tier in self.tiers:
            copies = f"{tier.repetitions:,}" if tier.repetitions else "all"
            excess = f"{tier.excess:+.1f}" if tier.interval is None else _signed(tier.interval, 1)
            rates = f"{tier.before:.1f} -> {tier.after:.1f}"
            lines.append(
                f"  {tier.name:<{width}}  {copies:>6}  {tier.n_pairs:>5,}  {rates:<17}  {tier.gain:>+6.1f}"
                f"  {tier.twins:>+6.1f}  {excess}"
            )
        return "\n".join([*lines, *self._membership_lines()])

    def _membership_lines(self) -> list[str]:
        result = self.membership
        if result is None:
            return []
        lines = [f"  AUROC of {result.members} against {result.unseen}: before {result.base}"]
        if result.loss is None:
            return [
                f"{lines[0]}: the groups differ without the fine-tune, and no AUROC after it says anything about training"
            ]
        return [*lines, f"    after {result.loss}; gain {result.gain}"]

    def _summary(self, number: int) -> GroupChange:
        chosen = self.group == number
        gain, tokens, n_bytes = self.gain[chosen], self.tokens[chosen], self.n_bytes[chosen]
        n, total = len(gain), int(tokens.sum())
        low, middle, high = np.quantile(gain.numpy(), QUANTILES).tolist()
        return GroupChange(
            name=self.names[number],
            n_documents=n,
            n_tokens=total,
            before=float(self.before[chosen].sum()) / total,
            after=float(self.after[chosen].sum()) / total,
            gain=mean_interval(gain, level=self.level),
            quantiles=(low, middle, high),
            worse=clopper_pearson(int((gain < 0).sum()), n, level=self.level),
            per_token=_rate(gain, tokens, self.level),
            per_byte=_rate(gain, n_bytes, self.level) if bool(n_bytes.any()) else None,
        )

    def _tier(self, name: str, bits: CanaryBits, copies: int) -> CanaryTier:
        chosen = bits.repetitions == copies if copies else torch.ones_like(bits.repetitions, dtype=torch.bool)
        gains = bits.gains()[chosen]
        excess, inserted = gains[:, 0] - gains[:, 1], bits.inserted[chosen, None]
        return CanaryTier(
            name=name,
            repetitions=copies,
            n_pairs=len(gains),
            before=float(bits.before[chosen].gather(1, inserted).mean()),
            after=float(bits.after[chosen].gather(1, inserted).mean()),
            gain=float(gains[:, 0].mean()),
            twins=float(gains[:, 1].mean()),
            excess=float(excess.mean()),
            interval=mean_interval(excess, level=self.level) if len(excess) > 1 else None,
        )


def _rate(gain: Tensor, sizes: Tensor, level: float) -> Interval:
    """Return Σ gain / Σ sizes with Student's interval of the ratio, whose residuals are independent over documents."""
    ratio = float(gain.sum() / sizes.sum())
    spread = mean_interval((gain - ratio * sizes) / sizes.double().mean(), level=level)  # its mean is 0
    half = (spread.high - spread.low) / 2
    return Interval(ratio, ratio - half, ratio + half, level)


def _signed(interval: Interval, digits: int) -> str:
    return f"{interval.value:+.{digits}f} ({interval.low:+.{digits}f} to {interval.high:+.{digits}f})"
