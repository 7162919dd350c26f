"""``kernelmem descent``: double descent of the digits, with intervals over seeds and a control without noise."""

import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tqdm import tqdm

from kernelmem.core.atomic_files import check_directory
from kernelmem.core.errors import InputError

__all__ = ["DescentCommand"]


@dataclass(frozen=True)
class DescentCommand:
    """Show double descent: sweeps of scikit-learn's digits over width, rows, steps, or random features.

    DIR (of all kinds: DIR/KIND) gets summary.json, results.csv, figure.svg, figure.png and a .safetensors file of all numbers.
    A run that was killed goes on where it stopped when the same command is given again. Exact counts of labels are flipped,
    always to a wrong one; test labels are clean; numbers are those of the last step.
    """

    kind: Literal["model", "sample", "epoch", "features", "prediction", "atlas", "all", "cifar"] = "model"
    """Over width, rows (sample), steps (epoch) or number of random features; prediction: foretold, then trained; atlas: many
    at once; all of these; or cifar: ResNet18 by width on --data."""
    preset: Literal["quick", "paper"] = "quick"
    """quick: seconds to a minute a kind on two cores; paper: more seeds, values and steps, about an hour."""
    seed: int = 0
    """Of the split into training and test rows, and of all draws."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Directory of the results; default: out/descent/KIND."""
    data: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Directory of the CIFAR-10 files, for cifar."""
    workers: int | None = None
    """Processes that train; default: as many as there are cores."""
    device: str = "cpu"
    """Where networks train, e.g. cuda."""

    def run(self) -> None:
        """Carry it out."""
        from kernelmem.double_descent.presets.cifar import run_cifar
        from kernelmem.double_descent.presets.digits import (
            KINDS,
            preset,
            run_atlas,
            run_forecast,
            run_preset,
        )  # reads torch's optimizers: slow to import

        base = Path("out/descent") if self.out is None else self.out
        if (self.kind == "cifar") is (self.data is None):
            raise InputError(
                f"--kind {self.kind} {'without' if self.data is None else 'with'} --data",
                expected="--data with --kind cifar, and with no other",
                hint="name the directory of the CIFAR-10 files",
            )
        check_directory(base)
        workers = len(os.sched_getaffinity(0)) if self.workers is None else self.workers
        if workers < 1:
            raise InputError(f"--workers {workers}", expected="at least 1", hint="leave it out for one a core")
        kinds = (*KINDS, "prediction", "atlas") if self.kind == "all" else (self.kind,)
        spawn = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
        with ProcessPoolExecutor(workers, mp_context=spawn) if workers > 1 else nullcontext() as executor:
            for kind in kinds:
                out = base / kind if self.kind == "all" or self.out is None else base
                with tqdm(desc=kind, unit="part", file=sys.stderr, disable=None) as bar:

                    def step(done: int, total: int, bar: tqdm = bar) -> None:
                        bar.total = total
                        bar.update(done - bar.n)

                    common = {"seed": self.seed, "out": out, "executor": executor, "device": self.device}
                    if kind == "cifar":
                        assert self.data is not None
                        found = run_cifar(self.data, self.preset, progress=step, **common)
                    elif kind == "atlas":
                        found = run_atlas(self.preset, progress=step, **common)
                    elif kind == "prediction":
                        found = run_forecast(self.preset, progress=step, **common)
                    else:
                        found = run_preset(preset(kind, self.preset), progress=step, **common)
                print(found)
                print(f"results in {out}\n", flush=True)
