"""Double descent on scikit-learn's digits: quick settings, settings for a paper, and the files that a run writes."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch

from kernelmem.core.checks import seed_sequence
from kernelmem.core.errors import InputError
from kernelmem.core.files.atomic_files import check_directory, write_files
from kernelmem.core.options import Progress
from kernelmem.double_descent.prediction.preregistered import PreregisteredPrediction, preregister
from kernelmem.double_descent.prediction.random_features import feature_theory
from kernelmem.double_descent.sweeps.options import EXECUTION, Execution, SweepOptions
from kernelmem.double_descent.sweeps.phase_diagram import Grid, PhaseDiagram, phase_diagram
from kernelmem.double_descent.sweeps.random_features import FeatureOptions, feature_sweep
from kernelmem.double_descent.sweeps.result import Sweep
from kernelmem.double_descent.sweeps.sweep import sweep
from kernelmem.double_descent.sweeps.threshold_search import SearchOptions, find_threshold
from kernelmem.plotting.double_descent import Theory
from kernelmem.plotting.style import figure_files
from kernelmem.training.datasets import LabeledData, LabeledDataLike, as_labeled_data
from kernelmem.training.ensemble.recipe import Recipe

Kind = Literal["model", "sample", "epoch", "features"]
Size = Literal["quick", "paper"]
Settings = TypeVar("Settings")
KINDS: tuple[Kind, ...] = ("model", "sample", "epoch", "features")
N_TEST = 800


@dataclass(frozen=True)
class Preset:
    """All settings of one sweep on the digits.

    Attributes:
        kind: "model", "sample", "epoch" or "features".
        over: name of the swept quantity.
        values: values of the swept quantity, increasing.
        width, n, noise, recipe, n_seeds, control: arguments and options of :func:`kernelmem.double_descent.sweep`.
        search: True if the interpolation threshold is found by bisection before the sweep.
        chunk: number of networks trained and saved together; about a quarter of all, so that two processes share the work
            evenly.
    """

    kind: Kind
    over: Literal["width", "samples", "steps"]
    values: tuple[float, ...]
    width: int = 16
    n: int | None = None
    noise: float = 0.2
    recipe: Recipe | None = None
    n_seeds: int = 6
    control: int = 4
    search: bool = False
    chunk: int | None = None


# Finer around the peaks, at widths 16..20, 400..450 training examples and 260..420 steps.
_WIDTHS = (5, 6, 8, 10, 12, 14, 16, 18, 20, 24, 28, 36, 50, 72, 110)
_STEPS = (20, 40, 60, 80, 110, 150, 200, 260, 330, 420, 500, 600, 700, 800, 900, 1000)
_SAMPLES = (70, 100, 200, 300, 400, 450, 600, 750, 900)
_FEATURES = (50, 100, 200, 300, 400, 450, 490, 500, 510, 550, 650, 1000, 2500)
_MODEL = Recipe(optimizer="adam", lr=0.01, schedule="wsd", batch_size=200, steps=4000)
_EPOCH = Recipe(optimizer="sgd", lr=0.05, momentum=0.9, batch_size=64, steps=1000, depth=3)
_SAMPLE = Recipe(optimizer="adam", lr=0.015, schedule="wsd", steps=1500)
_QUICK = {
    "model": Preset("model", "width", _WIDTHS, n=950, recipe=_MODEL, search=True, chunk=38),
    "epoch": Preset(
        "epoch", "steps", _STEPS, n=900, width=200, noise=0.3, recipe=_EPOCH, n_seeds=32, control=4, chunk=9
    ),
    "sample": Preset("sample", "samples", _SAMPLES, width=10, recipe=_SAMPLE, n_seeds=14, chunk=41),
    "features": Preset("features", "width", _FEATURES, n=500),
}
_PAPER = {
    "model": replace(
        _QUICK["model"],
        values=(3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 22, 24, 28, 32, 36, 50, 72, 110, 160, 256),
        recipe=replace(_MODEL, steps=10000), n_seeds=20, control=10,
    ),
    "epoch": replace(_QUICK["epoch"], recipe=replace(_EPOCH, steps=6000), n_seeds=48, control=12,
                     values=(*_STEPS, *range(1400, 6001, 400))),
    "sample": replace(_QUICK["sample"], n_seeds=40, control=10, recipe=replace(_SAMPLE, steps=4000),
                      values=(50, *range(100, 376, 25), *range(400, 561, 20), 600, 675, 750, 825, 900, 975)),
    "features": replace(_QUICK["features"], n_seeds=30, values=(10, 20, *_FEATURES[:-1], 2500, 5000)),
}  # fmt: skip


_PHASE_DIAGRAM: dict[str, tuple[Grid, int]] = {  # grid and number of seeds
    "quick": (
        Grid(
            widths=(4, 8, 12, 18, 30, 70), samples=(100, 250, 450, 700, 950), steps=(60, 200, 500, 1200),
            noise=(0.0, 0.1, 0.2),
        ),
        2,
    ),
    "paper": (
        Grid(
            widths=(3, 4, 6, 8, 10, 12, 14, 16, 18, 22, 30, 45, 70, 110), samples=tuple(range(100, 951, 85)),
            steps=(30, 60, 100, 200, 400, 800, 1600, 3000), noise=(0.0, 0.05, 0.1, 0.15, 0.2, 0.3),
        ),
        5,
    ),
}  # fmt: skip
_LAZY = Recipe(optimizer="sgd", lr=0.004, momentum=0.9, steps=1500, loss="mse")
_PREDICTION: dict[str, dict[str, Any]] = {
    "quick": {"samples": (50, 100, 200, 300, 400, 600, 900), "recipe": _LAZY, "n_seeds": 4},
    "paper": {"samples": tuple(range(50, 951, 50)), "recipe": replace(_LAZY, steps=6000), "n_seeds": 12, "width": 400},
}


def preset(kind: Kind, size: Size = "quick") -> Preset:
    """Return the settings of a kind: "quick" takes seconds to a minute on two cores, "paper" has more seeds and values.

    Raises:
        InputError: the kind or the size is unknown.
    """
    sizes = {"quick": _QUICK, "paper": _PAPER}
    if size not in sizes or kind not in sizes[size]:
        raise InputError(
            f"preset kind={kind!r}, size={size!r}",
            expected=f"a kind of {', '.join(KINDS)}, a size of quick, paper",
            hint="pass one of these kinds and one of these sizes",
        )
    return sizes[size][kind]


def digits_pool(seed: int = 0) -> LabeledData:
    """Load the 1,797 digits, x = 2 (pixel / 16 − 0.3), split at random into 800 test examples and a pool of 997."""
    from sklearn.datasets import load_digits  # slow to import (half a second)

    pixels, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(np.asarray(pixels, dtype=np.float64) / 16 - 0.3) * 2
    y = torch.from_numpy(np.asarray(labels).astype(np.int64))
    order = torch.from_numpy(np.random.default_rng(seed_sequence(seed, ["split"])["split"]).permutation(len(y)))
    test_indices, pool_indices = order[:N_TEST], order[N_TEST:]
    return LabeledData(
        "scikit-learn digits", x[pool_indices], y[pool_indices], x[test_indices], y[test_indices], image_shape=(8, 8)
    )


def run_preset(
    preset: Preset,
    *,
    seed: int = 0,
    data: LabeledDataLike | None = None,
    theory: Sequence[Theory] = (),
    execution: Execution = EXECUTION,
    progress: Progress = None,
) -> Sweep:
    """Run a preset, and write its results to ``execution.out`` if given; a killed run resumes there.

    Args:
        preset: result of :func:`preset`, possibly changed by ``dataclasses.replace``.
        seed: seed of the split into pool and test examples, and of all draws.
        data: examples to use instead of the digits; None: the digits.
        theory: theoretical curves for the figure; if it is empty, a sweep over the number of random features draws the
            curve of :func:`kernelmem.double_descent.feature_theory`.
        execution: as for :func:`kernelmem.double_descent.sweep`; random features use only its ``out``. If its ``chunk`` is
            given, it replaces that of the preset.
        progress: called with (networks done, networks in total).
    """
    if execution.out is not None:
        check_directory(execution.out)
    pool = digits_pool(seed) if data is None else as_labeled_data(data)
    if preset.kind == "features":
        assert preset.over != "steps"
        options = FeatureOptions(n=preset.n or len(pool.x_train))
        result = feature_sweep(
            pool, preset.over, preset.values, noise=preset.noise, n_seeds=preset.n_seeds, seed=seed, options=options,
            progress=progress,
        )  # fmt: skip
    else:
        result = _run_networks(preset, pool, seed, execution, progress)
    if preset.kind == "features" and preset.over == "width" and not theory:
        expected = feature_theory(pool, result)
        result = replace(result, config=dict(result.config) | {"theory": expected.summary()})
        theory = expected.plot_curves()
    if execution.out is not None:
        write_sweep(result, execution.out, theory=theory)
    return result


def _run_networks(preset: Preset, pool: LabeledData, seed: int, execution: Execution, progress: Progress) -> Sweep:
    """Train the networks of a preset on the examples ``pool`` and return the sweep.

    If the preset asks for it, the interpolation threshold is searched for first and stored in the sweep.
    """
    options = SweepOptions(width=preset.width, n=preset.n, control=preset.control)
    execution = replace(execution, chunk=execution.chunk or preset.chunk)
    search_seconds = 0.0
    if preset.search and preset.over != "steps":
        search_start = time.perf_counter()
        threshold = find_threshold(
            pool, preset.over, preset.values, noise=preset.noise, seed=seed, recipe=preset.recipe,
            search=SearchOptions(sweep_seeds=preset.n_seeds + preset.control), options=options,
            execution=replace(execution, chunk=3 if execution.executor else None), progress=progress,
        )  # fmt: skip
        options, search_seconds = replace(options, threshold=threshold), time.perf_counter() - search_start
    result = sweep(
        pool, preset.over, preset.values, noise=preset.noise, n_seeds=preset.n_seeds, seed=seed, recipe=preset.recipe,
        options=options, execution=execution, progress=progress,
    )  # fmt: skip
    config = dict(result.config) | {"search_seconds": search_seconds}
    return replace(result, seconds=result.seconds + search_seconds, config=config)


def run_phase_diagram(
    size: Size = "quick", *, seed: int = 0, execution: Execution = EXECUTION, progress: Progress = None
) -> PhaseDiagram:
    """Compute the phase diagram of networks trained on the digits, and return it.

    The directory ``execution.out`` receives phase_diagram.safetensors, summary.json, results.csv and the figure.
    """
    grid, n_seeds = _settings_of_size(_PHASE_DIAGRAM, size)
    result = phase_diagram(
        digits_pool(seed), grid, recipe=_SAMPLE, n_seeds=n_seeds, seed=seed, execution=execution, progress=progress
    )
    if execution.out is not None:
        contents = {
            "summary.json": json.dumps(result.summary()) + "\n",
            "results.csv": result.to_frame().to_csv(index=False),
            **figure_files(result.plot(), "figure"),
        }
        write_files(execution.out, contents)
        result.save(Path(execution.out) / "phase_diagram.safetensors")
    return result


def run_prediction(
    size: Size = "quick", *, seed: int = 0, execution: Execution = EXECUTION, progress: Progress = None
) -> PreregisteredPrediction:
    """Predict the learning curve of the digits, then train; see :func:`kernelmem.double_descent.preregister`."""
    options = _settings_of_size(_PREDICTION, size)
    return preregister(digits_pool(seed), seed=seed, execution=execution, progress=progress, **options)


def write_sweep(result: Sweep, out: str | Path, *, theory: Sequence[Theory] = ()) -> list[Path]:
    """Write summary.json, results.csv, sweep.safetensors, figure.svg and figure.png.

    Each file is replaced atomically: an interrupted write leaves no partial file.
    """
    contents: dict[str, bytes | str] = {
        "summary.json": json.dumps(result.summary(), indent=1) + "\n",
        "results.csv": result.to_frame().to_csv(index=False),
        **figure_files(result.plot(theory=theory), "figure"),
    }
    paths = write_files(out, contents)
    return [*paths, result.save(Path(out) / "sweep.safetensors")]


def _settings_of_size(settings: Mapping[str, Settings], size: str) -> Settings:
    """Return the settings of a size ("quick" or "paper").

    Raises:
        InputError: the size is unknown.
    """
    if size not in settings:
        raise InputError(f"size={size!r}", expected=f"one of {', '.join(settings)}", hint="pass one of these sizes")
    return settings[size]
