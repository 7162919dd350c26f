"""Audit networks whose memorization is known from retraining, with and without shadow models; print a table."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import kernelmem as km
from experiments import machine
from kernelmem.core import seed_sequence, write_files
from kernelmem.memorization.shadows import ShadowEnsemble
from kernelmem.statistics import spearman
from kernelmem.training import EnsembleOptions, Member, Recipe, digits, mlp, train_mlps

__all__ = ["SETTINGS", "Options", "Setting", "measure", "measure_planted", "run"]

EXPECTED = Path(__file__).with_name("expected.json")
WIDTH, THRESHOLD = 64, 0.25
FOLDS = 20  # of the rows that are left out together, for memorization at almost the full number of rows
CLAIMS = {
    "score_spearman": (0.75, "rank correlation of the ranking score with the true change of margin (retraining)"),
    "precision": (0.9, "precision of the flagged rows (retraining)"),
    "recall": (0.6, "recall of the flagged rows (retraining)"),
    "fraction_covered": (0.9, "interval of the memorized share covers the truth (retraining)"),
    "kernel_score_spearman": (0.75, "rank correlation of the ranking score with the true change of margin (kernel)"),
    "kernel_fraction_covered": (0.9, "interval of the memorized share covers the truth (kernel)"),
}


@dataclass(frozen=True)
class Setting:
    """Noise rate of the labels and number of training steps."""

    name: str
    noise: float
    steps: int


SETTINGS = (Setting("clean", 0.0, 300), Setting("noise not fitted", 0.15, 30), Setting("noise fitted", 0.15, 300))


@dataclass(frozen=True)
class Options:
    """Audit networks (64-64-10, full-batch Adam, learning rate 0.02) trained on digits, and compare with retraining."""

    seeds: int = 5
    """Number of seeds of split, flips, network and shadow models per setting."""
    n_train: int = 500
    """Number of training rows."""
    n_models: int = 128
    """Number of shadow models of an audit."""
    n_truth: int = 512
    """Number of models of the truth, on other subsets."""
    n_planted: int = 10
    """Number of audits with 20 wrong labels planted among 1,000."""
    out: Path = Path("out/audit_validation")
    """Directory for results.json."""


def run(options: Options) -> None:
    """Measure every setting and seed, print the table and the claims, write the results."""
    cells = {}
    for setting in SETTINGS:
        runs = [measure(setting, 1000 + seed, options) for seed in range(options.seeds)]
        cells[setting.name] = {name: _summary([r[name] for r in runs]) for name in runs[0]}
        print(setting.name, json.dumps(cells[setting.name]), flush=True)
    planted = [measure_planted(2000 + seed, options) for seed in range(options.n_planted)]
    if planted:
        cells["planted"] = {name: _summary([r[name] for r in planted]) for name in planted[0]}
        print("planted", json.dumps(cells["planted"]), flush=True)
    print("\n".join(claims(cells)))
    results = {
        "options": {name: value for name, value in asdict(options).items() if name != "out"},
        "machine": machine.describe(),
        "cells": cells,
    }
    write_files(options.out, {"results.json": json.dumps(results, indent=1) + "\n"})


def measure(setting: Setting, seed: int, options: Options) -> dict[str, float]:
    """Audit one network by both methods, and compare with memorization from many other models."""
    seeds = seed_sequence(seed, ["flips", "network", "shadows", "truth", "folds"])
    data = digits(n_train=options.n_train, seed=seed)
    x, y = data.x_train, data.y_train
    test = data.x_test[:500], data.y_test[:500]
    if setting.noise:
        y = km.corrupt_labels(y, setting.noise, "symmetric", seed=seeds["flips"]).y
    training = km.EnsembleTraining(Recipe(lr=0.02, steps=setting.steps), width=WIDTH)
    network = _train(training, x, y, test, [torch.arange(len(y))], seeds["network"])[0]
    shadows, truth = (
        _shadows(training, (x, y), test, n, seeds[name])
        for name, n in (("shadows", options.n_models), ("truth", options.n_truth))
    )
    memorized = km.feldman_zhang(truth, statistic="correct").memorization.values.numpy()
    change = km.feldman_zhang(truth, statistic="margin").memorization.values.numpy()
    by_retraining = km.audit(network, (x, y), test, options=km.AuditOptions(retrain=shadows))
    by_kernel = km.audit(network, (x, y), test)
    flagged = by_retraining.to_frame().flagged.to_numpy()
    positive = memorized > THRESHOLD
    share = positive.mean()
    interval, kernel_interval = by_retraining.document.how_much.fraction, by_kernel.document.how_much.fraction
    mean = _mean_memorization(training, network, x, y, test, seeds["folds"])
    kernel_flagged = by_kernel.to_frame().flagged.to_numpy()
    return {
        "true_share": float(share),
        "share": interval.value,
        "fraction_covered": float(interval.low <= share <= interval.high),
        "precision": float(positive[flagged].mean()) if flagged.any() else 1.0,
        "recall": float(flagged[positive].mean()) if positive.any() else 1.0,
        "score_spearman": float(spearman(by_retraining.to_frame().score.to_numpy(), change)),
        "true_mean": mean,
        "kernel_share": kernel_interval.value,
        "kernel_fraction_covered": float(kernel_interval.low <= mean <= kernel_interval.high),
        "kernel_precision": float(positive[kernel_flagged].mean()) if kernel_flagged.any() else 1.0,
        "kernel_recall": float(kernel_flagged[memorized > 0.5].mean()) if (memorized > 0.5).any() else 1.0,
        "kernel_score_spearman": float(spearman(by_kernel.to_frame().score.to_numpy(), change)),
        "no_claim": float(by_retraining.document.verdict.status == "no-claim"),
        "kernel_no_claim": float(by_kernel.document.verdict.status == "no-claim"),
    }


def measure_planted(seed: int, options: Options) -> dict[str, float]:
    """Audit a network that fits 20 wrong labels of 1,000: is memorization announced, and are the wrong labels flagged?"""
    seeds = seed_sequence(seed, ["flips", "network", "shadows"])
    data = digits(n_train=1000, seed=seed)
    flips = km.corrupt_labels(data.y_train, 0.02, "symmetric", seed=seeds["flips"])
    x, y, test = data.x_train, flips.y, (data.x_test, data.y_test)
    training = km.EnsembleTraining(Recipe(lr=0.02, steps=300), width=WIDTH)
    network = _train(training, x, y, test, [torch.arange(len(y))], seeds["network"])[0]
    shadows = _shadows(training, (x, y), test, options.n_models, seeds["shadows"])
    audit = km.audit(network, (x, y), test, options=km.AuditOptions(retrain=shadows))
    kernel = km.audit(network, (x, y), test)
    flipped = flips.flipped.numpy()
    return {
        "announced": float(audit.document.verdict.status == "memorized"),
        "flips_flagged": float(audit.to_frame().flagged.to_numpy()[flipped].mean()),
        "kernel_announced": float(kernel.document.verdict.status == "memorized"),
        "kernel_flips_flagged": float(kernel.to_frame().flagged.to_numpy()[flipped].mean()),
    }


def claims(cells: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    """Compare the means over seeds of every setting with the claims."""
    lines = []
    for name, (least, text) in CLAIMS.items():
        values = {setting: cell[name]["mean"] for setting, cell in cells.items() if name in cell}
        shown = ", ".join(f"{setting} {value:.3f}" for setting, value in values.items())
        verdict = "holds" if all(value >= least for value in values.values()) else "FAILS"
        lines.append(f"claim: {text} at least {least:g}: {shown}, {verdict}")
    return lines


def _shadows(
    training: km.EnsembleTraining, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], n: int, seed: int
) -> ShadowEnsemble:
    options = km.ShadowOptions(n_models=n, share=0.7, sampling="balanced", n_classes=10)
    return km.shadow_ensemble(train, training, test=test, seed=seed, options=options, progress=False)


def _train(
    training: km.EnsembleTraining, x: Tensor, y: Tensor, test: tuple[Tensor, Tensor], subsets: list[Tensor], seed: int
) -> list[nn.Module]:
    """Return one trained network per subset of rows."""
    generator = np.random.default_rng(seed)
    members = [Member(WIDTH, rows, y[rows], int(generator.integers(2**31)), 0) for rows in subsets]
    options = EnsembleOptions(keep_parameters=True, n_classes=10)
    ensemble = train_mlps(members, x, test=test, recipe=training.recipe, options=options, progress=False)
    networks = []
    for state in ensemble.parameters or []:
        network = mlp(x.shape[1], WIDTH, 10, seed=0)
        network.load_state_dict(dict(zip(network.state_dict(), state.values(), strict=True)))
        networks.append(network)
    return networks


def _mean_memorization(
    training: km.EnsembleTraining, network: nn.Module, x: Tensor, y: Tensor, test: tuple[Tensor, Tensor], seed: int
) -> float:
    """Return the share of labels that the network gives, minus that of networks trained without a twentieth of the rows."""
    generator = np.random.default_rng(seed)
    hits = torch.zeros(len(y), dtype=torch.float64)
    repetitions = 4
    for _ in range(repetitions):
        parts = np.array_split(generator.permutation(len(y)), FOLDS)
        subsets = [torch.from_numpy(np.setdiff1d(np.arange(len(y)), part)) for part in parts]
        for part, other in zip(
            parts, _train(training, x, y, test, subsets, int(generator.integers(2**31))), strict=True
        ):
            hits[part] += (other(x[part]).argmax(1) == y[part]).double()
    return float((network(x).argmax(1) == y).double().mean() - hits.mean() / repetitions)


def _summary(values: list[float]) -> dict[str, float]:
    return {
        name: round(value, 4)
        for name, value in (("mean", sum(values) / len(values)), ("min", min(values)), ("max", max(values)))
    }
