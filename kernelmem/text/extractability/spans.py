"""Spans of extracted suffixes: overlapping windows merged, their text counted in documents."""

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.checks import check_callable
from kernelmem.core.errors import InputError
from kernelmem.text.documents import as_documents
from kernelmem.text.extractability.windows import Windows
from kernelmem.text.overlap import suffix_array

if TYPE_CHECKING:
    import pandas as pd

Decode: TypeAlias = Callable[[list[int]], str]
"""Maps token ids to text."""


def merged_spans(windows: Windows, chosen: Tensor, suffix: int) -> "pd.DataFrame":
    """Return one row per span of chosen suffixes, overlapping and adjacent ones merged: document, start, stop."""
    import pandas as pd  # slow to import

    rows: list[list[int]] = []
    pairs = zip(windows.document[chosen].tolist(), windows.start[chosen].tolist(), strict=True)
    for document, start in sorted(pairs):
        if rows and rows[-1][0] == document and start <= rows[-1][2]:
            rows[-1][2] = start + suffix
        else:
            rows.append([document, start, start + suffix])
    columns = ["document", "start", "stop"]
    return pd.DataFrame(np.array(rows, dtype=np.int64).reshape(-1, 3), columns=columns).rename_axis("span")


def counted_spans(
    spans: "pd.DataFrame", known: tuple[Tensor, ...], documents: object, corpus: object, decode: Decode | None
) -> "pd.DataFrame":
    """Return spans with the columns ``copies`` and ``holders``, and ``characters`` if ``decode`` is given.

    Args:
        spans: from :func:`merged_spans`.
        known: document, start, stop, copies and holders of the chosen suffixes, by which documents are recognized.
        documents: the documents that have the spans.
        corpus: documents in which they are counted; None: the same.
        decode: function from token ids to text.

    Raises:
        InputError: other documents, or a ``decode`` that does not return text.
    """
    checked = as_documents(documents)
    if decode is not None:
        check_callable(decode, "decode", ["ids"])
    suffixes = list(zip(*(column.tolist() for column in known[:3]), strict=True))
    is_known = all(i < len(checked) and stop <= len(checked[i]) for i, _, stop in suffixes)
    array = suffix_array(checked)
    if is_known and suffixes:
        counts = array.count([checked[i][start:stop] for i, start, stop in suffixes])
        is_known = all(bool((column.numpy() == count).all()) for column, count in zip(known[3:], counts, strict=True))
    if not is_known:
        raise InputError(
            f"{len(checked)} documents whose extracted suffixes do not occur as often as they did in extraction",
            expected="the documents that were passed to extraction",
            hint="pass the same documents",
        )
    places: list[list[int]] = spans[["document", "start", "stop"]].to_numpy().tolist()
    texts = [checked[i][start:stop] for i, start, stop in places]
    if corpus is not None:
        array = suffix_array(as_documents(corpus, "corpus"))
    copies, holders = array.count(texts) if texts else (np.zeros(0, dtype=np.int64),) * 2
    counted = spans.assign(copies=copies, holders=holders)
    if decode is None:
        return counted
    return counted.assign(characters=np.array([_characters(decode, ids) for ids in texts], dtype=np.int64))


def heat(windows: Windows, suffix: int, document: int) -> Tensor:
    """Return log10 of the largest probability of a suffix that covers each token, up to the last one covered; −inf: none."""
    chosen = windows.document == document
    starts, values = windows.start[chosen].tolist(), windows.log_p.amax(0)[chosen] / np.log(10)
    result = torch.full((max(starts, default=-suffix) + suffix,), -torch.inf, dtype=torch.float64)
    for start, value in zip(starts, values, strict=True):
        result[start : start + suffix] = torch.maximum(result[start : start + suffix], value)
    return result


def _characters(decode: Decode, ids: Tensor) -> int:
    """Return the number of characters of token ids; an error does not quote them."""
    try:
        text: object = decode(ids.tolist())
    except Exception as error:
        text = error
    if isinstance(text, str):
        return len(text)
    raise InputError(
        f"decode, which returned or raised {type(text).__name__} for {len(ids)} token ids",
        expected="their text",
        hint="pass decode=lambda ids: tokenizer.decode(ids)",
    )
