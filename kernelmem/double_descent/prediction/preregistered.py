"""Predict a learning curve, save the prediction, then train networks and compare."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from kernelmem.core.checks import as_count, as_seed, check_instance
from kernelmem.core.errors import InputError
from kernelmem.core.files.atomic_files import check_directory, write_files
from kernelmem.core.files.result_files import Result
from kernelmem.core.options import Progress
from kernelmem.double_descent.argument_checks import as_axis
from kernelmem.double_descent.prediction.predict import Prediction, PredictionOptions, predict_curve
from kernelmem.double_descent.prediction.score import PredictionScore, score_prediction
from kernelmem.double_descent.sweeps.options import EXECUTION, Execution, SweepOptions
from kernelmem.double_descent.sweeps.result import Sweep, as_json
from kernelmem.double_descent.sweeps.sweep import sweep
from kernelmem.plotting.style import figure_files
from kernelmem.training.datasets import LabeledDataLike, as_labeled_data
from kernelmem.training.ensemble.recipe import Recipe
from kernelmem.training.mlp import mlp

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False, repr=False)
class PreregisteredPrediction(Result):
    """Prediction made before training, errors of the trained networks, and the score of the prediction.

    Attributes:
        prediction: expected errors, computed and saved before any network was trained.
        sweep: errors of the networks trained afterwards, at the same numbers of training examples.
        score: comparison of the expected with the measured errors.
    """

    prediction: Prediction
    sweep: Sweep
    score: PredictionScore

    @property
    def seconds(self) -> float:
        """Wall-clock time of the training, in seconds."""
        return self.sweep.seconds

    def plot(self) -> "Figure":
        """Return a figure of the expected and the measured error over the number of training examples."""
        return self.prediction.plot(2 * self.sweep.curves.test_loss)

    def to_frame(self) -> "pd.DataFrame":
        """Return a table with one row per number of training examples; its columns are predicted and measured errors."""
        return self.prediction.to_frame().join(self.score.to_frame())

    def summary(self) -> dict[str, object]:
        """Return a dictionary of JSON values for summary.json.

        It is the summary of the sweep, whose "kind" becomes "prediction", with an entry "prediction" that has the expected
        and measured errors and the score.
        """
        score = self.score
        return self.sweep.summary() | {
            "kind": "prediction",
            "prediction": {
                "expected": as_json(self.prediction.expected),
                "measured": as_json(score.measured),
                "measured_se": as_json(score.se),
                "relative_error": as_json(score.relative_error),
                "median_error": score.median_error,
                "rank_correlation": score.rank_correlation,
                "rank_se": score.rank_se,
                "p_value": score.p_value,
                "setting": self.prediction.setting,
            },
        }

    def __str__(self) -> str:
        table = self.to_frame().drop(columns=["noisy", "train"])
        text = table.to_string(float_format="{:.4g}".format, max_rows=30)
        return f"expected before training: {self.prediction.setting}\n{text}\n{self.score}"


def preregister(
    data: LabeledDataLike,
    samples: Sequence[int],
    *,
    width: int = 100,
    noise: float = 0.2,
    recipe: Recipe,
    n_seeds: int = 4,
    n_initial: int = 2,
    seed: int = 0,
    execution: Execution = EXECUTION,
    progress: Progress = None,
) -> PreregisteredPrediction:
    """Predict the test error of MLPs over the number of training examples from their NTKs at initialization; then train.

    The prediction (:func:`kernelmem.double_descent.predict_curve`, stopped at the recipe's training time, Σ learning rate /
    (1 − momentum)) is written to ``execution.out`` first. It uses all examples and their true labels, but neither the
    training sets nor a single trained network. It is a prediction of lazy training: gradient descent with small steps and
    squared loss.

    Args:
        data: examples and clean labels, as LabeledData or ((x_train, y_train), (x_test, y_test)).
        samples: (A,) increasing numbers of training examples, at least three.
        width: width of the hidden layers.
        noise: fraction of wrong labels.
        recipe: SGD, full batch, loss "mse", constant learning rate, no weight decay.
        n_seeds: number of trained networks per number of examples.
        n_initial: number of untrained networks that the prediction is averaged over; none of them is trained.
        seed: seed of all random draws.
        execution: where networks are trained; its directory ``out`` receives prediction.safetensors,
            sweep.safetensors, summary.json, results.csv and the figure.
        progress: called with (networks done, networks in total) during training.

    Raises:
        InputError: the recipe is not gradient descent with squared loss, full batches and a constant learning rate.

    Cost: that of ``predict_curve`` plus A · n_seeds networks.
    """
    data = as_labeled_data(data)
    check_instance(recipe, "recipe", Recipe)
    check_instance(execution, "execution", Execution)
    samples = as_axis(samples, "samples", integer=True).astype(int).tolist()
    n_seeds, width = as_count(n_seeds, "n_seeds"), as_count(width, "width")
    training_settings = (recipe.optimizer, recipe.loss, recipe.schedule, recipe.batch_size, recipe.weight_decay)
    if training_settings != ("sgd", "mse", "constant", None, 0.0):
        raise InputError(
            f"recipe {recipe}",
            expected='optimizer "sgd", loss "mse", schedule "constant", full batches, no weight decay',
            hint="change the recipe: only lazy training can be predicted",
        )
    if execution.out is not None:
        check_directory(execution.out)
    d, C = data.x_train[0].numel(), data.n_classes
    x = torch.cat([data.x_train, data.x_test]).to(torch.float64).flatten(1)
    n_initial, seed = as_count(n_initial, "n_initial"), as_seed(seed)
    prediction = predict_curve(
        lambda width: mlp(d, (width,) * recipe.depth, C, recipe.activation).double(),
        (x, torch.cat([data.y_train, data.y_test])),
        widths=width,
        samples=samples,
        seeds=tuple(10**6 + seed + k for k in range(n_initial)),  # no trained network has these seeds
        options=PredictionOptions(time=recipe.steps * recipe.lr / (1 - recipe.momentum), noise=noise),
        memory=execution.memory,
        progress=False,
    )
    if execution.out is not None:
        prediction.save(Path(execution.out) / "prediction.safetensors")
    measured_sweep = sweep(
        data, "samples", samples, noise=noise, recipe=recipe, n_seeds=n_seeds, seed=seed,
        options=SweepOptions(width=width, control=0), execution=execution, progress=progress,
    )  # fmt: skip
    # The recipe's loss is half of the squared error summed over classes.
    score = score_prediction(prediction, 2 * measured_sweep.curves.test_loss)
    result = PreregisteredPrediction(prediction, measured_sweep, score)
    if execution.out is not None:
        contents = {
            "summary.json": json.dumps(result.summary(), indent=1) + "\n",
            "results.csv": measured_sweep.to_frame().to_csv(index=False),
            **figure_files(result.plot(), "figure"),
        }
        write_files(execution.out, contents)
        measured_sweep.save(Path(execution.out) / "sweep.safetensors")
    return result
