"""km.text_audit: from a language model and its documents to a report of what it memorized."""

import hashlib
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from kernelmem.auditing.schema import check_no_report, versions
from kernelmem.auditing.text import conclusions, measurements
from kernelmem.auditing.text.inputs import TextInputs, encoding_functions, read_documents
from kernelmem.auditing.text.options import TextAuditOptions, printable_options
from kernelmem.auditing.text.redaction import Redaction, without_quotes
from kernelmem.auditing.text.result import TextAudit, table_files
from kernelmem.auditing.text.schema import (
    KIND,
    TEXT_SCHEMA_VERSION,
    ChangeAnswer,
    LanguageModelIdentity,
    Reveal,
    TextAuditDocument,
    TextContext,
    TextGate,
    TextVerdict,
)
from kernelmem.core.checks import as_list, check_instance, seed_sequence
from kernelmem.core.errors import InputError, printable
from kernelmem.core.files.weight_files import weights_sha256
from kernelmem.core.options import MEMORY, Progress, as_progress
from kernelmem.text import Canaries, CausalLM, Documents, TokenLosses, as_documents, token_losses
from kernelmem.text.canary.encoding import encode_text
from kernelmem.text.documents import check_vocabulary

N_STAGES = 5  # documents, losses, extraction, canaries, report
DEFAULT_OPTIONS = TextAuditOptions()
SEEDS = ["documents", "membership", "contexts", "exposure", "pairs"]
LEVEL = "The results speak of this one model, not of the algorithm that trained it."


@dataclass(frozen=True)
class _Measured:
    """Results of all measurements."""

    losses: TokenLosses
    reference: TokenLosses | None
    membership: measurements.MembershipResult | None
    extraction: measurements.ExtractionResult
    canaries: measurements.CanaryResult | None
    n_contexts: int


def text_audit(
    lm: CausalLM,
    train: object,
    unseen: object,
    *,
    canaries: Canaries | None = None,
    reference: CausalLM | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    memory: int | str = MEMORY,
    options: TextAuditOptions = DEFAULT_OPTIONS,
    progress: Progress = None,
) -> TextAudit:
    """Measure what a language model memorized of its training documents: four questions, with controls, nulls and ceilings.

    - *Membership*: can training documents be told from unseen ones by their losses (:func:`kernelmem.text.text_membership`)?
    - *Extraction*: does the model continue training documents verbatim more often than unseen ones
      (:func:`kernelmem.text.extraction`)? An n-gram model of unseen documents, or the reference, shows what is emitted
      without memory.
    - *Canaries*: are random secrets, inserted by coins, known better than their twins, which were not
      (:func:`kernelmem.text.exposure`, :func:`kernelmem.text.paired_test`)? Only this answer rests on randomization.
    - *Change*: did losses fall more on training documents than on unseen ones, compared with the reference?

    The verdicts stand apart, because they disagree routinely. Gates come first: a classifier of the texts alone, lengths and
    the loss of the reference alone must not tell training from unseen documents; unseen text must be new; permuted membership
    must find nothing; canaries must have been trained on, and twins not. A failed gate blanks its verdicts. A claim needs
    p ≤ .01 for its question, adjusted for the scores or methods that are tried.

    The result has no text of documents, only hashes, numbers of documents and offsets, unless ``options.reveal`` asks for it;
    errors quote no document either.

    Args:
        lm: from :func:`kernelmem.text.causal_lm`.
        train: documents that the model was trained on: texts, with ``options.encode``, or token ids.
        unseen: documents of the same kind that it was not trained on, best drawn at random from the same source.
        canaries: from :func:`kernelmem.text.canaries`, inserted in the training rows; None: no canaries.
        reference: a model that was not trained on these documents, such as the model before a fine-tune.
        out: directory for audit.json, audit.html, documents.csv and spans.csv; None: nothing is written. An older report there
            is replaced only with ``options.overwrite``.
        seed: seed of random parts, folds, contexts and references; it is recorded in the report.
        memory: largest number of bytes of the log-probabilities of one batch, and of suffix arrays.
        options: tokenizer, methods, texts of the report, redaction; see :class:`TextAuditOptions`.
        progress: see :data:`kernelmem.core.options.Progress`; counts 5 stages.

    Returns:
        TextAudit: ``.document`` (plain values), ``.to_frame()``, ``.to_html()``, ``.to_json()``, ``.save(dir)``.

    Raises:
        InputError: neither texts nor token ids, no unseen document that is new, models with different tokens, canaries of
            another vocabulary, or ``out`` holds a report or cannot be written to.
        UnsupportedModelError: the model fails. NumericalError: NaN in the logits. In all cases nothing is written.

    Cost: two passes of the model and one of the reference over at most ``options.n_documents`` documents of each kind, and
    ``options.samples`` passes over each canary.

    Source: Carlini et al. 2019, 2021, 2022; Duan et al. 2024; Zhang et al. 2024; Steinke, Nasr and Jagielski 2023.
    """
    started = time.perf_counter()
    check_instance(lm, "lm", CausalLM, hint="pass lm=km.text.causal_lm(model)")
    check_instance(options, "options", TextAuditOptions, hint="pass options=TextAuditOptions()")
    if canaries is not None:
        check_instance(canaries, "canaries", Canaries, hint="pass the canaries that were inserted")
    if reference is not None:
        _check_reference(reference, lm)
    report_stage, seeds = as_progress(progress, "text audit", "stage"), seed_sequence(seed, SEEDS)
    options = printable_options(options)
    if out is not None:
        check_no_report(out, overwrite=options.overwrite)
    with without_quotes():
        encode, decode = encoding_functions(options)
        report_stage(0, N_STAGES)
        inputs = read_documents(lm, train, unseen, options, encode, seed=seeds["documents"], memory=memory)
        redaction = Redaction(inputs.key, _reveal(options), decode)
        report_stage(1, N_STAGES)
        measured = _measure(lm, inputs, canaries, reference, options, seeds, memory, report_stage)
        document = _document(lm, inputs, measured, canaries, reference, options, redaction, seed, memory)
        document = replace(document, seconds=round(time.perf_counter() - started, 3))
        result = TextAudit(document)
        if out is not None:
            result.save(out, overwrite=options.overwrite)
    report_stage(N_STAGES, N_STAGES)
    return result


