"""Run the rows, write results after each, print the tables."""

import dataclasses
import json
import time

import torch

from experiments import machine
from experiments.benchmarks.ledger.configs import ROWS, Options, Row
from experiments.benchmarks.ledger.figure import draw
from experiments.benchmarks.ledger.peers_setup import PEERS
from experiments.benchmarks.ledger.rounds import measure_row
from experiments.benchmarks.ledger.table import tables
from kernelmem.core import InputError, write_files

__all__ = ["run", "select"]


def run(options: Options) -> dict:
    """Everything the options name."""
    rows = select(options)
    if options.quick:
        options = dataclasses.replace(options, rounds=1, calls=1)
        rows = [row.quick() for row in rows]
    torch.set_num_threads(1)
    started = time.monotonic()
    results: dict = {
        "machine": {name: value for name, value in machine.describe().items() if name != "threads"},
        "peers": list(PEERS),
        "rounds": options.rounds,
        "calls": options.calls,
        "rows": {},
    }
    for row in rows:
        results["rows"][row.name] = measure_row(row, options, _say)
        results["seconds"] = round(time.monotonic() - started, 1)
        write_files(options.out, {"results.json": json.dumps(results, indent=1) + "\n"})
    write_files(options.out, draw(results))
    print(tables(results))
    return results


def select(options: Options) -> list[Row]:
    """Rows by kind.

    >>> {row.kind for row in select(Options(only=("groups",)))}
    {'groups'}
    """
    kinds = {row.kind for row in ROWS}
    if unknown := sorted(set(options.only) - kinds):
        raise InputError(f"only={unknown}", expected=f"some of {', '.join(sorted(kinds))}", hint="check the names")
    return [row for row in ROWS if not options.only or row.kind in options.only]


def _say(line: str) -> None:
    print(line, flush=True)
