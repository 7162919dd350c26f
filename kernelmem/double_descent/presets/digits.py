"""Settings that show double descent on the digits in seconds, larger ones of the same, and what a run of them writes."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from kernelmem.core.atomic_files import check_directory, write_files
from kernelmem.core.checks import seed_sequence
from kernelmem.core.errors import InputError
from kernelmem.double_descent.prediction.preregistered import PreregisteredPrediction, preregister
from kernelmem.double_descent.prediction.random_features import feature_theory
from kernelmem.double_descent.sweeps.phase_diagram import PhaseDiagram, phase_diagram
from kernelmem.double_descent.sweeps.random_features import feature_sweep
from kernelmem.double_descent.sweeps.result import Sweep
from kernelmem.double_descent.sweeps.sweep import sweep
from kernelmem.double_descent.sweeps.threshold_search import find_threshold
from kernelmem.plotting.style import figure_files
from kernelmem.plotting.sweep import Theory
from kernelmem.training.datasets import LabeledData
from kernelmem.training.ensemble.recipe import Recipe

__all__ = [
    "KINDS", "Kind", "Preset", "digits_pool", "of_size", "preset", "run_atlas", "run_forecast", "run_preset",
    "write_sweep",
]  # fmt: skip

Kind = Literal["model", "sample", "epoch", "features"]
Size = Literal["quick", "paper"]
KINDS: tuple[Kind, ...] = ("model", "sample", "epoch", "features")
TEST_ROWS = 800
Progress = Callable[[int, int], object]


@dataclass(frozen=True)
class Preset:
    """One sweep of the digits with all its settings.

    ``search``: whether the interpolation threshold is found by bisection before the sweep. ``chunk``: networks trained
    and kept together; a quarter of all, so that two processes have the same to do.
    """

    kind: Kind
    over: Literal["width", "samples", "steps"]
    values: tuple[float, ...]
    width: Any = 16
    n: int | None = None
    noise: float = 0.2
    recipe: Recipe | None = None
    seeds: int = 6
    control: int = 4
    search: bool = False
    chunk: int | None = None


# Finer around the peaks, which lie at widths 16..20, 400..450 rows and 260..420 steps.
_WIDTHS = (5, 6, 8, 10, 12, 14, 16, 18, 20, 24, 28, 36, 50, 72, 110)
_STEPS = (20, 40, 60, 80, 110, 150, 200, 260, 330, 420, 500, 600, 700, 800, 900, 1000)
_SAMPLES = (70, 100, 200, 300, 400, 450, 600, 750, 900)
_FEATURES = (50, 100, 200, 300, 400, 450, 490, 500, 510, 550, 650, 1000, 2500)
_MODEL = Recipe(optimizer="adam", lr=0.01, schedule="wsd", batch_size=200, steps=4000)
_EPOCH = Recipe(optimizer="sgd", lr=0.05, momentum=0.9, batch_size=64, steps=1000, depth=3)
_SAMPLE = Recipe(optimizer="adam", lr=0.015, schedule="wsd", steps=1500)
_QUICK = {
    "model": Preset("model", "width", _WIDTHS, n=950, recipe=_MODEL, search=True, chunk=38),
    "epoch": Preset("epoch", "steps", _STEPS, n=900, width=200, noise=0.3, recipe=_EPOCH, seeds=32, control=4, chunk=9),
    "sample": Preset("sample", "samples", _SAMPLES, width=10, recipe=_SAMPLE, seeds=14, chunk=41),
    "features": Preset("features", "width", _FEATURES, n=500),
}
_PAPER = {
    "model": replace(
        _QUICK["model"],
        values=(3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 22, 24, 28, 32, 36, 50, 72, 110, 160, 256),
        recipe=replace(_MODEL, steps=10000), seeds=20, control=10,
    ),
    "epoch": replace(_QUICK["epoch"], recipe=replace(_EPOCH, steps=6000), seeds=48, control=12,
                     values=(*_STEPS, *range(1400, 6001, 400))),
    "sample": replace(_QUICK["sample"], seeds=40, control=10, recipe=replace(_SAMPLE, steps=4000),
                      values=(50, *range(100, 376, 25), *range(400, 561, 20), 600, 675, 750, 825, 900, 975)),
    "features": replace(_QUICK["features"], seeds=30, values=(10, 20, *_FEATURES[:-1], 2500, 5000)),
}  # fmt: skip


def preset(kind: Kind, size: Size = "quick") -> Preset:
    """Return the settings of a kind: "quick" takes seconds to a minute on two cores, "paper" many more seeds and values.

    Raises:
        InputError: an unknown kind or size.
    """
    sizes = {"quick": _QUICK, "paper": _PAPER}
    if size not in sizes or kind not in sizes[size]:
        raise InputError(
            f"preset kind={kind!r}, size={size!r}",
            expected=f"a kind of {', '.join(KINDS)}, a size of quick, paper",
            hint="pass one of each",
        )
    return sizes[size][kind]


def of_size(settings: Mapping[str, dict[str, Any]], size: str) -> dict[str, Any]:
    """Settings of one size.

    Raises:
        InputError: an unknown size.
    """
    if size not in settings:
        raise InputError(f"size={size!r}", expected=f"one of {', '.join(settings)}", hint="pass one of them")
    return settings[size]


def digits_pool(seed: int = 0) -> LabeledData:
    """Load the 1,797 digits, x = 2 (pixel / 16 - 0.3), split at random into 800 test rows and a pool of 997."""
    from sklearn.datasets import load_digits  # imported here: it costs half a second

    pictures, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(np.asarray(pictures, dtype=np.float64) / 16 - 0.3) * 2
    y = torch.from_numpy(np.asarray(labels).astype(np.int64))
    order = torch.from_numpy(np.random.default_rng(seed_sequence(seed, ["split"])["split"]).permutation(len(y)))
    test, pool = order[:TEST_ROWS], order[TEST_ROWS:]
    return LabeledData("scikit-learn digits", x[pool], y[pool], x[test], y[test], image_shape=(8, 8))


_ATLAS: dict[str, dict[str, Any]] = {
    "quick": {
        "widths": (4, 8, 12, 18, 30, 70), "samples": (100, 250, 450, 700, 950), "steps": (60, 200, 500, 1200),
        "noise": (0.0, 0.1, 0.2), "seeds": 2,
    },
    "paper": {
        "widths": (3, 4, 6, 8, 10, 12, 14, 16, 18, 22, 30, 45, 70, 110), "samples": tuple(range(100, 951, 85)),
        "steps": (30, 60, 100, 200, 400, 800, 1600, 3000), "noise": (0.0, 0.05, 0.1, 0.15, 0.2, 0.3), "seeds": 5,
    },
}  # fmt: skip


_LAZY = Recipe(optimizer="sgd", lr=0.004, momentum=0.9, steps=1500, loss="mse")
_FORECAST: dict[str, dict[str, Any]] = {
    "quick": {"samples": (50, 100, 200, 300, 400, 600, 900), "recipe": _LAZY, "seeds": 4},
    "paper": {"samples": tuple(range(50, 951, 50)), "recipe": replace(_LAZY, steps=6000), "seeds": 12, "width": 400},
}


def run_atlas(
    size: Size = "quick",
    *,
    seed: int = 0,
    out: str | Path | None = None,
    executor: Executor | None = None,
    device: str | None = None,
    progress: Progress | None = None,
) -> PhaseDiagram:
    """Run the atlas of the digits, and write atlas.safetensors, summary.json, results.csv and the figure to ``out`` if given."""
    found = phase_diagram(
        digits_pool(seed), recipe=_SAMPLE, seed=seed, out=out, executor=executor, device=device, progress=progress,
        **of_size(_ATLAS, size),
    )  # fmt: skip
    if out is not None:
        contents = {
            "summary.json": json.dumps(found.summary()) + "\n",
            "results.csv": found.to_frame().to_csv(index=False),
            **figure_files(found.plot(), "figure"),
        }
        write_files(out, contents)
        found.save(Path(out) / "atlas.safetensors")
    return found


def run_preset(
    own: Preset,
    *,
    seed: int = 0,
    out: str | Path | None = None,
    data: LabeledData | None = None,
    executor: Executor | None = None,
    device: str | None = None,
    theory: Sequence[Theory] = (),
    progress: Progress | None = None,
) -> Sweep:
    """Run a preset, and write its results to ``out`` if given; a killed run goes on there.

    Args:
        own: as :func:`preset` gives, or changed by ``dataclasses.replace``.
        seed: of the split into pool and test rows, and of all draws.
        out: directory for what :func:`write_sweep` writes.
        data: other rows; default the digits.
        executor: see :func:`kernelmem.double_descent.sweeps.sweep.sweep`; random features do without.
        device: likewise.
        progress: likewise.
        theory: curves for the figure; random features over their number have one of their own.
    """
    if out is not None:
        check_directory(out)
    pool = digits_pool(seed) if data is None else data
    if own.kind == "features":
        assert own.over != "steps"
        found = feature_sweep(
            pool, own.over, own.values, n=own.n or len(pool.x_train), noise=own.noise, seeds=own.seeds, seed=seed,
            progress=progress,
        )  # fmt: skip
    else:
        options: dict[str, Any] = {
            "width": own.width, "n": own.n, "noise": own.noise, "recipe": own.recipe, "seed": seed, "out": out,
            "executor": executor, "device": device,
        }  # fmt: skip
        threshold, search = None, 0.0
        if own.search and own.over != "steps":
            began = time.perf_counter()
            threshold = find_threshold(
                pool,
                own.over,
                own.values,
                sweep_seeds=own.seeds + own.control,
                **options,
                chunk=3 if executor else None,
            )
            search = time.perf_counter() - began
        found = sweep(
            pool, own.over, own.values, seeds=own.seeds, control=own.control, threshold=threshold, chunk=own.chunk,
            progress=progress, **options,
        )  # fmt: skip
        found = replace(found, seconds=found.seconds + search, config=found.config | {"search_seconds": search})
    expected = feature_theory(pool, found) if own.kind == "features" and own.over == "width" and not theory else None
    if expected is not None:
        found, theory = replace(found, config=found.config | {"theory": expected.summary()}), expected.drawn()
    if out is not None:
        write_sweep(found, out, theory=theory)
    return found


def run_forecast(
    size: Size = "quick",
    *,
    seed: int = 0,
    out: str | Path | None = None,
    executor: Executor | None = None,
    device: str | None = None,
    progress: Progress | None = None,
) -> PreregisteredPrediction:
    """Foretell the learning curve of the digits, then train; see :func:`kernelmem.double_descent.prediction.preregistered.preregister`."""
    pool = digits_pool(seed)
    common = {"seed": seed, "out": out, "executor": executor, "device": device, "progress": progress}
    return preregister(pool, **of_size(_FORECAST, size), **common)


def write_sweep(found: Sweep, out: str | Path, *, theory: Sequence[Theory] = ()) -> list[Path]:
    """Write summary.json, results.csv, sweep.safetensors, figure.svg and figure.png, each whole or not at all."""
    contents: dict[str, bytes | str] = {
        "summary.json": json.dumps(found.summary(), indent=1) + "\n",
        "results.csv": found.to_frame().to_csv(index=False),
        **figure_files(found.plot(theory=theory), "figure"),
    }
    paths = write_files(out, contents)
    return [*paths, found.save(Path(out) / "sweep.safetensors")]
