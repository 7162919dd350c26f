"""Time an ensemble trained together, the same by worker processes, and a loop over its models; write results.json."""

import json
import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from typing import Any

import torch

import kernelmem as km
from experiments import machine
from experiments.benchmarks.shadows.configs import Options
from kernelmem.core import write_file
from kernelmem.memorization.shadows import ShadowEnsemble, model_seeds
from kernelmem.training import EnsembleOptions, Member, Recipe, digits, mlp, train_one

__all__ = ["run"]


def run(options: Options) -> None:
    """Measure all rounds, print and write them."""
    torch.set_num_threads(options.threads)
    data = digits(n_train=options.n_train, seed=0)
    x, x_test = (data.x_train - 0.3) * 2, (data.x_test - 0.3) * 2
    train, test = (x, data.y_train), (x_test, data.y_test)
    recipe = Recipe(lr=0.02, steps=options.steps)
    rounds: dict[str, list[dict[str, float]]] = {"together": [], "processes": [], "loop": []}
    difference, correct = 0.0, [False]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.processes, mp_context=context) as executor:

        def shadows(executor: Executor | None = None) -> ShadowEnsemble:
            return km.shadow_ensemble(
                train,
                km.EnsembleTraining(recipe, width=options.width),
                test=test,
                executor=executor,
                options=km.ShadowOptions(n_models=options.models),
                progress=False,
            )

        shadows(executor)  # the workers import torch
        for _ in range(options.rounds):
            ensemble, seconds = _timed(shadows)
            rounds["together"].append(seconds)
            by_processes, seconds = _timed(lambda: shadows(executor))
            rounds["processes"].append(seconds)
            looped, seconds = _timed(lambda: _loop(ensemble, train, test, recipe, options))  # noqa: B023 (called at once)
            rounds["loop"].append({name: value * options.models / options.looped for name, value in seconds.items()})
            difference = max(difference, float((ensemble.logits - by_processes.logits).abs().max()))
            correct = [torch.equal(a.argmax(1), b.argmax(1)) for a, b in zip(looped, ensemble.logits, strict=False)]
    best = {name: {key: min(r[key] for r in values) for key in values[0]} for name, values in rounds.items()}
    results = {
        "machine": machine.describe(),
        "models": options.models,
        "seconds": {name: _rounded(values) for name, values in best.items()},
        "speedup_cpu": round(best["loop"]["cpu"] / best["together"]["cpu"], 2),
        "speedup_wall": round(best["loop"]["wall"] / best["together"]["wall"], 2),
        "same_predictions_as_loop": f"{sum(correct)} of {len(correct)} models on all rows",
        "difference_of_processes": difference,
        "load": round(os.getloadavg()[0], 2),
        "rounds": {name: [_rounded(values) for values in all_rounds] for name, all_rounds in rounds.items()},
    }
    for name, values in best.items():
        print(f"{name:<10}  {values['wall']:8.1f} s  (processor time {values['cpu']:.1f} s)")
    print(f"loop / together: {results['speedup_wall']} by the clock, {results['speedup_cpu']} in processor time")
    write_file(options.out / "results.json", json.dumps(results, indent=1) + "\n")


def _loop(ensemble: ShadowEnsemble, train: tuple, test: tuple, recipe: Recipe, options: Options) -> list[torch.Tensor]:
    """Return the outputs on all training rows of the first models, each trained alone."""
    x, y = train
    rows_and_labels = torch.cat([x, test[0]]), torch.cat([y, test[1]])
    outputs = []
    for k in range(options.looped):
        rows, (init_seed, order_seed) = ensemble.masks[k].nonzero()[:, 0], model_seeds(0, k)
        member = Member(options.width, rows, y[rows], init_seed, order_seed)
        network = mlp(x.shape[1], options.width, 10, seed=init_seed)
        one = train_one(
            network, member, x, test=rows_and_labels, recipe=recipe, options=EnsembleOptions(keep_outputs=True)
        )
        logits = one.metrics[-1].logits
        assert logits is not None
        outputs.append(logits[0, : len(x)])
    return outputs


def _timed(function: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """Return the value of a function, and its seconds by the clock and of this process's processor time."""
    wall, cpu = time.perf_counter(), time.process_time()
    value = function()
    return value, {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 2) for name, value in values.items()}
