"""Result of near-verbatim extraction: similarity of greedy continuations to their documents, with controls."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

from kernelmem.core.checks import as_number, check_choice
from kernelmem.core.errors import InputError
from kernelmem.core.files.result_files import Result
from kernelmem.statistics import Interval, clopper_pearson, proportion_difference
from kernelmem.text.extractability.windows import check_comparable

if TYPE_CHECKING:
    import pandas as pd

Measure: TypeAlias = Literal["exact", "edit", "common", "ngrams"]
MEASURES: tuple[Measure, ...] = ("exact", "edit", "common", "ngrams")
CLOSE = 0.9  # similarity from which on a continuation is near-verbatim


@dataclass(frozen=True, eq=False)
class Continuations:
    """Continuations of W prompts after C contexts, compared with a text. Shapes are (C, W) unless noted.

    Attributes:
        document: (W,) int64, document of each prompt.
        start: (W,) int64, token of the document at which the suffix starts.
        exact: bool, the continuation is the suffix.
        common: int64, tokens of the longest common substring.
        distance: int64, smallest edit distance to a substring.
        ngrams: float64, share of n-grams that occur in the text.
    """

    document: Tensor
    start: Tensor
    exact: Tensor
    common: Tensor
    distance: Tensor
    ngrams: Tensor

    def __post_init__(self) -> None:
        shapes = {tuple(value.shape) for value in (self.exact, self.common, self.distance, self.ngrams)}
        if len(shapes) != 1 or self.exact.ndim != 2 or not self.exact.shape[1] == len(self.document) == len(self.start):
            raise ValueError("continuations of different numbers")

    def similarity(self, measure: Measure, suffix: int) -> Tensor:
        """Return the similarity of every window in its best context, (W,) from 0 to 1."""
        values = {
            "exact": self.exact.to(torch.float64),
            "edit": 1 - self.distance / suffix,
            "common": self.common / suffix,
            "ngrams": self.ngrams,
        }
        return values[measure].to(torch.float64).amax(0)


@dataclass(frozen=True, eq=False, repr=False)
class NearVerbatim(Result):
    """Greedy continuations of D documents, as similar to the rest of their document as it is at any offset. It holds no text.

    Similarities are between 0 and 1: "edit" is 1 − d / m with d the smallest edit distance to a substring and m the tokens of
    the suffix, "common" the longest common substring / m, "ngrams" the share of n-grams that occur, "exact" 0 or 1. They count
    the best of the contexts. Near-verbatim measures are larger than exact ones on any text: read them with their controls.

    Attributes:
        prefix, suffix, ngram: number of tokens.
        windows: compared with the document after the prefix.
        mismatched: the same continuations, compared with what follows the first prefix of the next document: similarity by
            chance and shared text. None: one document.
        unseen: windows of documents that the model was not trained on; None: no control.
        holders: (C, W) int64, number of documents that contain the whole continuation; 0: in none.
        n_documents, n_unseen: number of documents with a window.
    """

    prefix: int
    suffix: int
    ngram: int
    windows: Continuations
    mismatched: Continuations | None
    unseen: Continuations | None
    holders: Tensor
    n_documents: int
    n_unseen: int

    shapes: ClassVar[Mapping[str, str]] = {"holders": "cw"}

    def __post_init__(self) -> None:
        if self.holders.shape != self.windows.exact.shape:
            raise ValueError("windows of different numbers")

    def similarity(self, measure: Measure = "edit") -> Tensor:
        """Return the similarity of every window, (W,).

        Raises:
            InputError: another measure than "exact", "edit", "common", "ngrams".
        """
        check_choice(measure, "measure", MEASURES)
        return self.windows.similarity(measure, self.suffix)

    def rate(self, measure: Measure = "edit", *, at: float = CLOSE, level: float = 0.95) -> Interval:
        """Return the share of documents with a window of at least this similarity, with its Clopper-Pearson interval.

        Raises:
            InputError: another measure, ``at`` not in (0, 1], or a level out of range.
        """
        return clopper_pearson(self._count(self.windows, measure, at), self.n_documents, level=level)

    def mismatched_rate(self, measure: Measure = "edit", *, at: float = CLOSE, level: float = 0.95) -> Interval:
        """Return :meth:`rate` of the continuations compared with other documents: what chance and shared text give.

        Raises:
            InputError: one document only, or as for :meth:`rate`.
        """
        if self.mismatched is None:
            raise InputError("a single document", expected="at least two", hint="pass more documents")
        return clopper_pearson(self._count(self.mismatched, measure, at), self.n_documents, level=level)

    def unseen_rate(self, measure: Measure = "edit", *, at: float = CLOSE, level: float = 0.95) -> Interval:
        """Return :meth:`rate` of the unseen documents.

        Raises:
            InputError: no unseen documents, or as for :meth:`rate`.
        """
        return clopper_pearson(self._count(self._control(), measure, at), self.n_unseen, level=level)

    def excess(self, measure: Measure = "edit", *, at: float = CLOSE, level: float = 0.95) -> Interval:
        """Return the rate of the documents minus that of unseen documents, with Newcombe's interval.

        Raises:
            InputError: no unseen documents, another number of windows per document there, or as for :meth:`rate`.
        """
        unseen = self._control()
        check_comparable(len(self.windows.document) / self.n_documents, len(unseen.document) / self.n_unseen)
        counts = [self._count(windows, measure, at) for windows in (self.windows, unseen)]
        return proportion_difference(counts[0], self.n_documents, counts[1], self.n_unseen, level=level)

    def to_frame(self) -> "pd.DataFrame":
        """Return one row per window: document, start (of the suffix), exact, edit, common, ngrams, holders (largest)."""
        import pandas as pd  # slow to import

        columns = {"document": self.windows.document.numpy(), "start": self.windows.start.numpy()}
        columns |= {name: self.similarity(name).numpy() for name in MEASURES}
        columns["exact"] = columns["exact"] > 0
        return pd.DataFrame(columns | {"holders": self.holders.amax(0).numpy()}).rename_axis("window")

    def __str__(self) -> str:
        """Return the rates of all measures with their controls, and how many continuations are in no document."""
        C, W = self.holders.shape
        contexts = "" if C == 1 else f", in the best of {C} contexts"
        lines = [
            f"near-verbatim extraction of {self.suffix} tokens after a prefix of {self.prefix}{contexts}: {W:,} windows of"
            f" {self.n_documents:,} documents",
            f"  share of documents with a similarity >= {CLOSE:g} (exact: 1)",
        ]
        labels = {"exact": "exact", "edit": "edit", "common": "common", "ngrams": f"{self.ngram}-grams"}
        for name in MEASURES:
            line = f"  {labels[name]:<8} {self.rate(name)}"
            line += "" if self.mismatched is None else f", {self.mismatched_rate(name)} of another document"
            if self.unseen is not None:
                line += f", {self.unseen_rate(name)} unseen{self._excess_text(name)}"
            lines.append(line)
        nowhere = int((self.holders == 0).all(0).sum())
        lines.append(f"  {nowhere:,} of {W:,} continuations are in no document as a whole")
        return "\n".join(lines if self.unseen is not None else [*lines, "  no control: pass unseen="])

    def _excess_text(self, measure: Measure) -> str:
        try:
            return f"; excess {self.excess(measure)}"
        except InputError:
            return " (not comparable)"

    def _count(self, windows: Continuations, measure: Measure, at: float) -> int:
        """Return the number of documents with a window of at least this similarity."""
        check_choice(measure, "measure", MEASURES)
        at = as_number(at, "at", exclusive=True, maximum=1.0)
        return len(windows.document[windows.similarity(measure, self.suffix) >= at - 1e-12].unique())

    def _control(self) -> Continuations:
        if self.unseen is None:
            raise InputError(
                "near-verbatim extraction without unseen documents",
                expected="unseen documents as a control",
                hint="pass unseen= to near_verbatim",
            )
        return self.unseen
