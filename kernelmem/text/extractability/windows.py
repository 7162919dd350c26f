"""Windows of documents, prefix and suffix, and what a language model makes of every suffix."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernelmem.core.errors import InputError
from kernelmem.text.documents import Documents
from kernelmem.text.extractability.sampling import Sampling
from kernelmem.text.language_models import CausalLM
from kernelmem.text.overlap import NgramModel

LARGEST_IMBALANCE = 1.1  # ratio of windows per document, above which documents are not compared
TIE = 1e-4  # nats; smaller margins can have the other sign on another machine or in another batch


@dataclass(frozen=True, eq=False)
class Windows:
    """W windows of documents, each with C contexts before the prefix.

    Attributes:
        document: (W,) int64, document of the window.
        start: (W,) int64, token of the document at which the suffix starts.
        greedy: (C, W) bool, every suffix token is the argmax (the first of equal ones): greedy decoding emits the suffix.
        margin: (C, W) float64, nats; smallest log-probability of a suffix token minus the largest of another token.
        log_p: (C, W) float64, natural logarithm of the probability that a sample is the suffix; −inf if it cannot be.
    """

    document: Tensor
    start: Tensor
    greedy: Tensor
    margin: Tensor
    log_p: Tensor

    def __post_init__(self) -> None:
        W = len(self.document)
        shapes = {tuple(value.shape) for value in (self.greedy, self.margin, self.log_p)}
        if len(shapes) != 1 or len(self.start) != W or self.greedy.ndim != 2 or self.greedy.shape[1] != W:
            raise ValueError("windows of different numbers")

    @property
    def tie(self) -> Tensor:
        """Whether the margin is below 1e-4 in absolute value in a context, so that rounding decides, (W,) bool."""
        return (self.margin.abs() < TIE).any(0)


def cut_windows(documents: Documents, prefix: int, suffix: int, stride: int | None) -> tuple[Tensor, Tensor]:
    """Return document (W,) and first token (W,) of the windows of prefix + suffix tokens that fit into the documents."""
    length = prefix + suffix
    starts = [
        range(0, len(ids) - length + 1, length + len(ids) if stride is None else stride)
        if len(ids) >= length
        else range(0)
        for ids in documents
    ]
    document = [i for i, places in enumerate(starts) for _ in places]
    start = [place for places in starts for place in places]
    return torch.tensor(document, dtype=torch.int64), torch.tensor(start, dtype=torch.int64)


def continues_repetition(documents: Documents, cut: tuple[Tensor, Tensor], lengths: tuple[int, int]) -> Tensor:
    """Return True for windows (W,) whose prefix ends with a span twice in a row, and whose suffix goes on with it."""
    prefix, length = lengths[0], sum(lengths)
    pairs = zip(*(part.tolist() for part in cut), strict=True)
    rows = torch.stack([documents[i][j : j + length] for i, j in pairs])
    repeats = torch.zeros(len(rows), dtype=torch.bool)
    for period in range(1, prefix // 2 + 1):
        repeats |= (rows[:, prefix - period :] == rows[:, prefix - 2 * period : length - period]).all(1)
    return repeats


def check_comparable(per_document: float, per_unseen: float) -> None:
    """Check that documents and unseen ones have as many windows each.

    Raises:
        InputError: they do not.
    """
    if max(per_document, per_unseen) > LARGEST_IMBALANCE * min(per_document, per_unseen):
        raise InputError(
            f"{per_document:.3g} windows per document, and {per_unseen:.3g} per unseen one",
            expected="as many, because more windows are more chances",
            hint="cut all documents to one length, or use stride=None: one window per document",
        )


def score_windows(
    lm: CausalLM | NgramModel,
    documents: Documents,
    cut: tuple[Tensor, Tensor],
    lengths: tuple[int, int],
    contexts: Sequence[Tensor],
    sampling: Sampling,
    memory: int | str,
) -> Windows:
    """Return what a language model makes of every suffix, after every context and prefix.

    One pass per context gives the probabilities of all suffix tokens, each after the true tokens before it: greedy decoding
    emits the suffix exactly if every one of them is the argmax.

    Args:
        lm: language model.
        documents: token ids.
        cut: document and first token of the windows.
        lengths: number of tokens of prefix and suffix.
        contexts: token ids (T_c,) before the prefix.
        sampling: distribution that tokens are sampled from.
        memory: limit for the probabilities of a batch.
    """
    prefix, suffix = lengths
    rows = [documents[i][j : j + prefix + suffix] for i, j in zip(*(part.tolist() for part in cut), strict=True)]
    greedy = torch.zeros(len(contexts), len(rows), dtype=torch.bool)
    margin = torch.zeros(len(contexts), len(rows), dtype=torch.float64)
    log_p = torch.zeros_like(margin)
    for c, context in enumerate(contexts):
        prompts = [torch.cat([context, row]) for row in rows]
        for w, log_probs in enumerate(lm.log_probs(prompts, memory=memory)):
            p, target = log_probs[-suffix:], rows[w][prefix:, None]
            others = p.scatter(1, target, -torch.inf).amax(1)
            greedy[c, w] = bool((p.argmax(1) == target[:, 0]).all())
            margin[c, w] = (p.gather(1, target)[:, 0] - others).min()
            log_p[c, w] = sampling.log_probs(p).gather(1, target).sum()
    return Windows(cut[0], cut[1] + prefix, greedy, margin, log_p)
