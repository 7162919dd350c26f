"""Measure rules, machines and one prediction; print tables next to the committed numbers, write results and figures."""

import json
import math
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from experiments import machine
from experiments.path_equivalence import machines, prediction, quadrature
from experiments.path_equivalence.configs import (
    ACTIVATIONS,
    EVERY,
    EXACT_ROWS,
    N_TEST,
    N_TRAIN,
    RULES,
    SCALES,
    STEPS,
    TIME,
    Options,
)
from experiments.path_equivalence.figure import draw_machines, draw_rules, files
from kernelmem.core import write_files

__all__ = ["run", "summarize"]

EXPECTED = Path(__file__).with_name("expected.json")


def run(options: Options) -> None:
    """Measure everything on one thread, print, write."""
    torch.set_num_threads(1)
    began = time.process_time()
    rules, regimes = quadrature.measure(options), machines.measure(options)
    with TemporaryDirectory() as directory:
        figure, own = prediction.draw(f"{directory}/run")
    results = {
        "seeds": options.seeds,
        "exact_seeds": options.exact_seeds,
        "machine": machine.describe(),
        "processor_seconds": round(time.process_time() - began),
        "setting": {
            "train_rows": N_TRAIN,
            "test_rows": N_TEST,
            "ledger_rows": EXACT_ROWS,
            "training_time": TIME,
            "machine_steps": options.steps,
            "machine_learning_rate": options.learning_rate,
            "path_kernel_every": EVERY,
        },
        **summarize(rules, regimes),
        "prediction": own,
    }
    print(table(results))
    pictures = files("rules", draw_rules(results)) | files("machines", draw_machines(results))
    content = json.dumps(results, indent=1) + "\n"
    write_files(options.out, {"results.json": content, **pictures, **files("prediction", figure)})


def summarize(rules: list[dict], regimes: list[dict]) -> dict:
    """Residuals by activation, rule and number of steps; errors of machines by regime: values of all seeds, and means."""
    found: dict = {"residuals": {}, "orders": {}, "machines": {}}
    for activation in ACTIVATIONS:
        own = [line for line in rules if line["activation"] == activation]
        found["residuals"][activation] = {
            rule: {
                str(steps): [line["residual"] for line in own if (line["rule"], line["steps"]) == (rule, steps)]
                for steps in STEPS
            }
            for rule in dict.fromkeys(line["rule"] for line in own)
        }
        found["orders"][activation] = {rule: quadrature.order_of(rules, activation, rule) for rule in RULES}
    for regime in SCALES:
        lines = [line for line in regimes if line["regime"] == regime]
        others = ("movement", "distance", "path_kernel_error", "cancellation", "test_accuracy", "train_accuracy")
        found["machines"][regime] = {
            "errors": {name: _of_seeds([line["errors"][name] for line in lines]) for name in machines.MACHINES},
            "stability": {
                name: _of_seeds([line["stability"][name] for line in lines]) for name in ("initial", "path", "final")
            },
            **{name: _of_seeds([line[name] for line in lines]) for name in others},
        }
    return found


def _of_seeds(values: list[float | str]) -> dict:
    """Mean and standard error of those that did not diverge, how many did, and all of them."""
    finite = [value for value in values if not isinstance(value, str)]
    rounded = [value if isinstance(value, str) else float(f"{value:.4g}") for value in values]
    mean = statistics.fmean(finite) if finite else None
    se = statistics.stdev(finite) / math.sqrt(len(finite)) if len(finite) > 1 else None
    short = (None if value is None else float(f"{value:.4g}") for value in (mean, se))
    return {**dict(zip(("mean", "se"), short, strict=True)), "diverged": len(values) - len(finite), "values": rounded}


def table(results: dict) -> str:
    """Orders beside those expected; errors of machines beside those committed."""
    expected = json.loads(EXPECTED.read_text(encoding="utf-8")) if EXPECTED.is_file() else {}
    lines = ["", f"{'order of the residual':<22}{'expected':>9}" + "".join(f"{name:>16}" for name in ACTIVATIONS)]
    for rule, order in RULES.items():
        cells = (_order(results["orders"][name][rule]) for name in ACTIVATIONS)
        lines.append(f"{rule:<22}{order:>9}" + "".join(f"{cell:>16}" for cell in cells))
    split = results["residuals"]["relu"].get("event split", {})
    worst = max((value for values in split.values() for value in values), default=math.nan)
    lines.append(f"{'relu, exact ledger':<22}largest residual {worst:.1e}")
    lines += ["", f"{'relative L2 error':<36}" + "".join(f"{name:>24}{'committed':>12}" for name in SCALES)]
    for name in machines.MACHINES:
        cells = ""
        for regime in SCALES:
            committed = expected.get("machines", {}).get(regime, {}).get("errors", {}).get(name, {}).get("mean")
            cells += f"{_error(results['machines'][regime]['errors'][name]):>24}"
            cells += f"{'' if committed is None else format(committed, '.2g'):>12}"
        lines.append(f"{name:<36}{cells}")
    for name in ("movement", "distance"):
        cells = "".join(f"{_error(results['machines'][regime][name]):>24}{'':>12}" for regime in SCALES)
        lines.append(f"{'kernel ' + name:<36}{cells}")
    return "\n".join([*lines, "", *(f"{name:<28}{value:.4g}" for name, value in results["prediction"].items())])


def _order(found: dict | None) -> str:
    return "at rounding" if found is None else f"{found['mean']:.2f} ± {found['se']:.2f}"


def _error(found: dict) -> str:
    count = len(found["values"])
    if found["diverged"]:
        return f"diverges, {found['diverged']} of {count}"
    return f"{found['mean']:.2g}" + ("" if found["se"] is None else f" ± {found['se']:.1g}")
