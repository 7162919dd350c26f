"""km.audit: from a trained network and its data to a report of what it memorized."""

import dataclasses
import json
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kernelmem.auditing.analysis import analyze, memorized_examples, per_class
from kernelmem.auditing.document import SCHEMA_VERSION, AuditDocument, Flips
from kernelmem.auditing.fingerprint import data_identity, model_identity, seen_rows
from kernelmem.auditing.load import read_document
from kernelmem.auditing.verdict import verdict
from kernelmem.core.atomic_files import check_directory, write_files
from kernelmem.core.batches import as_rows
from kernelmem.core.checks import finite, seed_sequence
from kernelmem.core.errors import InputError
from kernelmem.kernels.ntk import ntk
from kernelmem.label_noise.detection import detect
from kernelmem.tangents.prepare import prepare
from kernelmem.training.datasets import LabeledData, labeled_data

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

__all__ = ["Audit", "audit"]

EXAMPLES = 12
FEATURES_SHOWN = 64


@dataclass(frozen=True)
class Audit:
    """What :func:`audit` found. ``document`` is all of it, as plain values."""

    document: AuditDocument

    def to_dict(self) -> dict[str, Any]:
        """The document as nested dicts and lists: the content of ``audit.json``."""
        return json.loads(self.to_json())

    def to_json(self) -> str:
        """``audit.json``: the same inputs, seed, versions and threads give the same bytes, ``seconds`` apart."""
        return json.dumps(dataclasses.asdict(self.document), indent=1, allow_nan=False, ensure_ascii=False) + "\n"

    def to_html(self) -> str:
        """The report: one static page without scripts that opens offline."""
        from kernelmem.auditing import (
            report,  # here, because matplotlib and jinja2 cost `import kernelmem` half a second
        )

        return report.render(self.document)

    def to_frame(self) -> "pandas.DataFrame":
        """One row for each training row: score, margin, network, vote, memorized."""
        import pandas

        found = self.document.memorization
        frame = pandas.DataFrame(
            {"score": found.score, "margin": found.margin, "network": found.network, "vote": found.vote}
        )
        frame["memorized"] = frame.index.isin(found.memorized)
        return frame.rename_axis("row")

    def plot(self) -> "Figure":
        """The distribution of memorization with its null."""
        from kernelmem.auditing import report

        return report.plot(self.document)

    def files(self) -> dict[str, str]:
        """The files that :meth:`save` writes: name -> content."""
        return {"audit.html": self.to_html(), "audit.json": self.to_json()}

    def save(self, directory: str | Path) -> None:
        """Write audit.html and audit.json into ``directory``: both whole, or neither."""
        write_files(directory, self.files())

    @classmethod
    def load(cls, path: str | Path) -> "Audit":
        """Read ``audit.json`` (or the directory that holds it).

        Raises:
            InputError: no such file. FileCorruptError: not an audit.json of a known schema version.
        """
        path = Path(path)
        return cls(read_document(path / "audit.json" if path.is_dir() else path))

    def __str__(self) -> str:
        d = self.document
        accuracy = f"train {d.model.train_accuracy:.1%}, test {d.model.test_accuracy:.1%}"
        lines = [
            d.verdict.headline,
            f"  {d.verdict.detail}",
            f"  accuracy       {accuracy}",
            f"  network machine agrees with the network on {d.kernel.agreement:.1%} of {d.data.n_test:,} test rows"
            f" (relative error {d.kernel.relative_error:.2f}); label machine: {d.kernel.label_machine_agreement:.1%}",
        ]
        if d.flips.auroc is not None:
            lines.append(
                f"  known flips    {d.flips.n:,}; AUROC of the left-out margin {d.flips.auroc:.4f} ± {d.flips.auroc_se:.4f}"
                f" (flags permuted: {d.flips.permuted_auroc:.3f})"
            )
        for example in d.examples[:5]:
            lines.append(
                f"  row {example.index:>5}       labeled {example.label}, the rest of the data says {example.vote};"
                f" memorized by this network {example.network:+.2f}, by any such learner {example.score:+.2f}"
            )
        return "\n".join(lines)


