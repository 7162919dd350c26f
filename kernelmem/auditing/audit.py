"""km.audit: from a trained network and its data to a report of what it memorized."""

import hashlib
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from kernelmem.auditing.analysis import accuracy, analyze, memorized_examples, per_class
from kernelmem.auditing.document import SCHEMA_VERSION, AuditDocument, Flips, Memorization
from kernelmem.auditing.fingerprint import data_identity, find_duplicates, model_identity
from kernelmem.auditing.result import REPORT, Audit, write_report
from kernelmem.auditing.verdict import verdict
from kernelmem.core.atomic_files import check_directory
from kernelmem.core.batches import Batch, Forward, Rows, as_labeled_rows, as_rows, as_structured_rows
from kernelmem.core.checks import (
    ArrayLike,
    as_count,
    as_list,
    as_path,
    as_text,
    check_finite,
    check_instance,
    check_model,
    renumbering_hint,
    seed_sequence,
)
from kernelmem.core.errors import InputError, printable
from kernelmem.core.models.torch_func import standard_modes
from kernelmem.core.options import MEMORY, Progress, as_progress
from kernelmem.kernels.ntk import ntk
from kernelmem.label_noise.detection import detect
from kernelmem.tangents.prepare import prepare
from kernelmem.training.datasets import LabeledData, labeled_data
from kernelmem.training.losses import class_forward
from kernelmem.version import __version__

LabeledRows: TypeAlias = tuple[Batch, ArrayLike] | Dataset[Any] | DataLoader[Any]
"""Type of ``train=`` and ``test=``: (x, y), or a Dataset or DataLoader of pairs (input, label)."""

N_EXAMPLES = 12
N_FEATURES = 64
ROWS_PER_PASS = 256  # rows per forward pass
N_STAGES = 4  # kernel of training rows, kernel of test rows, leave-one-out, report


