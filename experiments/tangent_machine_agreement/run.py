"""Fit kernel machines to networks, compare them on held-out rows; print a table, write results and figure."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

import kernelmem as km
from experiments import machine
from experiments.out_of_distribution.scores import targets_of
from experiments.out_of_distribution.training import Problem, make
from experiments.over_seeds import plus_minus, summary
from experiments.tangent_machine_agreement.configs import CLAIM, MACHINES, Machine, Options
from experiments.tangent_machine_agreement.figure import draw
from kernelmem.core import write_files

__all__ = ["compare", "fitted", "measure", "run", "table"]

EXPECTED = Path(__file__).with_name("expected.json")
TITLES = {name: config.title for name, config in MACHINES.items()} | {"another": "another network"}
FIGURES = ("agreement", "agreement_on_errors", "accuracy", "r2", "relative_error", "log10_ridge")


def run(options: Options) -> None:
    """Measure every seed on one thread, print the table with the committed numbers, write the files."""
    torch.set_num_threads(1)
    lines, facts = [], []
    for seed in range(options.seeds):
        problem, another = (
            make(
                seed,
                n_train=options.n_train,
                n_test=options.n_test,
                width=options.width,
                epochs=options.epochs,
                other=other,
            )
            for other in (False, True)
        )
        seed_lines, seed_facts = measure(problem, another.trained, seed)
        lines += seed_lines
        facts.append(seed_facts)
        print(f"seed {seed:>2}  agreement of the trained tangents {seed_lines[0]['agreement']:.4f}", flush=True)
    frame = pd.DataFrame(lines)
    results = {
        "options": {name: value for name, value in asdict(options).items() if name != "out"},
        "machine": machine.describe(),
        "facts": {name: summary([line[name] for line in facts]) for name in facts[0]},
        "machines": {
            name: {figure: summary(frame[frame.machine == name][figure].to_numpy()) for figure in FIGURES}
            for name in TITLES
        },
    }
    print(table(results))
    content = json.dumps(results, indent=1) + "\n"
    runs = frame.to_csv(index=False)
    write_files(options.out, {"results.json": content, "runs.csv": runs, **draw(frame, TITLES, results["facts"])})


def measure(problem: Problem, another: nn.Module, seed: int) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Return one line per kernel machine and for a network with other initial weights and batches; facts about the network."""
    x, labels = problem.data.x_test, problem.data.y_test
    with torch.no_grad():
        network = problem.trained(x).double()
        outputs = {"another": (another(x).double(), math.nan)}
    for name, config in MACHINES.items():
        model = fitted(config, problem)
        ridge = model.ridge_ / _size(model, problem.data.x_train)
        outputs[name] = (torch.from_numpy(model.predict(x.numpy())), math.log10(ridge))
    lines = [
        {"seed": seed, "machine": name, **compare(outputs[name][0], network, labels), "log10_ridge": outputs[name][1]}
        for name in TITLES
    ]
    errors = int((network.argmax(1) != labels).sum())
    facts = {
        "train_accuracy": problem.training.train_accuracy,
        "test_accuracy": 1 - errors / len(labels),
        "errors": float(errors),
    }
    return lines, facts


def fitted(config: Machine, problem: Problem) -> km.KernelMachineRegressor:
    """Return the kernel machine fitted on the training rows."""
    x = problem.data.x_train
    kernel: Any = "rbf"
    if config.kernel != "rbf":
        model = problem.trained if config.kernel == "trained" else problem.initial
        kernel = km.TangentKernel(
            model, outputs=config.outputs, parameters=_names(model, config.layers), dtype=torch.float64
        )
    with torch.no_grad():
        targets = problem.trained(x).double()
    if config.targets == "labels":
        targets = targets_of(problem.data.y_train)
    if config.targets == "permuted":
        generator = torch.Generator().manual_seed(problem.seeds["null"])
        targets = targets[torch.randperm(len(targets), generator=generator)]
    regressor = km.KernelMachineRegressor(
        kernel=kernel, gamma="scale", prior=problem.initial if config.prior else None, ridge="loo"
    )
    if config.ridge != "loo":
        regressor.set_params(ridge=float(config.ridge) * _mean_diagonal(kernel, x))
    return regressor.fit(x.numpy(), targets.numpy())


def _names(model: nn.Module, layers: str) -> list[str]:
    names = [name for name, _ in model.named_parameters()]
    last = names[-1].split(".")[0] + "."
    chosen = {"all": names, "last": [name for name in names if name.startswith(last)]}
    chosen["hidden"] = [name for name in names if name not in chosen["last"]]
    return chosen[layers]


def _size(model: km.KernelMachineRegressor, x: Tensor) -> float:
    return 1.0 if model.kernel == "rbf" else _mean_diagonal(model.kernel, x)


def _mean_diagonal(kernel: Any, x: Tensor) -> float:
    return float(kernel.diagonal(x).mean())


def compare(outputs: Tensor, network: Tensor, labels: Tensor) -> dict[str, float]:
    """Return agreement with the network on all rows and on its errors, accuracy, R² and relative error of the outputs.

    R² = 1 - |outputs - network|² / |network - mean over rows|² over all rows and outputs; it is below 0 where the
    mean of each output would do better. Agreement on errors is NaN for a network without any.
    """
    same = outputs.argmax(1) == network.argmax(1)
    wrong = network.argmax(1) != labels
    spread = float((network - network.mean(0)).square().sum())
    fidelity = km.fidelity(outputs, network)
    return {
        "agreement": fidelity.agreement,
        "agreement_on_errors": float(same[wrong].double().mean()) if bool(wrong.any()) else math.nan,
        "accuracy": float((outputs.argmax(1) == labels).double().mean()),
        "r2": 1 - float((outputs - network).square().sum()) / spread,
        "relative_error": fidelity.relative_error,
    }


def table(results: dict[str, Any]) -> str:
    """Return one line per kernel machine; the last column is the committed mean of the agreement."""
    expected = json.loads(EXPECTED.read_text(encoding="utf-8"))["machines"] if EXPECTED.is_file() else {}
    titles = ("agreement", "least", "on its errors", "accuracy", "R² of logits", "relative error", "log10 ridge")
    widths = (18, 9, 18, 18, 18, 18, 16)
    lines = ["", f"{'':<36}" + "".join(f"{title:>{width}}" for title, width in zip(titles, widths, strict=True))]
    lines[-1] += "   committed"
    for name, metrics in results["machines"].items():
        labels = metrics["r2"] if MACHINES.get(name, Machine("")).targets != "labels" else None  # of another scale
        errors = metrics["relative_error"] if labels else None
        cells = [
            plus_minus(metrics["agreement"], 4),
            f"{metrics['agreement']['min']:.4f}",
            plus_minus(metrics["agreement_on_errors"]),
            plus_minus(metrics["accuracy"], 4),
            plus_minus(labels),
            plus_minus(errors),
            plus_minus(metrics["log10_ridge"], 2),
        ]
        before = f"{expected[name]['agreement']['mean']:.4f}" if name in expected else ""
        row = "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        lines.append(f"{TITLES[name]:<36}{row}   {before}")
    lines += [f"{name:<36}{plus_minus(fact, 4):>18}" for name, fact in results["facts"].items()]
    name, claim = CLAIM
    mean = results["machines"][name]["agreement"]["mean"]
    lines.append(f"claim: {TITLES[name]}, mean agreement at least {claim}: {'holds' if mean >= claim else 'FAILS'}")
    return "\n".join(lines)
