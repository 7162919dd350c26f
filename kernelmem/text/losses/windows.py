"""Sliding windows: inputs of the passes over a document, and the tokens that each of them scores."""

from dataclasses import dataclass

from torch import Tensor

from kernelmem.core import InputError
from kernelmem.core.checks import as_count
from kernelmem.text.documents import Documents
from kernelmem.text.language_models import CausalLM


@dataclass(frozen=True)
class Pass:
    """One pass of the model: it scores the tokens ``first`` to ``stop`` (excluded) of a document.

    Attributes:
        document: number of the document.
        inputs: token ids that the model reads, (T,).
        row: row of the output that predicts token ``first``.
        first: number of the first token that is scored.
        stop: number of the first token after them.
    """

    document: int
    inputs: Tensor
    row: int
    first: int
    stop: int


def as_window(window: object, stride: object, *, has_bos: bool) -> tuple[int | None, int]:
    """Return window and stride as whole numbers; (None, 0) for one pass. The default stride is half the window.

    Raises:
        InputError: a stride without a window, or above it; or a window without room for a token and its context.
    """
    if window is None:
        if stride is not None:
            raise InputError(f"stride={stride} without a window", expected="both or none", hint="pass window= too")
        return None, 0
    context = 0 if has_bos else 1  # without BOS a token needs one before it in its window
    window = as_count(window, "window", minimum=1 + context)
    return window, max(1, window // 2) if stride is None else as_count(stride, "stride", maximum=window - context)


def passes_of(lm: CausalLM, documents: Documents, window: int | None, stride: int) -> list[Pass]:
    """Return the passes over all documents, which score every token that has a context exactly once.

    Window k covers the tokens k s to k s + W (excluded). The first scores all of its tokens, the others their last s. Each
    starts with BOS if the model has one; otherwise the first token of a document is not scored.
    """
    passes: list[Pass] = []
    unscored = 0 if lm.bos is not None else 1
    for number, ids in enumerate(documents):
        first, start, n = unscored, 0, len(ids)
        while first < n:
            stop = n if window is None else min(start + window, n)
            passes.append(Pass(number, lm.inputs(ids[start:stop]), first - start - unscored, first, stop))
            first, start = stop, start + stride
    return passes
