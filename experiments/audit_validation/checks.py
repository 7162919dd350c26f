"""Run literal retraining, null audits, power and planted wrong labels, print them, write their results."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from experiments import machine
from experiments.audit_validation.literal import LITERAL_SETTINGS, measure_literal
from experiments.audit_validation.nulls import (
    FACTORS,
    Copies,
    NullOptions,
    Unseen,
    announced_counts,
    announced_effect,
    null_audits,
    retraining_nulls,
)
from experiments.audit_validation.planted import measure_planted
from kernelmem.core import write_files
from kernelmem.statistics import clopper_pearson

__all__ = ["CheckOptions", "run_checks"]

Part = Literal["literal", "nulls", "power", "planted"]
NULLS: dict[str, tuple[Copies, NullOptions]] = {
    "exchangeable rows": ("none", NullOptions()),
    "exchangeable rows, 100 of each kind": ("none", NullOptions(n_rows=100)),
    "half of the test rows are near-copies": ("test", NullOptions()),
    "half of the training rows are near-copies": ("train", NullOptions()),
    "a tenth of the test rows are near-copies": ("test", NullOptions(copied_share=0.1)),
    "a tenth of the training rows are near-copies": ("train", NullOptions(copied_share=0.1)),
}
RETRAINING_NULLS: dict[str, Unseen] = {
    "retraining, neither the network nor the models saw the rows": "network and models",
    "retraining, the models saw the rows and the network did not": "network",
}


@dataclass(frozen=True)
class CheckOptions:
    """Audits compared with literal leave-one-out retraining, audits that must find nothing, and power."""

    parts: tuple[Part, ...] = ("literal", "nulls", "power", "planted")
    """Parts to run."""
    seeds: int = 1
    """Audits per setting that are compared with literal retraining."""
    nulls: int = 60
    """Null audits of exchangeable rows; a third of them for each kind of near-copies, and for each kind of retraining."""
    fitted: int = 10
    """Audits with 20 fitted wrong labels among 1,000 rows, and as many without any."""
    planted: int = 20
    """Audits for each number of planted wrong labels."""
    draws: int = 60
    """Subsets of shadow models for the smallest effect on one row."""
    first_seed: int = 7000
    """First seed."""
    out: Path = Path("out/audit_validation")
    """Directory of the results, one file per part."""


def run_checks(options: CheckOptions) -> None:
    """Run the parts."""
    first = options.first_seed
    if "literal" in options.parts:
        cells: dict[str, object] = {}
        for setting in LITERAL_SETTINGS:
            cells[setting.name] = [measure_literal(setting, seed) for seed in range(first, first + options.seeds)]
            print(setting.name, json.dumps(cells[setting.name]), flush=True)
            _write(options.out, "literal", cells)
    if "nulls" in options.parts:
        cells: dict[str, object] = {}
        for name, (copies, sizes) in NULLS.items():
            count = options.nulls if copies == "none" else max(1, options.nulls // 3)
            cells[name] = _null_summary(null_audits(copies, range(first, first + count), sizes))
            print(name, json.dumps(cells[name]), flush=True)
            _write(options.out, "nulls", cells)
        for name, unseen in RETRAINING_NULLS.items():
            count = max(1, options.nulls // 3)
            cells[name] = _null_summary(retraining_nulls(unseen, range(first, first + count)))
            print(name, json.dumps(cells[name]), flush=True)
            _write(options.out, "nulls", cells)
    if "planted" in options.parts:
        audits: list[dict[str, dict[str, float | None]]] = []
        for seed in range(first, first + options.fitted):
            audits.append(measure_planted(seed))
            print(json.dumps(audits[-1]), flush=True)
            _write(options.out, "planted", {name: [audit[name] for audit in audits] for name in audits[0]})
    if "power" in options.parts:
        results = [result for seed in range(first, first + options.planted) for result in announced_counts(seed)]
        cells: dict[str, object] = {"smallest count, kernel": _power_summary(results)}
        print(json.dumps(cells), flush=True)
        if options.draws:
            for m in (64, 128):
                name = f"smallest effect on one row, {m} models"
                cells[name] = announced_effect(512, m, options.draws, first)
                print(name, json.dumps(cells[name]), flush=True)
        _write(options.out, "power", cells)


def _null_summary(results: list[dict]) -> dict[str, object]:
    n, p = len(results), np.array([result["p_value"] for result in results])
    statuses = Counter(result["status"] for result in results)
    alarms = clopper_pearson(statuses["memorized"], n)
    failed = Counter(name for result in results for name in result["failed"].split(", ") if name)
    return {
        "audits": n,
        "announced": statuses["memorized"],
        "announced_high": alarms.high,
        "no_claim": statuses["no-claim"],
        "p_below_01": int((p < 0.01).sum()),
        "p_below_05": int((p < 0.05).sum()),
        "interval_covers_zero": float(np.mean([result["covers_zero"] for result in results])),
        "mean_share": float(np.mean([result["share"] for result in results])),
        "failed_gates": dict(failed),
    }


def _power_summary(results: list[dict]) -> dict[str, object]:
    """Summarize audits by their place in the four of each seed: nothing, two thirds of the printed number, it, 1.5 times it."""
    summary: dict[str, object] = {
        "printed_count": float(np.nanmean([result["printed"] for result in results if result["place"] == "nothing"]))
    }
    for name in ("nothing", *FACTORS):
        group = [result for result in results if result["place"] == name]
        p = np.array([result["p_value"] for result in group])
        summary[name] = {
            "audits": len(group),
            "planted": float(np.mean([result["planted"] for result in group])),
            "fitted": float(np.mean([result["fitted"] for result in group])),
            "test_announces": float((p < 0.01).mean()),
            "audit_announces": float(np.mean([result["status"] == "memorized" for result in group])),
        }
    return summary


def _write(out: Path, part: str, cells: dict) -> None:
    content = json.dumps({"machine": machine.describe(), "cells": cells}, indent=1, allow_nan=False) + "\n"
    write_files(out, {f"{part}.json": content})
