"""Outputs of a trained network on test rows compared with those of kernel machines and ledgers."""

import time

import torch
from torch import nn

import kernelmem as km
from experiments.path_equivalence.configs import EVERY, EXACT_ROWS, SCALES, Options
from experiments.path_equivalence.training import Problem, Scaled, problem, recorded
from kernelmem.kernel_machines import METHODS, ComparisonOptions

__all__ = ["DIVERGES", "MACHINES", "measure"]

RIDGE = 1e-8  # times the largest eigenvalue
DIVERGES = "diverges"
FORM_ROWS = 4  # test rows of the Domingos kernel machine
MACHINES = tuple(METHODS.values())


def measure(options: Options) -> list[dict]:
    """One line for each regime and seed: relative L2 error of every machine, and how far the kernel moved."""
    lines = []
    for regime, scale in SCALES.items():
        for seed in range(options.seeds):
            began = time.perf_counter()
            own = problem(seed, nn.Tanh)
            model = Scaled(own.network, scale)
            with recorded(own, model, options.learning_rate / scale**2, options.steps) as run:
                line = {"regime": regime, "seed": seed, **_of_run(own, model, run)}
            lines.append(line)
            print(f"machines {regime} seed {seed}: {time.perf_counter() - began:.1f} s", flush=True)
    return lines


def _of_run(own: Problem, model: Scaled, run: km.Run) -> dict:
    found = km.compare_kernel_machines(
        run,
        model,
        own.x_test,
        data=(own.x, own.y),
        options=ComparisonOptions(
            ridge=RIDGE, stride=EVERY, domingos_rows=FORM_ROWS, ledger_rows=EXACT_ROWS, checkpoints=0
        ),
    )
    with torch.no_grad():
        fit = model(own.x)  # trained by the recorder
    return {
        "errors": {fit.title: DIVERGES if fit.status == DIVERGES else fit.error for fit in found.fits},
        "movement": found.kernel_change,
        "distance": found.kernel_distance,
        "stability": {name: found[f"sgd_{name}"].stability for name in ("initial", "final", "path")},
        "path_kernel_error": found.path_error,
        "cancellation": found.cancellation,
        "test_accuracy": float((found.network.argmax(1) == own.y_test).double().mean()),
        "train_accuracy": float((fit.argmax(1) == own.y).double().mean()),
    }
