"""Figures of the page about the experiments: the committed ones, and charts of committed results that have none."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROOT = Path(__file__).parents[2]
EXPERIMENTS = ROOT / "experiments"
COMMITTED = {
    "flip_detection": "flip_detection/figure.svg",
    "path_equivalence": "path_equivalence/machines.svg",
    "leave_one_out_agreement": "leave_one_out_agreement/figure.svg",
    "attribution": "attribution/figure.svg",
    "out_of_distribution": "out_of_distribution/figure.svg",
    "tangent_machine_agreement": "tangent_machine_agreement/figure.svg",
    "memorization_levers": "memorization_levers/figure.svg",
    "double_descent": "double_descent/model.svg",
    "phase_diagram": "double_descent/phase_diagram.png",
    "compression_width": "compression/width.svg",
    "compression_quantization": "compression/quantization.svg",
    "text_memorization": "text_memorization/dose.svg",
    "benchmark_ntk": "benchmarks/ntk/figure.svg",
    "benchmark_ledger": "benchmarks/ledger/figure.svg",
}


def read(path: str) -> Any:
    """Committed results of an experiment."""
    return json.loads((EXPERIMENTS / path).read_text(encoding="utf-8"))


def draw_feldman_zhang(axes: "Axes") -> None:
    """AUROC for the flips by memorization through retraining, by kind of noise."""
    cells = {
        name: cell for name, cell in read("feldman_zhang_agreement/expected.json")["cells"].items() if cell["auroc"]
    }
    places = range(len(cells))
    for key, color, label in (("auroc", "#3b6fc4", "memorization"), ("auroc_permuted", "#8a93a5", "permuted flags")):
        means = [cell[key]["mean"] for cell in cells.values()]
        errors = [[cell[key]["mean"] - cell[key]["low"] for cell in cells.values()]]
        errors += [[cell[key]["high"] - cell[key]["mean"] for cell in cells.values()]]
        axes.errorbar(places, means, yerr=errors, fmt="o", color=color, capsize=3, label=label)
    axes.set_xticks(places, [name.replace(" ", "\n", 1) for name in cells])
    axes.set(ylabel="AUROC for the wrong labels", ylim=(0.3, 1.03))
    axes.legend(frameon=False, loc="center right")


def draw_membership(axes: "Axes") -> None:
    """True positives at 1 % false positives, by rate of label noise."""
    cells = read("membership/expected.json")["cells"]
    names = {"0 %": "noise 0, 300 steps", "15 %": "noise 0.15, 300 steps", "30 %": "noise 0.3, 300 steps"}
    attacks = {"loss": "#aab1be", "offline": "#5a9a4a", "rmia": "#d9780f", "lira": "#3b6fc4"}
    for at, (attack, color) in enumerate(attacks.items()):
        heights = [100 * cells[name][f"{attack}_tpr_0.01"]["mean"] for name in names.values()]
        places = [place + 0.2 * (at - 1.5) for place in range(len(names))]
        axes.bar(places, heights, width=0.19, color=color, label=attack.upper() if attack != "loss" else "loss")
    axes.axhline(1, color="#5b6475", linewidth=0.9, dashes=(4, 2.5))
    axes.set_xticks(range(len(names)), [f"{name} wrong labels" for name in names])
    axes.set_ylabel("training rows identified\nat 1 % false positives, %")
    axes.legend(frameon=False)


def draw_audit_validation(axes: "Axes") -> None:
    """Memorized share in audits and in literal training without 2 % of the rows."""
    cells = read("audit_validation/results/subsets.json")["cells"]
    for at, (key, color, label) in enumerate(
        (
            ("left_out_share", "#8a93a5", "training without the rows"),
            ("retraining_share", "#3b6fc4", "audit, by retraining"),
        )
    ):
        for place, cell in enumerate(cells.values()):
            values = [100 * audit[key] for audit in cell["audits"]]
            x = [place + 0.24 * (at - 0.5)] * len(values)
            axes.plot(x, values, "o", color=color, alpha=0.6, label=label if place == 0 else None)
    axes.set_xticks(range(len(cells)), [name.replace("noise ", "15 % wrong,\n") for name in cells])
    axes.set(ylabel="memorized share, %", ylim=(0, None))
    axes.legend(frameon=False)


def draw_device(axes: "Axes") -> None:
    """Seconds of kernels on an H200, next to the faster form of torch.func."""
    kernels = read("device/h200.json")["kernels"]
    peer = [
        min(row[f"{form} seconds"] for form in ("one Jacobian", "class by class") if f"{form} seconds" in row)
        for row in kernels.values()
    ]
    places = range(len(kernels))
    ours = [row["ours seconds"] for row in kernels.values()]
    axes.bar([place - 0.2 for place in places], ours, 0.38, color="#3b6fc4", label="kernelmem")
    axes.bar([place + 0.2 for place in places], peer, 0.38, color="#aab1be", label="torch.func, the faster form")
    axes.set_xticks(places, [f"{name}\nn = {row['n']:,}".replace(" ", "\n", 1) for name, row in kernels.items()])
    axes.set_yscale("log")
    axes.set_ylabel("seconds on an NVIDIA H200")
    axes.legend(frameon=False)


DRAWN = {
    "feldman_zhang_agreement": draw_feldman_zhang,
    "membership": draw_membership,
    "audit_validation": draw_audit_validation,
    "device": draw_device,
}


def write_figures(folder: Path) -> None:
    """Copy or draw every figure."""
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    for name, path in COMMITTED.items():
        shutil.copyfile(EXPERIMENTS / path, folder / f"{name}{Path(path).suffix}")
    for name, draw in DRAWN.items():
        figure = Figure(figsize=(7.2, 3.6), layout="constrained")
        axes = figure.subplots()
        draw(axes)
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
