"""Findings of a text audit, one by one: extracted spans, canaries, documents with the bits that each token saved."""

from dataclasses import dataclass, field
from typing import Literal

from kernelmem.statistics import Interval

SpanClass = Literal["not extracted", "recited", "reconstructed", "recollected"]


@dataclass(frozen=True)
class ExtractedSpan:
    """A suffix of a training document that the model emits. It has no text unless the audit reveals it.

    Attributes:
        sha256: salted hash of its tokens, equal for equal spans.
        document: number of the training document in the list that was passed.
        offset: first token of the suffix in the document.
        length: number of its tokens.
        score: bits that the model saves on the suffix, compared with the reference; None: one of them excludes the suffix.
        kind: class of the span.
        copies: occurrences of the suffix in the training documents.
        holders: number of training documents that contain it.
        greedy: True if greedy decoding emits it.
        contexts: number of contexts in which greedy decoding emits it.
        log10_queries: log10 of the number of samples after which it was emitted with probability .5; None: never.
        tie: True if rounding decides about greedy decoding.
        claimed: True if the verdict about extraction is "found"; False: no more than what is emitted of unseen documents.
        text: revealed text; None if redacted.
    """

    sha256: str
    document: int
    offset: int
    length: int
    score: float | None
    kind: SpanClass
    copies: int
    holders: int
    greedy: bool
    contexts: int
    log10_queries: float | None
    tie: bool
    claimed: bool
    text: str | None


@dataclass(frozen=True)
class CanaryFinding:
    """An inserted canary. It has no text unless the audit reveals it.

    Attributes:
        sha256: salted hash of its tokens.
        pair: number of the pair.
        copies: number of copies.
        exposure: exposure in bits.
        exact: True if its rank is exact.
        p: p-value of the hypothesis that it was not memorized.
        contexts: number of contexts in which greedy decoding emits the secret.
        bits, twin_bits: bits of its secret and of that of its twin.
        text: revealed text; None if redacted.
    """

    sha256: str
    pair: int
    copies: int
    exposure: float
    exact: bool
    p: float
    contexts: int
    bits: float
    twin_bits: float
    text: str | None


@dataclass(frozen=True)
class DocumentFinding:
    """A training document that the model knows better than the reference does, with the bits saved at each token.

    Attributes:
        sha256: salted hash of its tokens.
        document: number of the training document in the list that was passed.
        n_tokens: number of tokens.
        bits_saved: bits of the document under the reference minus bits under the model.
        first: token to which the first entry of ``saved`` belongs: 0, or 1 without BOS.
        saved: bits saved at each token from ``first`` on; larger = better known than expected.
        span: first and last + 1 token of the part that saves most.
        expected: bits saved on unseen documents of this length, mean and interval of a single document.
        text: text of each token from ``first`` on; None if redacted.
    """

    sha256: str
    document: int
    n_tokens: int
    bits_saved: float
    first: int
    saved: tuple[float, ...]
    span: tuple[int, int]
    expected: Interval | None
    text: tuple[str, ...] | None


@dataclass(frozen=True)
class DocumentTable:
    """Scores of all evaluated documents, training documents first, as columns.

    Attributes:
        document: number of the document in the list that was passed.
        member: True for training documents.
        tokens: number of tokens with a loss.
        scores: name of each membership score to its values; larger = more like a training document.
    """

    document: tuple[int, ...] = ()
    member: tuple[bool, ...] = ()
    tokens: tuple[int, ...] = ()
    scores: dict[str, tuple[float, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len({len(column) for column in (self.document, self.member, self.tokens, *self.scores.values())}) > 1:
            raise ValueError("columns of different lengths")
