"""Chunks of shadow models: picklable tasks that train models and return their outputs on all rows."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kernelmem.core.batches import Rows, check_outputs, input_hint
from kernelmem.core.errors import UnsupportedModelError
from kernelmem.core.models.random_states import random_states
from kernelmem.core.options import Progress, as_progress
from kernelmem.core.tasks import one_thread_per_worker
from kernelmem.memorization.shadows.masks import draw_masks, model_seeds
from kernelmem.memorization.shadows.options import EnsembleTraining, ShadowOptions, TrainFunction
from kernelmem.memorization.shadows.training_data import ShadowData
from kernelmem.training.batching import in_dtype
from kernelmem.training.ensemble import EnsembleOptions, Member, train_mlps, train_modules
from kernelmem.training.losses import class_outputs

EVALUATION_ROWS = 500  # rows per forward pass when a user's model is evaluated
_USER_TRAINING_LOCK = threading.Lock()  # a user's training draws from global random states


@dataclass(frozen=True, eq=False)
class ShadowChunk:
    """The models start..stop-1 of an ensemble, and all that their training needs; picklable."""

    start: int
    stop: int
    data: ShadowData
    training: EnsembleTraining | TrainFunction
    options: ShadowOptions
    seed: int
    memory: int | str

    def masks(self) -> Tensor:
        """Return the training masks of the models, (stop - start, n) bool."""
        return draw_masks(
            self.start,
            self.stop,
            len(self.data.x),
            share=self.options.share,
            sampling=self.options.sampling,
            seed=self.seed,
        )


def run_chunk(chunk: ShadowChunk, progress: Progress = False) -> Tensor:
    """Train the models of a chunk, and return their outputs in eval mode, (models, n + t, C): training rows, then test rows.

    Outputs of a diverged model may be NaN or infinite.
    """
    with one_thread_per_worker():
        if isinstance(chunk.training, EnsembleTraining):
            return _train_together(chunk, chunk.training, progress)
        report_progress = as_progress(progress, "training shadow models", "model")
        outputs = []
        for k, mask in enumerate(chunk.masks(), start=chunk.start):
            outputs.append(_train_by_user(chunk, chunk.training, k, mask.nonzero()[:, 0]))
            if outputs[-1].shape != outputs[0].shape:
                raise UnsupportedModelError(
                    f"models with {outputs[0].shape[1]} and with {outputs[-1].shape[1]} outputs",
                    expected="the same number of outputs in all models",
                    hint="let the architecture not depend on indices or seed",
                )
            report_progress(len(outputs), chunk.stop - chunk.start)
        return torch.stack(outputs)


def _train_together(chunk: ShadowChunk, training: EnsembleTraining, progress: Progress) -> Tensor:
    """Return the outputs of the models of a chunk that are trained in one batch."""
    data, options = chunk.data, chunk.options
    members = []
    for k, mask in enumerate(chunk.masks(), start=chunk.start):
        rows = mask.nonzero()[:, 0]
        init_seed, order_seed = model_seeds(chunk.seed, k)
        members.append(Member(training.width, rows, data.labels[rows], init_seed, order_seed))
    ensemble_options = EnsembleOptions(
        dtype=options.dtype,
        device=data.x.tree.device,
        memory=chunk.memory,
        n_classes=data.n_outputs,
        keep_outputs=True,
    )
    test, recipe = data.all_rows(), training.recipe_for(options.share)
    if training.make_model is None:
        ensemble = train_mlps(
            members, data.x.tree, test=test, recipe=recipe, options=ensemble_options, progress=progress
        )
    else:
        ensemble = train_modules(
            training.make_model, members, data.x.tree, test=test, recipe=recipe, options=ensemble_options,
            progress=progress,
        )  # fmt: skip
    outputs = ensemble.metrics[-1].logits
    assert outputs is not None
    return outputs.to("cpu", options.dtype)


def _train_by_user(chunk: ShadowChunk, train: TrainFunction, k: int, rows: Tensor) -> Tensor:
    """Return the outputs (n + t, C) of model k, trained by the user's function on the row numbers ``rows``.

    Raises:
        UnsupportedModelError: the function returns no module, or a module with other outputs.
    """
    data = chunk.data
    init_seed = model_seeds(chunk.seed, k)[0]
    with _USER_TRAINING_LOCK, random_states(init_seed):
        model = train(rows, init_seed)
        if not isinstance(model, nn.Module):
            raise UnsupportedModelError(
                f"a training function that returns {type(model).__name__}",
                expected="a trained nn.Module",
                hint="return the model at the end of train(indices, seed)",
            )
        with _eval_mode(model), torch.no_grad():
            parts = [_outputs(model, part, chunk) for part in (data.x, data.x_test) if part is not None]
    outputs = torch.cat(parts)
    n_columns = int(outputs.shape[1])
    if not data.labels.is_floating_point():
        largest = max(int(data.labels.max()), int(data.test_labels.max()) if data.n_test else 0)
        fits = n_columns == data.n_outputs if data.n_outputs else n_columns > largest
        expected = f"{data.n_outputs or largest + 1} outputs, one per class" + " or more" * (not data.n_outputs)
    else:
        fits, expected = n_columns == data.n_outputs, f"{data.n_outputs} outputs, one per target"
    if not fits:
        raise UnsupportedModelError(
            f"a model with {n_columns} outputs", expected=expected, hint="change the last layer, or the labels"
        )
    return outputs


def _outputs(model: nn.Module, rows: Rows, chunk: ShadowChunk) -> Tensor:
    """Return the outputs (n, C) of a model on rows, on the CPU; one logit z becomes [0, z] if the labels are classes."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    rows = in_dtype(rows, model)
    pieces = []
    for start in range(0, len(rows), EVALUATION_ROWS):
        stop = min(start + EVALUATION_ROWS, len(rows))
        batch = Rows(rows.slice(start, stop), stop - start).map(lambda leaf: leaf.to(device))
        try:
            outputs = model(batch) if chunk.options.forward is None else chunk.options.forward(model, batch)
        except (TypeError, RuntimeError, ValueError, AttributeError, KeyError, IndexError) as error:
            if chunk.options.forward is not None:
                raise
            raise UnsupportedModelError(
                f"{type(model).__name__}, which fails on the rows: {(str(error).splitlines() or [''])[0]}",
                expected="a model that is called as model(batch)",
                hint=input_hint(batch),
            ) from error
        if isinstance(outputs, Tensor) and not chunk.data.labels.is_floating_point():
            outputs = class_outputs(outputs)
        pieces.append(check_outputs(outputs, stop - start).to("cpu", chunk.options.dtype))
    return torch.cat(pieces)


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Put all modules into eval mode, and back into their own modes afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
