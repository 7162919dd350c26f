"""Run all scores over kinds of noise and seeds; print a table, write results and figure."""

import json
from collections.abc import Iterator
from dataclasses import asdict

import pandas as pd
import torch
import torch.nn.functional as F

import kernelmem as km
from experiments import machine
from experiments.flip_detection.configs import CELLS, SCORES, Cell, Options, claim
from experiments.flip_detection.figure import draw
from experiments.over_seeds import plus_minus, summary
from kernelmem.core import InputError, seed_sequence, write_files
from kernelmem.memorization import leave_one_out, training_dynamics
from kernelmem.training import LabeledData, digits, mlp

__all__ = ["run"]

CHECKPOINTS = 15  # after the initial weights
LEARNING_RATE = 0.02


def run(options: Options) -> None:
    """Measure every cell, print the table with the claims, write the files."""
    cells = [cell for cell in CELLS if cell.name in options.cells]
    if not cells or len(cells) != len(options.cells):
        names = ", ".join(cell.name for cell in CELLS)
        raise InputError(f"cells {options.cells}", expected=f"some of {names}", hint="check the names")
    rows = []
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        data = digits(n_train=options.n_train, seed=seed)
        kernel = km.infinite_ntk(data.x_train.double(), depth=2)
        for cell in cells:
            rows += [{"cell": cell.name, "seed": seed, **row} for row in measure(cell, data, kernel, seed, options)]
            print(f"{cell.name:<16} seed {seed:>2}  {rows[-len(SCORES)]['auroc']:.4f}", flush=True)
    frame = pd.DataFrame(rows)
    results = {
        "options": {key: value for key, value in asdict(options).items() if key not in ("out", "cells")},
        "machine": machine.describe(),
        "cells": {cell.name: summarize(cell, frame[frame.cell == cell.name]) for cell in cells},
    }
    print(table(results, cells))
    content = json.dumps(results, indent=1) + "\n"
    write_files(
        options.out,
        {"results.json": content, "runs.csv": frame.to_csv(index=False), **draw(frame, cells, options.seeds)},
    )


def measure(cell: Cell, data: LabeledData, kernel: torch.Tensor, seed: int, options: Options) -> Iterator[dict]:
    """Yield the AUROC of each score; only the last step, the detection, sees which labels were flipped."""
    seeds = seed_sequence(seed, ["flips", "weights", "permutations"])
    noisy = km.corrupt_labels(data.y_train, cell.rate, cell.kind, seed=seeds["flips"], x=data.x_train)
    scores = kernel_scores(kernel, noisy.y)
    histories = [train(data.x_train, noisy.y, seeds["weights"] + k, options.steps) for k in range(options.networks)]
    history = km.TrainingHistory.join(histories)
    for name in SCORES:
        if name not in scores:
            scores[name] = getattr(training_dynamics, name)(history)
    for name in SCORES:
        detection = km.detect(scores[name].values, noisy.flipped, seed=seeds["permutations"])
        yield {"score": name, "auroc": detection.auroc, "permuted": detection.permuted_auroc}


def kernel_scores(kernel: torch.Tensor, y: torch.Tensor) -> dict[str, km.Score]:
    """Return the scores of leave-one-out predictions of the infinite-width NTK."""
    fit = km.leave_one_out(kernel, y, km.choose_ridge(kernel, y).ridge)
    return {
        "suspicion": km.estimate_label_noise(kernel, y).suspicion,
        "margin": leave_one_out.leave_one_out_margin(fit),
        "memorization": leave_one_out.leave_one_out_memorization(fit),
    }


def train(x: torch.Tensor, y: torch.Tensor, seed: int, steps: int) -> km.TrainingHistory:
    """Train 64-64-10 ReLU by full-batch Adam, and collect outputs and gradient norms at checkpoints."""
    model = mlp(x.shape[1], (64,), 10, seed=seed % 2**31)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    recorder = km.HistoryRecorder(y)
    for step in range(steps + 1):
        outputs = model(x)
        if step % max(1, steps // CHECKPOINTS) == 0:
            norms = km.ntk(model, x, target="loss", labels=y, progress=False).diagonal().sqrt()
            recorder.update(step, outputs, gradient_norms=norms)
        optimizer.zero_grad()
        F.cross_entropy(outputs, y).backward()
        optimizer.step()
    return recorder.history()


def summarize(cell: Cell, runs: pd.DataFrame) -> dict:
    """Return kind, rate, and for each score its claim and the mean, error and extremes over seeds."""
    scores = {}
    for name in SCORES:
        values = runs[runs.score == name]
        auroc = summary(values.auroc.tolist())
        bound = claim(name, cell)
        holds = None if bound is None or auroc is None else auroc["mean"] >= bound
        permuted = summary(values.permuted.tolist())
        scores[name] = {"auroc": auroc, "permuted": permuted, "claim": bound, "holds": holds}
    return {"kind": cell.kind, "rate": cell.rate, "scores": scores}


def table(results: dict, cells: list[Cell]) -> str:
    """Return one line per cell and score, with the claim and the control."""
    lines = ["", f"{'cell':<16}  {'score':<34}  {'AUROC':>15}  {'worst seed':>10}  {'flags permuted':>15}  claim"]
    for cell in cells:
        for name, metrics in results["cells"][cell.name]["scores"].items():
            verdict = (
                "" if metrics["claim"] is None else f"{metrics['claim']:.2f} {'holds' if metrics['holds'] else 'FAILS'}"
            )
            auroc = metrics["auroc"]
            columns = [
                f"{cell.name:<16}",
                f"{SCORES[name]:<34}",
                f"{plus_minus(auroc, 4):>15}",
                f"{auroc['min']:>10.4f}",
                f"{plus_minus(metrics['permuted'], 4):>15}",
                verdict,
            ]
            lines.append("  ".join(columns).rstrip())
    return "\n".join(lines)
