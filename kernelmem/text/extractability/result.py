"""Extraction of documents from a language model: what was emitted, how surely, and what of it counts as memorized."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

from kernelmem.core.checks import as_count, check_choice
from kernelmem.core.errors import InputError
from kernelmem.core.files.result_files import Result
from kernelmem.statistics import Interval, clopper_pearson, proportion_difference
from kernelmem.text.extractability.sampling import Sampling, emission_probability, log10_queries
from kernelmem.text.extractability.spans import Decode, counted_spans, heat, merged_spans
from kernelmem.text.extractability.windows import TIE, Windows, check_comparable

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

Method: TypeAlias = Literal["greedy", "sampled"]
CLASSES = ("not extracted", "recited", "reconstructed", "recollected")
RECITED = 5  # copies from which on a suffix is recited


@dataclass(frozen=True, eq=False, repr=False)
class Extraction(Result):
    """Suffixes of D documents that a language model emits after their prefixes. It holds positions and scores, no text.

    A window is extracted by "greedy" decoding, or by "sampled" text: n samples contain the suffix with probability ≥ p. It
    counts if it is extracted in any context. All statements are about this one model.

    Attributes:
        prefix, suffix: number of tokens of both.
        windows: W windows of the documents.
        unseen: windows of documents that the model was not trained on, in the same contexts; None: no control.
        reference: the windows of the documents, scored by a model that was not trained on them; None: no control.
        reference_name: name of that model, or "".
        copies: (W,) int64, occurrences of the suffix in the documents, this one included.
        holders: (W,) int64, number of documents that contain the suffix.
        repeating: (W,) bool, the suffix continues a repetition: the prefix ends with a span twice in a row, and the suffix goes
            on with it.
        n_documents: number of documents with at least one window.
        n_unseen: the same of ``unseen``; 0 without.
        n_short: number of documents shorter than prefix + suffix, which have no window; n_short_unseen: of ``unseen``.
        sampling: distribution of samples, n and p.
    """

    prefix: int
    suffix: int
    windows: Windows
    unseen: Windows | None
    reference: Windows | None
    reference_name: str
    copies: Tensor
    holders: Tensor
    repeating: Tensor
    n_documents: int
    n_unseen: int
    n_short: int
    n_short_unseen: int
    sampling: Sampling

    shapes: ClassVar[Mapping[str, str]] = {"copies": "w", "holders": "w", "repeating": "w"}

    def __post_init__(self) -> None:
        sizes = {len(self.windows.document), len(self.copies), len(self.holders), len(self.repeating)}
        sizes |= set() if self.reference is None else {len(self.reference.document)}
        if len(sizes) > 1 or (self.unseen is not None and len(self.unseen.greedy) != len(self.windows.greedy)):
            raise ValueError("windows of different numbers")

    @property
    def n_contexts(self) -> int:
        """Number of contexts before the prefix, the empty one included."""
        return len(self.windows.greedy)

    def extracted(self, method: Method = "greedy") -> Tensor:
        """Return for each window whether it is extracted in any context, (W,) bool.

        Raises:
            InputError: another method than "greedy" and "sampled".
        """
        return self._extracted(self.windows, method)

    def rate(self, method: Method = "greedy", *, context: int | None = None, level: float = 0.95) -> Interval:
        """Return the share of documents with an extracted window, with its Clopper-Pearson interval.

        Args:
            method: "greedy" or "sampled".
            context: number of the only context that counts, 0 for none before the prefix; None: any of them.
            level: confidence level, for documents as independent draws.

        Raises:
            InputError: another method, a context or level out of range.
        """
        hits = self._documents(self.windows, method, context)
        return clopper_pearson(hits, self.n_documents, level=level)

    def unseen_rate(self, method: Method = "greedy", *, context: int | None = None, level: float = 0.95) -> Interval:
        """Return :meth:`rate` of the unseen documents.

        Raises:
            InputError: no unseen documents, or as for :meth:`rate`.
        """
        return clopper_pearson(self._documents(self._control(), method, context), self.n_unseen, level=level)

    def excess(self, method: Method = "greedy", *, context: int | None = None, level: float = 0.95) -> Interval:
        """Return the rate of the documents minus that of unseen documents, with Newcombe's interval.

        It is 0 in expectation if the model treats both alike, whatever the extraction rate is. It says something about
        training only if the unseen documents could as well have been training documents.

        Raises:
            InputError: no unseen documents, another number of windows per document there, or as for :meth:`rate`.
        """
        unseen = self._control()
        check_comparable(len(self.windows.document) / self.n_documents, len(unseen.document) / self.n_unseen)
        hits, others = (self._documents(windows, method, context) for windows in (self.windows, unseen))
        return proportion_difference(hits, self.n_documents, others, self.n_unseen, level=level)

    def classes(self, method: Method = "greedy", *, recited: int = RECITED) -> Tensor:
        """Return the class of each window, (W,) int64; the first rule that holds decides.

        0 "not extracted"; 1 "recited": the suffix occurs at least ``recited`` times in the documents; 2 "reconstructed": a
        control makes it too, either the reference, which was not trained on the documents, by the same method, or the
        repetition of the end of the prefix (``repeating``); 3 "recollected": the rest.

        Source: classes after Prashanth et al. 2024, whose paper takes 5 copies.
        """
        copies = as_count(recited, "recited")
        extracted = self.extracted(method)
        same = torch.zeros_like(extracted) if self.reference is None else self._extracted(self.reference, method)
        kind = torch.where(self.copies >= copies, 1, torch.where(same | self.repeating, 2, 3))
        return torch.where(extracted, kind, 0)

    def spans(
        self,
        method: Method = "greedy",
        *,
        documents: object = None,
        corpus: object = None,
        decode: Decode | None = None,
    ) -> "pd.DataFrame":
        """Return one row per span of extracted suffixes, overlapping and adjacent ones merged: document, start, stop.

        With ``documents`` also its copies and holders, the occurrences of the whole span and the number of documents that
        contain it: 0 in a corpus that lacks it.

        Args:
            method: "greedy" or "sampled".
            documents: the documents that were passed to :func:`extraction`, whose spans are counted; None: they are not.
            corpus: documents in which they are counted; None: ``documents``.
            decode: function from token ids to text, to count the characters of every span; the text is not kept.

        Raises:
            InputError: another method, other documents, ``corpus`` or ``decode`` without documents.
        """
        chosen = self.extracted(method)
        spans = merged_spans(self.windows, chosen, self.suffix)
        if documents is not None:
            starts = self.windows.start[chosen]
            known = (
                self.windows.document[chosen],
                starts,
                starts + self.suffix,
                self.copies[chosen],
                self.holders[chosen],
            )
            return counted_spans(spans, known, documents, corpus, decode)
        if corpus is not None or decode is not None:
            raise InputError(
                "corpus= or decode= without documents",
                expected="the documents that were passed to extraction, since the result holds no text",
                hint="pass documents= too",
            )
        return spans

    def heat(self, document: int) -> Tensor:
        """Return log10 of the probability of the most probable suffix that covers each token of a document, (T,).

        T is the end of its last window; −inf where no window covers the token. With ``stride=1`` this is the heat map of
        Cooper et al. 2025.

        Raises:
            InputError: not the number of a document.
        """
        largest = int(self.windows.document.max())
        return heat(self.windows, self.suffix, as_count(document, "document", minimum=0, maximum=largest))

    def to_frame(self) -> "pd.DataFrame":
        """Return one row per window, with the best of its contexts.

        Columns: document, start (of the suffix), greedy, margin, tie, log_p, log10_queries (samples after which the suffix
        was emitted with probability p), copies, holders, repeating, class (of "greedy").
        """
        import pandas as pd  # slow to import

        log_p = self._best(self.windows)
        columns = {
            "document": self.windows.document,
            "start": self.windows.start,
            "greedy": self.extracted(),
            "margin": self.windows.margin.amax(0),
            "tie": self.windows.tie,
            "log_p": log_p,
            "log10_queries": log10_queries(log_p, self.sampling.p),
            "copies": self.copies,
            "holders": self.holders,
            "repeating": self.repeating,
        }
        frame = pd.DataFrame({name: values.numpy() for name, values in columns.items()}).rename_axis("window")
        return frame.assign(**{"class": [CLASSES[kind] for kind in self.classes().tolist()]})

    def plot(self) -> "Figure":
        """Return a figure of the shares of documents with an extracted window, by context, next to those of the controls."""
        from kernelmem.plotting.text import extraction_figure  # matplotlib is slow to import

        sources = {"documents": (self.windows, self.n_documents)}
        if self.unseen is not None:
            sources["unseen documents"] = (self.unseen, self.n_unseen)
        if self.reference is not None:
            sources["the documents, by the reference"] = (self.reference, self.n_documents)
        contexts: list[int | None] = [*range(self.n_contexts), *([None] if self.n_contexts > 1 else [])]
        methods: tuple[Method, ...] = ("greedy", "sampled")
        panels = {}
        for method in methods:
            groups = {
                name: [clopper_pearson(self._documents(windows, method, k), n) for k in contexts]
                for name, (windows, n) in sources.items()
            }
            panels[method] = {name: [(r.value, r.low, r.high) for r in rates] for name, rates in groups.items()}
        names = ["none" if k == 0 else "any" if k is None else f"context {k}" for k in contexts]
        title = f"{self.suffix} tokens after {self.prefix}, 95% intervals"
        return extraction_figure(panels, names, title=f"Extraction of {title}")

    def __str__(self) -> str:
        """Return rates, their controls, classes, and what was not counted."""
        contexts = "" if self.n_contexts == 1 else f", in any of {self.n_contexts} contexts"
        lines = [
            f"extraction of {self.suffix} tokens after a prefix of {self.prefix}{contexts}: {len(self.windows.document):,}"
            f" windows of {self.n_documents:,} documents",
            f"  greedy   {self._line('greedy')}",
            f"  sampled  {self._line('sampled')}",
            f"           (P >= {self.sampling.p:g} in {self.sampling.n:,.0f} samples, {self.sampling})",
        ]
        counts = torch.bincount(self.classes(), minlength=len(CLASSES)).tolist()
        kinds = ", ".join(f"{count:,} {name}" for name, count in zip(CLASSES[1:], counts[1:], strict=True))
        lines.append(f"  windows by greedy decoding: {kinds} (recited: at least {RECITED} copies)")
        if self.reference is None:
            lines.append("  no reference: of the reconstructed ones only repetitions are known")
        else:
            both = int((self.extracted() & self._extracted(self.reference, "greedy")).sum())
            lines.append(
                f"  {both:,} of these {sum(counts[1:]):,} are emitted by the reference too: {self.reference_name}"
            )
        ties = int(self.windows.tie.sum())
        lines += [f"  {ties:,} windows depend on rounding (margin below {TIE:g} nats)"] if ties else []
        short = self.n_short + self.n_short_unseen
        lines += [f"  {short:,} documents are shorter than prefix and suffix, and left out"] if short else []
        return "\n".join(lines)

    def _line(self, method: Method) -> str:
        line = f"{self.rate(method)} of documents"
        if self.unseen is None:
            return f"{line}; no control: pass unseen="
        line += f", {self.unseen_rate(method)} of unseen ones"
        try:
            return f"{line}; excess {self.excess(method)}"
        except InputError:
            return f"{line}; not comparable, other numbers of windows per document"

    def _control(self) -> Windows:
        if self.unseen is None:
            raise InputError(
                "an extraction without unseen documents",
                expected="unseen documents as a control",
                hint="pass unseen= to extraction",
            )
        return self.unseen

    def _best(self, windows: Windows) -> Tensor:
        return windows.log_p.amax(0)

    def _hits(self, windows: Windows, method: Method) -> Tensor:
        """Return (C, W) bool."""
        check_choice(method, "method", ("greedy", "sampled"))
        if method == "greedy":
            return windows.greedy
        return emission_probability(windows.log_p, self.sampling.n) >= self.sampling.p

    def _extracted(self, windows: Windows, method: Method) -> Tensor:
        return self._hits(windows, method).any(0)

    def _documents(self, windows: Windows, method: Method, context: int | None) -> int:
        """Return the number of documents with an extracted window."""
        hits = self._hits(windows, method)
        if context is not None:
            hits = hits[as_count(context, "context", minimum=0, maximum=len(hits) - 1)][None]
        return len(windows.document[hits.any(0)].unique())
