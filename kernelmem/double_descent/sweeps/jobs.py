"""Chunks of networks to train: picklable jobs, their metrics, and the files in which finished chunks are saved."""

import json
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from kernelmem.core.errors import FileCorruptError, UnsupportedModelError
from kernelmem.core.files.atomic_files import array_sha256
from kernelmem.core.files.result_files import read_result, write_result
from kernelmem.core.options import MEMORY, Progress, refresh_progress
from kernelmem.core.tasks import one_thread_per_worker, run_tasks
from kernelmem.double_descent.sweeps.options import Execution, Train
from kernelmem.training.ensemble.members import EnsembleOptions, Member
from kernelmem.training.ensemble.metrics import loss_and_error
from kernelmem.training.ensemble.recipe import Recipe
from kernelmem.training.ensemble.train import train_mlps, train_modules

CHUNK_FILE_KIND = "sweep chunk 1"
METRICS = (
    "test_error", "test_loss", "train_error", "train_loss", "memorized_flips", "recovered_flips", "noisy_test_error",
)  # fmt: skip
EVALUATION_BATCH_SIZE = 500  # examples per forward pass when a user's model is evaluated
_USER_TRAINING_LOCK = threading.Lock()  # a user's training draws from torch's global random state


@dataclass(frozen=True, eq=False, repr=False)
class Job:
    """Networks that are trained with one recipe, and the data for their metrics; picklable.

    Attributes:
        members: M networks, each with its training examples, labels and seeds.
        true_labels: (n,) true labels of the training examples, for each network.
        noisy_test_labels: (m,) noisy labels of the test examples, for each network.
        x, x_test, y_test: examples of the pool, examples and clean labels of the test set.
        recipe: optimizer, schedule, loss and number of steps; if ``train`` is given, only its loss is used.
        evaluate_at: T numbers of steps after which networks are evaluated; the last one is the end of training.
        n_classes: number of classes C.
        dtype: "float32" or "float64".
        device: device of the training; None: the CPU.
        memory: bytes that a batch of networks may allocate.
        make_model: function from the width to a module; None: MLPs are trained.
        train: training procedure of the user; None: networks are trained by the recipe.
    """

    members: tuple[Member, ...]
    true_labels: tuple[Tensor, ...]
    noisy_test_labels: tuple[Tensor, ...]
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

    def content_hash(self) -> str:
        """Return the SHA-256 hash, in hexadecimal, of all data and settings of the job that its metrics depend on.

        Functions contribute only their names, and torch its version.
        """
        arrays = {"x": self.x, "x_test": self.x_test, "y_test": self.y_test}
        for k, member in enumerate(self.members):
            arrays |= {f"rows {k}": member.rows, f"labels {k}": member.labels}
            arrays |= {f"clean {k}": self.true_labels[k], f"noisy {k}": self.noisy_test_labels[k]}
        function_names = [_qualified_name(function) for function in (self.make_model, self.train)]
        settings = {
            "members": [[member.width, member.init_seed, member.order_seed] for member in self.members],
            "recipe": asdict(self.recipe),
            "evaluate_at": self.evaluate_at,
            "rest": [self.n_classes, self.dtype, torch.__version__, *function_names],
        }
        numpy_arrays = {name: array.cpu().numpy() for name, array in arrays.items()}
        return array_sha256({json.dumps(settings, default=str): numpy_arrays["x"][:0], **numpy_arrays})


def run_job(job: Job, progress: Progress = False) -> dict[str, Tensor]:
    """Train the networks of a job and return their metrics, each (M, T) float64 for the T values of ``evaluate_at``.

    ``progress`` is called with (steps done, all steps), each counted for each network.

    Raises:
        UnsupportedModelError: the outputs of a user's model are not (n, C).
    """
    with one_thread_per_worker():
        return _run_job(job, progress)


