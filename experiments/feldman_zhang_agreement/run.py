"""Train shadow ensembles over cells and seeds, compare memorization with wrong labels and with kernel scores."""

import json
import math
from pathlib import Path

import pandas as pd
import torch

import kernelmem as km
from experiments import machine
from experiments.feldman_zhang_agreement.configs import CELLS, CLAIMS, Options
from experiments.over_seeds import plus_minus, summary
from kernelmem.core import InputError, seed_sequence, write_files
from kernelmem.memorization.leave_one_out import leave_one_out_margin, leave_one_out_memorization
from kernelmem.memorization.retraining import c_score
from kernelmem.statistics import auroc
from kernelmem.training import Recipe, digits

__all__ = ["measure", "run"]

COLUMNS = {
    "auroc": "AUROC of the wrong labels",
    "auroc_permuted": "labels permuted",
    "spearman": "kernel memorization, all rows",
    "ceiling": "ceiling",
    "spearman_clean_rows": "clean rows",
    "ceiling_clean_rows": "ceiling",
    "corrected_clean_rows": "clean rows, corrected",
}
EXPECTED = Path(__file__).with_name("expected.json")


def run(options: Options) -> None:
    """Measure every cell and seed, print means and standard errors, write the files."""
    if unknown := [name for name in options.cells if name not in CELLS]:
        raise InputError(f"cells {unknown}", expected=f"some of {', '.join(CELLS)}", hint="check the names")
    runs: list[dict] = []
    cells: dict[str, dict] = {}
    for name in options.cells:
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            runs.append({"cell": name, "seed": seed, **measure(options, name, seed)})
            print(f"{name:<15} seed {seed}  AUROC {runs[-1]['auroc']:.4f}  {runs[-1]['spearman']:.3f}", flush=True)
        frame = pd.DataFrame(runs)
        columns = frame.columns.drop(["cell", "seed"])
        cells[name] = {column: summary(frame.loc[frame.cell == name, column].tolist()) for column in columns}
        results = {"models": options.models, "seeds": options.seeds, "machine": machine.describe(), "cells": cells}
        content = json.dumps(results, indent=1, allow_nan=False) + "\n"
        write_files(options.out, {"results.json": content, "runs.csv": frame.to_csv(index=False)})
    print(table(cells))


def measure(options: Options, cell: str, seed: int) -> dict[str, float]:
    """Return the metrics of one ensemble; NaN for what is undefined without wrong labels.

    The scores see rows and given labels only, not which labels are wrong.
    """
    kind, rate = CELLS[cell]
    seeds = seed_sequence(seed, ["flips", "models", "permutation"])
    data = digits(n_train=options.n_train, seed=seed)
    x, x_test = (data.x_train - 0.3) * 2, (data.x_test - 0.3) * 2
    noisy = km.corrupt_labels(data.y_train, rate, kind, seed=seeds["flips"], x=data.x_train)
    shadows = km.shadow_ensemble(
        (x, noisy.y),
        km.EnsembleTraining(Recipe(lr=0.02, steps=options.steps), width=options.width),
        test=(x_test, data.y_test),
        seed=seeds["models"],
        options=km.ShadowOptions(n_models=options.models),
    )
    kernel = km.infinite_ntk(x.double(), depth=2)
    fit = km.leave_one_out(kernel, noisy.y, km.choose_ridge(kernel, noisy.y).ridge)
    scores = {"": leave_one_out_memorization(fit), "_margin": leave_one_out_margin(fit)}
    result = km.feldman_zhang(shadows)
    clean = ~noisy.flipped
    metrics = {"train_accuracy": 0.0, "auroc": math.nan, "auroc_permuted": math.nan, "auroc_c_score": math.nan}
    correct = shadows.statistic("correct")
    metrics["train_accuracy"] = float(correct[shadows.masks].mean())
    metrics["test_accuracy"] = float(shadows.test_statistic("correct").mean())
    metrics["memorized"] = float((result.memorization.values >= 0.25).double().mean())
    if rate:
        values = result.memorization.values
        order = torch.randperm(len(values), generator=torch.Generator().manual_seed(seeds["permutation"]))
        metrics["auroc"] = auroc(values, noisy.flipped)
        metrics["auroc_permuted"] = auroc(values, noisy.flipped[order])
        metrics["auroc_c_score"] = auroc(c_score(shadows).score.values, noisy.flipped)
    for name, score in scores.items():
        for rows_name, rows in (("", None), ("_clean_rows", clean)):
            agreement = result.agreement(score, rows=rows)
            metrics[f"spearman{name}{rows_name}"] = agreement.spearman
            metrics[f"corrected{name}{rows_name}"] = math.nan if agreement.corrected is None else agreement.corrected
            metrics[f"ceiling{rows_name}"] = agreement.ceiling
    return metrics


def table(cells: dict[str, dict]) -> str:
    """Return one line per cell with means ± standard errors over seeds; committed means in the line below."""
    expected = json.loads(EXPECTED.read_text(encoding="utf-8"))["cells"] if EXPECTED.is_file() else {}
    lines = ["", f"{'cell':<15}" + "".join(f"  {title:>29}" for title in COLUMNS.values())]
    for name, cell in cells.items():
        lines.append(f"{name:<15}" + "".join(f"  {plus_minus(cell[column]):>29}" for column in COLUMNS))
        if name in expected:
            lines.append(f"{'  committed':<15}" + "".join(f"  {plus_minus(expected[name][c]):>29}" for c in COLUMNS))
    for name, bound in CLAIMS.items():
        means = [cells[c][name]["mean"] for c in ("symmetric 10 %", "symmetric 20 %") if c in cells and cells[c][name]]
        if means:
            lines.append(
                f"claim: {name} >= {bound} at 10 and 20 % symmetric: {'holds' if min(means) >= bound else 'FAILS'}"
            )
    return "\n".join(lines)
