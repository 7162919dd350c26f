"""Question of teachers: a sentence whose tokens are explained one by one, and the documents that may have taught it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.checks import (
    ArrayLike,
    as_count,
    as_indices,
    as_list,
    check_callable,
    check_choice,
    check_instance,
    describe,
)
from kernelmem.core.errors import InputError
from kernelmem.core.options import MEMORY, as_bytes
from kernelmem.text.attribution.result import Method, Revealed, Teachers
from kernelmem.text.attribution.shared_spans import SharedSpans, shared_spans
from kernelmem.text.documents import Documents, as_documents
from kernelmem.text.losses import document_batch
from kernelmem.training.losses import Loss

Decode: TypeAlias = Callable[[list[int]], str]
"""Maps token ids to text."""


@dataclass(frozen=True)
class TeachersOptions:
    """Options of :func:`teachers` and :func:`tangent_teachers`."""

    context: ArrayLike = ()
    """Token ids before the sentence, which the model reads: text is often recalled only in the context of its training."""
    method: Literal["ledger", "influence"] = "ledger"
    """"ledger": what the gradients of a document did in the recorded run. "influence": what the sentence would cost more
    without the document, to first order. Of :func:`teachers` only."""
    loss: Loss | None = None
    """The per-example loss with which the run was recorded; None: the output of ``document_loss``."""
    minimum: int = 8
    """Fewest tokens of a span that counts as shared with the sentence."""
    shown: int = 10
    """Number of documents whose text ``to_html`` shows."""
    memory: int | str = MEMORY
    """Limit of what is allocated for kernels and shared spans."""

    def __post_init__(self) -> None:
        check_choice(self.method, "method", ("ledger", "influence"))
        as_count(self.minimum, "minimum")
        as_count(self.shown, "shown", minimum=0)
        as_bytes(self.memory)


@dataclass(frozen=True)
class Question:
    """A sentence and n documents.

    Attributes:
        batch: one row per token of the sentence that has a loss, for ``document_loss``.
        positions: numbers of these tokens in the sentence.
        sentence: its token ids.
        documents: token ids of the documents.
        kinds: (n,) int64, kind of each document.
        kind_names: names of the kinds.
        own: (n,) bool, copies of the sentence.
        spans: what documents share with the sentence.
    """

    batch: dict[str, Tensor]
    positions: Tensor
    sentence: Tensor
    documents: Documents
    kinds: Tensor
    kind_names: tuple[str, ...]
    own: Tensor
    spans: SharedSpans

    def answer(self, method: Method, saved: Tensor, decode: Decode | None, options: TeachersOptions) -> Teachers:
        """Return the result for contributions (at most n, M) of the first documents; others were never used and have 0.

        Raises:
            InputError: ``decode`` fails, or does not return text.
        """
        values = torch.zeros(len(self.documents), len(self.positions), dtype=torch.float64)
        values[: len(saved)] = saved
        shown = values.sum(1).argsort(descending=True, stable=True)[: options.shown]
        revealed = None
        if decode is not None:
            texts = tuple(decode_tokens(decode, self.documents[i]) for i in shown.tolist())
            revealed = Revealed(decode_tokens(decode, self.sentence), texts)
        return Teachers(
            method=method,
            saved=values,
            positions=self.positions,
            size=len(self.sentence),
            own=self.own,
            kinds=self.kinds,
            kind_names=self.kind_names,
            passes=None,
            change=None,
            spans=self.spans,
            shown=shown,
            revealed=revealed,
            notes=(),
        )


def as_question(
    sentence: ArrayLike,
    documents: object,
    bos: int | None,
    kinds: object,
    own: ArrayLike | None,
    decode: Decode | None,
    options: TeachersOptions,
) -> Question:
    """Check the arguments of :func:`teachers` and find the spans that documents share with the sentence.

    Raises:
        InputError: an argument is of another kind, or the sentence has no token with a loss.
    """
    check_instance(options, "options", TeachersOptions)
    if decode is not None:
        check_callable(decode, "decode", ["ids"])
    checked = as_documents(documents)
    ids = as_documents([sentence], "sentence")[0]
    context: object = options.context
    is_empty = isinstance(context, list | tuple) and not context
    before = torch.zeros(0, dtype=torch.int64) if is_empty else as_documents([context], "context")[0]
    positions = torch.arange(0 if bos is not None or len(before) else 1, len(ids))
    if not len(positions):
        raise InputError(
            f"a sentence of {len(ids)} tokens",
            expected="at least one token that has a loss: one with a token before it",
            hint="pass a longer sentence, bos=, or TeachersOptions(context=...)",
        )
    rows = [torch.cat([before, ids])] * len(positions)
    targets = [torch.arange(len(rows[0])) == len(before) + t for t in positions.tolist()]
    numbers, names = _as_kinds(kinds, len(checked))
    spans = shared_spans(ids, checked, options.minimum, options.memory)
    copies = spans.longest == len(ids)
    if own is not None:
        copies = torch.zeros(len(checked), dtype=torch.bool)
        copies[as_indices(own, "own", len(checked), what="document")] = True
    batch = document_batch(rows, bos=bos, targets=targets)
    return Question(batch, positions, ids, checked, numbers, names, copies, spans)


def _as_kinds(kinds: object, n: int) -> tuple[Tensor, tuple[str, ...]]:
    """Return the kind of each document as a number (n,), and the names of the kinds.

    Raises:
        InputError: not one name or whole number per document.
    """
    if kinds is None:
        return torch.zeros(n, dtype=torch.int64), ("document",)
    values: list[object] = as_list(kinds, "kinds")
    values = [v.item() if isinstance(v, Tensor | np.generic) and v.ndim == 0 else v for v in values]
    if len(values) != n or not all(isinstance(v, str | int) and not isinstance(v, bool) for v in values):
        raise InputError(
            f"kinds={describe(kinds)} for {n} documents",
            expected="one name or whole number per document",
            hint='pass kinds=["text", "canary", ...]',
        )
    names = sorted({str(v) for v in values})
    return torch.tensor([names.index(str(v)) for v in values]), tuple(names)


def decode_tokens(decode: Decode, ids: Tensor) -> tuple[str, ...]:
    """Return the text that each token adds to that of the token before it: a space before a word belongs to the word.

    Raises:
        InputError: ``decode`` fails, or does not return text; the message has neither.
    """
    numbers: list[int] = ids.tolist()
    pieces: list[str] = []
    for i, number in enumerate(numbers):
        alone = _decoded(decode, [number])
        if i:
            before, both = _decoded(decode, numbers[i - 1 : i]), _decoded(decode, numbers[i - 1 : i + 1])
            alone = both[len(before) :] if both.startswith(before) else alone
        pieces.append(alone)
    return tuple(pieces)


def _decoded(decode: Decode, ids: list[int]) -> str:
    try:
        text: object = decode(ids)
    except Exception as error:
        raise _bad_decode(f"decode, which raised {type(error).__name__} for {len(ids)} token ids") from None
    if isinstance(text, str):
        return text.encode("utf-8", "replace").decode("utf-8")
    raise _bad_decode(f"decode, which returned {type(text).__name__}")


def _bad_decode(given: str) -> InputError:
    return InputError(
        given, expected="text of a list of token ids", hint="pass decode=lambda ids: tokenizer.decode(ids)"
    )
