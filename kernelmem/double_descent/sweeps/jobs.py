"""A chunk of networks to train: a picklable job, its figures, and the file that keeps them."""

import json
import multiprocessing
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kernelmem.core.atomic_files import array_sha256
from kernelmem.core.errors import FileCorruptError, UnsupportedModelError
from kernelmem.core.result_files import read_result, write_result
from kernelmem.training.ensemble.members import EnsembleOptions, Member
from kernelmem.training.ensemble.metrics import loss_and_error
from kernelmem.training.ensemble.recipe import Recipe
from kernelmem.training.ensemble.train import train_mlps, train_modules

__all__ = ["Job", "Train", "chunk_file", "read_chunk", "run_job", "run_jobs", "write_chunk"]

KIND = "sweep chunk 1"
FIGURES = (
    "test_error", "test_loss", "train_error", "train_loss", "memorized_flips", "recovered_flips", "noisy_test_error",
)  # fmt: skip
Train = Callable[[nn.Module, Tensor, Tensor, int], None]
EVALUATED = 500  # rows at once, of a user's model
_ONE_AT_A_TIME = threading.Lock()  # a user's training draws from torch's global random state


@dataclass(frozen=True, eq=False)
class Job:
    """Networks that train with one recipe, and all that their figures need; goes to another process as it is.

    Attributes:
        members: M networks.
        clean: of each the true labels of its rows.
        noisy_tests: of each the test labels with its noise, (m,).
        x, x_test, y_test: data; labels are clean.
        recipe: how they train; of a user's ``train`` only the loss matters.
        evaluate_at: T steps at which figures are taken, the last one is the end.
        n_classes: C.
        dtype: "float32" or "float64".
        device: where they train; None is the CPU.
        memory: what a batch of networks may take.
        make_model: width -> module; None: MLPs.
        train: the user's training; None: the recipe's.
    """

    members: tuple[Member, ...] = field(repr=False)
    clean: tuple[Tensor, ...] = field(repr=False)
    noisy_tests: tuple[Tensor, ...] = field(repr=False)
    x: Tensor = field(repr=False)
    x_test: Tensor = field(repr=False)
    y_test: Tensor = field(repr=False)
    recipe: Recipe
    evaluate_at: tuple[int, ...]
    n_classes: int
    dtype: str = "float32"
    device: str | None = None
    memory: str = "2GiB"
    make_model: Callable[[Any], nn.Module] | None = None
    train: Train | None = None

    def key(self) -> str:
        """SHA-256 of everything that the figures depend on; of functions their names, and torch's version."""
        arrays = {"x": self.x, "x_test": self.x_test, "y_test": self.y_test}
        for k, member in enumerate(self.members):
            arrays |= {f"rows {k}": member.rows, f"labels {k}": member.labels}
            arrays |= {f"clean {k}": self.clean[k], f"noisy {k}": self.noisy_tests[k]}
        words = {
            "members": [[own.width, own.init_seed, own.order_seed] for own in self.members],
            "recipe": asdict(self.recipe),
            "evaluate_at": self.evaluate_at,
            "rest": [self.n_classes, self.dtype, torch.__version__, _name(self.make_model), _name(self.train)],
        }
        plain = {name: own.cpu().numpy() for name, own in arrays.items()}
        return array_sha256({json.dumps(words, default=str): next(iter(plain.values()))[:0], **plain})


def run_job(job: Job) -> dict[str, Tensor]:
    """Train the networks of a job and take their figures, each (M, T) float64; T values of ``evaluate_at``.

    Raises:
        UnsupportedModelError: a user's model does not give (n, C) finite numbers' shape.
    """
    if multiprocessing.parent_process() is not None:
        torch.set_num_threads(1)  # workers share the machine; more threads each would only wait for one another
    if job.train is not None:
        columns = [_trained_by_user(job, job.train)]
    else:
        options = EnsembleOptions(
            evaluate_at=job.evaluate_at, dtype=getattr(torch, job.dtype), device=job.device, memory=job.memory,
            n_classes=job.n_classes, keep_outputs=True,
        )  # fmt: skip
        common: dict[str, Any] = {"test": (job.x_test, job.y_test), "recipe": job.recipe, "options": options}
        ensemble = (
            train_mlps(job.members, job.x, progress=False, **common)
            if job.make_model is None
            else train_modules(job.make_model, job.members, job.x, progress=False, **common)
        )
        columns = []
        for own in ensemble.metrics:
            if own.step not in job.evaluate_at:
                continue
            assert own.logits is not None
            column = {name: getattr(own, name) for name in FIGURES[:4]}
            columns.append(column | _shares(job, own.train_predictions, own.logits.argmax(2)))
    return {name: torch.stack([own[name] for own in columns], 1) for name in FIGURES}