@dataclass(frozen=True)
class AuditOptions:
    """Description of model and data in the report of :func:`audit`, and further files to write.

    Attributes:
        n_classes: number of classes C; None: the largest label + 1.
        name: name of the data set.
        model_name: name of the network; None: its class.
        image_shape: (H, W) or (H, W, 3) if each row is an image, possibly flattened; None: rows are not images.
        training: description of how the network was trained.
        reproduce: command or call that reproduces this report.
        extra_files: contents of further files to write into ``out``, by file name.
    """

    n_classes: int | None = None
    name: str = "data"
    model_name: str | None = None
    image_shape: tuple[int, ...] | None = None
    training: str = "not described"
    reproduce: str = "km.audit(model, (x_train, y_train), (x_test, y_test)) with model and data of the hashes above"
    extra_files: Mapping[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.n_classes is not None:
            as_count(self.n_classes, "n_classes")
        if self.image_shape is not None:
            for length in as_list(self.image_shape, "image_shape"):
                as_count(length, "length in image_shape")
        for name in ("name", "model_name", "training", "reproduce"):
            if name != "model_name" or self.model_name is not None:
                as_text(getattr(self, name), name)
        check_instance(self.extra_files, "extra_files", Mapping, hint="pass a dict of file contents by name")
        for name, content in self.extra_files.items():
            as_path(name, "name of an extra file")
            check_instance(content, f"extra file {name}", bytes, hint="encode text with .encode()")
            if name in ("", ".", "..", "audit.json", REPORT) or Path(name).name != name:
                raise InputError(
                    f"extra_files with the name {name!r}",
                    expected="names of files, without a directory, other than audit.json and audit.html",
                    hint='pass for example {"weights.safetensors": content}',
                )


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
    options: AuditOptions = AuditOptions(),
    progress: Progress = None,
) -> Audit:
    """Measure what a trained classifier memorized of its training rows.

    Two kernel ridge regressions are fitted with the neural tangent kernel (NTK) of the network f (trace over outputs,
    float64). The *NTK surrogate* is fitted to the network's own outputs; this network's memorization of row i is

        network_memorization_i = margin(f(x_i), y_i) − margin(f̂₋ᵢ(x_i), y_i),    f̂₋ᵢ: the surrogate without row i,

    where the margin is the output of the label y_i minus the largest other output. It is compared with the same difference
    on test rows, which neither saw (the null). The *label regression* g is fitted to the labels; its leave-one-out
    memorization g(x_i) − g₋ᵢ(x_i), in the column of the label, describes what any learner with this kernel memorizes.
    Leave-one-out is exact (closed form); the ridges minimize the leave-one-out error.

    Args:
        model: a trained module; ``model(x)`` is (n, C), or one logit z of two classes, (n, 1) or (n,), which counts as the
            outputs [0, z]. A copy in eval mode is analyzed on the device of the model.
        train: (x, y), the rows and labels that the network was trained on: x (n, ...), or a dict or tuple of such tensors,
            y (n,) integers 0..C-1; or a Dataset or DataLoader of pairs (input, label), without shuffling.
        test: rows that the network never saw, with their labels, in the same forms.
        flipped: (n,) booleans, training labels known to be wrong. They are used only to evaluate the audit.
        forward: maps (model, batch) to (n, C), for models with other outputs.
        out: directory for audit.json and audit.html; None: nothing is written.
        seed: seed of the permutation null for known flips; it is recorded in the report.
        memory: memory that the kernel computation may allocate, in bytes or as text such as "4GiB".
        options: number of classes, names and image shape for the report.
        progress: see :data:`kernelmem.core.options.Progress`; counts 4 stages.

    Returns:
        Audit: ``.document`` (plain values), ``.to_frame()``, ``.to_html()``, ``.to_json()``, ``.plot()``, ``.save(dir)``.

    Raises:
        InputError: the shapes of arrays, labels and outputs do not match.
        UnsupportedModelError: the model does not return one row of outputs per input row.
        NumericalError: the kernel is not positive semidefinite. In all three cases nothing is written.

    With ``out``, audit.json is written before the report is drawn.

    Cost: the kernel (see :func:`kernelmem.ntk`) + O(n³) time; O(n²) memory: for n up to about 10,000.

    Source: leave-one-out memorization by kernels: Bachmann, Hofmann, Lucchi 2022; memorization as a leave-one-out
    difference: Feldman and Zhang 2020; NTK surrogate: Engel et al. 2024.
    """
    check_model(model)
    check_instance(options, "options", AuditOptions)
    options = _printable_options(options)
    inputs, data = _read_data(train, test, flipped, options)
    seeds = seed_sequence(seed, ["permutations"])
    if out is not None:
        check_directory(out)
    started = time.perf_counter()
    report_stage = as_progress(progress, "audit", "stage")
    seen_in_training, duplicates, conflicting = find_duplicates(data)
    if bool(seen_in_training.all()):
        raise InputError(
            f"x_test of shape {tuple(data.x_test.shape)}, every row of which is also a training row",
            expected="rows that the network never saw",
            hint="hold out rows before training; without them there is no null control",
        )

    forward = class_forward(forward) if (options.n_classes or data.n_classes) == 2 else forward
    module, train_outputs, test_outputs = _copy_and_outputs(model, inputs, data, forward, options.n_classes)
    report_stage(0, N_STAGES)
    show_bar = False if callable(progress) else progress  # a function counts stages only
    kernel_options: dict[str, Any] = {
        "forward": forward,
        "dtype": torch.float64,
        "memory": memory,
        "progress": show_bar,
    }
    kernel = ntk(module, inputs[0].tree, **kernel_options).cpu()
    report_stage(1, N_STAGES)
    test_kernel = ntk(module, inputs[1].tree, inputs[0].tree, **kernel_options).cpu()
    report_stage(2, N_STAGES)
    analysis = analyze(
        kernel, test_kernel, train_outputs, test_outputs, data.y_train, data.y_test, unseen=~seen_in_training
    )
    memorization = analysis.memorization
    examples = memorized_examples(analysis, kernel, data.y_train, data.flipped, count=N_EXAMPLES)
    report_stage(3, N_STAGES)

    images, features = _images_or_features(
        data,
        sorted({row.index for example in examples for row in (example, *example.influential)}),
    )
    identity = data_identity(data, train_outputs.shape[1], duplicates, conflicting, int(seen_in_training.sum()))
    accuracies = accuracy(train_outputs, data.y_train), accuracy(test_outputs, data.y_test)
    document = AuditDocument(
        schema_version=SCHEMA_VERSION,
        verdict=verdict(analysis.fidelity, memorization, identity),
        data=identity,
        model=model_identity(model, options.model_name, options.training, *accuracies),
        fidelity=analysis.fidelity,
        memorization=memorization,
        flips=_flip_detection(memorization, data.flipped, seeds["permutations"]),
        examples=examples,
        classes=per_class(memorization, data.y_train, data.y_test, train_outputs, test_outputs),
        images=images,
        features=features,
        files={name: hashlib.sha256(content).hexdigest() for name, content in options.extra_files.items()},
        reproduce=options.reproduce,
        seed=seed,
        versions=_versions(),
        seconds=round(time.perf_counter() - started, 3),
    )
    result = Audit(document)
    if out is not None:
        write_report(result, out, options.extra_files)
    report_stage(N_STAGES, N_STAGES)
    return result


