"""Attack shadow models of the digits with all attacks, over noise rates, training steps and weight decay; print a table."""

import json
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import kernelmem as km
from experiments import machine
from kernelmem.core import seed_sequence, write_files
from kernelmem.memorization.membership import MembershipOptions, membership
from kernelmem.statistics import mean_interval
from kernelmem.training import Recipe, digits

__all__ = ["CELLS", "Cell", "Options", "measure", "run"]

EXPECTED = Path(__file__).with_name("expected.json")
ATTACKS = ("loss", "calibrated", "lira", "rmia", "quantile", "offline")
CLAIM = 5  # TPR at 1 % of LiRA divided by that of the loss, on labels with noise that the models fit
RATIO = "lira_over_loss_tpr_0.01"


@dataclass(frozen=True)
class Cell:
    """Noise rate of the labels, and the training of the shadow models."""

    noise: float = 0.15
    steps: int = 300
    weight_decay: float = 0.0

    @property
    def name(self) -> str:
        """Name in the table and in the results."""
        decay = f", weight decay {self.weight_decay:g}" if self.weight_decay else ""
        return f"noise {self.noise:g}, {self.steps} steps{decay}"


CELLS = (
    *(Cell(noise=rate) for rate in (0.0, 0.15, 0.3)),
    *(Cell(steps=steps) for steps in (30, 100)),
    Cell(weight_decay=1e-3),
)


@dataclass(frozen=True)
class Options:
    """Train shadow models of the digits (64-64-10, full-batch Adam, learning rate 0.02) and attack each with the others."""

    seeds: int = 2
    """Number of seeds 0, 1, ... of split, flips, subsets and initial weights."""
    n_train: int = 1000
    """Number of rows from which subsets are drawn."""
    n_models: int = 64
    """Number of shadow models; every row is in half of them."""
    out: Path = Path("out/membership")
    """Directory for results.json."""


def run(options: Options) -> None:
    """Measure every cell and seed, print the table and the claims, write the results."""
    cells = {}
    for cell in CELLS:
        runs = [measure(cell, seed, options) for seed in range(options.seeds)]
        cells[cell.name] = {name: _summary([r[name] for r in runs]) for name in runs[0]}
        print(line(cell.name, cells[cell.name]), flush=True)
    results = {
        "options": {name: value for name, value in asdict(options).items() if name != "out"},
        "machine": machine.describe(),
        "cells": cells,
    }
    print("\n".join(claims(cells)))
    write_files(options.out, {"results.json": json.dumps(results, indent=1) + "\n"})


def measure(cell: Cell, seed: int, options: Options) -> dict[str, float]:
    """Return AUC and TPR at 1 % of every attack for one ensemble, and the AUC of the permuted run."""
    seeds = seed_sequence(seed, ["flips", "ensemble", "attack"])
    data = digits(n_train=options.n_train, seed=seed)
    y = km.corrupt_labels(data.y_train, cell.noise, "symmetric", seed=seeds["flips"]).y if cell.noise else data.y_train
    shadows = km.shadow_ensemble(
        (data.x_train, y),
        km.EnsembleTraining(
            recipe=Recipe(optimizer="adam", lr=0.02, steps=cell.steps, weight_decay=cell.weight_decay), width=64
        ),
        test=(data.x_test, data.y_test),
        seed=seeds["ensemble"],
        options=km.ShadowOptions(n_models=options.n_models, share=0.5, sampling="balanced"),
        progress=False,
    )
    values = {}
    for name in ATTACKS:
        attack = "lira" if name == "offline" else name
        attack_options = MembershipOptions(offline=name == "offline", fprs=(0.01, 0.001))
        result = membership(shadows, attack=attack, seed=seeds["attack"], options=attack_options, progress=False)
        values |= {f"{name}_auc": result.auc.value, f"{name}_permuted_auc": result.null_auc.value}
        for rate in result.rates:
            if rate.value is not None:
                values[f"{name}_tpr_{rate.fpr:g}"] = rate.value
    values[RATIO] = values["lira_tpr_0.01"] / max(values["loss_tpr_0.01"], 1e-4)
    return values


def line(name: str, cell: dict[str, dict[str, float]]) -> str:
    """Format AUC and TPR at 1 % of every attack, and the committed AUC of LiRA: one line per cell."""
    committed = json.loads(EXPECTED.read_text(encoding="utf-8"))["cells"] if EXPECTED.is_file() else {}
    before = f"   LiRA committed {committed[name]['lira_auc']['mean']:.3f}" if name in committed else ""
    attacks = [f"{a} {cell[f'{a}_auc']['mean']:.3f} / {cell[f'{a}_tpr_0.01']['mean']:.3f}" for a in ATTACKS]
    return f"{name:<42} {'   '.join(attacks)}   permuted {cell['lira_permuted_auc']['mean']:.3f}{before}"


def claims(cells: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    """Compare the results with the claims: LiRA finds several times more than the loss, and rises with noise and steps."""
    ratio = cells[Cell().name][RATIO]["min"]
    lines = [
        f"claim: LiRA's TPR at 1 % at least {CLAIM} times the loss's, every seed: {ratio:.1f}, {_verdict(ratio >= CLAIM)}"
    ]
    for name, series in (
        ("noise", [Cell(noise=rate) for rate in (0.0, 0.15, 0.3)]),
        ("steps", [Cell(steps=steps) for steps in (30, 100, 300)]),
    ):
        aucs = [cells[cell.name]["lira_auc"]["mean"] for cell in series]
        rising = all(a < b for a, b in pairwise(aucs))
        lines.append(f"claim: LiRA's AUC rises with {name}: {', '.join(f'{a:.3f}' for a in aucs)}, {_verdict(rising)}")
    return lines


def _verdict(holds: bool) -> str:
    return "holds" if holds else "FAILS"


def _summary(values: list[float]) -> dict[str, float]:
    interval = mean_interval(values) if len(values) > 1 else None
    summary = {"mean": sum(values) / len(values), "min": min(values), "max": max(values)}
    if interval is not None:
        summary |= {"low": interval.low, "high": interval.high}
    return {name: round(value, 5) for name, value in summary.items()}