def _shares(job: Job, said: list[Tensor], said_test: Tensor) -> dict[str, Tensor]:
    """What became of flipped rows, and the error against noisy test labels, each (M,)."""
    memorized, recovered, noisy = [], [], []
    for k, member in enumerate(job.members):
        flips = member.labels != job.clean[k]
        own = said[k].to(member.labels)[flips]
        memorized.append((own == member.labels[flips]).double().mean())  # NaN without flips
        recovered.append((own == job.clean[k][flips]).double().mean())
        noisy.append((said_test[k].to(job.y_test) != job.noisy_tests[k]).double().mean())
    return {
        "memorized_flips": torch.stack(memorized),
        "recovered_flips": torch.stack(recovered),
        "noisy_test_error": torch.stack(noisy),
    }


def _trained_by_user(job: Job, train: Train) -> dict[str, Tensor]:
    assert job.make_model is not None
    found: list[dict[str, Tensor]] = []
    said: list[Tensor] = []
    said_test: list[Tensor] = []
    dtype = getattr(torch, job.dtype)
    for member in job.members:
        with _ONE_AT_A_TIME, torch.random.fork_rng():
            torch.manual_seed(member.init_seed)
            model = job.make_model(member.width).to(device=job.device, dtype=dtype)
            x, x_test = (own.to(device=job.device, dtype=dtype) for own in (job.x[member.rows], job.x_test))
            torch.manual_seed(member.order_seed)
            model.train()
            train(model, x, member.labels.to(x.device), member.order_seed)
            model.eval()
            with torch.no_grad():
                outputs = [
                    torch.cat([model(part).double().cpu() for part in own.split(EVALUATED)]) for own in (x, x_test)
                ]
        if any(tuple(own.shape) != (len(z), job.n_classes) for own, z in zip(outputs, (x, x_test), strict=True)):
            raise UnsupportedModelError(
                f"a model whose outputs have shape {tuple(outputs[1].shape)}",
                expected=f"({len(x_test)}, {job.n_classes}), one column a class",
                hint=f"let make_model(width) return a module with {job.n_classes} outputs",
            )
        column = {}
        for name, own, labels in zip(("train", "test"), outputs, (member.labels, job.y_test), strict=True):
            target = labels
            if job.recipe.loss == "mse":
                target = torch.eye(job.n_classes, dtype=own.dtype)[labels] - 1 / job.n_classes
            loss, error, predicted = loss_and_error(own[None], target)
            column |= {f"{name}_loss": loss[0], f"{name}_error": error[0]}
            (said if name == "train" else said_test).append(predicted[0])
        found.append(column)
    together = {name: torch.stack([own[name] for own in found]) for name in FIGURES[:4]}
    return together | _shares(job, said, torch.stack(said_test))


def chunk_file(out: Path, job: Job) -> Path:
    """Where the figures of a job are kept: named after its key, so that another job never finds them."""
    return out / "chunks" / f"{job.key()[:32]}.safetensors"


def write_chunk(path: Path, loss_and_error: dict[str, Tensor]) -> None:
    """Keep the figures of a job, whole or not at all."""
    write_result(path, KIND, loss_and_error, {"key": path.stem})


def read_chunk(path: Path) -> dict[str, Tensor] | None:
    """Return the figures of a job that was done before, or None: no such file, or one that is not whole."""
    if not path.exists():
        return None
    try:
        with read_result(path, KIND) as (tensors, held):
            return {name: tensors[name] for name in FIGURES} if held["key"] == path.stem else None
    except FileCorruptError:
        return None


def run_jobs(
    jobs: list[Job], out: Path | None, executor: Executor | None, progress: Callable[[int, int], object] | None
) -> list[dict[str, Tensor]]:
    """The figures of all jobs in order: read from ``out`` where they are kept, else computed, and kept as each ends."""
    files = [None if out is None else chunk_file(out, job) for job in jobs]
    found: list[dict[str, Tensor] | None] = [None if own is None else read_chunk(own) for own in files]
    total = sum(len(job.members) for job in jobs)
    done = sum(len(job.members) for job, own in zip(jobs, found, strict=True) if own is not None)

    def finished(k: int, loss_and_error: dict[str, Tensor]) -> None:
        nonlocal done
        found[k] = loss_and_error
        if (path := files[k]) is not None:
            write_chunk(path, loss_and_error)
        done += len(jobs[k].members)
        if progress is not None:
            progress(done, total)

    if progress is not None:
        progress(done, total)
    missing = [k for k, own in enumerate(found) if own is None]
    if executor is None:
        for k in missing:
            finished(k, run_job(jobs[k]))
    else:
        futures: dict[Future[dict[str, Tensor]], int] = {executor.submit(run_job, jobs[k]): k for k in missing}
        try:
            for future in as_completed(futures):
                finished(futures[future], future.result())
        except BaseException:
            for future in futures:
                future.cancel()
            raise
    return [own for own in found if own is not None]


def _name(function: Callable[..., Any] | None) -> str:
    return "" if function is None else f"{function.__module__}.{getattr(function, '__qualname__', repr(function))}"
