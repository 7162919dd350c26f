"""Measure every setting of every lever over seeds; print the table, write results and figure."""

import json
from dataclasses import asdict

import pandas as pd
import torch

import kernelmem as km
from experiments import machine
from experiments.memorization_levers.figure import draw
from experiments.memorization_levers.levers import BASE, FIELDS, LEVERS, Options, Setting
from experiments.over_seeds import plus_minus, summary
from kernelmem.core import InputError, seed_sequence, write_files
from kernelmem.training import Recipe, digits
from kernelmem.training.ensemble import EnsembleOptions, Member, train_mlps

__all__ = ["run"]

SHARE = 0.5
BATCH_SIZE = 250
LEARNING_RATE = 0.01
SHIFTS = ((0, 1), (0, -1), (1, 0), (-1, 0))  # pixels
METRICS = {
    "clean": "memorization of clean rows",
    "flipped": "memorization of flipped rows",
    "auc": "AUC of LiRA",
    "test error": "test error",
    "train error": "training error",
    "null": "memorization with permuted masks",
}


def run(options: Options) -> None:
    """Measure, print the table, write the files."""
    unknown = [name for name in options.levers if name not in LEVERS]
    if unknown:
        raise InputError(f"levers {unknown}", expected=f"some of {list(LEVERS)}", hint="check the names")
    measured: dict[tuple[Setting, int], dict[str, float]] = {}
    rows = []
    for lever in options.levers:
        for setting in LEVERS[lever]:
            for seed in range(options.seeds):
                if (setting, seed) not in measured:
                    measured[setting, seed] = measure(setting, seed, options)
                value = {"lever": lever, "value": getattr(setting, FIELDS[lever]), "seed": seed}
                rows.append(value | measured[setting, seed])
                print(
                    f"{lever} {value['value']:g}, seed {seed}: {rows[-1]['flipped']:.3f} of flipped labels", flush=True
                )
    frame = pd.DataFrame(rows)
    results = {
        "base": asdict(BASE),
        "seeds": options.seeds,
        "models": options.models,
        "noise": options.noise,
        "machine": machine.describe(),
        "levers": {lever: _levers_table(frame, lever) for lever in options.levers},
    }
    print(table(results))
    content = json.dumps(results, indent=1) + "\n"
    write_files(options.out, {"results.json": content, "runs.csv": frame.to_csv(index=False), **draw(frame, METRICS)})


def measure(setting: Setting, seed: int, options: Options) -> dict[str, float]:
    """Return the metrics of one shadow ensemble."""
    shadows, flipped = ensemble(setting, seed, options)
    correct = shadows.statistic("correct")
    memorization = _difference(correct, shadows.masks)
    generator = torch.Generator().manual_seed(seed)
    permuted = torch.stack([row[torch.randperm(len(row), generator=generator)] for row in shadows.masks.T]).T
    attack = km.membership(shadows, attack="lira", seed=seed, progress=False)
    return {
        "clean": float(memorization[~flipped].mean()),
        "flipped": float(memorization[flipped].mean()) if flipped.any() else float("nan"),
        "auc": attack.auc.value,
        "test error": 1 - float(shadows.test_statistic("correct").mean()),
        "train error": 1 - float(correct[shadows.masks].mean()),
        "null": float(_difference(correct, permuted).mean()),
    }


