"""Prompts: checked documents and contexts, and what a language model makes of them by greedy decoding."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kernelmem.core.errors import InputError
from kernelmem.text.documents import Documents, as_documents, check_vocabulary
from kernelmem.text.language_models import CausalLM, read_prefixes
from kernelmem.text.overlap import NgramModel

FIRST = 16  # prompts that are read before the size of a state is known


def check_documents(value: object, vocabulary: int, name: str) -> Documents:
    """Return documents whose token ids are below ``vocabulary``.

    Raises:
        InputError: not documents, or other ids.
    """
    documents = as_documents(value, name)
    check_vocabulary(documents, vocabulary, name)
    return documents


def contexts_before(contexts: Sequence[object], vocabulary: int) -> list[Tensor]:
    """Return the contexts before a prefix, the empty one first.

    Raises:
        InputError: not documents, or ids outside the vocabulary.
    """
    nothing = torch.zeros(0, dtype=torch.int64)
    if isinstance(contexts, list | tuple) and not contexts:
        return [nothing]
    return [nothing, *check_documents(contexts, vocabulary, "contexts")]


def check_windows(
    cut: tuple[Tensor, Tensor], documents: Documents, lengths: tuple[int, int], name: str
) -> tuple[Tensor, Tensor]:
    """Return document and start of the windows after checking that there is one.

    Raises:
        InputError: no document is as long as a window.
    """
    if not len(cut[0]):
        raise InputError(
            f"{name} of at most {int(documents.lengths.max())} tokens",
            expected=f"a document of at least prefix + suffix = {sum(lengths)} tokens",
            hint="pass a smaller prefix= or suffix=",
        )
    return cut


def greedy_continuations(lm: CausalLM | NgramModel, prompts: Tensor, n: int, memory: int | str) -> Tensor:
    """Return the n tokens by which greedy decoding continues each prompt (W, T), (W, n): the first argmax of equal ones.

    A model with a state is read once, token by token; another one, and n-gram models, once for every token.

    Raises:
        InputError: prompts too long for the model or for ``memory``.
    """
    tokens = torch.zeros(len(prompts), n, dtype=torch.int64)
    if isinstance(lm, NgramModel):
        for t in range(n):
            tokens[:, t] = lm.next_log_probs(torch.cat([prompts, tokens[:, :t]], 1), memory=memory).argmax(1)
        return tokens
    longest = torch.zeros(prompts.shape[1] + n - 1, dtype=torch.int64)
    lm.check_inputs([lm.with_bos(longest)], "prompts", memory)
    first, size = 0, FIRST
    while first < len(prompts):
        rows = torch.arange(min(size, len(prompts) - first))
        prefixes, log_p = read_prefixes(lm, prompts[first : first + len(rows)], dtype=None, memory=memory)
        size = prefixes.rows_at_once
        tokens[first : first + len(rows), 0] = log_p.argmax(1)
        for t in range(1, n):
            prefixes, log_p = prefixes.extend(rows, tokens[first : first + len(rows), t - 1])
            tokens[first : first + len(rows), t] = log_p.argmax(1)
        first += len(rows)
    return tokens
