"""Near-verbatim extraction: greedy continuations compared with the text that follows the prefix, over all offsets."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.checks import as_count, check_instance
from kernelmem.core.options import MEMORY, Progress, as_bytes, as_progress
from kernelmem.text.documents import Documents
from kernelmem.text.extractability.continuations.alignment import PADDING, contained, edit_distance, longest_common
from kernelmem.text.extractability.continuations.result import Continuations, NearVerbatim
from kernelmem.text.extractability.prompts import check_documents, check_windows, contexts_before, greedy_continuations
from kernelmem.text.extractability.windows import cut_windows
from kernelmem.text.language_models import CausalLM
from kernelmem.text.overlap import NgramModel, suffix_array

BYTES_PER_CELL = 48  # of the alignment of a continuation and a document


def near_verbatim(
    lm: CausalLM | NgramModel,
    documents: object,
    *,
    prefix: int = 64,
    suffix: int = 16,
    stride: int | None = None,
    ngram: int = 5,
    contexts: Sequence[object] = (),
    unseen: object = None,
    memory: int | str = MEMORY,
    progress: Progress = None,
) -> NearVerbatim:
    """Generate the greedy continuation of every prefix and compare it with the rest of its document, at all offsets.

    Text that differs from the suffix in a token, or that is shifted, is not extracted exactly (:func:`extraction`) and can
    still be the document's. The continuation of m tokens is compared with what follows the prefix, so that repeating the
    prompt does not count.

    Args:
        lm: language model, from :func:`causal_lm`; its BOS is put before every prompt.
        documents: token ids of training documents.
        prefix: number of tokens of the prompt, at least 1.
        suffix: number m of tokens that are generated, at least 1.
        stride: None for one window per document, at its start; or the distance of windows.
        ngram: tokens of an n-gram, at most ``suffix``.
        contexts: token ids that are put before the prefix, in addition to nothing.
        unseen: token ids of documents from the same source that were not trained on.
        memory: limit of what is allocated.
        progress: a function of (done, total) passes over all prompts, True, False or None.

    Raises:
        InputError: as for :func:`extraction`; ``ngram`` above ``suffix``.

    Cost: one pass over each prompt and its continuation for models with a state (see ``step=`` of :func:`causal_lm`), otherwise
    ``suffix`` passes; and O(suffix · n) for the alignment with a document of n tokens.

    Source: Ippolito et al. 2023 (verbatim measures miss near copies); alignment: Sellers 1980.

    >>> from kernelmem.text import ngram_model
    >>> stored = [[1, 2, 3, 4, 5, 6, 7], [7, 5, 3, 1, 2, 4, 6]]
    >>> near_verbatim(ngram_model(stored), stored, prefix=2, suffix=4, ngram=2).similarity("edit").tolist()
    [1.0, 1.0]
    """
    check_instance(lm, "lm", (CausalLM, NgramModel), hint="pass lm=km.text.causal_lm(model)")
    lengths = as_count(prefix, "prefix"), as_count(suffix, "suffix")
    ngram = as_count(ngram, "ngram", maximum=lengths[1])
    stride = None if stride is None else as_count(stride, "stride")
    prompts = [_Prompts(check_documents(documents, lm.vocabulary, "documents"), lengths, stride, "documents")]
    if unseen is not None:
        prompts.append(_Prompts(check_documents(unseen, lm.vocabulary, "unseen"), lengths, stride, "unseen"))
    before, limit = contexts_before(contexts, lm.vocabulary), as_bytes(memory)
    report, total = as_progress(progress, "continuations", "pass"), len(before) * len(prompts)
    generated: list[Tensor] = []
    for part in prompts:
        continuations: list[Tensor] = []
        for context in before:
            read = torch.stack([torch.cat([context, row]) for row in part.prefixes])
            continuations.append(greedy_continuations(lm, read, lengths[1], memory))
            report(len(generated) * len(before) + len(continuations), total)
        generated.append(torch.stack(continuations))
    members, ids = prompts[0], generated[0]
    holders = suffix_array(members.documents, memory=memory).count(list(ids.flatten(0, 1)))[1]
    return NearVerbatim(
        prefix=lengths[0],
        suffix=lengths[1],
        ngram=ngram,
        windows=_compared(ids, members, members.rest, ngram, limit),
        mismatched=_compared(ids, members, members.other_rest, ngram, limit) if members.n_documents > 1 else None,
        unseen=None if unseen is None else _compared(generated[1], prompts[1], prompts[1].rest, ngram, limit),
        holders=torch.from_numpy(holders).reshape(ids.shape[:2]),
        n_documents=members.n_documents,
        n_unseen=0 if unseen is None else prompts[1].n_documents,
    )


class _Prompts:
    """Prefixes of the windows of documents, and the text that follows each."""

    def __init__(self, documents: Documents, lengths: tuple[int, int], stride: int | None, name: str) -> None:
        self.documents = documents
        document, start = check_windows(cut_windows(documents, *lengths, stride), documents, lengths, name)
        pairs = list(zip(document.tolist(), start.tolist(), strict=True))
        self.document, self.start = document, start + lengths[0]
        self.prefixes = [documents[i][j : j + lengths[0]] for i, j in pairs]
        self.rest = [documents[i][j + lengths[0] :] for i, j in pairs]
        self.n_documents = len(document.unique())

    @property
    def other_rest(self) -> list[Tensor]:
        """What follows a window of the next document, for each window."""
        first = (
            (self.document.diff(prepend=torch.tensor([-1])) != 0).nonzero()[:, 0].tolist()
        )  # window of each document
        place = (self.document.diff(prepend=self.document[:1]) != 0).cumsum(0).tolist()
        return [self.rest[first[(k + 1) % len(first)]] for k in place]


def _compared(ids: Tensor, prompts: _Prompts, texts: list[Tensor], ngram: int, limit: int) -> Continuations:
    """Return the comparison of continuations (C, W, m) with one text per window."""
    C, W, m = ids.shape
    common = np.zeros((C, W), dtype=np.int64)
    distance, ngrams = np.zeros_like(common), np.zeros((C, W))
    size = max(map(len, texts))
    for rows in np.array_split(np.arange(W), min(W, -(-W * size * BYTES_PER_CELL // limit))):
        padded = np.full((len(rows), size), PADDING, dtype=np.int64)
        for k, w in enumerate(rows):
            padded[k, : len(texts[w])] = texts[w].numpy()
        for c in range(C):
            text = ids[c, rows].numpy()
            common[c, rows], distance[c, rows] = longest_common(text, padded), edit_distance(text, padded)
            ngrams[c, rows] = contained(text, padded, ngram)
    suffixes = torch.stack([torch.nn.functional.pad(text[:m], (0, m - len(text[:m])), value=PADDING) for text in texts])
    columns = (torch.from_numpy(column) for column in (common, distance, ngrams))
    return Continuations(prompts.document, prompts.start, (ids == suffixes).all(2), *columns)
