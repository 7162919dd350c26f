"""Result of ``neighbour_memory``: bits of documents with and without themselves in the memory, and their sources."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from kernelmem.core.files.result_files import Result
from kernelmem.statistics import Interval, auroc_interval, mean_interval

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False, repr=False)
class NeighbourMemory(Result):
    """Bits of n documents under a language model with a memory of documents: first members of the memory, then unseen ones.

    Attributes:
        document: (n,) int64, number of each document among those stored, or among the unseen ones.
        member: (n,) bool, True for documents of the memory.
        counts: (n,) int64, number of tokens of each document with a loss, N together.
        token_lm: (N,) bits of the tokens under the language model alone.
        token_bits: (N,) bits with the whole memory.
        token_left_out: (N,) bits with the memory without the document that the token belongs to.
        nearest: (N,) int64, stored document of the nearest other state.
        distance: (N,) its Euclidean distance.
        sources: (n, s) int64, stored documents, other than itself, that predicted the tokens of a document best.
        shares: (n, s) float64, mean over its tokens of the probability that the neighbours from this source gave them.
        k: number of neighbours.
        mix: weight of the memory.
        temperature: divisor of squared distances.
        n_store: number of stored documents.
        n_keys: number of stored states.
        n_copies: number of unseen documents that are equal to a stored one, token by token.
        model: name of the model.
    """

    document: Tensor
    member: Tensor
    counts: Tensor
    token_lm: Tensor
    token_bits: Tensor
    token_left_out: Tensor
    nearest: Tensor
    distance: Tensor
    sources: Tensor
    shares: Tensor
    k: int
    mix: float
    temperature: float
    n_store: int
    n_keys: int
    n_copies: int
    model: str

    shapes: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("document", "member", "counts"), "n"),
        **dict.fromkeys(("token_lm", "token_bits", "token_left_out", "nearest", "distance"), "N"),
        **{"sources": "ns", "shares": "ns"},
    }

    def __post_init__(self) -> None:
        counts = self.counts
        if (
            counts.dtype != torch.int64
            or not counts.numel()
            or int(counts.min()) < 1
            or self.member.dtype != torch.bool
        ):
            raise ValueError("numbers of tokens that are none")
        if int(counts.sum()) != len(self.token_bits):
            raise ValueError("numbers of tokens that do not fit their bits")

    @property
    def lm(self) -> Tensor:
        """Bits of each document under the language model alone, (n,)."""
        return self._sums(self.token_lm)

    @property
    def bits(self) -> Tensor:
        """Bits of each document with the whole memory, (n,)."""
        return self._sums(self.token_bits)

    @property
    def left_out(self) -> Tensor:
        """Bits of each document with the memory without it, (n,); equal to ``bits`` for unseen documents."""
        return self._sums(self.token_left_out)

    @property
    def memorization(self) -> Tensor:
        """Bits that a document saves by being in the memory, ``left_out`` - ``bits``, (n,); 0 for unseen documents."""
        return self.left_out - self.bits

    def mean_memorization(self, *, level: float = 0.95) -> Interval:
        """Return the mean memorization of members in bits per document, with Student's interval.

        Raises:
            InputError: a level outside (0, 1).
        """
        return mean_interval(self.memorization[self.member], level=level)

    def auroc(self, *, calibrated: bool = False, level: float = 0.95) -> Interval:
        """Return how well bits per token with the memory tell members from unseen documents: area under the ROC curve.

        Args:
            calibrated: compare the bits with those of the language model alone, which has no memory of either.
            level: confidence level.

        Raises:
            InputError: a level outside (0, 1).
        """
        scores = (self.lm if calibrated else 0.0) - self.bits
        return auroc_interval(scores / self.counts, self.member, level=level)

    def control(self, *, level: float = 0.95) -> Interval:
        """Return :meth:`auroc` with members left out of the memory: .5 if the unseen documents could have been members.

        Raises:
            InputError: a level outside (0, 1).
        """
        return auroc_interval(-self.left_out / self.counts, self.member, level=level)

    def to_frame(self) -> "pd.DataFrame":
        """Return one row per document: member, document, tokens, lm, bits, left_out, memorization, source, share."""
        import pandas as pd  # slow to import

        columns = {"member": self.member, "document": self.document, "tokens": self.counts, "lm": self.lm}
        columns |= {"bits": self.bits, "left_out": self.left_out, "memorization": self.memorization}
        columns |= {"source": self.sources[:, 0], "share": self.shares[:, 0]}
        return pd.DataFrame({name: values.numpy() for name, values in columns.items()})

    def __str__(self) -> str:
        """Return bits per token with and without the memory, the memorization, and its controls."""
        n, m = int(self.member.sum()), int((~self.member).sum())
        memorization = self.memorization[self.member]
        per_token = float(memorization.sum() / self.counts[self.member].sum())
        lines = [
            f"memory of {self.n_keys:,} states of {self.n_store:,} documents over {self.model}:"
            f" {self.k} neighbours, weight {self.mix:g}, temperature {self.temperature:g}",
            f"  {'bits per token':<18}  {'model':>7}  {'memory':>7}  {'left out':>8}",
        ]
        for name, flags in ((f"{n:,} members", self.member), (f"{m:,} unseen", ~self.member)):
            total = self.counts[flags].sum()
            rates = [float(values[flags].sum() / total) for values in (self.lm, self.bits, self.left_out)]
            lines.append(f"  {name:<18}  {rates[0]:>7.3f}  {rates[1]:>7.3f}  {rates[2]:>8.3f}")
        lines += [
            f"  memorization       {self.mean_memorization()} bits per document, {per_token:.3f} per token; above 0 for"
            f" {int((memorization > 0).sum()):,} of {n:,}, smallest {float(memorization.min()):.3g}",
            f"  members or unseen  AUROC {self.auroc()}; calibrated by the model {self.auroc(calibrated=True)}",
            f"  control            AUROC {self.control()} with members left out; .5 if unseen documents are comparable",
        ]
        if self.n_copies:
            lines.append(f"  note: {self.n_copies:,} unseen documents are equal to stored ones")
        return "\n".join(lines)

    def _sums(self, values: Tensor) -> Tensor:
        owner = torch.repeat_interleave(torch.arange(len(self.counts)), self.counts)
        return torch.zeros(len(self.counts), dtype=torch.float64).index_add_(0, owner, values)