def _run_job(job: Job, progress: Progress) -> dict[str, Tensor]:
    """Return the metrics of :func:`run_job`."""
    if job.train is not None:
        columns = [_run_user_training(job, job.train)]
    else:
        options = EnsembleOptions(
            evaluate_at=job.evaluate_at, dtype=getattr(torch, job.dtype), device=job.device, memory=job.memory,
            n_classes=job.n_classes, keep_outputs=True,
        )  # fmt: skip
        test = (job.x_test, job.y_test)
        if job.make_model is None:
            ensemble = train_mlps(job.members, job.x, test=test, recipe=job.recipe, options=options, progress=progress)
        else:
            ensemble = train_modules(
                job.make_model, job.members, job.x, test=test, recipe=job.recipe, options=options, progress=progress
            )
        columns = []
        for evaluation in ensemble.metrics:
            if evaluation.step in job.evaluate_at:
                assert evaluation.logits is not None
                column = {name: getattr(evaluation, name) for name in METRICS[:4]}
                columns.append(column | _label_metrics(job, evaluation.train_predictions, evaluation.logits.argmax(2)))
    return {name: torch.stack([column[name] for column in columns], 1) for name in METRICS}


def _label_metrics(job: Job, train_predictions: list[Tensor], test_predictions: Tensor) -> dict[str, Tensor]:
    """Return "memorized_flips", "recovered_flips" and "noisy_test_error" of the M networks of a job, each (M,) float64.

    The predictions are class indices, on the training examples of each network and (M, m) on the m test examples. The
    first two metrics are NaN for a network without wrong training labels.
    """
    memorized_fractions, recovered_fractions, noisy_test_errors = [], [], []
    for k, member in enumerate(job.members):
        flips = member.labels != job.true_labels[k]
        predicted_flips = train_predictions[k].to(member.labels)[flips]
        # Without wrong labels, means over no examples are NaN.
        memorized_fractions.append((predicted_flips == member.labels[flips]).double().mean())
        recovered_fractions.append((predicted_flips == job.true_labels[k][flips]).double().mean())
        noisy_test_errors.append((test_predictions[k].to(job.y_test) != job.noisy_test_labels[k]).double().mean())
    return {
        "memorized_flips": torch.stack(memorized_fractions),
        "recovered_flips": torch.stack(recovered_fractions),
        "noisy_test_error": torch.stack(noisy_test_errors),
    }


def _run_user_training(job: Job, train: Train) -> dict[str, Tensor]:
    """Train the M networks of a job by the user's procedure ``train``, and return the metrics after training by name.

    Each metric is (M,) float64. Predictions on wrong training labels are NaN if there are none.
    """
    metrics: list[dict[str, Tensor]] = []
    train_predictions: list[Tensor] = []
    test_predictions: list[Tensor] = []
    for member in job.members:
        train_logits, test_logits = _train_user_model(job, member, train)
        member_metrics = {}
        for name, logits, labels in (("train", train_logits, member.labels), ("test", test_logits, job.y_test)):
            target = labels
            if job.recipe.loss == "mse":
                target = torch.eye(job.n_classes, dtype=logits.dtype)[labels] - 1 / job.n_classes
            loss, error_rate, predicted_classes = loss_and_error(logits[None], target)
            member_metrics |= {f"{name}_loss": loss[0], f"{name}_error": error_rate[0]}
            (train_predictions if name == "train" else test_predictions).append(predicted_classes[0])
        metrics.append(member_metrics)
    stacked = {name: torch.stack([member_metrics[name] for member_metrics in metrics]) for name in METRICS[:4]}
    return stacked | _label_metrics(job, train_predictions, torch.stack(test_predictions))


def _train_user_model(job: Job, member: Member, train: Train) -> list[Tensor]:
    """Train one network by ``train``, and return its logits on its n training and the m test examples: (n, C) and (m, C).

    Raises:
        UnsupportedModelError: the model's outputs do not have one column for each of the C classes.
    """
    assert job.make_model is not None
    dtype = getattr(torch, job.dtype)
    with _USER_TRAINING_LOCK, torch.random.fork_rng():
        torch.manual_seed(member.init_seed)
        model = job.make_model(member.width).to(device=job.device, dtype=dtype)
        x, x_test = (data.to(device=job.device, dtype=dtype) for data in (job.x[member.rows], job.x_test))
        torch.manual_seed(member.order_seed)
        model.train()
        train(model, x, member.labels.to(x.device), member.order_seed)
        model.eval()
        with torch.no_grad():
            outputs = [
                torch.cat([model(batch).double().cpu() for batch in data.split(EVALUATION_BATCH_SIZE)])
                for data in (x, x_test)
            ]
    for logits, data in zip(outputs, (x, x_test), strict=True):
        if tuple(logits.shape) != (len(data), job.n_classes):
            raise UnsupportedModelError(
                f"a model with outputs of shape {tuple(logits.shape)}",
                expected=f"({len(data)}, {job.n_classes}), one column per class",
                hint=f"let make_model(width) return a module with {job.n_classes} outputs",
            )
    return outputs


