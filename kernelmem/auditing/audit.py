"""km.audit: from a trained network and its data to a report of what it memorized."""

import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kernelmem.auditing.analysis import accuracy, analyze, memorized_examples, per_class
from kernelmem.auditing.document import SCHEMA_VERSION, AuditDocument, Flips, Memorization
from kernelmem.auditing.fingerprint import data_identity, model_identity, seen_rows
from kernelmem.auditing.result import Audit
from kernelmem.auditing.verdict import verdict
from kernelmem.core.atomic_files import check_directory, write_files
from kernelmem.core.batches import Forward, as_rows
from kernelmem.core.checks import ArrayLike, finite, seed_sequence
from kernelmem.core.errors import InputError
from kernelmem.core.options import MEMORY, Progress, as_progress
from kernelmem.kernels.ntk import ntk
from kernelmem.label_noise.detection import detect
from kernelmem.tangents.prepare import prepare
from kernelmem.training.datasets import LabeledData, labeled_data

EXAMPLES = 12
FEATURES_SHOWN = 64
CHUNK = 256  # rows per forward pass
STAGES = 4  # kernel of training rows, kernel of test rows, leave-one-out, report


@dataclass(frozen=True)
class AuditOptions:
    """Description of model and data in the report of :func:`audit`, and further files to write.

    Attributes:
        n_classes: C, if the largest label is less than C − 1; None: the largest label + 1.
        name: name of the data.
        model_name: name of the network; None: its class.
        image_shape: (H, W) or (H, W, 3) if rows are images, also flattened ones.
        training: how the network was trained.
        reproduce: the command or call that gives this report again.
        extra_files: more files to write into ``out``: name -> content.
    """

    n_classes: int | None = None
    name: str = "data"
    model_name: str | None = None
    image_shape: tuple[int, ...] | None = None
    training: str = "not described"
    reproduce: str = "km.audit(model, (x_train, y_train), (x_test, y_test)) with model and data of the hashes above"
    extra_files: Mapping[str, bytes] = field(default_factory=dict)


