"""Run the default pipeline of `kernelmem audit` over cells and seeds; print a table, write results and figure."""

import json
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import kernelmem as km
from experiments import machine
from experiments.flip_detection.configs import CELLS, Cell, Options
from experiments.flip_detection.figure import draw
from kernelmem.core import InputError, seed_sequence, write_files
from kernelmem.training import digits, standardized_mlp, train_classifier

__all__ = ["run"]

HEADER = (
    f"{'':<15}  {'':>17}  {'':>10}  {'':>17}  {'':>9}  {'memorized':>18}\n"
    f"{'cell':<15}  {'AUROC':>17}  {'worst seed':>10}  {'flags permuted':>17}  {'agreement':>9}"
    f"  {'flipped':>9}  {'clean':>7}  claim  {'AUROC committed':>17}"
)
EXPECTED = Path(__file__).with_name("expected.json")


def run(options: Options) -> None:
    """Measure every cell, print the table with the committed numbers, write the files."""
    cells = [cell for cell in CELLS if cell.name in options.cells]
    if not cells or len(cells) != len(options.cells):
        names = ", ".join(cell.name for cell in CELLS)
        raise InputError(f"cells {options.cells}", expected=f"some of {names}", hint="check the names")
    rows = []
    for cell in cells:
        for seed in range(options.seeds):
            rows.append(measure(cell, seed, options.epochs))
            print(f"{cell.name:<15} seed {seed:>2}  AUROC {rows[-1]['auroc']:.4f}", flush=True)
    frame = pd.DataFrame(rows)
    results = {
        "epochs": options.epochs,
        "seeds": options.seeds,
        "machine": machine.describe(),
        "cells": {cell.name: asdict(cell) | summarize(frame[frame.cell == cell.name]) for cell in cells},
    }
    print(table(results))
    pictures = draw(frame, cells)
    content = json.dumps(results, indent=1) + "\n"
    write_files(options.out, {"results.json": content, "runs.csv": frame.to_csv(index=False), **pictures})


def measure(cell: Cell, seed: int, epochs: int) -> dict[str, float | int | str]:
    """Run one audit with the seeds that `kernelmem audit --seed` derives; NaN for what is undefined without flips."""
    seeds = seed_sequence(seed, ["split", "flips", "weights", "batches"])
    data = digits(seed=seed)
    noisy = km.corrupt_labels(data.y_train, cell.rate, cell.kind, seed=seeds["flips"], x=data.x_train)
    model = standardized_mlp(data.x_train, 10, seed=seeds["weights"])
    training = train_classifier(model, data.x_train, noisy.y, epochs=epochs, seed=seeds["batches"])
    document = km.audit(
        model, (data.x_train, noisy.y), (data.x_test, data.y_test), flipped=noisy.flipped, seed=seed
    ).document
    flips, memorization = document.flips, document.memorization
    above = torch.zeros(len(noisy.y), dtype=torch.bool)
    above[list(memorization.memorized)] = True
    return {
        "cell": cell.name,
        "seed": seed,
        "auroc": _or_nan(flips.auroc),
        "permuted_auroc": _or_nan(flips.permuted_auroc),
        "agreement": document.fidelity.agreement,
        "label_regression_agreement": document.fidelity.label_regression_agreement,
        "train_accuracy": training.train_accuracy,
        "test_accuracy": document.model.test_accuracy,
        "memorized": float(above.double().mean()),
        "memorized_flipped": float(above[noisy.flipped].double().mean()),
        "memorized_clean": float(above[~noisy.flipped].double().mean()),
        "auroc_label_memorization": _or_nan(flips.auroc_label_memorization),
        "auroc_network_memorization": _or_nan(flips.auroc_network_memorization),
    }


def summarize(runs: pd.DataFrame) -> dict[str, dict[str, float] | None]:
    """Return mean, standard error over seeds, minimum and maximum of every metric."""
    return {name: _summary(runs[name].to_numpy()) for name in runs.columns.drop(["cell", "seed"])}


def _summary(values: np.ndarray) -> dict[str, float] | None:
    if np.isnan(values).any():
        return None
    se = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    metrics = {"mean": values.mean(), "se": se, "min": values.min(), "max": values.max()}
    return {name: round(float(value), 6) for name, value in metrics.items()}


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def table(results: dict) -> str:
    """Return one line per cell; the last columns compare the worst seed with the claim and give the committed mean."""
    expected = json.loads(EXPECTED.read_text(encoding="utf-8"))["cells"] if EXPECTED.is_file() else {}
    lines = ["", HEADER]
    for name, cell in results["cells"].items():
        auroc, claim = cell["auroc"], cell["claim"]
        columns = [
            f"{name:<15}",
            f"{_pm(auroc):>17}",
            f"{auroc['min']:>10.4f}" if auroc else " " * 10,
            f"{_pm(cell['permuted_auroc']):>17}",
            f"{cell['agreement']['mean']:>9.3f}",
            f"{_percent(cell['memorized_flipped']):>9}",
            f"{_percent(cell['memorized_clean']):>7}",
            f"{'' if claim is None else 'holds' if auroc['min'] >= claim else 'FAILS':<5}",
            f"{_pm(expected.get(name, {}).get('auroc')):>17}",
        ]
        lines.append("  ".join(columns))
    return "\n".join(lines)


def _percent(summary: dict[str, float] | None) -> str:
    return f"{summary['mean']:.1%}" if summary else ""


def _pm(summary: dict[str, float] | None) -> str:
    return f"{summary['mean']:.4f} ± {summary['se']:.4f}" if summary else ""
