"""A learning curve foretold and then measured: the prediction is on disk before the first network trains."""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from kernelmem.core.atomic_files import check_directory, write_files
from kernelmem.core.errors import InputError
from kernelmem.double_descent.prediction.predict import Prediction, predict_curve
from kernelmem.double_descent.prediction.score import PredictionScore, score_prediction
from kernelmem.double_descent.sweeps.result import Sweep, plain
from kernelmem.double_descent.sweeps.sweep import sweep
from kernelmem.plotting.style import figure_files
from kernelmem.training.datasets import LabeledData
from kernelmem.training.ensemble.recipe import Recipe
from kernelmem.training.mlp import mlp

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["PreregisteredPrediction", "preregister"]


@dataclass(frozen=True, eq=False)
class PreregisteredPrediction:
    """What was expected before training, what the trained networks gave, and how near the two are."""

    prediction: Prediction
    sweep: Sweep
    score: PredictionScore

    @property
    def seconds(self) -> float:
        """Of the training."""
        return self.sweep.seconds

    def plot(self) -> "Figure":
        """Expected and measured error along the training rows."""
        return self.prediction.plot(2 * self.sweep.curves.test_loss)

    def summary(self) -> dict:
        """The sweep's summary with the prediction beside it."""
        score = self.score
        return self.sweep.summary() | {
            "kind": "prediction",
            "prediction": {
                "expected": plain(self.prediction.expected),
                "measured": plain(score.measured),
                "measured_se": plain(score.se),
                "relative_error": plain(score.relative_error),
                "median_error": score.median_error,
                "rank_correlation": score.rank_correlation,
                "rank_se": score.rank_se,
                "p_value": score.p_value,
                "setting": self.prediction.setting,
            },
        }

    def __str__(self) -> str:
        return f"{self.prediction}\n{self.score.to_frame().to_string(float_format='{:.4g}'.format)}\n{self.score}"


def preregister(
    data: LabeledData,
    samples: Sequence[int],
    *,
    width: int = 100,
    noise: float = 0.2,
    recipe: Recipe,
    seeds: int = 4,
    initial_seeds: int = 2,
    seed: int = 0,
    out: str | Path | None = None,
    executor: Executor | None = None,
    device: str | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> PreregisteredPrediction:
    """Predict the test error of MLPs along the training rows from their kernels at initialization; then train them.

    The prediction (:func:`kernelmem.double_descent.prediction.predict.predict_curve`, stopped at the recipe's training time, Σ learning
    rate / (1 − momentum)) is written to ``out`` first. It knows all rows and their true labels, not who trains on which,
    nor a single trained network. It is one of lazy training: gradient descent with small steps and squared loss.

    Args:
        data: rows and clean labels.
        samples: increasing numbers of training rows, at least three.
        width: of the hidden layers.
        noise: share of wrong labels.
        recipe: SGD, full batch, loss "mse", constant learning rate, no weight decay.
        seeds: of the trained networks.
        initial_seeds: initial networks that the prediction is averaged over, other ones than those that train.
        seed: of all draws.
        out: directory for prediction.safetensors, summary.json, results.csv, the figure.
        executor: see :func:`kernelmem.double_descent.sweeps.sweep.sweep`.
        device: likewise.
        progress: likewise.

    Raises:
        InputError: another kind of training.
    """
    lazy = (recipe.optimizer, recipe.loss, recipe.schedule, recipe.batch_size, recipe.weight_decay)
    if lazy != ("sgd", "mse", "constant", None, 0.0):
        raise InputError(
            f"recipe {recipe}",
            expected='optimizer "sgd", loss "mse", schedule "constant", full batches, no weight decay',
            hint="predictions are of lazy training: change the recipe",
        )
    if out is not None:
        check_directory(out)
    d, C = data.x_train[0].numel(), data.n_classes
    prediction = predict_curve(
        lambda own: mlp(d, (own,) * recipe.depth, C, recipe.activation).double(),
        torch.cat([data.x_train, data.x_test]).to(torch.float64).flatten(1),
        torch.cat([data.y_train, data.y_test]),
        widths=width,
        samples=list(samples),
        time=recipe.steps * recipe.lr / (1 - recipe.momentum),
        noise=noise,
        seeds=tuple(10**6 + seed + k for k in range(initial_seeds)),
    )
    if out is not None:
        prediction.save(Path(out) / "prediction.safetensors")
    found = sweep(
        data, "samples", samples, width=width, noise=noise, recipe=recipe, seeds=seeds, control=0, seed=seed, out=out,
        executor=executor, device=device, progress=progress,
    )  # fmt: skip
    # The recipe's loss is half of the squared error summed over classes.
    result = PreregisteredPrediction(prediction, found, score_prediction(prediction, 2 * found.curves.test_loss))
    if out is not None:
        contents = {
            "summary.json": json.dumps(result.summary(), indent=1) + "\n",
            "results.csv": found.to_frame().to_csv(index=False),
            **figure_files(result.plot(), "figure"),
        }
        write_files(out, contents)
        found.save(Path(out) / "sweep.safetensors")
    return result
