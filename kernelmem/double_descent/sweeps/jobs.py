"""Chunks of networks to train: picklable jobs, their metrics, and the files that keep finished ones."""

import json
import multiprocessing
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from kernelmem.core.atomic_files import array_sha256
from kernelmem.core.errors import FileCorruptError, UnsupportedModelError
from kernelmem.core.options import MEMORY
from kernelmem.core.result_files import read_result, write_result
from kernelmem.double_descent.sweeps.options import Train
from kernelmem.training.ensemble.members import EnsembleOptions, Member
from kernelmem.training.ensemble.metrics import loss_and_error
from kernelmem.training.ensemble.recipe import Recipe
from kernelmem.training.ensemble.train import train_mlps, train_modules

KIND = "sweep chunk 1"
METRICS = (
    "test_error", "test_loss", "train_error", "train_loss", "memorized_flips", "recovered_flips", "noisy_test_error",
)  # fmt: skip
EVALUATED = 500  # examples per forward pass of a user's model
_ONE_AT_A_TIME = threading.Lock()  # a user's training draws from torch's global random state


@dataclass(frozen=True, eq=False, repr=False)
class Job:
    """Networks that train with one recipe, and the data for their metrics; picklable.

    Attributes:
        members: M networks.
        clean: true labels of the training examples of each network.
        noisy_tests: (m,) noisy test labels for each network.
        x, x_test, y_test: examples of the pool, examples and clean labels of the test set.
        recipe: how they train; with ``train`` only its loss is used.
        evaluate_at: T numbers of steps after which networks are evaluated; the last one is the end.
        n_classes: C.
        dtype: "float32" or "float64".
        device: where they train; None: the CPU.
        memory: bytes that a batch of networks may allocate.
        make_model: width -> module; None: MLPs.
        train: training procedure of the user; None: the recipe.
    """

    members: tuple[Member, ...]
    clean: tuple[Tensor, ...]
    noisy_tests: tuple[Tensor, ...]
    x: Tensor
    x_test: Tensor
    y_test: Tensor
    recipe: Recipe
    evaluate_at: tuple[int, ...]
    n_classes: int
    dtype: str = "float32"
    device: str | None = None
    memory: int | str = MEMORY
    make_model: Callable[..., nn.Module] | None = None
    train: Train | None = None

    def key(self) -> str:
        """SHA-256 of everything that the metrics depend on; functions count by name, torch by version."""
        arrays = {"x": self.x, "x_test": self.x_test, "y_test": self.y_test}
        for k, member in enumerate(self.members):
            arrays |= {f"rows {k}": member.rows, f"labels {k}": member.labels}
            arrays |= {f"clean {k}": self.clean[k], f"noisy {k}": self.noisy_tests[k]}
        settings = {
            "members": [[member.width, member.init_seed, member.order_seed] for member in self.members],
            "recipe": asdict(self.recipe),
            "evaluate_at": self.evaluate_at,
            "rest": [self.n_classes, self.dtype, torch.__version__, _name(self.make_model), _name(self.train)],
        }
        hashed = {name: array.cpu().numpy() for name, array in arrays.items()}
        return array_sha256({json.dumps(settings, default=str): hashed["x"][:0], **hashed})


def run_job(job: Job) -> dict[str, Tensor]:
    """Train the networks of a job and return their metrics, each (M, T) float64 for the T values of ``evaluate_at``.

    Raises:
        UnsupportedModelError: the outputs of a user's model are not (n, C).
    """
    if multiprocessing.parent_process() is not None:
        torch.set_num_threads(1)  # workers share the machine: more threads each would only wait for one another
    if job.train is not None:
        columns = [_run_user_training(job, job.train)]
    else:
        options = EnsembleOptions(
            evaluate_at=job.evaluate_at, dtype=getattr(torch, job.dtype), device=job.device, memory=job.memory,
            n_classes=job.n_classes, keep_outputs=True,
        )  # fmt: skip
        test = (job.x_test, job.y_test)
        if job.make_model is None:
            ensemble = train_mlps(job.members, job.x, test=test, recipe=job.recipe, options=options, progress=False)
        else:
            ensemble = train_modules(
                job.make_model, job.members, job.x, test=test, recipe=job.recipe, options=options, progress=False
            )
        columns = []
        for at in ensemble.metrics:
            if at.step in job.evaluate_at:
                assert at.logits is not None
                column = {name: getattr(at, name) for name in METRICS[:4]}
                columns.append(column | _label_metrics(job, at.train_predictions, at.logits.argmax(2)))
    return {name: torch.stack([column[name] for column in columns], 1) for name in METRICS}


