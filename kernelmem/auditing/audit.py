"""km.audit: from a trained network and its data to a report of what it memorized."""

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from kernelmem.auditing import conclusions, data_checks, retraining, scores
from kernelmem.auditing.data_checks import AuditInputs, LabeledRows, NearDuplicates
from kernelmem.auditing.options import AuditOptions, printable_options
from kernelmem.auditing.result import Audit, write_report
from kernelmem.auditing.schema import (
    SCHEMA_VERSION,
    AuditDocument,
    Context,
    Duplicates,
    Gate,
    HowMuch,
    Power,
    RowFinding,
    RowTable,
    check_no_report,
    versions,
)
from kernelmem.core.batches import Forward
from kernelmem.core.checks import ArrayLike, check_instance, check_model, seed_sequence
from kernelmem.core.errors import InputError
from kernelmem.core.models.torch_func import standard_modes
from kernelmem.core.options import MEMORY, Progress, as_progress
from kernelmem.memorization.retraining import Retraining
from kernelmem.memorization.shadows import ShadowEnsemble
from kernelmem.statistics import Interval

N_FEATURES = 64
N_STAGES = 6  # kernel, leave-one-out, retraining, attacks, label bits, report
MAX_CONTROL = 2000  # test rows in the control, or as many as training rows
ALARM_RUNS = 200
DEFAULT_OPTIONS = AuditOptions()
# fmt: off
SEEDS = [
    "control", "near", "kernel", "power", "alarms", "shadows", "share", "verification", "leak", "blind", "permutations",
    "compression",
]
# fmt: on


@dataclass(frozen=True)
class _Method:
    """Results that depend on the method of the headline."""

    how_much: HowMuch
    power: Power
    gates: list[Gate]
    table: RowTable
    shadows: ShadowEnsemble | None
    retrained: Retraining | None