def _difference(values: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Return mean with the row minus mean without it, (n,): Feldman's memorization if ``values`` are accuracies."""
    return (values * masks).sum(0) / masks.sum(0) - (values * ~masks).sum(0) / (~masks).sum(0)


def ensemble(setting: Setting, seed: int, options: Options) -> tuple["km.ShadowEnsemble", torch.Tensor]:
    """Return the shadow ensemble of a setting, and which labels (n,) are flipped.

    Shifted copies are rows of the training only: subsets are drawn from the original rows, and a row brings its copies.
    """
    seeds = seed_sequence(seed, ["flips", "models"])
    data = digits(seed=seed, n_train=setting.n_train)
    n = len(data.x_train)
    noisy = km.corrupt_labels(data.y_train, options.noise, "symmetric", seed=seeds["flips"])
    scale = data.x_train.std()
    x, x_test = data.x_train.reshape(n, -1) / scale, data.x_test.reshape(len(data.x_test), -1) / scale
    recipe = Recipe(
        optimizer="adamw",
        lr=LEARNING_RATE,
        weight_decay=setting.weight_decay,
        batch_size=BATCH_SIZE,
        steps=setting.steps,
    )
    masks = balanced_masks(options.models, n, seeds["models"])
    with_copies = torch.cat([x, *(shifted(x, shift) for shift in SHIFTS[: setting.copies])])
    y = noisy.y.repeat(1 + setting.copies)
    members = []
    for k, mask in enumerate(masks):
        own = mask.nonzero()[:, 0]
        own = torch.cat([own + n * copy for copy in range(1 + setting.copies)])
        members.append(Member(setting.width, own, y[own], seed * 10_000 + k, seed * 10_000 + k))
    evaluation = torch.cat([x, x_test]), torch.cat([noisy.y, data.y_test])
    trained = train_mlps(
        members, with_copies, test=evaluation, recipe=recipe, options=EnsembleOptions(keep_outputs=True), progress=False
    )
    outputs = trained.metrics[-1].logits
    assert outputs is not None
    shadows = km.ShadowEnsemble.from_logits(
        masks, outputs[:, :n], noisy.y, test_logits=outputs[:, n:], test_labels=data.y_test
    )
    return shadows, noisy.flipped


def balanced_masks(m: int, n: int, seed: int) -> torch.Tensor:
    """Return masks (m, n) in which every row is in half of the models."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(m, n, generator=generator).argsort(0)
    return order < round(SHARE * m)


def shifted(x: torch.Tensor, shift: tuple[int, int]) -> torch.Tensor:
    """Return images (n, 64) moved by whole pixels; what enters at the border is empty."""
    images = x.reshape(-1, 8, 8)
    moved = torch.zeros_like(images)
    down, right = shift
    source = [slice(max(0, -step), 8 - max(0, step)) for step in (down, right)]
    target = [slice(max(0, step), 8 - max(0, -step)) for step in (down, right)]
    moved[:, target[0], target[1]] = images[:, source[0], source[1]]
    return moved.reshape(len(x), -1)


def _levers_table(frame: pd.DataFrame, lever: str) -> list[dict[str, object]]:
    """Return for each value of a lever the metrics, and their paired differences from the base, over seeds."""
    base = frame[(frame.lever == lever) & (frame.value == getattr(BASE, FIELDS[lever]))].set_index("seed")
    rows = []
    for value, runs in frame[frame.lever == lever].groupby("value", sort=False):
        runs = runs.set_index("seed")
        rows.append(
            {"value": value}
            | {name: summary(runs[name].tolist()) for name in METRICS}
            | {f"{name} less base": summary((runs[name] - base[name]).tolist()) for name in ("clean", "flipped", "auc")}
        )
    return rows


def table(results: dict) -> str:
    """Return the table as text: mean ± standard error over seeds, and whether the interval of a change excludes 0."""
    lines = ["lever            value  " + "  ".join(f"{name:>17}" for name in METRICS)]
    for lever, rows in results["levers"].items():
        for row in rows:
            cells = []
            for name in METRICS:
                change = row.get(f"{name} less base")
                mark = "*" if change and change["low"] * change["high"] > 0 else " "
                cells.append(f"{plus_minus(row[name]):>16}{mark}")
            lines.append(f"{lever:<15}  {row['value']:>5g}  " + "  ".join(cells))
    return "\n".join([*lines, "* the 95 % interval of the paired difference from the base excludes 0"])