def _measure(
    lm: CausalLM,
    inputs: TextInputs,
    canaries: Canaries | None,
    reference: CausalLM | None,
    options: TextAuditOptions,
    seeds: dict[str, int],
    memory: int | str,
    report_stage: Callable[[int, int], object],
) -> _Measured:
    """Return the results of all measurements."""
    documents = Documents((*inputs.train.ids, *inputs.unseen.ids))
    losses = token_losses(lm, documents, memory=memory, progress=False)
    base = None if reference is None else token_losses(reference, documents, memory=memory, progress=False)
    membership = measurements.membership(losses, base, inputs, seed=seeds["membership"])
    report_stage(2, N_STAGES)
    contexts = _contexts(lm, inputs, canaries, options)
    extraction = measurements.extract(lm, inputs, reference, contexts or (), options, memory)
    report_stage(3, N_STAGES)
    found = None
    if canaries is not None:
        tried = measurements.canary_contexts(lm, canaries, inputs, contexts, seed=seeds["contexts"])
        found = measurements.measure_canaries(lm, canaries, tried, options, seeds=seeds, memory=memory)
    report_stage(4, N_STAGES)
    n_contexts = 1 + max(len(contexts or ()), 0 if found is None else len(found.answer.contexts) - 1)
    return _Measured(losses, base, membership, extraction, found, n_contexts)


def _document(
    lm: CausalLM,
    inputs: TextInputs,
    measured: _Measured,
    canaries: Canaries | None,
    reference: CausalLM | None,
    options: TextAuditOptions,
    redaction: Redaction,
    seed: int,
    memory: int | str,
) -> TextAuditDocument:
    """Return the content of the audit, from its measurements."""
    found, base = measured.canaries, measured.reference
    change = None if base is None else measurements.change(measured.losses, base, len(inputs.train.ids))
    data = replace(inputs.data, canary_share=measurements.canary_share(found, options))
    gates = conclusions.document_gates(data, measured.membership, measured.losses, base)
    gates += [] if found is None else conclusions.canary_gates(found)
    verdicts = _verdicts(measured, change, gates, has_canaries=canaries is not None)
    claimed = any(verdict.question == "extraction" and verdict.status == "found" for verdict in verdicts)
    spans = measured.extraction.found
    model = _identity(lm, reference, options)
    baseline = measurements.token_baseline(measured.losses, base, model.reference, inputs, lm.vocabulary, memory)
    uses_all = len(inputs.train.ids) + len(inputs.unseen.ids) >= _n_new(inputs)
    document = TextAuditDocument(
        kind=KIND,
        schema_version=TEXT_SCHEMA_VERSION,
        context=_context(options, canaries),
        model=model,
        data=data,
        gates=tuple(gates),
        verdicts=verdicts,
        membership=None if measured.membership is None else measured.membership.answer,
        extraction=measured.extraction.answer,
        canaries=None if found is None else found.answer,
        change=change,
        spans=()
        if spans is None
        else measurements.extracted_spans(spans, inputs, redaction, claimed=claimed, count=options.n_listed),
        canary_findings=()
        if found is None or canaries is None
        else measurements.canary_findings(found, canaries, redaction, options.n_listed),
        documents=()
        if baseline is None
        else measurements.document_findings(measured.losses, baseline, inputs, redaction, options.n_listed),
        table=measurements.document_table(
            None if measured.membership is None else measured.membership.found, measured.losses, inputs
        ),
        not_tested=conclusions.not_tested(
            verdicts, options.threat_model, n_contexts=measured.n_contexts, uses_all=uses_all
        ),
        files={},
        reproduce=options.reproduce,
        seed=seed,
        versions=versions(),
        seconds=0.0,
    )
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in table_files(document).items()}
    return replace(document, files=hashes)


