"""Measure how well every score detects changed digits and errors of the network; print tables, write results and figure."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

import kernelmem as km
from experiments import machine
from experiments.out_of_distribution.configs import BASELINES, ERRORS_ON, RIDGES, SCORES, SHIFTS, Options
from experiments.out_of_distribution.figure import Pictured, draw
from experiments.out_of_distribution.scores import scores
from experiments.out_of_distribution.shifts import changed
from experiments.out_of_distribution.training import Problem, make
from experiments.over_seeds import plus_minus, summary
from kernelmem.core import write_files

__all__ = ["measure", "run", "summarize", "table"]

EXPECTED = Path(__file__).with_name("expected.json")
PERMUTATIONS = 100  # of the flags, for the null of every AUROC
COLUMNS = ("AUROC", *(f"less {SCORES[base]}" for base in BASELINES), "flags permuted", "committed")
HEADER = f"{'':<32}" + "".join(f"{title:>22}" for title in COLUMNS)
TRIED = tuple(f"{score} at {ridge}" for score in ("gp_tangent", "gp_tangent_relative") for ridge in RIDGES)


def run(options: Options) -> None:
    """Measure every seed on one thread, print tables with the committed numbers, write the files."""
    torch.set_num_threads(1)
    lines, facts, pictured = [], [], None
    for seed in range(options.seeds):
        problem = make(seed, n_train=options.n_train, n_test=options.n_test, width=options.width, epochs=options.epochs)
        seed_lines, seed_facts, seed_pictured = measure(problem, seed)
        lines += seed_lines
        facts.append(seed_facts)
        pictured = pictured or seed_pictured
        print(f"seed {seed:>2}  accuracy on held-out digits {seed_facts['accuracy, unchanged']:.4f}", flush=True)
    assert pictured is not None
    frame = pd.DataFrame(lines)
    results = {
        "options": {name: value for name, value in asdict(options).items() if name != "out"},
        "machine": machine.describe(),
        "facts": {name: summary([line[name] for line in facts]) for name in facts[0]},
        **summarize(frame),
    }
    print(table(results))
    content = json.dumps(results, indent=1) + "\n"
    runs = frame.to_csv(index=False)
    write_files(options.out, {"results.json": content, "runs.csv": runs, **draw(results, pictured)})


def measure(problem: Problem, seed: int) -> tuple[list[dict[str, Any]], dict[str, float], Pictured]:
    """Return one line per score, shift and kind of error with its AUROC; facts about the network; images to show."""
    (inside, inside_labels), (outside, labels) = problem.inside, problem.outside
    places = {"inside": inside} | {
        shift.name: changed(outside, shift, seed=problem.seeds["changes"]) for shift in SHIFTS
    }
    everything, sizes = torch.cat(list(places.values())), [len(rows) for rows in places.values()]
    main_scores, other_scores, facts = scores(problem, everything)
    with torch.no_grad():
        predicted = dict(zip(places, problem.trained(everything).argmax(1).split(sizes), strict=True))
    wrong = {name: said != (inside_labels if name == "inside" else labels) for name, said in predicted.items()}
    split = {
        name: dict(zip(places, score.split(sizes), strict=True)) for name, score in (main_scores | other_scores).items()
    }
    is_changed = torch.cat([torch.zeros(len(inside)), torch.ones(len(outside))]).bool()
    asked = [("shift", shift.name, ("inside", shift.name), is_changed) for shift in SHIFTS]
    for where, members in zip(ERRORS_ON, (("inside", "unchanged"), ("rotated 30°",)), strict=True):
        asked.append(("errors", where, members, torch.cat([wrong[member] for member in members])))
        facts |= {f"errors, {where}": float(asked[-1][3].sum()), f"rows, {where}": float(len(asked[-1][3]))}
    lines = []
    for kind, where, members, flags in asked:
        for name, by_place in split.items():
            line = {"seed": seed, "kind": kind, "where": where, "score": name}
            values = torch.cat([by_place[member] for member in members])
            permutations = PERMUTATIONS if name in SCORES else 2
            lines.append(line | _detected(values, flags, seed=1000 * seed + len(lines), permutations=permutations))
    facts |= {
        f"accuracy, {name}": 1 - float(flags.double().mean()) for name, flags in wrong.items() if name != "inside"
    }
    facts["train_accuracy"] = problem.training.train_accuracy
    held_out = [torch.cat([of["inside"], of["unchanged"]]) for of in (predicted, split["gp_tangent_relative"])]
    return lines, facts, Pictured(torch.cat([inside, outside]), torch.cat([inside_labels, labels]), *held_out)


def _detected(values: Tensor, flags: Tensor, *, seed: int, permutations: int) -> dict[str, float]:
    """Return NaN if there is nothing to detect: a network may have no errors."""
    if not 0 < int(flags.sum()) < len(flags):
        return {"auroc": math.nan, "permuted": math.nan}
    detection = km.detect(values, flags, seed=seed, permutations=permutations)
    return {"auroc": detection.auroc, "permuted": detection.permuted_auroc}


def summarize(frame: pd.DataFrame) -> dict[str, Any]:
    """Return by kind and place, for every score: AUROC, paired differences to the baselines, AUROC with permuted flags."""
    metrics: dict[str, Any] = {"shift": {}, "errors": {}, "ridges": {}}
    for (kind, where), lines in frame.groupby(["kind", "where"], sort=False):
        by_score = {name: runs.sort_values("seed") for name, runs in lines.groupby("score", sort=False)}
        auroc = {name: runs.auroc.to_numpy() for name, runs in by_score.items()}
        metrics[kind][where] = {
            name: {
                "auroc": summary(auroc[name]),
                **{f"less {base}": summary(auroc[name] - auroc[base]) for base in BASELINES},
                "permuted": summary(by_score[name].permuted.to_numpy()),
            }
            for name in SCORES
        }
        metrics["ridges"][f"{kind}: {where}"] = {name: summary(auroc[name]) for name in TRIED}
    return metrics


def table(results: dict[str, Any]) -> str:
    """Return a table: AUROC of every score, its differences to the baselines, and the committed means."""
    expected = json.loads(EXPECTED.read_text(encoding="utf-8")) if EXPECTED.is_file() else {}
    lines = []
    for kind, title in (
        ("shift", "changed images against unchanged held-out images"),
        ("errors", "errors of the network"),
    ):
        for where, by_score in results[kind].items():
            lines += ["", f"{title}: {where}", HEADER]
            for name, metrics in by_score.items():
                before = expected.get(kind, {}).get(where, {}).get(name, {}).get("auroc")
                columns = [plus_minus(metrics["auroc"])]
                columns += [plus_minus(metrics[f"less {base}"], signed=True) for base in BASELINES]
                columns += [plus_minus(metrics["permuted"]), "" if before is None else f"{before['mean']:.3f}"]
                lines.append(f"{SCORES[name]:<32}" + "".join(f"{column:>22}" for column in columns))
    lines += ["", "The trained tangent kernel at other ridges: AUROC, deviation / relative deviation"]
    lines.append(f"{'':<24}" + "".join(f"{ridge:>18}" for ridge in RIDGES))
    for where, by_score in results["ridges"].items():
        pairs = [
            [by_score[f"{score} at {ridge}"] for score in ("gp_tangent", "gp_tangent_relative")] for ridge in RIDGES
        ]
        cells = ["" if None in pair else " / ".join(f"{one['mean']:.3f}" for one in pair) for pair in pairs]
        lines.append(f"{where:<24}" + "".join(f"{cell:>18}" for cell in cells))
    lines += ["", *(f"{name:<32}{plus_minus(fact, 4)}" for name, fact in results["facts"].items())]
    return "\n".join(lines)
