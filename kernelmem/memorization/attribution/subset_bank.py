"""Bank of models retrained on subsets of one size, with several seeds per subset."""

from concurrent.futures import Executor
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from kernelmem.core.checks import as_count, as_number, as_seed, check_callable, check_instance
from kernelmem.core.errors import InputError, NumericalError
from kernelmem.core.options import MEMORY, Progress, as_progress, refresh_progress
from kernelmem.core.tasks import run_tasks
from kernelmem.memorization.attribution.subset_outcomes import MIN_SUBSETS
from kernelmem.memorization.shadows.chunks import ShadowChunk, run_chunk
from kernelmem.memorization.shadows.ensemble import ShadowEnsemble
from kernelmem.memorization.shadows.identity import as_shadow_identity, identity_record
from kernelmem.memorization.shadows.options import EnsembleTraining, ShadowOptions, TrainFunction
from kernelmem.memorization.shadows.training_data import ShadowData, as_shadow_data

DEFAULT_OPTIONS = ShadowOptions()


def subset_bank(
    train: object,
    training: EnsembleTraining | TrainFunction,
    *,
    test: object,
    n_subsets: int = 50,
    models_per_subset: int = 2,
    share: float = 0.5,
    seed: int = 0,
    executor: Executor | None = None,
    options: ShadowOptions = DEFAULT_OPTIONS,
    progress: Progress = None,
) -> ShadowEnsemble:
    """Train models on random subsets of one size, several with different seeds on each, for :func:`lds`.

    All subsets have round(share · n) rows, so that a constant attribution predicts nothing; the models of a subset differ in
    initial weights and batch orders, which gives the score its ceiling.

    Args:
        train: (x, y), or a Dataset or DataLoader of pairs, as in ``km.shadow_ensemble``.
        training: ``km.EnsembleTraining``, or a function train(indices, seed) -> model, which must make a new model in each
            call: one that goes on from trained weights has seen the rows that are left out.
        test: (x, y) of the explained rows.
        n_subsets: number of subsets, at least 10.
        models_per_subset: number of models on each; 1 gives no ceiling.
        share: of the rows in each subset, in (0, 1).
        seed: of subsets, initial weights and batch orders.
        executor: any PEP 3148 executor, one task per ``options.models_per_chunk`` models.
        options: dtype, device, number of classes, forward; models, share and sampling are those of this function.
        progress: called with (models done, all models).

    Returns:
        ShadowEnsemble of n_subsets · models_per_subset models.

    Raises:
        InputError: data, options or numbers do not fit, a subset would be empty or have all rows, or the training function
            returns the same module twice.
        NumericalError: models with outputs that are not finite.

    Cost: n_subsets · models_per_subset trainings on a share of the rows.

    Source: Park et al. 2023.
    """
    n_subsets = as_count(n_subsets, "n_subsets", minimum=MIN_SUBSETS, maximum=10**6)
    models_per_subset = as_count(models_per_subset, "models_per_subset", maximum=10**4)
    share = as_number(share, "share", exclusive=True, maximum=1 - 1e-9)
    seed = as_seed(seed)
    data = as_training_data(train, training, test, executor, options)
    n = len(data.x)
    size = round(share * n)
    if not 0 < size < n:
        raise InputError(
            f"share={share:g} of {n} rows: subsets of {size} rows",
            expected="subsets with at least one row that leave out at least one",
            hint="pass share=0.5 and more rows",
        )
    generator = torch.Generator().manual_seed(seed)
    subsets = torch.stack([torch.randperm(n, generator=generator) for _ in range(n_subsets)]).argsort(1) < size
    masks = subsets.repeat_interleave(models_per_subset, 0)
    outputs = train_on_subsets(masks, data, training, options, seed, executor, progress)
    identity = as_shadow_identity(identity_record(data, training, replace(options, share=share), seed))
    return ShadowEnsemble(
        masks, outputs[:, :n], data.labels, outputs[:, n:], data.test_labels, replace(identity, sampling="given")
    )


@dataclass(frozen=True, eq=False)
class _GivenSubsets(ShadowChunk):
    """Models start..stop-1, trained on given rows."""

    given: Tensor  # (stop - start, n) bool

    def masks(self) -> Tensor:
        return self.given


class _NewModels:
    """Training function of the user that is refused when it returns a module for the second time."""

    def __init__(self, train: TrainFunction) -> None:
        self.train, self.last = train, None

    def __call__(self, indices: Tensor, seed: int) -> nn.Module:
        model = self.train(indices, seed)
        if model is self.last and isinstance(model, nn.Module):
            raise InputError(
                "a training function that returns the same module in two calls",
                expected="a new model in each call, which has not seen the rows that are left out",
                hint="make the model inside train(indices, seed)",
            )
        self.last = model
        return model


def as_training_data(
    train: object, training: object, test: object, executor: Executor | None, options: ShadowOptions
) -> ShadowData:
    """Check the arguments of a retraining and return its data, with test rows.

    Raises:
        InputError: an argument does not fit.
    """
    check_instance(options, "options", ShadowOptions)
    if not isinstance(training, EnsembleTraining):
        check_callable(training, "training", ("indices", "seed"))
    if executor is not None:
        check_instance(executor, "executor", Executor, hint="pass concurrent.futures.ProcessPoolExecutor()")
    if test is None:
        raise InputError("test=None", expected="(x, y) of the explained rows", hint="pass test=(x_test, y_test)")
    return as_shadow_data(train, test, training, options)  # pyright: ignore[reportArgumentType]


def train_on_subsets(
    masks: Tensor,
    data: ShadowData,
    training: EnsembleTraining | TrainFunction,
    options: ShadowOptions,
    seed: int,
    executor: Executor | None,
    progress: Progress,
) -> Tensor:
    """Return outputs (m, n + t, C) of models trained on the rows of each mask (m, n): training rows, then test rows.

    Initial weights and batch order of model k depend on ``seed`` and k only.

    Raises:
        NumericalError: outputs that are not finite; the message counts the models.
    """
    m = len(masks)
    report_progress = as_progress(progress, "retraining on subsets", "model")
    function = training if isinstance(training, EnsembleTraining) else _NewModels(training)
    starts = range(0, m, options.models_per_chunk)
    chunks = [
        _GivenSubsets(start, min(start + options.models_per_chunk, m), data, function, options, seed, MEMORY, part)
        for start, part in zip(starts, masks.split(options.models_per_chunk), strict=True)
    ]
    outputs: dict[int, Tensor] = {}

    def store(index: int, chunk_outputs: Tensor) -> None:
        outputs[index] = chunk_outputs
        report_progress(sum(map(len, outputs.values())), m)

    def idle() -> None:
        refresh_progress(report_progress, sum(map(len, outputs.values())), m)

    names = [f"models {chunk.start} to {chunk.stop - 1}" for chunk in chunks]
    run_tasks(run_chunk, chunks, executor, store, idle, timeout=options.timeout, names=names)
    result = torch.cat([outputs[index] for index in range(len(chunks))])
    n_diverged = int((~result.isfinite()).flatten(1).any(1).sum())
    if n_diverged:
        raise NumericalError(
            f"{n_diverged} of {m} retrained models with outputs that are not finite",
            expected="models that do not diverge",
            hint="lower the learning rate",
        )
    return result