def _verdicts(
    measured: _Measured, change: ChangeAnswer | None, gates: list[TextGate], *, has_canaries: bool
) -> tuple[TextVerdict, ...]:
    membership = None if measured.membership is None else measured.membership.answer
    return (
        conclusions.canary_verdict(measured.canaries, gates),
        conclusions.membership_verdict(membership, gates, has_canaries=has_canaries),
        conclusions.extraction_verdict(measured.extraction, gates, has_canaries=has_canaries),
        conclusions.change_verdict(change, gates, has_reference=measured.reference is not None),
    )


def _n_new(inputs: TextInputs) -> int:
    """Return the number of different documents that could have been evaluated, at most."""
    data = inputs.data
    return data.n_train - data.exact_repeats + data.n_unseen - data.seen - data.n_without_loss


def _contexts(
    lm: CausalLM, inputs: TextInputs, canaries: Canaries | None, options: TextAuditOptions
) -> tuple[Tensor, ...] | None:
    """Return the token ids of the contexts given, or None if none were.

    Raises:
        InputError: neither texts nor token ids of the vocabulary, or so long that no prompt fits.
    """
    if options.contexts is None:
        return None
    given = as_list(options.contexts, "contexts")
    if any(isinstance(context, str) for context in given):
        if inputs.encode is None or not all(isinstance(context, str) for context in given):
            raise InputError(
                "contexts with texts",
                expected="texts and encode, or token ids",
                hint="pass options=TextAuditOptions(encode=tokenizer)",
            )
        given = [encode_text(inputs.encode, context) for context in given]
    if not given:
        return ()
    longest_canary = 0 if canaries is None else canaries.length + max(map(len, itertools.chain(*canaries.heads)))
    documents = as_documents(given, "contexts")
    check_vocabulary(documents, lm.vocabulary, "contexts")
    longest = int(documents.lengths.max())
    if lm.context is not None and longest + longest_canary + 2 > lm.context:
        raise InputError(
            f"contexts of up to {longest} tokens for a {lm.name} of {lm.context} positions",
            expected=f"at most {lm.context - longest_canary - 2} tokens before a prompt",
            hint="pass the last tokens of the contexts",
        )
    return documents.ids


def _check_reference(reference: object, lm: CausalLM) -> None:
    """Check that the reference has the same tokens as the model.

    Raises:
        InputError: it does not.
    """
    check_instance(reference, "reference", CausalLM, hint="pass reference=km.text.causal_lm(model)")
    assert isinstance(reference, CausalLM)
    if (reference.vocabulary, reference.bos is None) != (lm.vocabulary, lm.bos is None):
        raise InputError(
            f"a reference of {reference.vocabulary} tokens and BOS {reference.bos} for a model of {lm.vocabulary} and"
            f" {lm.bos}",
            expected="the same tokens, and BOS in both or in neither",
            hint="compare models with one tokenizer",
        )


def _reveal(options: TextAuditOptions) -> Reveal:
    return "nothing" if options.reveal is None else options.reveal  # pyright: ignore[reportReturnType]


def _context(options: TextAuditOptions, canaries: Canaries | None) -> TextContext:
    randomized = (
        "Nothing: which documents were trained on was not drawn at random, as far as this audit knows."
        if canaries is None
        else f"The coins of {len(canaries):,} pairs of canaries, which decided which one of each was inserted; no documents,"
        " as far as this audit knows."
    )
    return TextContext(
        date=options.date or "",
        auditor=options.auditor,
        purpose=options.purpose,
        threat_model=options.threat_model,
        training=options.training,
        randomized=randomized,
        level=LEVEL,
        reveal=_reveal(options),
        reason=options.reason if options.reveal is not None else "",
    )


def _identity(lm: CausalLM, reference: CausalLM | None, options: TextAuditOptions) -> LanguageModelIdentity:
    module = lm.module()
    reference_name = "" if reference is None else options.reference_name or printable(reference.name)
    return LanguageModelIdentity(
        name=options.model_name or printable(lm.name),
        n_parameters=sum(parameter.numel() for parameter in module.parameters()),
        vocabulary=lm.vocabulary,
        bos=lm.bos,
        context=lm.context,
        dtype=str(lm.dtype).removeprefix("torch."),
        sha256=weights_sha256(module),
        reference=reference_name,
    )
