"""Training documents that taught a language model a sentence: exactly from a recorded run, or estimated from tangents."""

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from kernelmem.core.checks import ArrayLike, check_model
from kernelmem.core.options import Progress
from kernelmem.kernels import ntk
from kernelmem.recording import Run
from kernelmem.text.attribution.question import Decode, TeachersOptions, as_question
from kernelmem.text.attribution.recorded_documents import count_passes
from kernelmem.text.attribution.result import Change, Teachers
from kernelmem.text.losses import document_batch, document_loss
from kernelmem.trajectory import influence, ledger

LN2 = math.log(2)  # nats per bit
DEFAULT_OPTIONS = TeachersOptions()


def teachers(
    run: Run,
    model: nn.Module,
    sentence: ArrayLike,
    documents: object,
    *,
    bos: int | None = None,
    kinds: object = None,
    own: ArrayLike | None = None,
    decode: Decode | None = None,
    options: TeachersOptions = DEFAULT_OPTIONS,
    progress: Progress = None,
) -> Teachers:
    """Attribute what a model learned of a sentence to the documents of its recorded training, token by token.

    For a token of −log₂ p = l bits, l_before − l_after = Σ_i saved_i + decay + rounding + buffers + residual, the terms of
    :func:`kernelmem.ledger`, which is exact for the run: a document that was never used has 0. They describe this run; what
    would change without a document is ``TeachersOptions(method="influence")``.

    Args:
        run: recorded with ``forward=document_loss`` and batches from :func:`document_batch`.
        model: the module that was trained, in any state; never changed.
        sentence: token ids (T,).
        documents: token ids of the training documents, document i being example i of the run, without BOS.
        bos: token id that training put before every document, or None.
        kinds: n names or numbers, kinds of documents that are compared with each other (text, canary, ...); None: one kind.
        own: numbers of the documents, or a mask (n,), that count as copies of the sentence; None: those that contain it.
        decode: function from token ids to text. It reveals the sentence and the documents shown: the result, its files and
            its HTML then contain their text. None: the result has numbers and positions only.
        options: context, method, shared spans.
        progress: a function of (done, total), True, False or None.

    Raises:
        InputError: documents that are not those of the run, a sentence without a token that has a loss, another loss, or
            what :func:`kernelmem.ledger` refuses. VerificationError, UnsupportedModelError, FileCorruptError: as there.

    Cost: a ledger (or influences) of as many rows as the sentence has tokens: m tokens, T steps of batch B and P parameters
    take O(m T B P) operations and m P numbers of memory.

    Source: the ledger of kernelmem; influence: Hara, Nitanda and Maehara 2019.
    """
    question = as_question(sentence, documents, bos, kinds, own, decode, options)
    passes = count_passes(run, question.documents, bos)
    arguments = (run, model, question.batch)
    loss = _output if options.loss is None else options.loss
    if options.method == "influence":
        effect = influence(*arguments, loss=loss, forward=document_loss, progress=progress)
        notes = () if effect.trusted else ("replays of the training without documents disagree: do not rely on this",)
        result = question.answer("influence", -effect.influence[:, :, 0].T / LN2, decode, options)
        return replace(result, passes=passes, notes=notes)
    account = ledger(*arguments, loss=loss, forward=document_loss, progress=progress)
    terms = {name: -getattr(account, name)[:, 0] / LN2 for name in ("decay", "rounding", "buffers", "residual")}
    change = Change(account.initial[:, 0] / LN2, account.final[:, 0] / LN2, **terms)
    result = question.answer("ledger", -account.contributions[:, :, 0].T / LN2, decode, options)
    return replace(result, passes=passes, change=change, notes=tuple(account.open_terms()))


def tangent_teachers(
    model: nn.Module,
    sentence: ArrayLike,
    documents: object,
    *,
    bos: int | None = None,
    kinds: object = None,
    own: ArrayLike | None = None,
    decode: Decode | None = None,
    options: TeachersOptions = DEFAULT_OPTIONS,
    progress: Progress = None,
) -> Teachers:
    """Estimate from one model, without its run, which documents would teach it a sentence, token by token.

    saved_it = ∇L_i · ∇l_t / ln 2 is the tangent kernel of the loss of document i and of token t: the bits of the token that
    one step of gradient descent with learning rate 1 on the document saves, to first order. At the trained weights the
    gradients of well-learned documents are small, so that it underrates them; weights of an earlier checkpoint do not.

    Arguments, and errors other than those of a run, are those of :func:`teachers`; ``options.method`` and ``options.loss`` are
    not used.

    Cost: a backward pass per document and token, and their inner products (:func:`kernelmem.ntk`).

    Source: tangent kernel: Jacot, Gabriel and Hongler 2018; one checkpoint of TracIn: Pruthi et al. 2020.
    """
    check_model(model)
    question = as_question(sentence, documents, bos, kinds, own, decode, options)
    rows = document_batch(question.documents, bos=bos)
    kernel = ntk(model, rows, question.batch, forward=document_loss, memory=options.memory, progress=progress)
    return question.answer("tangents", kernel.to(torch.float64).cpu() / LN2, decode, options)


def _output(outputs: Tensor, y: Tensor) -> Tensor:
    """Return the loss of each document: the output itself."""
    return outputs[:, 0]
