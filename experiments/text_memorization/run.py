"""Run the parts over seeds, print their tables, write their results and figures."""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from experiments import machine
from experiments.over_seeds import plus_minus, summary
from experiments.text_memorization.figures import dose_figure
from experiments.text_memorization.parts.counterfactual import Counterfactuals, counterfactuals
from experiments.text_memorization.parts.demonstration import Demonstrations, demonstration
from experiments.text_memorization.parts.dose import Doses, doses
from experiments.text_memorization.parts.fine_tuning import FineTunings, fine_tunings
from experiments.text_memorization.parts.ledger import Ledgers, ledgers
from kernelmem.core import InputError, write_files

__all__ = ["PARTS", "Options", "Part", "run", "run_part"]

Name = Literal["demonstration", "dose", "ledger", "counterfactual", "fine_tuning"]


@dataclass(frozen=True)
class Part:
    """One experiment: its setting, the function that measures one seed, the columns that name a cell, columns to print."""

    setting: Any
    measure: Callable[[Any, int], Iterable[dict]]
    by: tuple[str, ...]
    printed: tuple[str, ...]


PARTS: dict[Name, Part] = {
    "demonstration": Part(
        Demonstrations(),
        demonstration,
        ("copies",),
        (
            "secret_bits",
            "exposure",
            "exposure_after_bos",
            "greedy",
            "greedy_after_bos",
            "sampled",
            "auroc",
            "pairs_right",
            "auroc_loss",
            "auroc_reference",
            "excess",
            "fresh_exposure",
        ),
    ),
    "dose": Part(Doses(), doses, ("hidden", "epochs", "copies"), ("secret_bits", "greedy", "sampled", "auroc")),
    "ledger": Part(
        Ledgers(),
        ledgers,
        ("copies",),
        ("change", "change_twins", "own", "other_canaries", "own_minus_others", "own_on_twin", "best_rank_of_own"),
    ),
    "counterfactual": Part(
        Counterfactuals(),
        counterfactuals,
        ("documents",),
        ("memorization", "standard_error", "permuted", "permuted_sd", "reliability", "auroc", "auroc_loss", "tangents"),
    ),
    "fine_tuning": Part(
        FineTunings(),
        fine_tunings,
        ("method", "group"),
        ("secret_bits", "gained", "greedy", "gained_per_token", "worse", "auroc_base", "auroc_loss", "auroc_gain"),
    ),
}


@dataclass(frozen=True)
class Options:
    """What small language models remember: the demonstration, dose-response, ledger, retraining, fine-tunes."""

    parts: tuple[Name, ...] = tuple(PARTS)
    """Parts to run."""
    seeds: int = 3
    """Number of seeds of documents, canaries, coins and weights."""
    first_seed: int = 0
    """The first of these seeds."""
    out: Path = Path("out/text_memorization")
    """Directory for one .json and one .csv file per part, and for the figure."""


def run(options: Options) -> None:
    """Run the parts.

    Raises:
        InputError: there are too few seeds for an error over seeds.
    """
    if options.seeds < 2:
        raise InputError(f"{options.seeds} seeds", expected="at least 2", hint="pass --seeds 3")
    for name in options.parts:
        run_part(name, PARTS[name], options)


def run_part(name: str, part: Part, options: Options) -> None:
    """Measure the seeds of one part, and write its files after each from the second on; print its table."""
    records: list[dict] = []
    seeds = list(range(options.first_seed, options.first_seed + options.seeds))
    for number, seed in enumerate(seeds, start=1):
        records += [{"seed": seed, **record} for record in part.measure(part.setting, seed)]
        print(f"{name}, seed {seed}: {len(records)} records", flush=True)
        if number > 1:
            write(name, part, seeds[:number], records, options.out)
    print(table(cells_of(records, part.by), part))


def write(name: str, part: Part, seeds: list[int], records: list[dict], out: Path) -> None:
    """Write setting, machine and summaries over the seeds, the records, and the figure of the dose-response."""
    results = {
        "setting": asdict(part.setting),
        "seeds": seeds,
        "machine": machine.describe(),
        "cells": cells_of(records, part.by),
    }
    frame = pd.DataFrame(records)
    files: dict[str, str | bytes] = {**dose_figure(frame)} if name == "dose" else {}
    content = json.dumps(results, indent=1, allow_nan=False) + "\n"
    write_files(out, {f"{name}.json": content, f"{name}.csv": frame.to_csv(index=False), **files})


def cells_of(records: list[dict], by: tuple[str, ...]) -> list[dict]:
    """Return one entry per value of the columns ``by``: mean, error and interval over seeds of the numbers it has."""
    cells = []
    for key, group in pd.DataFrame(records).groupby(list(by), sort=False):
        numbers = group.drop(columns=[*by, "seed"]).astype(float)
        found = {str(name): summary(values.tolist()) for name, values in numbers.items() if not values.isna().any()}
        cells.append(dict(zip(by, key, strict=True)) | found)
    return cells


def table(cells: list[dict], part: Part) -> str:
    """Return one line per cell: mean ± standard error over seeds of the printed columns."""
    lines = ["  ".join(f"{column:>18}" for column in (*part.by, *part.printed))]
    for cell in cells:
        names = [f"{cell[column]:>18}" for column in part.by]
        lines.append("  ".join([*names, *(f"{plus_minus(cell.get(column)):>18}" for column in part.printed)]))
    return "\n".join(lines)
