"""Losses of tokens: -log₂ p of every target of ragged documents, equal in every batch."""

import math

import torch
from torch import Tensor

from kernelmem.core import Progress
from kernelmem.core.checks import as_float_dtype, check_instance
from kernelmem.core.options import MEMORY, as_progress
from kernelmem.text.documents import as_documents, check_vocabulary
from kernelmem.text.language_models import CausalLM
from kernelmem.text.losses.result import TokenLosses
from kernelmem.text.losses.targets import as_targets
from kernelmem.text.losses.windows import as_window, passes_of

ROUNDING = 64 * torch.finfo(torch.float64).eps  # of log p, relative: a smaller sigma is zero
LARGEST = 1e150  # nats, whose square is finite


def token_losses(
    lm: CausalLM,
    documents: object,
    *,
    targets: object = None,
    window: int | None = None,
    stride: int | None = None,
    dtype: torch.dtype | None = None,
    memory: int | str = MEMORY,
    progress: Progress = None,
) -> TokenLosses:
    """Compute the loss of every token: l_t = -log₂ p(x_t | BOS, x_0 ... x_{t-1}) in bits, and what the model expected.

    A document has the same losses in every batch and order (to 1e-12 in float64). Without BOS the first token of a document
    has no loss. With a window of W tokens and a stride s, a token has at least W - s tokens of context (or all there are),
    BOS stands before every window, and every target is scored once: s = 1 is the loop over all tokens, each with the
    W - 1 tokens before it. Cost: one pass over T tokens per document; T / s passes over W tokens with windows.

    Args:
        lm: from :func:`kernelmem.text.causal_lm`.
        documents: ragged token ids, as for :func:`kernelmem.text.as_documents`; documents may be empty.
        targets: tokens on which training put loss, per document: True and False, or labels (token ids, with -100 where there
            was no loss, not shifted); None: all.
        window: number of tokens of a document that one pass covers; None: all.
        stride: number of tokens between the starts of two windows; None: half the window.
        dtype: precision of the model, torch.float32 or torch.float64; None: as it is. The logarithms are always float64.
        memory: largest number of bytes of the log-probabilities of one batch.
        progress: a function of (done, total) passes, True, False or None.

    Raises:
        InputError: not token ids, ids outside the vocabulary, targets that do not fit the documents, a stride above the
            window, a document that is too long for the model or for ``memory``. NumericalError: NaN in the logits.

    >>> from kernelmem.text import causal_lm
    >>> model = torch.nn.Sequential(torch.nn.Embedding(4, 2), torch.nn.Linear(2, 4))
    >>> _ = [torch.nn.init.zeros_(p) for p in model.parameters()]
    >>> losses = token_losses(causal_lm(model, bos=0), [[1, 2, 3], [2]])  # uniform: 2 bits per token
    >>> losses.per_document().tolist()
    [6.0, 2.0]
    """
    check_instance(lm, "lm", CausalLM, hint="pass km.text.causal_lm(model)")
    documents = as_documents(documents)
    check_vocabulary(documents, lm.vocabulary)
    masks = as_targets(targets, documents)
    window, stride = as_window(window, stride, has_bos=lm.bos is not None)
    dtype = None if dtype is None else as_float_dtype(dtype)
    passes = [p for p in passes_of(lm, documents, window, stride) if bool(masks[p.document][p.first : p.stop].any())]
    inputs = [p.inputs for p in passes]
    lm.check_inputs(inputs, "documents", memory)
    report, done = as_progress(progress, "token losses", "pass"), 0

    starts = documents.lengths.cumsum(0) - documents.lengths  # places of the first tokens in the concatenated documents
    ids = torch.cat(documents.ids)
    columns = torch.zeros(len(ids), 4, dtype=torch.float64)
    for numbers, log_probs in lm.batches(inputs, dtype=dtype, memory=memory):
        scored = [passes[number] for number in numbers]
        counts = torch.tensor([p.stop - p.first for p in scored])
        batch_rows = torch.repeat_interleave(torch.arange(len(scored)), counts)
        rows = torch.cat([torch.arange(p.row, p.row + p.stop - p.first) for p in scored])
        places = torch.cat([torch.arange(p.first, p.stop) + starts[p.document] for p in scored])
        selected = log_probs[batch_rows.to(log_probs.device), rows.to(log_probs.device)]
        columns[places] = _losses(selected, ids[places].to(log_probs.device)).cpu()
        done += len(numbers)
        report(done, len(passes))

    owner = torch.repeat_interleave(documents.lengths)
    positions, is_target = torch.arange(len(ids)) - starts[owner], torch.cat(masks)
    scored = is_target & (positions >= (0 if lm.bos is not None else 1))
    values = columns[scored]
    return TokenLosses(
        token_bits=values[:, 0].contiguous(),
        token_margins=values[:, 1].contiguous(),
        token_mu=values[:, 2].contiguous(),
        token_sigma=values[:, 3].contiguous(),
        positions=positions[scored],
        counts=torch.bincount(owner[scored], minlength=len(documents)),
        unscored=torch.bincount(owner[is_target & ~scored], minlength=len(documents)),
        model=lm.name,
        bos=lm.bos,
        window=window,
        stride=None if window is None else stride,
        notes=_notes(documents.ids, lm.bos),
    )


def _losses(rows: Tensor, tokens: Tensor) -> Tensor:
    """Return bits, margins, mu and sigma (M, 4) of M tokens, from log-probabilities (M, V) that it overwrites."""
    tokens = tokens[:, None]
    log_p = rows.gather(1, tokens)
    probabilities = rows.exp()
    finite = rows.clamp(min=-LARGEST) if bool(rows.amin() < -LARGEST) else rows  # 0 log 0 = 0
    mu = torch.einsum("mv,mv->m", probabilities, finite)[:, None]
    deviations = finite - mu
    sigma = torch.einsum("mv,mv->m", probabilities.mul_(deviations), deviations)[:, None].clamp(min=0).sqrt()
    sigma = torch.where(sigma > ROUNDING * mu.abs().clamp(min=1), sigma, 0.0)
    others = rows.scatter_(1, tokens, -math.inf).amax(1, keepdim=True)
    return torch.cat([-log_p / math.log(2), log_p - others, mu / math.log(2), sigma / math.log(2)], 1)


def _notes(ids: tuple[Tensor, ...], bos: int | None) -> tuple[str, ...]:
    """Return a remark if every document starts with BOS already."""
    starts = [int(row[0]) for row in ids if len(row)]
    if bos is None or not starts or any(start != bos for start in starts):
        return ()
    return (f"every document starts with token {bos}, which is put before it as BOS too: was it tokenized with BOS?",)