@standard_modes()
def audit(
    model: nn.Module,
    train: LabeledRows,
    test: LabeledRows,
    *,
    flipped: ArrayLike | None = None,
    forward: Forward | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    memory: int | str = MEMORY,
    options: AuditOptions = DEFAULT_OPTIONS,
    progress: Progress = None,
) -> Audit:
    """Measure what a trained classifier memorized of its training rows: how much, which rows, and whether it can leak.

    First the validity gates: training and test rows cannot be told apart without the network, enough test rows are new to
    it, the methods describe it, nothing is found with permuted memberships, and the power is sufficient. A failed gate
    blanks the headline. Then the answer, by one of two methods.

    *Kernel method* (default). Kernel ridge regression with the neural tangent kernel (NTK) of the network f is fitted to the
    labels of training and test rows together, and predicts each row without it and its near-duplicates. On test rows the
    network itself shows how often it gives a label with a leave-one-out margin t that it never saw, q(t). The memorized
    share of the training labels is

        mean over training rows i of 1[f gives the label of i] − q(t_i),

    the share that the network gives only because it was trained on them. Its p-value is a permutation test of training
    against test rows. Rows whose label f gives although the regression without the row predicts another class are flagged.

    *Retraining* (``options.retrain``). Networks are trained on random subsets of the rows. Memorization of row i is
    Feldman's P(label given, trained with i) − P(label given, trained without i); the share of rows above .25 is estimated
    behind the noise of a limited number of networks, and the rows that rank first are verified by retraining without them.

    Both come with an account of the training labels in bits (:func:`kernelmem.account`): what follows from the other rows, what
    the network memorized, and what is in neither.

    Args:
        model: a trained module; ``model(x)`` is (n, C), or one logit z of two classes, (n, 1) or (n,), which counts as the
            outputs [0, z]. A copy in eval mode is analyzed on the device of the model.
        train: (x, y), the rows and labels that the network was trained on: x (n, ...), or a dict or tuple of such tensors;
            y (n,) class indices 0..C-1 or 1..C, or text; or a Dataset or DataLoader of pairs (input, label), without
            shuffling.
        test: rows that the network never saw, with their labels, in the same forms.
        flipped: (n,) booleans, training labels known to be wrong. They are used only to evaluate the audit.
        forward: maps (model, batch) to (n, C), for models with other outputs.
        out: directory for audit.json, audit.html, rows.csv and rows.npz; None: nothing is written. An older report there is
            replaced only with ``options.overwrite``.
        seed: seed of control rows, permutations, bootstraps and retraining; it is recorded in the report.
        memory: memory that the audit may allocate for kernels, in bytes or as text such as "4GiB", in addition to what is
            resident. Where the methods in memory take more, the kernel is written to a file in a temporary directory and
            read in blocks; the results are equal to rounding.
        options: names, groups, retraining and its budget, redaction; see :class:`AuditOptions`.
        progress: see :data:`kernelmem.core.options.Progress`; counts 6 stages.

    Returns:
        Audit: ``.document`` (plain values), ``.rows`` (arrays), ``.to_frame()``, ``.to_html()``, ``.to_json()``, ``.plot()``,
        ``.save(dir)``.

    Raises:
        InputError: the shapes of arrays, labels and outputs do not match, no test row is new to the network, or ``out`` holds a
            report or cannot be written to.
        UnsupportedModelError: the model does not return one row of outputs per input row.
        NumericalError: the kernel is not positive semidefinite. In all three cases nothing is written.

    With ``out``, audit.json is written before the report is drawn.

    Cost: the kernel of N = n + m rows (see :func:`kernelmem.ntk`; m is at most the larger of n and 2,000) + O(N³) time;
    48 N² bytes, or with less ``memory`` 8 N² bytes and up to 8 N² on disk (N = 12,000: 1.2 GB each). With retraining, about
    ``options.budget`` minutes more.

    Source: leave-one-out memorization by kernels: Bachmann, Hofmann, Lucchi 2022; memorization by retraining: Feldman and
    Zhang 2020.
    """
    check_model(model)
    check_instance(options, "options", AuditOptions)
    options = printable_options(options)
    rows, data, labels = data_checks.read_rows(
        train, test, flipped, class_names=options.class_names, name=options.name, image_shape=options.image_shape
    )
    groups = data_checks.read_groups(options.groups, len(data.y_train))
    seeds = seed_sequence(seed, SEEDS)
    if out is not None:
        check_no_report(out, overwrite=options.overwrite)
    started = time.perf_counter()
    report_stage = as_progress(progress, "audit", "stage")
    seen, n_duplicates, n_conflicting = data_checks.find_duplicates(data)
    if bool(seen.all()):
        raise InputError(
            f"x_test of shape {tuple(data.x_test.shape)}, every row of which is also a training row",
            expected="rows that the network never saw",
            hint="hold out rows before training; without them there is no null control",
        )
    inputs = data_checks.with_outputs(model, rows, data, labels, forward=forward, n_classes=options.n_classes)
    data = inputs.data
    report_stage(0, N_STAGES)

    control = _control_rows(len(data.y_test), len(data.y_train), seeds["control"])
    show_bar = False if callable(progress) else progress  # a function counts stages only
    n, redact, y = len(data.y_train), options.redact, torch.cat([data.y_train, data.y_test[control]])
    outputs = torch.cat([inputs.train_outputs, inputs.test_outputs[control]])
    with data_checks.audit_kernel(inputs, control, memory=memory, progress=show_bar) as kernel:
        report_stage(1, N_STAGES)
        near = data_checks.find_near_duplicates(kernel, n, cosine=options.near_duplicate_cosine, seed=seeds["near"])
        kernel_result = scores.kernel_scores(kernel, outputs, y, n, near, memory=memory)
        report_stage(2, N_STAGES)
        duplicates = _duplicates(near, n, n_duplicates, n_conflicting, int(seen.sum()))
        gates = conclusions.data_gates(
            inputs, duplicates, len(kernel_result.control), len(control), seed=seeds["blind"]
        )
        method = _method(inputs, kernel_result, outputs, control, options, seeds)
        report_stage(3, N_STAGES)
        verified = _verify(inputs, method, options, seeds["verification"])
        findings = scores.row_findings(
            method.table,
            kernel_result,
            kernel,
            count=options.n_listed,
            verified=verified,
            flipped=data.flipped,
            redact=redact,
        )
    fidelity = kernel_result.fidelity
    del kernel, kernel_result  # matrices
    unseen = control[torch.from_numpy(~near.has_partner[n:, 0])]
    leak = scores.leak(inputs, method.shadows, unseen, seed=seeds["leak"], redact=redact)
    report_stage(4, N_STAGES)
    bits = scores.label_bits(model, inputs, seed=seeds["compression"], memory=memory)
    rows_found, findings = bits.added_to(method.table), bits.added_to_findings(findings)
    report_stage(5, N_STAGES)

    found = method.how_much.p_value < method.power.significance
    all_gates = (*gates, *method.gates, conclusions.power_gate(method.power, n, found=found))
    identity = data_checks.data_identity(inputs, tuple(options.feature_names), duplicates)
    context = _context(options)
    accuracies = (
        float((part.argmax(1) == y).double().mean())
        for part, y in ((inputs.train_outputs, data.y_train), (inputs.test_outputs, data.y_test))
    )
    images, features = _images_or_features(inputs, findings) if options.show_rows else ({}, {})
    table = rows_found.redacted() if redact else rows_found
    files = {**table.files(), **options.extra_files}
    document = AuditDocument(
        schema_version=SCHEMA_VERSION,
        context=context,
        verdict=conclusions.verdict(all_gates, method.how_much, method.power, identity, inputs.labels.note),
        data=identity,
        model=data_checks.model_identity(model, options.model_name, options.training, *accuracies),
        gates=all_gates,
        power=method.power,
        how_much=method.how_much,
        rows=findings,
        suspected=scores.suspected_labels(method.table, data.flipped, redact=redact),
        leak=leak,
        compression=bits.account,
        slices=scores.slices(method.table, inputs, groups),
        agreements=scores.agreements(rows_found, method.retrained, seeds["share"]),
        fidelity=fidelity,
        flips=scores.flip_detection(rows_found, data.flipped, seeds["permutations"]),
        annex=conclusions.annex(leak, context),
        not_tested=conclusions.not_tested(method.how_much, leak, bits.account, context),
        images=images,
        features=features,
        files={name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        reproduce=options.reproduce,
        seed=seed,
        versions=versions(),
        seconds=round(time.perf_counter() - started, 3),
    )
    result = Audit(document, table)
    if out is not None:
        write_report(result, out, options.extra_files, overwrite=options.overwrite)
    report_stage(N_STAGES, N_STAGES)
    return result


def _control_rows(m: int, n: int, seed: int) -> Tensor:
    """Return the numbers of the test rows of the control: all m, or a random subset of max(n, 2000)."""
    size = max(n, MAX_CONTROL)
    if m <= size:
        return torch.arange(m)
    return torch.from_numpy(np.sort(np.random.default_rng(seed).choice(m, size, replace=False)))


def _duplicates(near: NearDuplicates, n: int, train: int, conflicting: int, across: int) -> Duplicates:
    partner = near.has_partner
    return Duplicates(
        train=train,
        conflicting=conflicting,
        across=across,
        cosine=near.cosine,
        near_train=int(partner[:n, 0].sum()),
        near_test=int(partner[n:, 1].sum()),
        near_across=int(partner[n:, 0].sum()),
    )


def _method(
    inputs: AuditInputs,
    kernel_result: scores.KernelScores,
    outputs: Tensor,
    control: Tensor,
    options: AuditOptions,
    seeds: dict[str, int],
) -> _Method:
    """Return headline, power, gates and row table by the kernel method, or by retraining if it is asked for."""
    alarms = scores.permuted_alarms(kernel_result, outputs, seed=seeds["alarms"], runs=ALARM_RUNS)
    fidelity = kernel_result.fidelity
    if options.retrain is None:
        how_much = scores.kernel_how_much(kernel_result, outputs, seed=seeds["kernel"])
        gates = conclusions.kernel_gates(fidelity, alarms, ALARM_RUNS, needed=True)
        return _Method(
            how_much=how_much,
            power=scores.kernel_power(kernel_result, outputs, seed=seeds["power"]),
            gates=[*gates, conclusions.calibration_gate(how_much.control)],
            table=scores.row_table(kernel_result, inputs.train_outputs, control),
            shadows=None,
            retrained=None,
        )
    trained = retraining.train_within(
        inputs, options.retrain, minutes=options.budget, n_models=options.n_models, seed=seeds["shadows"]
    )
    result = retraining.retraining_scores(trained.shadows, seed=seeds["share"])
    correct = kernel_result.network_correct[: kernel_result.n_train].numpy()
    how_much = retraining.retraining_how_much(result, correct, seed=seeds["share"])
    unseen = control[kernel_result.control - kernel_result.n_train]
    gates = conclusions.kernel_gates(fidelity, alarms, ALARM_RUNS, needed=False)
    return _Method(
        how_much=how_much,
        power=retraining.retraining_power(result, trained.note),
        gates=[*gates[:1], *conclusions.retraining_gates(result, inputs, correct, how_much.control.high, unseen)],
        table=scores.row_table(
            kernel_result,
            inputs.train_outputs,
            control,
            memorization=result.probability,
            score=-result.margin_without,
            standard_error=result.margin_error,
            predicted_without=result.predicted_without,
            flagged=result.flagged(correct),
        ),
        shadows=trained.shadows,
        retrained=result.retraining,
    )


def _verify(inputs: AuditInputs, method: _Method, options: AuditOptions, seed: int) -> dict[int, Interval]:
    """Return the measured effects of the flagged rows that rank first, by retraining without them."""
    if options.retrain is None or isinstance(options.retrain, ShadowEnsemble):
        return {}
    flagged = np.flatnonzero(method.table.flagged)
    order = flagged[np.argsort(-method.table.score[flagged], kind="stable")]
    return retraining.verify_rows(inputs, options.retrain, order[: options.n_verified].tolist(), seed=seed)


def _context(options: AuditOptions) -> Context:
    return Context(
        date=options.date or "",
        auditor=options.auditor,
        purpose=options.purpose,
        threat_model=options.threat_model,
        redacted=options.redact,
        rows_shown=options.show_rows,
    )


def _images_or_features(
    inputs: AuditInputs, findings: tuple[RowFinding, ...]
) -> tuple[dict[str, str], dict[str, tuple[float, ...]]]:
    """Return (images, features) of the listed training rows and of those that influence them, for the report.

    Both are dicts with the row index as text for a key: ``images`` holds PNG data URIs, ``features`` the first 64 input
    features. ``features`` is empty if rows are images, and ``images`` is empty if they are not.
    """
    data = inputs.data
    indices = sorted({row.index for finding in findings for row in (finding, *finding.influential)})
    if data.image_shape is None:
        features = data.x_train.reshape(len(data.x_train), -1)[:, :N_FEATURES]
        return {}, {str(index): tuple(float(value) for value in features[index]) for index in indices}
    from kernelmem.auditing.report import png_data_uri

    low, high = float(data.x_train.min()), float(data.x_train.max())
    rows = {index: data.x_train[index].cpu().numpy() for index in indices}
    return {str(index): png_data_uri(row, data.image_shape, low=low, high=high) for index, row in rows.items()}, {}