def chunk_file(directory: Path, job: Job) -> Path:
    """Return the path of the file with the metrics of a job; its name contains the content hash of the job."""
    return directory / "chunks" / f"{job.content_hash()[:32]}.safetensors"


def write_chunk(path: Path, metrics: dict[str, Tensor]) -> None:
    """Write the metrics of a job (name to tensor) to ``path``; an interrupted write leaves no partial file."""
    write_result(path, CHUNK_FILE_KIND, metrics, {"key": path.stem})


def read_chunk(path: Path, n_networks: int) -> dict[str, Tensor] | None:
    """Return the metrics of a finished job of ``n_networks`` by name, or None if the file is missing or damaged."""
    try:
        with read_result(path, CHUNK_FILE_KIND) as (tensors, values):
            metrics = {name: tensors[name] for name in METRICS}
            shapes = {tensor.shape for tensor in metrics.values()}
            is_valid = len(shapes) == 1 and [*shapes.pop()][:-1] == [n_networks]
            return metrics if values["key"] == path.stem and is_valid else None
    except FileCorruptError:
        return None


def run_jobs(
    jobs: list[Job], directory: Path | None, execution: Execution, progress: Callable[[int, int], object]
) -> list[dict[str, Tensor]]:
    """Return the metrics of all jobs, one dictionary of (networks, evaluated steps) tensors per job, in order.

    Metrics saved in ``directory`` are read; the others are computed, and saved there as soon as each job ends.
    """
    chunk_files = [None if directory is None else chunk_file(directory, job) for job in jobs]
    results = [
        None if path is None else read_chunk(path, len(job.members))
        for path, job in zip(chunk_files, jobs, strict=True)
    ]
    n_total = sum(len(job.members) for job in jobs)
    n_done = sum(len(job.members) for job, metrics in zip(jobs, results, strict=True) if metrics is not None)

    def store_metrics(job_index: int, metrics: dict[str, Tensor]) -> None:
        nonlocal n_done
        results[job_index] = metrics
        if (path := chunk_files[job_index]) is not None:
            write_chunk(path, metrics)
        n_done += len(jobs[job_index].members)
        progress(n_done, n_total)

    progress(n_done, n_total)
    unfinished = [job_index for job_index, metrics in enumerate(results) if metrics is None]

    def run_here(job: Job) -> dict[str, Tensor]:
        n_networks = len(job.members)
        return run_job(
            job, lambda done, total: refresh_progress(progress, n_done + n_networks * done // total, n_total)
        )

    run_tasks(
        run_job if execution.executor else run_here,
        [jobs[job_index] for job_index in unfinished],
        execution.executor,
        lambda index, metrics: store_metrics(unfinished[index], metrics),
        lambda: refresh_progress(progress, n_done, n_total),
        timeout=execution.timeout,
        names=[_job_name(jobs[job_index], job_index) for job_index in unfinished],
    )
    return [metrics for metrics in results if metrics is not None]


def _job_name(job: Job, job_index: int) -> str:
    """Return the name of a job for messages."""
    first, last = job.members[0].width, job.members[-1].width
    ends = f"width {first}" if first == last else f"widths {first} to {last}"
    return f"job {job_index} ({len(job.members)} networks of {ends})"


def _qualified_name(function: Callable[..., object] | None) -> str:
    return "" if function is None else f"{function.__module__}.{getattr(function, '__qualname__', repr(function))}"
