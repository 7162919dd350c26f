"""Run the parts over seeds, print their tables, write their results and figures."""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from experiments import machine
from experiments.compression.account import NULLS, NoiseRates, noise_rates
from experiments.compression.convolutional import Convolutional, convolutional
from experiments.compression.figures import quantization_figure, width_figure
from experiments.compression.large import Large, large
from experiments.compression.noise_kinds import NoiseKinds, noise_kinds
from experiments.compression.online import Online, Orders, online, orders
from experiments.compression.other_data import Generated, Tables, generated, tables
from experiments.compression.quantization import Quantization, quantization
from experiments.compression.records import cells_of
from experiments.compression.width import Widths, through_the_peak, widths
from experiments.over_seeds import plus_minus
from kernelmem.core import InputError, write_files

__all__ = ["PARTS", "Options", "Part", "run", "run_part"]

Name = Literal[
    "account",
    "width",
    "quantization",
    "noise_kinds",
    "convolutional",
    "tables",
    "generated",
    "large",
    "online",
    "online_network",
    "orders",
]


@dataclass(frozen=True)
class Part:
    """One experiment: its setting, the function that measures one seed, the columns that name a cell, columns to print."""

    setting: Any
    measure: Callable[[Any, int], Iterable[dict]]
    by: tuple[str, ...]
    printed: tuple[str, ...]
    seeds: int | None = None
    """Number of seeds, if not that of the options."""


ACCOUNT = (
    "online", "left_out", "network", "memorized", "noise_rate", "noise", "true_noise", "memorized_above_clean", "untrained",
)  # fmt: skip
PARTS: dict[Name, Part] = {
    "account": Part(
        NoiseRates(),
        noise_rates,
        ("reference", "rate"),
        ("online", "left_out", "network", "memorized", "true_noise", "slope", "noise_rate", "rate_bias", *NULLS),
    ),
    "width": Part(
        Widths(), widths, ("rate", "width"), ("network", "memorized", "flips_fitted", "test_error", "test_loss")
    ),
    "quantization": Part(
        Quantization(),
        quantization,
        ("labels", "step"),
        ("bits_per_weight", "recall_flipped", "recall_clean", "difference", "matched_difference", "memorized"),
    ),
    "noise_kinds": Part(
        NoiseKinds(),
        noise_kinds,
        ("kind", "rate"),
        (
            "noise_rate",
            "rate_bias",
            "rate_covered",
            "true_noise",
            "noise_bias",
            "matrix_rate_bias",
            "matrix_noise_bias",
            "memorized_bias",
        ),
    ),
    "convolutional": Part(Convolutional(), convolutional, ("rate", "reference"), ACCOUNT),
    "tables": Part(Tables(), tables, ("data", "rate"), ("uniform", *ACCOUNT)),
    "generated": Part(
        Generated(),
        generated,
        ("distance", "rate"),
        ("bayes_error", "noise_rate", "bayes_entropy", "noise", "bayes_bits", "left_out", "memorized"),
    ),
    "large": Part(Large(), large, ("n", "function"), ("seconds", "memory_mb", "bits", "online", "noise_rate"), seeds=2),
    "online": Part(
        Online(),
        online,
        ("data", "rate", "source"),
        ("bits", "ideal", "mistakes", "seconds", "decode_seconds", "decodes"),
    ),
    "online_network": Part(
        Online(data=("digits",), rates=(0.0, 0.2), sources=("network",)),
        online,
        ("data", "rate", "source"),
        ("bits", "ideal", "mistakes", "seconds", "decodes"),
    ),
    "orders": Part(Orders(), orders, ("data", "rate"), ("mean", "standard_deviation"), seeds=2),
}


@dataclass(frozen=True)
class Options:
    """Bits of labels in networks: over width, quantization, kinds of noise, other networks, other data, many rows."""

    parts: tuple[Name, ...] = tuple(PARTS)
    """Parts to run."""
    seeds: int = 5
    """Number of seeds of rows, flips and initial weights."""
    first_seed: int = 0
    """The first of these seeds."""
    out: Path = Path("out/compression")
    """Directory for one .json and one .csv file per part, and for the figures."""


def run(options: Options) -> None:
    """Run the parts.

    Raises:
        InputError: there are too few seeds for an error over seeds, or for the halves that peaks are picked on.
    """
    least = 4 if "width" in options.parts else 2
    if options.seeds < least:
        raise InputError(
            f"{options.seeds} seeds", expected=f"at least {least}", hint=f"pass --seeds {least}, or other --parts"
        )
    for name in options.parts:
        run_part(name, PARTS[name], options)


def run_part(name: str, part: Part, options: Options) -> None:
    """Measure all seeds of one part, print its table, write its files."""
    records: list[dict] = []
    seeds = range(options.first_seed, options.first_seed + (part.seeds or options.seeds))
    for seed in seeds:
        records += part.measure(part.setting, seed)
        print(f"{name}, seed {seed}: {len(records)} records", flush=True)
    cells = cells_of(records, part.by)
    results: dict[str, object] = {
        "setting": asdict(part.setting),
        "seeds": list(seeds),
        "machine": machine.describe(),
        "cells": cells,
    }
    files: dict[str, str | bytes] = {}
    frame = pd.DataFrame(records)
    if name == "width":
        results["peak"] = {f"rate {rate:g}": through_the_peak(records, rate) for rate in sorted(set(frame.rate))}
        print(json.dumps(results["peak"], indent=1))
        files |= width_figure(frame)
    if name == "quantization":
        files |= quantization_figure(frame)
    print(table(cells, part))
    content = json.dumps(results, indent=1, allow_nan=False) + "\n"
    write_files(options.out, {f"{name}.json": content, f"{name}.csv": frame.to_csv(index=False), **files})


def table(cells: list[dict], part: Part) -> str:
    """Return one line per cell: mean ± standard error over seeds of the printed columns."""
    lines = ["  ".join(f"{column:>21}" for column in (*part.by, *part.printed))]
    for cell in cells:
        names = [f"{cell[column]:>21}" for column in part.by]
        lines.append("  ".join([*names, *(f"{plus_minus(cell[column]):>21}" for column in part.printed)]))
    return "\n".join(lines)