def _printable_options(options: AuditOptions) -> AuditOptions:
    """Return the options with texts that can be written as UTF-8 and that a page shows in their own order."""
    texts = {name: getattr(options, name) for name in ("name", "model_name", "training", "reproduce")}
    return replace(options, **{name: None if text is None else printable(text) for name, text in texts.items()})


def _read_data(
    train: LabeledRows, test: LabeledRows, flipped: ArrayLike | None, options: AuditOptions
) -> tuple[tuple[Rows, Rows], LabeledData]:
    """Return ((training inputs, test inputs) for the model, data of the report).

    Rows that are dicts or tuples of tensors appear in the data as the vectors of all their numbers.
    """
    x_train, y_train = as_labeled_rows(train, "train")
    x_test, y_test = as_labeled_rows(test, "test")
    x_train, x_test = (as_structured_rows(x, name) for x, name in ((x_train, "x_train"), (x_test, "x_test")))
    data = labeled_data(
        x_train.flat() if isinstance(x_train, Rows) else x_train,
        y_train,
        x_test.flat() if isinstance(x_test, Rows) else x_test,
        y_test,
        name=options.name,
        image_shape=options.image_shape,
        flipped=flipped,
    )
    return (
        x_train if isinstance(x_train, Rows) else as_rows(data.x_train, "x_train"),
        x_test if isinstance(x_test, Rows) else as_rows(data.x_test, "x_test"),
    ), data


def _class_count_hint(data: LabeledData, C: int) -> str:
    """Return the hint for labels that do not fit a model with C outputs."""
    if data.n_classes > C:
        hint = renumbering_hint(torch.cat([data.y_train, data.y_test]), "y", max(2, C))
        return f"{hint} (y: the labels of train and test)"
    return (
        f"use a model with {data.n_classes} outputs, or pass km.AuditOptions(n_classes={C}) if some have no rows here"
    )


