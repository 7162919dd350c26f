"""Measure the linear datamodeling score of every attribution in every setting; print tables, write results and figure."""

import json
import math
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from torch import Tensor, nn

import kernelmem as km
from experiments import machine
from experiments.attribution.configs import SETTINGS, Options, Setting
from experiments.attribution.figure import draw
from kernelmem.core import seed_sequence, write_files
from kernelmem.memorization.attribution import Attribution, kernel_refit, leave_one_out_attribution, subset_bank
from kernelmem.training import mlp
from kernelmem.trajectory import Influence

__all__ = ["Problem", "attributions", "make", "measure", "run"]

LOADERS = {"breast cancer": load_breast_cancer, "wine": load_wine, "digits": load_digits}


@dataclass(frozen=True)
class Problem:
    """Data with wrong training labels, a network before training, and its training."""

    setting: Setting
    options: Options
    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    model: nn.Module


def run(options: Options) -> None:
    """Measure every setting, print the results, write the files."""
    scores, records = {}, {}
    for name in options.settings:
        start = time.process_time()
        scores[name], records[name] = measure(make(SETTINGS[name], options))
        records[name]["cpu_seconds"] = round(time.process_time() - start, 1)
        print(f"{name} ({records[name]['cpu_seconds']} CPU seconds)\n{scores[name]}\n", flush=True)
    results = {
        "options": {key: value for key, value in asdict(options).items() if key != "out"},
        "machine": machine.describe(),
        "settings": records,
    }
    content = json.dumps(results, indent=1, allow_nan=False) + "\n"
    write_files(options.out, {"results.json": content, **draw(scores)})


def make(setting: Setting, options: Options) -> Problem:
    """Everything that the seed decides; features are standardized over the training rows."""
    seeds = seed_sequence(options.seed, ["split", "flips", "weights"])
    x, y = LOADERS[setting.data](return_X_y=True)
    order = np.random.default_rng(seeds["split"]).permutation(len(x))
    train, test = order[: setting.n_train], order[setting.n_train :][: options.n_test]
    mean, scale = x[train].mean(0), x[train].std(0) + (1e-9 if setting.data != "digits" else 4.0)
    rows = torch.tensor((x - mean) / scale, dtype=torch.float32)
    labels = torch.tensor(y)
    noisy = km.corrupt_labels(labels[train], options.flips, "symmetric", seed=seeds["flips"]).y
    C = int(labels.max()) + 1
    model = mlp(rows.shape[1], setting.widths, C, seed=seeds["weights"])
    return Problem(setting, options, rows[train], noisy, rows[test], labels[test], model)


def measure(problem: Problem) -> tuple[km.LDS, dict[str, object]]:
    """Return the scores of all attributions on one bank, and a record of all numbers."""
    options, setting = problem.options, problem.setting
    found, influence = attributions(problem)
    half = math.ceil(setting.n_train // 2 / options.batch)
    recipe = replace(setting.recipe, batch_size=options.batch, steps=setting.epochs * half)
    bank = subset_bank(
        (problem.x, problem.y),
        km.EnsembleTraining(recipe, width=setting.widths),
        test=(problem.x_test, problem.y_test),
        n_subsets=options.n_subsets,
        models_per_subset=options.models_per_subset,
        seed=options.seed,
        progress=False,
    )
    score = km.lds(found, bank)
    full = replace(recipe, steps=setting.epochs * math.ceil(setting.n_train / options.batch))
    record: dict[str, object] = {"ceiling": score.ceiling, "ceiling_error": score.ceiling_error}
    record["reliability"] = score.reliability
    for name, value in found.items():
        interval, null = score.interval(name), score.null[score.names.index(name)]
        record[name] = {
            "lds": interval.value,
            "low": interval.low,
            "high": interval.high,
            "null": float(null.mean()),
            "null_spread": float(null.std()),
        }
        if not callable(value):
            loss = km.qld(
                value,
                (problem.x, problem.y),
                km.EnsembleTraining(full, width=setting.widths),
                (problem.x_test, problem.y_test),
                share=options.share,
                pairs=options.pairs,
                progress=False,
            )
            record[name] |= {
                "qld": loss.difference.value,
                "qld_low": loss.difference.low,
                "qld_high": loss.difference.high,
            }
    check = influence.replays
    assert check is not None
    record["replays"] = {"rank": check.rank_agreement, "size": check.size_ratio, "trusted": check.trusted}
    return score, record


def attributions(problem: Problem) -> tuple[dict[str, Attribution], Influence]:
    """Return attributions of the margins of the test rows: of one recorded network, and of kernel machines."""
    x, y, x_test, y_test, options = problem.x, problem.y, problem.x_test, problem.y_test, problem.options
    recipe, function = problem.setting.recipe, {"target": "margin", "labels": y_test, "progress": False}
    kernels = {
        "NTK": [km.ntk(problem.model, rows, x, outputs="pseudo") for rows in (x, x_test)],
        "RBF": [torch.exp(-torch.cdist(rows, x).square() / x.shape[1]) for rows in (x, x_test)],
    }
    if recipe.optimizer == "adam":
        optimizer = torch.optim.Adam(problem.model.parameters(), lr=recipe.lr)
    else:
        optimizer = torch.optim.SGD(problem.model.parameters(), lr=recipe.lr, momentum=recipe.momentum)
    fit_options = km.FitOptions(batch_size=options.batch, optimizer=optimizer)
    found: dict[str, Attribution] = {}
    with tempfile.TemporaryDirectory() as directory:
        recorded = km.fit(
            problem.model,
            x,
            y,
            out=Path(directory) / "run",
            epochs=problem.setting.epochs,
            seed=options.seed,
            options=fit_options,
            progress=False,
        )
        influence = km.influence(recorded, problem.model, x_test, **function)
        found["influence"] = influence
        found["ledger"] = km.ledger(recorded, problem.model, x_test, **function)
        found["TracIn"] = km.influence(recorded, problem.model, x_test, method="tracin", **function)
    for name, (K, K_test) in kernels.items():
        K, K_test = K.double(), K_test.double()
        ridge = km.choose_ridge(K, y).ridge
        found[f"{name} leave-one-out"] = leave_one_out_attribution(km.leave_one_out(K, y, ridge), K_test, y_test)
        found[f"{name} refit"] = kernel_refit(K, y, K_test, y_test, ridge)
    found["same label"] = (y_test[:, None] == y[None]).double()
    return found, influence