def _label_metrics(job: Job, predicted: list[Tensor], predicted_test: Tensor) -> dict[str, Tensor]:
    """Predictions of examples with wrong labels, and the error against noisy test labels, each (M,)."""
    memorized, recovered, noisy = [], [], []
    for k, member in enumerate(job.members):
        flips = member.labels != job.clean[k]
        predicted_flips = predicted[k].to(member.labels)[flips]
        memorized.append((predicted_flips == member.labels[flips]).double().mean())  # NaN without wrong labels
        recovered.append((predicted_flips == job.clean[k][flips]).double().mean())
        noisy.append((predicted_test[k].to(job.y_test) != job.noisy_tests[k]).double().mean())
    return {
        "memorized_flips": torch.stack(memorized),
        "recovered_flips": torch.stack(recovered),
        "noisy_test_error": torch.stack(noisy),
    }


def _run_user_training(job: Job, train: Train) -> dict[str, Tensor]:
    metrics: list[dict[str, Tensor]] = []
    predicted: list[Tensor] = []
    predicted_test: list[Tensor] = []
    for member in job.members:
        outputs, outputs_test = _user_outputs(job, member, train)
        row = {}
        for name, logits, labels in (("train", outputs, member.labels), ("test", outputs_test, job.y_test)):
            target = labels
            if job.recipe.loss == "mse":
                target = torch.eye(job.n_classes, dtype=logits.dtype)[labels] - 1 / job.n_classes
            loss, error, classes = loss_and_error(logits[None], target)
            row |= {f"{name}_loss": loss[0], f"{name}_error": error[0]}
            (predicted if name == "train" else predicted_test).append(classes[0])
        metrics.append(row)
    stacked = {name: torch.stack([row[name] for row in metrics]) for name in METRICS[:4]}
    return stacked | _label_metrics(job, predicted, torch.stack(predicted_test))


def _user_outputs(job: Job, member: Member, train: Train) -> list[Tensor]:
    """Outputs of one network, trained by the user's procedure, on its training and on the test examples."""
    assert job.make_model is not None
    dtype = getattr(torch, job.dtype)
    with _ONE_AT_A_TIME, torch.random.fork_rng():
        torch.manual_seed(member.init_seed)
        model = job.make_model(member.width).to(device=job.device, dtype=dtype)
        x, x_test = (data.to(device=job.device, dtype=dtype) for data in (job.x[member.rows], job.x_test))
        torch.manual_seed(member.order_seed)
        model.train()
        train(model, x, member.labels.to(x.device), member.order_seed)
        model.eval()
        with torch.no_grad():
            outputs = [
                torch.cat([model(batch).double().cpu() for batch in data.split(EVALUATED)]) for data in (x, x_test)
            ]
    for logits, data in zip(outputs, (x, x_test), strict=True):
        if tuple(logits.shape) != (len(data), job.n_classes):
            raise UnsupportedModelError(
                f"a model with outputs of shape {tuple(logits.shape)}",
                expected=f"({len(data)}, {job.n_classes}), one column per class",
                hint=f"let make_model(width) return a module with {job.n_classes} outputs",
            )
    return outputs


def chunk_file(out: Path, job: Job) -> Path:
    """Return the file of a job's metrics, named after its key, so that another job never reads it."""
    return out / "chunks" / f"{job.key()[:32]}.safetensors"


def write_chunk(path: Path, metrics: dict[str, Tensor]) -> None:
    """Write the metrics of a job, whole or not at all."""
    write_result(path, KIND, metrics, {"key": path.stem})


def read_chunk(path: Path) -> dict[str, Tensor] | None:
    """Return the metrics of a finished job, or None if the file is missing or damaged."""
    if not path.exists():
        return None
    try:
        with read_result(path, KIND) as (tensors, values):
            return {name: tensors[name] for name in METRICS} if values["key"] == path.stem else None
    except FileCorruptError:
        return None


def run_jobs(
    jobs: list[Job], out: Path | None, executor: Executor | None, progress: Callable[[int, int], object]
) -> list[dict[str, Tensor]]:
    """Return the metrics of all jobs in order: read from ``out`` if kept there, else computed, and kept as each ends."""
    files = [None if out is None else chunk_file(out, job) for job in jobs]
    results = [None if file is None else read_chunk(file) for file in files]
    total = sum(len(job.members) for job in jobs)
    done = sum(len(job.members) for job, metrics in zip(jobs, results, strict=True) if metrics is not None)

    def finish(k: int, metrics: dict[str, Tensor]) -> None:
        nonlocal done
        results[k] = metrics
        if (path := files[k]) is not None:
            write_chunk(path, metrics)
        done += len(jobs[k].members)
        progress(done, total)

    progress(done, total)
    missing = [k for k, metrics in enumerate(results) if metrics is None]
    if executor is None:
        for k in missing:
            finish(k, run_job(jobs[k]))
    else:
        futures: dict[Future[dict[str, Tensor]], int] = {executor.submit(run_job, jobs[k]): k for k in missing}
        try:
            for future in as_completed(futures):
                finish(futures[future], future.result())
        except BaseException:
            for future in futures:
                future.cancel()
            raise
    return [metrics for metrics in results if metrics is not None]


def _name(function: Callable[..., object] | None) -> str:
    return "" if function is None else f"{function.__module__}.{getattr(function, '__qualname__', repr(function))}"
