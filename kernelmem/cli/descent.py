"""``kernelmem descent``: double descent on digits, with intervals over seeds and a control without label noise."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from kernelmem.core.atomic_files import check_directory
from kernelmem.core.errors import InputError

__all__ = ["DescentCommand"]


@dataclass(frozen=True)
class DescentCommand:
    """Show double descent on scikit-learn's digits: over width, training examples, steps, or random features.

    DIR (with --kind all: DIR/KIND) gets summary.json, results.csv, figure.svg, figure.png and a .safetensors file of all
    numbers. A killed run resumes when the same command is given again. An exact number of training labels is flipped,
    always to a wrong one; test labels are clean; networks are evaluated at the last step.
    """

    kind: Literal["model", "sample", "epoch", "features", "prediction", "phase_diagram", "all"] = "model"
    """model: over width; sample: over training examples; epoch: over steps; features: over the number of random features;
    prediction: predict the curve from the initial NTK, then measure it; phase_diagram: grid over width, samples, steps,
    noise; all: each of these."""
    preset: Literal["quick", "paper"] = "quick"
    """quick: seconds to a minute per kind on two cores; paper: more seeds, values and steps, about an hour."""
    seed: int = 0
    """Seed of the split into training and test examples, and of all draws."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Directory of the results; default: out/descent/KIND."""
    workers: int | None = None
    """Number of training processes; default: number of cores."""
    device: str = "cpu"
    """Device on which networks train, e.g. cuda."""

    def run(self) -> None:
        """Run the sweeps and print their summaries."""
        from kernelmem.double_descent.presets.digits import KINDS, preset, run_phase_diagram, run_prediction, run_preset
        from kernelmem.double_descent.sweeps.options import Execution  # imports torch.optim: slow

        base = Path("out/descent") if self.out is None else self.out
        check_directory(base)
        workers = len(os.sched_getaffinity(0)) if self.workers is None else self.workers
        if workers < 1:
            raise InputError(f"--workers {workers}", expected="at least 1", hint="omit it for one process per core")
        kinds = (*KINDS, "prediction", "phase_diagram") if self.kind == "all" else (self.kind,)
        spawn = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
        with ProcessPoolExecutor(workers, mp_context=spawn) if workers > 1 else nullcontext() as executor:
            for kind in kinds:
                out = base / kind if self.kind == "all" or self.out is None else base
                execution = Execution(out=out, executor=executor, device=self.device)
                if kind == "phase_diagram":
                    result = run_phase_diagram(self.preset, seed=self.seed, execution=execution)
                elif kind == "prediction":
                    result = run_prediction(self.preset, seed=self.seed, execution=execution)
                else:
                    result = run_preset(preset(kind, self.preset), seed=self.seed, execution=execution)
                print(result)
                print(f"results in {out}\n", flush=True)
