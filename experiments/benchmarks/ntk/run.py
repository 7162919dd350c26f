"""Run rows and studies, write results after each, print the table."""

import dataclasses
import json

import torch

from experiments import machine
from experiments.benchmarks.ntk.configs import ROWS, STUDIES, Options, Row, Study
from experiments.benchmarks.ntk.engines import ENGINES
from experiments.benchmarks.ntk.figure import draw
from experiments.benchmarks.ntk.peers_setup import JAX_PEERS, TORCH_PEERS
from experiments.benchmarks.ntk.processes import gemm_peak
from experiments.benchmarks.ntk.rounds import measure_row
from experiments.benchmarks.ntk.studies import measure_study
from experiments.benchmarks.ntk.table import table
from kernelmem.core import InputError, write_files

__all__ = ["run", "select"]


def run(options: Options) -> dict:
    """Everything the options name."""
    rows, studies = select(options)
    if options.quick:
        options = dataclasses.replace(options, rounds=1, calls=1)
        rows, studies = [row.quick() for row in rows], [study.quick() for study in studies]
    torch.set_num_threads(options.threads)
    results = {
        "machine": machine.describe(),
        "peers": [*TORCH_PEERS, *JAX_PEERS],
        "dtype": "float32",
        "threads": options.threads,
        "rounds": options.rounds,
        "calls": options.calls,
        "gemm_gflops": gemm_peak(options.threads),
        "rows": {},
        "studies": {},
    }
    for row in rows:
        results["rows"][row.name] = measure_row(row, options, results["gemm_gflops"], _say)
        _write(results, options)
    for study in studies:
        results["studies"][study.name] = measure_study(study, options, _say)
        _write(results, options)
    write_files(options.out, draw(results))
    print(table(results))
    return results


def select(options: Options) -> tuple[list[Row], list[Study]]:
    """Rows and studies by name.

    >>> [row.name for row in select(Options(only=("W3", "W2-full-256")))[0]]
    ['W2-full-256', 'W3-trace-64']
    """
    known = {row.workload for row in ROWS} | {row.name for row in ROWS} | {study.name for study in STUDIES}
    if unknown := sorted(set(options.only) - known):
        raise InputError(f"only={unknown}", expected=f"some of {', '.join(sorted(known))}", hint="check the names")
    if unknown := sorted(set(options.engines) - set(ENGINES)):
        raise InputError(f"engines={unknown}", expected=f"some of {', '.join(ENGINES)}", hint="check the names")
    if not options.only:
        return list(ROWS), list(STUDIES) if options.studies else []
    rows = [row for row in ROWS if {row.workload, row.name} & set(options.only)]
    return rows, [study for study in STUDIES if study.name in options.only]


def _say(line: str) -> None:
    print(line, flush=True)


def _write(results: dict, options: Options) -> None:
    write_files(options.out, {"results.json": json.dumps(results, indent=1, default=str) + "\n"})