@torch.inference_mode(mode=False)
def audit(
    model: nn.Module,
    train: tuple[ArrayLike, ArrayLike],
    test: tuple[ArrayLike, ArrayLike],
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

    On the network's NTK K (trace over outputs, float64) two kernel ridge regressions are fitted. The *NTK surrogate* is
    fitted to the network's own outputs; this network's memorization of row i is

        network_memorization_i = margin(f(x_i), y_i) − margin(f̂₋ᵢ(x_i), y_i),    f̂₋ᵢ: the surrogate without row i,

    compared with the same difference on test rows, which neither saw (the null). The *label regression* is fitted to the
    labels; its leave-one-out memorization h_ii (y_i − f₋ᵢ(x_i)) describes what any learner with this kernel memorizes.
    Leave-one-out is exact (closed form); the ridges minimize the leave-one-out error.

    Args:
        model: a trained module; ``model(x)`` is (n, C). A copy in eval mode is analyzed, where the model is.
        train: (x, y), the rows and labels that it was trained on: x (n, ...), y (n,) integers.
        test: (x, y), rows that it never saw.
        flipped: (n,) booleans, training labels known to be wrong. They are used to evaluate the audit, never in it.
        forward: maps (model, batch) to (n, C), for models with other outputs.
        out: directory for audit.json and audit.html; None: nothing is written.
        seed: of the permutation null for known flips; recorded.
        memory: bytes that the kernel computation may allocate.
        options: number of classes, names and image shape for the report.
        progress: see :data:`kernelmem.core.options.Progress`; counts 4 stages.

    Returns:
        Audit: ``.document`` (plain values), ``.to_frame()``, ``.to_html()``, ``.to_json()``, ``.plot()``, ``.save(dir)``.

    Raises:
        InputError: arrays, labels or outputs that do not match. UnsupportedModelError: a model without row-wise outputs.
        NumericalError: a kernel that is not positive semidefinite. Nothing is written then. With ``out``, audit.json
            is written before the report is drawn.

    Cost: the kernel (see :func:`kernelmem.ntk`) + O(n³) time; O(n²) memory: for n up to about 10,000.

    Source: leave-one-out memorization by kernels: Bachmann, Hofmann, Lucchi 2022; memorization as a leave-one-out
    difference: Feldman and Zhang 2020; NTK surrogate: Engel et al. 2024.
    """
    data = labeled_data(
        *_pair(train, "train"),
        *_pair(test, "test"),
        name=options.name,
        image_shape=options.image_shape,
        flipped=flipped,
    )
    seeds = seed_sequence(seed, ["permutations"])
    if out is not None:
        check_directory(out)
    started = time.perf_counter()
    tick = as_progress(progress, "audit", "stage")
    seen, duplicates, conflicting = seen_rows(data)
    if bool(seen.all()):
        raise InputError(
            f"x_test of shape {tuple(data.x_test.shape)}, every row of which is also a training row",
            expected="rows that the network never saw",
            hint="hold out rows before training; without them there is no null control",
        )

    module, train_outputs, test_outputs = _outputs(model, data, forward, options.n_classes)
    tick(0, STAGES)
    bar = False if callable(progress) else progress  # a function counts stages only
    settings: dict[str, Any] = {"forward": forward, "dtype": torch.float64, "memory": memory, "progress": bar}
    kernel = ntk(module, data.x_train, **settings).cpu()
    tick(1, STAGES)
    test_kernel = ntk(module, data.x_test, data.x_train, **settings).cpu()
    tick(2, STAGES)
    analysis = analyze(kernel, test_kernel, train_outputs, test_outputs, data.y_train, data.y_test, unseen=~seen)
    memorization = analysis.memorization
    examples = memorized_examples(analysis, kernel, data.y_train, data.flipped, count=EXAMPLES)
    tick(3, STAGES)

    images, features = _shown_rows(
        data, sorted({i for e in examples for i in (e.index, *(j.index for j in e.influential))})
    )
    identity = data_identity(data, train_outputs.shape[1], duplicates, conflicting, int(seen.sum()))
    accuracies = accuracy(train_outputs, data.y_train), accuracy(test_outputs, data.y_test)
    document = AuditDocument(
        schema_version=SCHEMA_VERSION,
        verdict=verdict(analysis.fidelity, memorization, identity),
        data=identity,
        model=model_identity(model, options.model_name, options.training, *accuracies),
        fidelity=analysis.fidelity,
        memorization=memorization,
        flips=_flips(memorization, data.flipped, seeds["permutations"]),
        examples=examples,
        classes=per_class(memorization, data.y_train, data.y_test, train_outputs, test_outputs),
        images=images,
        features=features,
        reproduce=options.reproduce,
        seed=seed,
        versions=_versions(),
        seconds=round(time.perf_counter() - started, 3),
    )
    result = Audit(document)
    if out is not None:
        if options.extra_files:
            write_files(out, options.extra_files)
        result.save(out)
    tick(STAGES, STAGES)
    return result


def _pair(value: object, name: str) -> tuple[ArrayLike, ArrayLike]:
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise InputError(
            f"{name} of type {type(value).__name__}", expected=f"{name}=(x, y)", hint="pass rows and labels"
        )
    return value[0], value[1]


def _outputs(
    model: nn.Module, data: LabeledData, forward: Forward | None, n_classes: int | None
) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a private copy in eval mode and its float64 outputs on both sets of rows, after a check of C."""
    train_rows, test_rows = as_rows(data.x_train, "x_train"), as_rows(data.x_test, "x_test")
    prepared = prepare(model, train_rows, forward=forward, dtype=torch.float64, evaluation=True)
    expected = data.n_classes if n_classes is None else n_classes
    C = prepared.n_outputs
    if expected != C or data.n_classes > C:
        raise InputError(
            f"a model with {C} outputs for labels up to {data.n_classes - 1}"
            f" (y_train of shape {tuple(data.y_train.shape)}, y_test of shape {tuple(data.y_test.shape)})",
            expected=f"{expected} outputs, one for each class",
            hint=f"use a model with {data.n_classes} outputs"
            + (f", or pass km.AuditOptions(n_classes={C}) if some have no rows here" if data.n_classes < C else ""),
        )
    outputs = []
    for key, rows in (("x_train", train_rows), ("x_test", test_rows)):
        rows = rows.to(dtype=torch.float64, device=prepared.device)
        starts = range(0, rows.n, CHUNK)
        with torch.no_grad():
            chunks = [prepared.outputs(rows.slice(i, min(i + CHUNK, rows.n)), min(CHUNK, rows.n - i)) for i in starts]
        outputs.append(finite(torch.cat(chunks).cpu(), f"the model's outputs on {key}"))
    return prepared.module, outputs[0], outputs[1]


def _shown_rows(data: LabeledData, indices: list[int]) -> tuple[dict[str, str], dict[str, tuple[float, ...]]]:
    """Return images, or else features, of the rows that the report shows."""
    if data.image_shape is None:
        flat = data.x_train.reshape(len(data.x_train), -1)[:, :FEATURES_SHOWN]
        return {}, {str(i): tuple(float(v) for v in flat[i]) for i in indices}
    from kernelmem.auditing.thumbnails import png_data_uri

    low, high = float(data.x_train.min()), float(data.x_train.max())
    rows = {i: data.x_train[i].cpu().numpy() for i in indices}
    return {str(i): png_data_uri(row, data.image_shape, low=low, high=high) for i, row in rows.items()}, {}


def _flips(memorization: Memorization, flipped: Tensor | None, seed: int) -> Flips:
    """Evaluate the statistics on the known flips. This is the only place that uses them."""
    if flipped is None or not 0 < int(flipped.sum()) < len(flipped):
        return Flips(n=None if flipped is None else int(flipped.sum()))
    by_margin = detect(-torch.tensor(memorization.loo_margin, dtype=torch.float64), flipped, seed=seed)
    by_label, by_network = (
        detect(torch.tensor(scores), flipped, seed=seed, permutations=2).auroc
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
    from kernelmem import __version__  # here, because kernelmem imports this module

    versions = {name: metadata.version(name) for name in ("torch", "numpy", "scipy", "scikit-learn")}
    return {
        "python": platform.python_version(),
        "kernelmem": __version__,
        **versions,
        "threads": str(torch.get_num_threads()),
    }