@torch.inference_mode(mode=False)
def audit(
    model: nn.Module,
    train: tuple[Any, Any],
    test: tuple[Any, Any],
    *,
    out: str | Path | None = None,
    flipped: Any = None,
    forward: Callable[[nn.Module, Any], Tensor] | None = None,
    n_classes: int | None = None,
    image_shape: tuple[int, ...] | None = None,
    name: str = "data",
    model_name: str | None = None,
    training: str = "trained elsewhere",
    reproduce: str | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    memory: int | str = "4GiB",
    extra_files: Mapping[str, bytes] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Audit:
    """Measure what a trained classifier memorized of its training rows.

    K = tangent kernel of the network (trace), float64; on it two kernel ridge machines. The *network machine* is fitted to
    the network's own outputs; what this network memorized of row i is

        network_i = margin(f(x_i), y_i) − margin(f_machine without i (x_i), y_i),

    held against the same difference on test rows, which neither saw (the null). The *label machine* is fitted to the
    labels; its leave-one-out score h_ii (y_i − f_{−i}(x_i)) says what the learning problem makes any such learner memorize.
    Leave-one-out is exact (closed form), the ridges are chosen by leave-one-out error.

    Args:
        model: a trained module; ``model(x)`` is (n, C). A copy in eval mode is analyzed, the module is not changed.
        train: (x, y), the rows and labels that it was trained on: x (n, ...), y (n,) integers.
        test: (x, y), rows that it never saw.
        out: directory for audit.html and audit.json; both appear whole, after everything else succeeded.
        flipped: (n,) booleans, training labels known to be wrong. They are used to score the audit, never in it.
        forward: maps (model, batch) to (n, C), for models with other outputs.
        n_classes: C, where the labels at hand do not reach C − 1.
        image_shape: (H, W) or (H, W, 3) where flat rows are pictures.
        name: how the report names the data.
        model_name: how it names the network; None: by its class.
        training: how the report describes the training.
        reproduce: the command or call that gives this report again.
        seed: of the permutation null for known flips; recorded.
        device: where to compute; None: where the model is.
        memory: bytes that the kernel computation may allocate.
        extra_files: more files to write into ``out`` together with the report.
        progress: called with (stage, done, in all).

    Returns:
        Audit: ``.document`` (plain values), ``.to_html()``, ``.to_json()``, ``.to_frame()``, ``.plot()``, ``.save(dir)``.

    Raises:
        InputError: arrays, labels or outputs that do not fit; UnsupportedModelError: a model without row-wise outputs;
        NumericalError: a kernel that is not positive semidefinite. Nothing is written then.

    Cost: the kernel (see :func:`kernelmem.ntk`) + O(n³) for the machines; memory O(n²): for n up to about 10,000.

    Source: leave-one-out memorization by kernels: Bachmann, Hofmann, Lucchi 2022; memorization as a left-out difference:
    Feldman and Zhang 2020.
    """
    data = labeled_data(
        *_pair(train, "train"), *_pair(test, "test"), name=name, image_shape=image_shape, flipped=flipped
    )
    seeds = seed_sequence(seed, ["permutations"])
    if out is not None:
        check_directory(out)
    started = time.perf_counter()
    tick = progress or (lambda stage, done, total: None)
    seen, duplicates, conflicting = seen_rows(data)
    if bool(seen.all()):
        raise InputError(
            f"x_test of shape {tuple(data.x_test.shape)}, every row of which is also a training row",
            expected="rows that the network never saw",
            hint="hold out rows before training; without them there is no null control",
        )

    subject, train_outputs, test_outputs = _outputs(model, data, forward, n_classes, device)
    tick("tangent kernel", 0, 2)
    options: dict[str, Any] = {"forward": forward, "dtype": torch.float64, "device": device, "memory": memory}
    kernel = ntk(subject, data.x_train, **options).cpu()
    tick("tangent kernel", 1, 2)
    test_kernel = ntk(subject, data.x_test, data.x_train, **options).cpu()
    tick("tangent kernel", 2, 2)

    analysis = analyze(kernel, test_kernel, train_outputs, test_outputs, data.y_train, data.y_test, unseen=~seen)
    tick("leave-one-out", 1, 1)
    found = analysis.memorization
    examples = memorized_examples(analysis, kernel, data.y_train, data.flipped, count=EXAMPLES)
    shown = sorted({e.index for e in examples} | {p.index for e in examples for p in e.pushers})
    pictures, rows = _shown(data, shown)
    identity = data_identity(data, train_outputs.shape[1], duplicates, conflicting, int(seen.sum()))
    document = AuditDocument(
        schema_version=SCHEMA_VERSION,
        verdict=verdict(analysis.kernel, found, identity),
        data=identity,
        model=model_identity(
            model, model_name, training, _accuracy(train_outputs, data.y_train), _accuracy(test_outputs, data.y_test)
        ),
        kernel=analysis.kernel,
        memorization=found,
        flips=_flips(found.margin, found.score, found.network, data.flipped, seeds["permutations"]),
        examples=examples,
        classes=per_class(found, data.y_train, data.y_test, train_outputs, test_outputs),
        pictures=pictures,
        rows=rows,
        reproduce=reproduce
        or "kernelmem.auditing(model, train=(x, y), test=(x, y)) with weights and data of the hashes above",
        seed=seed,
        versions=_versions(),
        seconds=round(time.perf_counter() - started, 3),
    )
    result = Audit(document)
    if out is not None:
        write_files(out, {**result.files(), **(extra_files or {})})
    return result


def _pair(value: Any, name: str) -> tuple[Any, Any]:
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise InputError(
            f"{name} of type {type(value).__name__}", expected=f"{name}=(x, y)", hint="pass rows and labels"
        )
    return value[0], value[1]


def _outputs(
    model: nn.Module, data: LabeledData, forward: Any, n_classes: int | None, device: Any
) -> tuple[nn.Module, Tensor, Tensor]:
    """A private copy in eval mode, and its float64 outputs on both sets of rows; C is checked against the labels."""
    train_rows, test_rows = as_rows(data.x_train, "x_train"), as_rows(data.x_test, "x_test")
    prepared = prepare(model, train_rows, forward=forward, dtype=torch.float64, device=device, evaluation=True)
    expected = data.n_classes if n_classes is None else n_classes
    C = prepared.n_outputs
    if expected != C or data.n_classes > C:
        raise InputError(
            f"a model with {C} outputs for labels up to {data.n_classes - 1}"
            f" (y_train of shape {tuple(data.y_train.shape)}, y_test of shape {tuple(data.y_test.shape)})",
            expected=f"{expected} outputs, one for each class",
            hint=f"use a model with {data.n_classes} outputs"
            + (f", or pass n_classes={C} if some classes have no rows here" if data.n_classes < C else ""),
        )
    outputs = []
    for key, rows in (("x_train", train_rows), ("x_test", test_rows)):
        rows = rows.to(dtype=torch.float64, device=prepared.device)
        with torch.no_grad():
            chunks = [
                prepared.outputs(rows.slice(i, min(i + 256, rows.n)), min(256, rows.n - i))
                for i in range(0, rows.n, 256)
            ]
        outputs.append(finite(torch.cat(chunks).cpu(), f"the model's outputs on {key}"))
    return prepared.module, outputs[0], outputs[1]


def _shown(data: LabeledData, shown: list[int]) -> tuple[dict[str, str], dict[str, tuple[float, ...]]]:
    """Pictures, or feature values, of the rows that the report shows."""
    if data.image_shape is None:
        flat = data.x_train.reshape(len(data.x_train), -1)[:, :FEATURES_SHOWN]
        return {}, {str(i): tuple(float(v) for v in flat[i]) for i in shown}
    from kernelmem.auditing.thumbnails import png_data_uri

    low, high = float(data.x_train.min()), float(data.x_train.max())
    pictures = {
        str(i): png_data_uri(data.x_train[i].cpu().numpy(), data.image_shape, low=low, high=high) for i in shown
    }
    return pictures, {}


def _flips(margin: Any, score: Any, network: Any, flipped: Tensor | None, seed: int) -> Flips:
    """Score the audit by the known flips. This is the only place that looks at them."""
    if flipped is None or not 0 < int(flipped.sum()) < len(flipped):
        return Flips(n=None if flipped is None else int(flipped.sum()))
    suspicion = -torch.tensor(margin, dtype=torch.float64)
    main = detect(suspicion, flipped, seed=seed)
    others = [detect(torch.tensor(values), flipped, seed=seed, permutations=2).auroc for values in (score, network)]
    return Flips(
        n=main.n_flipped,
        auroc=main.auroc,
        auroc_se=main.auroc_se,
        auroc_score=others[0],
        auroc_network=others[1],
        permuted_auroc=main.permuted_auroc,
        permuted_sd=main.permuted_sd,
        precision=tuple(float(v) for v in main.precision),
        recall=tuple(float(v) for v in main.recall),
        ranks=tuple(int(v) for v in main.ranks),
    )


def _accuracy(outputs: Tensor, labels: Tensor) -> float:
    return float((outputs.argmax(1) == labels).double().mean())


def _versions() -> dict[str, str]:
    packages = ("kernelmem", "torch", "numpy", "scipy", "scikit-learn")
    versions = {name: metadata.version(name) for name in packages}
    return {"python": platform.python_version(), **versions, "threads": str(torch.get_num_threads())}
