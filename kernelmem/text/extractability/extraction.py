"""Extraction of training documents from a causal language model, exactly and without generating text."""

from collections.abc import Sequence

import torch

from kernelmem.core.checks import as_count, check_instance
from kernelmem.core.errors import InputError
from kernelmem.core.options import MEMORY
from kernelmem.text.extractability.prompts import check_documents, check_windows, contexts_before
from kernelmem.text.extractability.result import Extraction
from kernelmem.text.extractability.sampling import Sampling, check_sampling
from kernelmem.text.extractability.windows import continues_repetition, cut_windows, score_windows
from kernelmem.text.language_models import CausalLM
from kernelmem.text.overlap import NgramModel, ngram_model, suffix_array

ORDER = 5  # of the n-gram model of unseen documents


def extraction(
    lm: CausalLM | NgramModel,
    documents: object,
    *,
    prefix: int = 64,
    suffix: int = 16,
    stride: int | None = None,
    contexts: Sequence[object] = (),
    unseen: object = None,
    reference: CausalLM | NgramModel | None = None,
    sampling: Sampling | None = None,
    memory: int | str = MEMORY,
) -> Extraction:
    """Measure which suffixes of documents a language model emits after their prefixes, with controls.

    Greedy decoding emits a suffix if and only if each of its tokens is the argmax after the true tokens before it, and a
    sample is the suffix with probability p_z = Π q(token), q the distribution that is sampled from. Both are computed from one
    pass over the true text, so that nothing is generated. A suffix is extracted by n samples if 1 − (1 − p_z)ⁿ ≥ p.

    A rate says nothing without controls: boilerplate is emitted by any model of the language. ``unseen`` gives the rate on
    text that the model was not trained on, and ``reference`` a model that does not know the documents.

    Args:
        lm: language model, from :func:`causal_lm`; its BOS is put before every prompt.
        documents: token ids of training documents, as :func:`as_documents` reads them.
        prefix: number of tokens of the prompt, at least 1.
        suffix: number of tokens that are to be emitted, at least 1.
        stride: None for one window per document, at its start; or the distance of windows, of which overlapping ones are one
            finding in :meth:`Extraction.spans`.
        contexts: token ids that are put before the prefix, in addition to nothing: a model may recall text only in the context
            that it was trained in.
        unseen: token ids of documents from the same source that were not trained on.
        reference: a model that was not trained on the documents; None: an n-gram model of order 5 of ``unseen``.
        sampling: distribution of samples, n and p; None: the model's own, n = 1000 and p = 0.5.
        memory: limit of what is allocated.

    Raises:
        InputError: no document as long as prefix and suffix, ids outside the vocabulary, a reference with another vocabulary,
            numbers out of range, a prompt longer than the model's context, too little ``memory``.

    Cost: one pass of the model over prefix and suffix for each window and context.

    Source: Carlini et al. 2022 (greedy); Hayes et al. 2024 (sampled); Cooper et al. 2025 (windows).
    """
    check_instance(lm, "lm", (CausalLM, NgramModel), hint="pass lm=km.text.causal_lm(model)")
    lengths = as_count(prefix, "prefix"), as_count(suffix, "suffix")
    stride = None if stride is None else as_count(stride, "stride")
    sampling = Sampling() if sampling is None else sampling
    check_sampling(sampling)
    members = check_documents(documents, lm.vocabulary, "documents")
    cut = check_windows(cut_windows(members, *lengths, stride), members, lengths, "documents")
    before = contexts_before(contexts, lm.vocabulary)
    control = None if unseen is None else check_documents(unseen, lm.vocabulary, "unseen")
    unseen_cut = None
    if control is not None:
        unseen_cut = check_windows(cut_windows(control, *lengths, stride), control, lengths, "unseen")
    if reference is None and control is not None:
        reference = ngram_model(control, order=ORDER, vocabulary=lm.vocabulary, memory=memory)
    if reference is not None:
        _check_reference(reference, lm.vocabulary)
    copies, holders = suffix_array(members, memory=memory).count(
        [members[i][j + lengths[0] : j + sum(lengths)] for i, j in zip(*(part.tolist() for part in cut), strict=True)]
    )
    arguments = (lengths, before, sampling, memory)
    return Extraction(
        prefix=lengths[0],
        suffix=lengths[1],
        windows=score_windows(lm, members, cut, *arguments),
        unseen=None if control is None or unseen_cut is None else score_windows(lm, control, unseen_cut, *arguments),
        reference=None if reference is None else score_windows(reference, members, cut, *arguments),
        reference_name="" if reference is None else repr(reference),
        copies=torch.from_numpy(copies),
        holders=torch.from_numpy(holders),
        repeating=continues_repetition(members, cut, lengths),
        n_documents=len(cut[0].unique()),
        n_unseen=0 if unseen_cut is None else len(unseen_cut[0].unique()),
        n_short=len(members) - len(cut[0].unique()),
        n_short_unseen=0 if control is None or unseen_cut is None else len(control) - len(unseen_cut[0].unique()),
        sampling=sampling,
    )


def _check_reference(reference: object, vocabulary: int) -> None:
    """Check that ``reference`` is a language model of the same vocabulary.

    Raises:
        InputError: it is not.
    """
    check_instance(reference, "reference", (CausalLM, NgramModel), hint="pass reference=km.text.causal_lm(model)")
    if isinstance(reference, CausalLM | NgramModel) and reference.vocabulary != vocabulary:
        raise InputError(
            f"a reference of {reference.vocabulary} tokens for a model of {vocabulary}",
            expected="a model with the same tokens",
            hint="pass a reference with the same tokenizer, or None for an n-gram model of unseen documents",
        )
