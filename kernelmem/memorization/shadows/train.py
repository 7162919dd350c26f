"""Train a shadow ensemble: many models, each on a random subset of the same rows."""

from concurrent.futures import Executor
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from kernelmem.core.checks import as_path, as_seed, check_callable, check_instance
from kernelmem.core.errors import InputError, NumericalError, UnsupportedModelError
from kernelmem.core.files import file_system
from kernelmem.core.options import MEMORY, Progress, as_bytes, as_progress, refresh_progress
from kernelmem.core.tasks import run_tasks
from kernelmem.memorization.shadows.chunks import ShadowChunk, run_chunk
from kernelmem.memorization.shadows.directory import ShadowDirectory
from kernelmem.memorization.shadows.ensemble import ShadowEnsemble
from kernelmem.memorization.shadows.identity import as_shadow_identity, identity_record, initial_outputs
from kernelmem.memorization.shadows.masks import draw_masks
from kernelmem.memorization.shadows.options import EnsembleTraining, ShadowOptions, TrainFunction
from kernelmem.memorization.shadows.training_data import as_shadow_data

DEFAULT_OPTIONS = ShadowOptions()


def shadow_ensemble(
    train: object,
    training: EnsembleTraining | TrainFunction,
    *,
    test: object = None,
    path: str | Path | None = None,
    executor: Executor | None = None,
    seed: int = 0,
    memory: int | str = MEMORY,
    options: ShadowOptions = DEFAULT_OPTIONS,
    progress: Progress = None,
) -> ShadowEnsemble:
    """Train m models, each on a random subset of the n training rows, and keep their outputs on all rows.

    Subsets, initial weights and batch orders of model k depend on ``seed`` and k only: an ensemble of more models begins
    with the models of a smaller one.

    Args:
        train: (x, y), or a Dataset or DataLoader of pairs; x (n, ...) rows, y (n,) labels 0..C-1 or (n, C) real targets.
        training: :class:`EnsembleTraining` trains all models together; or a function train(indices, seed) -> model of the
            user, called once per model with the row numbers (n_k,) int64 and a seed. torch, NumPy and Python random
            numbers are seeded before, and their states restored afterwards. Its model is evaluated in eval mode and may
            have one logit z of two classes, kept as [0, z].
        test: (x, y) of t test rows that no model is trained on; None: no test rows.
        path: directory in which each finished chunk of models is saved: a killed run resumes, and more models continue.
            Models of other rows (or another order of the rows), labels, model, recipe, sampling, share, seed or dtype are
            refused. None: nothing is saved.
        executor: any PEP 3148 executor, one task per chunk of ``options.models_per_chunk`` models; with processes,
            ``make_model`` or the training function must be picklable. The result is the same as without. A chunk whose
            worker dies runs again, at most three times in all.
        seed: seed of subsets, initial weights and batch orders.
        memory: bytes that the training of a chunk may allocate. Outputs beyond it are kept in a memory-mapped temporary
            file in ``path``.
        options: number of models, share, sampling, dtype and others.
        progress: called with (models done, all models).

    Raises:
        InputError: data, options or ``path`` do not fit.
        NumericalError: models with outputs that are not finite; fewer than two are left with ``diverged="drop"``.
        UnsupportedModelError: a model that cannot be trained together, or whose outputs do not fit.
        TaskError: workers of a chunk died or exceeded ``options.timeout`` in every attempt; other chunks are saved in ``path``.
        FileCorruptError: the identity file in ``path`` is damaged.

    Cost: m trainings; with MLPs trained together about a quarter of the time of a loop. Outputs take
    m (n + t) C numbers.

    Source: Feldman and Zhang 2020 (subsets); Carlini et al. 2022 (one ensemble for all membership scores).

    >>> from kernelmem.training import Recipe
    >>> x, y = torch.eye(6), torch.arange(6) % 2
    >>> options = ShadowOptions(n_models=4, share=0.5, sampling="balanced")
    >>> shadow_ensemble((x, y), EnsembleTraining(Recipe(steps=20), width=4), options=options).masks.sum(0)
    tensor([2, 2, 2, 2, 2, 2])
    """
    check_instance(options, "options", ShadowOptions)
    if not isinstance(training, EnsembleTraining):
        try:
            check_callable(training, "training", ("indices", "seed"))
        except InputError as error:
            raise InputError(
                error.given,
                expected=f"an EnsembleTraining, or {error.expected}",
                hint="pass training=km.EnsembleTraining(recipe, width=64), or train(indices, seed) that returns a model",
            ) from error
        if path is not None and not options.training_name:
            raise InputError(
                "path= with a training function, whose code cannot be compared",
                expected="training_name= in the options, text that identifies function and settings",
                hint='pass options=ShadowOptions(training_name="ResNet-18, 30 epochs, lr 0.1")',
            )
    if executor is not None:
        check_instance(executor, "executor", Executor, hint="pass concurrent.futures.ProcessPoolExecutor()")
    seed, bytes_allowed = as_seed(seed), as_bytes(memory)
    report_progress = as_progress(progress, "training shadow models", "model")
    path = None if path is None else as_path(path, "path")
    data = as_shadow_data(train, test, training, options)
    m, n = options.n_models, len(data.x)
    masks = draw_masks(0, m, n, share=options.share, sampling=options.sampling, seed=seed)
    record = identity_record(data, training, options, seed)
    probe = initial_outputs(data, training, seed)  # also without a directory: it refuses models that fail
    directory = None if path is None else ShadowDirectory(path, record, probe)
    outputs = _Outputs(m, n + data.n_test, bytes_allowed, path)
    missing = [True] * m
    if directory is not None:
        for start, stop in directory.finished():
            if start < m and (stored := directory.read(start, stop, n + data.n_test)) is not None:
                stop = min(stop, m)
                outputs.store(start, stop, stored[: stop - start])
                missing[start:stop] = [False] * (stop - start)
                _refuse_diverged(outputs, start, stop, options)
    chunks = [
        ShadowChunk(start, stop, data, training, options, seed, memory)
        for start, stop in _ranges(missing, options.models_per_chunk)
    ]
    n_done = m - sum(missing)
    report_progress(n_done, m)

    def store(index: int, chunk_outputs: Tensor) -> None:
        nonlocal n_done
        chunk = chunks[index]
        if directory is not None:
            directory.write(chunk.start, chunk.stop, chunk_outputs)
        outputs.store(chunk.start, chunk.stop, chunk_outputs)
        _refuse_diverged(outputs, chunk.start, chunk.stop, options)
        n_done += chunk.stop - chunk.start
        report_progress(n_done, m)

    def run_here(chunk: ShadowChunk) -> Tensor:
        size = chunk.stop - chunk.start
        return run_chunk(chunk, lambda done, total: refresh_progress(report_progress, n_done + size * done // total, m))

    run_tasks(
        run_here if executor is None else run_chunk,
        chunks,
        executor,
        store,
        lambda: refresh_progress(report_progress, n_done, m),
        timeout=options.timeout,
        names=[f"shadow models {chunk.start} to {chunk.stop - 1}" for chunk in chunks],
    )
    values = outputs.values
    assert values is not None
    dropped = tuple(sorted(outputs.diverged))
    if dropped:
        kept = torch.tensor([k for k in range(m) if k not in outputs.diverged], dtype=torch.int64)
        if len(kept) < 2:
            raise NumericalError(
                f"{len(kept)} of {m} models with finite outputs",
                expected="at least two models that do not diverge",
                hint="lower the learning rate",
            )
        values, masks = values[kept], masks[kept]
    identity = as_shadow_identity(record, dropped)
    return ShadowEnsemble(masks, values[:, :n], data.labels, values[:, n:], data.test_labels, identity)


class _Outputs:
    """Outputs (m, rows, C) of all models: in memory, or beyond ``memory`` bytes in a temporary file in ``path``."""

    def __init__(self, n_models: int, n_rows: int, memory: int, path: Path | None) -> None:
        self.n_models, self.n_rows, self.memory, self.path = n_models, n_rows, memory, path
        self.values: Tensor | None = None
        self.diverged: set[int] = set()

    def store(self, start: int, stop: int, outputs: Tensor) -> None:
        """Copy the outputs of the models start..stop-1, and note those that are not finite."""
        if self.values is None:
            self.values = self._allocate(int(outputs.shape[2]), outputs.dtype)
        if outputs.shape[2] != self.values.shape[2]:
            raise UnsupportedModelError(
                f"models with {self.values.shape[2]} and with {outputs.shape[2]} outputs",
                expected="the same number of outputs in all models",
                hint="let the architecture not depend on indices or seed",
            )
        self.values[start:stop] = outputs
        finite = outputs.isfinite().flatten(1).all(1)
        self.diverged |= {start + int(k) for k in (~finite).nonzero()[:, 0]}

    def _allocate(self, C: int, dtype: torch.dtype) -> Tensor:
        """Return an empty tensor (m, rows, C)."""
        shape = (self.n_models, self.n_rows, C)
        n_bytes = prod(shape) * dtype.itemsize
        if n_bytes <= self.memory:
            return torch.empty(shape, dtype=dtype)
        if self.path is None:
            raise InputError(
                f"outputs {shape} of {n_bytes:,} bytes; memory={self.memory:,}",
                expected="outputs that fit into memory, or a path for a memory-mapped file",
                hint=f"pass path=, or memory={n_bytes} or more",
            )
        with file_system.reserved_file(self.path, n_bytes) as file:
            return torch.from_file(str(file), shared=True, size=prod(shape), dtype=dtype).view(shape)


def _refuse_diverged(outputs: _Outputs, start: int, stop: int, options: ShadowOptions) -> None:
    """Raise NumericalError for diverged models among start..stop-1, unless they are dropped."""
    diverged = sorted(k for k in outputs.diverged if start <= k < stop)
    if diverged and options.diverged == "raise":
        raise NumericalError(
            f"outputs that are not finite, of models {', '.join(map(str, diverged[:10]))}{', ...' * (len(diverged) > 10)}",
            expected="finite outputs of every model",
            hint="lower the learning rate, or pass diverged='drop' to leave these models out",
        )


def _ranges(missing: list[bool], size: int) -> list[tuple[int, int]]:
    """Return ranges (start, stop) of at most ``size`` models that cover the missing ones; they end at multiples of size.

    >>> _ranges([True] * 5, 2), _ranges([False, True, True, True], 2)
    ([(0, 2), (2, 4), (4, 5)], [(1, 2), (2, 4)])
    """
    ranges: list[tuple[int, int]] = []
    for k, is_missing in enumerate(missing):
        if not is_missing:
            continue
        if ranges and ranges[-1][1] == k and k % size:
            ranges[-1] = (ranges[-1][0], k + 1)
        else:
            ranges.append((k, k + 1))
    return ranges