def _copy_and_outputs(
    model: nn.Module, inputs: tuple[Rows, Rows], data: LabeledData, forward: Forward | None, n_classes: int | None
) -> tuple[nn.Module, Tensor, Tensor]:
    """Return (copy of the model in eval mode, outputs on training rows (n, C), outputs on test rows (m, C)).

    The outputs are float64 tensors on the CPU, for n training rows, m test rows and C classes. An InputError is raised
    if the number of outputs is not the number of classes, or if an output is not finite.
    """
    prepared = prepare(model, inputs[0], forward=forward, dtype=torch.float64, evaluation=True)
    n_expected = data.n_classes if n_classes is None else n_classes
    C = prepared.n_outputs
    if n_expected != C or data.n_classes > C:
        raise InputError(
            f"a model with {C} outputs for labels up to {data.n_classes - 1}"
            f" (y_train of shape {tuple(data.y_train.shape)}, y_test of shape {tuple(data.y_test.shape)})",
            expected=f"{n_expected} outputs, one for each class",
            hint=_class_count_hint(data, C),
        )
    outputs = []
    for name, rows in zip(("x_train", "x_test"), inputs, strict=True):
        rows = rows.to(dtype=torch.float64, device=prepared.device)
        starts = range(0, rows.n, ROWS_PER_PASS)
        with torch.no_grad():
            batches = [
                prepared.outputs(
                    rows.slice(start, min(start + ROWS_PER_PASS, rows.n)), min(ROWS_PER_PASS, rows.n - start)
                )
                for start in starts
            ]
        outputs.append(check_finite(torch.cat(batches).cpu(), f"the model's outputs on {name}"))
    return prepared.module, outputs[0], outputs[1]


def _images_or_features(data: LabeledData, indices: list[int]) -> tuple[dict[str, str], dict[str, tuple[float, ...]]]:
    """Return (images, features) of the training rows at ``indices``, for the report.

    Both are dicts with the row index as text for a key: ``images`` holds PNG data URIs, ``features`` the first 64 input
    features. ``features`` is empty if rows are images, and ``images`` is empty if they are not.
    """
    if data.image_shape is None:
        features = data.x_train.reshape(len(data.x_train), -1)[:, :N_FEATURES]
        return {}, {str(index): tuple(float(value) for value in features[index]) for index in indices}
    from kernelmem.auditing.report import png_data_uri

    low, high = float(data.x_train.min()), float(data.x_train.max())
    rows = {index: data.x_train[index].cpu().numpy() for index in indices}
    return {str(index): png_data_uri(row, data.image_shape, low=low, high=high) for index, row in rows.items()}, {}


def _flip_detection(memorization: Memorization, flipped: Tensor | None, seed: int) -> Flips:
    """Measure how well each statistic separates training rows with a known wrong label from the others.

    ``flipped`` (n,) is True where the label of a training row is wrong, and ``seed`` determines the permutations of the
    null. If flips are unknown, or if no row or every row is flipped, only the number of flips is returned. No other
    function of the audit computes with ``flipped``.
    """
    if flipped is None or not 0 < int(flipped.sum()) < len(flipped):
        return Flips(n=None if flipped is None else int(flipped.sum()))
    by_margin = detect(-torch.tensor(memorization.loo_margin, dtype=torch.float64), flipped, seed=seed)
    by_label, by_network = (
        detect(torch.tensor(scores, dtype=torch.float64), flipped, seed=seed, permutations=2).auroc
        for scores in (memorization.label_memorization, memorization.network_memorization)
    )
    return Flips(
        n=by_margin.n_flipped,
        auroc=by_margin.auroc,
        auroc_se=by_margin.auroc_se,
        auroc_label_memorization=by_label,
        auroc_network_memorization=by_network,
        permuted_auroc=by_margin.permuted_auroc,
        permuted_sd=by_margin.permuted_sd,
        precision=tuple(float(v) for v in by_margin.precision),
        recall=tuple(float(v) for v in by_margin.recall),
        ranks=tuple(int(v) for v in by_margin.ranks),
    )


def _versions() -> dict[str, str]:
    """Return a dict from package name to version, for Python and the packages that determine the result.

    The entry "threads" is the number of CPU threads of torch.
    """
    versions = {name: metadata.version(name) for name in ("torch", "numpy", "scipy", "scikit-learn")}
    return {
        "python": platform.python_version(),
        "kernelmem": __version__,
        **versions,
        "threads": str(torch.get_num_threads()),
    }
