"""Contributions of training documents to the bits of a sentence, token by token."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from kernelmem.core.checks import as_count
from kernelmem.core.files.result_files import Result
from kernelmem.text.attribution.page import Part, render
from kernelmem.text.attribution.shared_spans import SharedSpans

if TYPE_CHECKING:
    import pandas as pd

Method = Literal["ledger", "influence", "tangents"]
MEANING = {
    "ledger": "bits that the gradients of a document saved in the recorded run; they add up to the change",
    "influence": "bits that the sentence would cost more without the document, to first order",
    "tangents": "bits that one gradient step of rate 1 on the document would save at these weights, to first order; an"
    " estimate of who taught it, since the gradients of well-learned documents vanish",
}


@dataclass(frozen=True, eq=False)
class Change:
    """Change of the bits of M tokens by a recorded run: before − after = Σ_i saved_i + decay + rounding + buffers + residual.

    All are in bits, (M,) float64, and positive if they saved bits.

    Attributes:
        before: bits of every token before training.
        after: bits of every token after training.
        decay: saved by weight decay.
        rounding: saved by the difference between the recorded steps and the optimizer's formula.
        buffers: saved by running statistics.
        residual: what the other terms do not explain.
    """

    before: Tensor
    after: Tensor
    decay: Tensor
    rounding: Tensor
    buffers: Tensor
    residual: Tensor

    @property
    def saved(self) -> Tensor:
        """Bits that training saved at every token, before − after (M,)."""
        return self.before - self.after


@dataclass(frozen=True)
class Revealed:
    """Text of a sentence and of some documents: it is there only if ``decode`` was passed.

    Attributes:
        sentence: text of each of its tokens.
        documents: text of each token of the documents in ``shown``.
    """

    sentence: tuple[str, ...]
    documents: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, eq=False, repr=False)
class Teachers(Result):
    """Documents that taught a language model a sentence. It holds positions and numbers, and text only in ``revealed``.

    Contributions of different documents cancel: all documents teach the language, and what a copy of the sentence taught is
    seen in :attr:`excess`, its contribution minus the mean over other documents of the same kind. All statements are about
    this one model.

    Attributes:
        method: "ledger", "influence" or "tangents"; :attr:`meaning` says what ``saved`` is.
        saved: (n, M) float64, bits that each of n documents saved at each of M tokens; negative: it made the token less
            probable.
        positions: (M,) int64, number of each token in the sentence; tokens without a loss are left out.
        size: number of tokens of the sentence.
        own: (n,) bool, documents that contain the sentence.
        kinds: (n,) int64, kind of each document, an index into ``kind_names``.
        kind_names: names of the kinds.
        passes: (n,) int64, steps of the run that used each document; None: no run.
        change: change of the bits by the run; None unless the method is "ledger".
        spans: token spans that documents share with the sentence.
        shown: (s,) int64, documents of which :meth:`to_html` shows the text: those that saved most bits.
        revealed: their text and that of the sentence; None: redacted.
        notes: remarks.
    """

    method: Method
    saved: Tensor
    positions: Tensor
    size: int
    own: Tensor
    kinds: Tensor
    kind_names: tuple[str, ...]
    passes: Tensor | None
    change: Change | None
    spans: SharedSpans
    shown: Tensor
    revealed: Revealed | None
    notes: tuple[str, ...]

    shapes: ClassVar[Mapping[str, str]] = {"saved": "nm", "positions": "m", "own": "n", "kinds": "n", "shown": "s"}

    def __post_init__(self) -> None:
        n = len(self.saved)
        lengths = {len(self.own), len(self.kinds), len(self.spans.longest)}
        lengths |= set() if self.passes is None else {len(self.passes)}
        if lengths != {n} or (self.revealed is not None and len(self.revealed.documents) != len(self.shown)):
            raise ValueError("documents of different numbers")

    @property
    def meaning(self) -> str:
        """Description of ``saved``."""
        return MEANING[self.method]

    @property
    def contribution(self) -> Tensor:
        """Bits that each document saved in the whole sentence, Σ_t saved (n,)."""
        return self.saved.sum(1)

    @property
    def token_excess(self) -> Tensor:
        """``saved`` minus its mean over other documents of the same kind without the sentence, (n, M); NaN without any."""
        kind = torch.nn.functional.one_hot(self.kinds, len(self.kind_names)).to(torch.float64)  # (n, k)
        other = (~self.own).to(torch.float64)[:, None]
        total, count = (kind * other).T @ self.saved, (kind * other).sum(0)  # of the documents without the sentence
        mean = (total[self.kinds] - other * self.saved) / (count[self.kinds][:, None] - other)
        return self.saved - mean.nan_to_num(torch.nan, torch.nan, torch.nan)

    @property
    def excess(self) -> Tensor:
        """Contribution minus its mean over other documents of the same kind without the sentence, (n,); NaN without any."""
        return self.token_excess.sum(1)

    @property
    def cancellation(self) -> float:
        """Σ_i |c_i| / |Σ_i c_i| of the contributions c_i: 1 if all have one sign."""
        total = self.contribution
        return float(total.abs().sum() / total.sum().abs())

    def rank(self, document: int) -> tuple[int, int]:
        """Return (r, m): the document saved the r-th most bits of itself and m − 1 others of its kind without the sentence.

        Ties count against it. If training treated the kind alike, P(r ≤ k) = k / m.

        Raises:
            InputError: not the number of a document.
        """
        i = as_count(document, "document", minimum=0, maximum=len(self.saved) - 1)
        total, others = self.contribution, self._others(i)
        return 1 + int((total[others] >= total[i]).sum()), 1 + int(others.sum())

    def top(self, n: int = 10) -> list[tuple[int, float]]:
        """Return the n documents that saved most bits, most first: (document, bits)."""
        total = self.contribution
        order = total.argsort(descending=True, stable=True)[: as_count(n, "n")]
        return [(i, float(total[i])) for i in order.tolist()]

    def to_frame(self) -> "pd.DataFrame":
        """Return one row per document, those that saved most bits first.

        Columns: document, kind, own, passes (if a run was passed), saved, excess, shared (tokens of the longest span that it
        shares with the sentence).
        """
        import pandas as pd  # slow to import

        columns = {
            "document": torch.arange(len(self.saved)).numpy(),
            "kind": [self.kind_names[kind] for kind in self.kinds.tolist()],
            "own": self.own.numpy(),
            **({} if self.passes is None else {"passes": self.passes.numpy()}),
            "saved": self.contribution.numpy(),
            "excess": self.excess.numpy(),
            "shared": self.spans.longest.numpy(),
        }
        order = self.contribution.argsort(descending=True, stable=True).numpy()
        return pd.DataFrame(columns).iloc[order].reset_index(drop=True)

    def to_html(self) -> str:
        """Return static HTML: the sentence with its tokens colored by bits, then the documents in ``shown``.

        For each document the sentence is colored by :attr:`token_excess`, since what all documents of a kind teach is not
        the work of one (by ``saved`` if there are no others of its kind). Spans that a document shares with the sentence are
        underlined. Without ``decode`` tokens are shown by their number only. Text is escaped; control and bidirectional
        characters are shown as code points. There are no scripts.
        """
        revealed, shown = self.revealed, self.shown.tolist()
        sentence = [f"{i} " for i in range(self.size)] if revealed is None else revealed.sentence
        remarks = [f"{self.meaning}." if self.method == "ledger" else f"This is an estimate: {self.meaning}."]
        remarks += ["A document is colored by its bits minus the mean of others of its kind."]
        redacted = "Text is redacted: tokens are shown by their number."
        remarks += [redacted if revealed is None else "Shared spans are underlined.", *self.notes]
        excess = self.token_excess
        bits = self.saved.sum(0) if self.change is None else self.change.saved
        verb = "that training saved" if self.change else "of all documents together"
        texts = [None] * len(shown) if revealed is None else revealed.documents
        parts = [
            Part(
                i,
                self._facts(i),
                torch.where(excess[i].isnan(), self.saved[i], excess[i]).tolist(),
                text,
                self.spans.of(i),
            )
            for i, text in zip(shown, texts, strict=True)
        ]
        title = f"colored by the bits {verb} at each token"
        return render((title, sentence, self.positions.tolist(), bits.tolist()), parts, remarks)

    def _repr_html_(self) -> str:
        return self.to_html()

    def __str__(self) -> str:
        """Return the change and its terms, own copies compared with others, and the documents that saved most."""
        n = len(self.saved)
        lines = [
            f"teachers of {len(self.positions)} tokens among {n:,} documents, by {self.method}",
            f"  {self.meaning}",
        ]
        if self.revealed is not None:
            lines.insert(1, f"  text  {''.join(self.revealed.sentence)!r}"[:120])
        total = self.contribution
        if self.change is not None:
            parts = {name: getattr(self.change, name).sum() for name in ("decay", "rounding", "buffers", "residual")}
            terms = ", ".join(f"{name} {float(value):+.3g}" for name, value in parts.items())
            lines.append(
                f"  bits  {float(self.change.before.sum()):.4g} before, {float(self.change.after.sum()):.4g} after:"
                f" documents {float(total.sum()):+.4g}, {terms}"
            )
        lines.append(f"  cancellation: sum of |contributions| / |sum| = {self.cancellation:.3g}")
        lines += self._own_lines()
        lines.append(f"  {'document':>10} {'kind':<12} {'own':<4} {'saved':>9} {'excess':>9} {'shared':>7}")
        excess = self.excess
        for i, saved in self.top(8):
            kind, own = self.kind_names[int(self.kinds[i])][:12], "yes" if bool(self.own[i]) else ""
            shared = int(self.spans.longest[i])
            lines.append(f"  {i:>10} {kind:<12} {own:<4} {saved:>9.3g} {float(excess[i]):>9.3g} {shared:>7}")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])

    def _facts(self, i: int) -> str:
        """Return what the page says of a document."""
        kind = f", kind {self.kind_names[int(self.kinds[i])]}" if len(self.kind_names) > 1 else ""
        own = ", contains the sentence" if bool(self.own[i]) else ""
        passes = "" if self.passes is None else f", used in {int(self.passes[i])} steps"
        excess = float(self.excess[i])
        others = "" if math.isnan(excess) else f", {excess:+.3g} compared with others of its kind"
        shared = f", shares {int(self.spans.longest[i])} tokens in a row"
        return f"{kind}{own}{passes}: {float(self.contribution[i]):+.3g} bits{others}{shared}"

    def _own_lines(self) -> list[str]:
        """Return a line per kind with copies of the sentence: their excess, and the spread of the others."""
        lines = []
        total, excess = self.contribution, self.excess
        for kind in self.kinds[self.own].unique().tolist():
            own, others = self.own & (self.kinds == kind), ~self.own & (self.kinds == kind)
            copies = f"{int(own.sum())} own cop{'y' if int(own.sum()) == 1 else 'ies'}"
            name = f" of kind {self.kind_names[kind]!r}" if len(self.kind_names) > 1 else ""
            if int(others.sum()) < 2:
                lines.append(f"  {copies}{name}: {float(total[own].sum()):+.3g} bits; no others to compare with")
                continue
            spread = float(total[others].std())
            best = [self.rank(i) for i in own.nonzero()[:, 0].tolist()]
            lines.append(
                f"  {copies}{name}: {float(excess[own].mean()):+.3g} bits each above the mean of {int(others.sum())} others"
                f" (sd {spread:.2g}); median rank {sorted(r for r, _ in best)[len(best) // 2]} of {best[0][1]}"
            )
        return lines or ["  no document contains the whole sentence"]

    def _others(self, i: int) -> Tensor:
        """Return True for the documents of the same kind that do not contain the sentence, without document i, (n,)."""
        others = ~self.own & (self.kinds == self.kinds[i])
        others[i] = False
        return others
