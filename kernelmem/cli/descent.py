"""``kernelmem descent``: double descent on digits, with intervals over seeds and a control without label noise."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from kernelmem.cli.options import DEVICE, default_hint


@dataclass(frozen=True)
class DescentCommand:
    """Measure double descent on scikit-learn's digits: over width, training examples, steps, or random features.

    The directory DIR (DIR/KIND with --kind all) receives summary.json, results.csv, figure.svg, figure.png and a .safetensors
    file with all numbers. An interrupted run resumes when the same command is given again. An exact number of training labels
    is flipped, always to a wrong one. Test labels are clean. Networks are evaluated at the last step.
    """

    kind: Literal["model", "sample", "epoch", "features", "prediction", "phase_diagram", "all"] = "model"
    """Kind of experiment. model: sweep over width; sample: over training examples; epoch: over training steps; features: over
    the number of random features; prediction: predict a learning curve from the initial NTK, then measure it; phase_diagram:
    grid over width, samples, steps and label noise; all: each of these."""
    preset: Literal["quick", "paper"] = "quick"
    """Size of the experiment. quick: seconds to a minute per kind on two cores; paper: more seeds, values and steps, about an
    hour."""
    seed: int = 0
    """Seed of the split into training and test examples, and of all random draws."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint=default_hint("out/descent/KIND"))] = (
        None
    )
    """Directory of the results."""
    workers: Annotated[int | None, tyro.conf.arg(help_behavior_hint=default_hint("number of processor cores"))] = None
    """Number of processes that train networks."""
    device: DEVICE = "cpu"
    """Device on which networks are trained, in the notation of torch."""

    def run(self) -> None:
        """Run the experiments and print their summaries."""
        from kernelmem.core.atomic_files import check_directory
        from kernelmem.core.errors import InputError
        from kernelmem.double_descent.presets.digits import KINDS, preset, run_phase_diagram, run_prediction, run_preset
        from kernelmem.double_descent.sweeps.options import Execution

        base_directory = Path("out/descent") if self.out is None else self.out
        check_directory(base_directory)
        workers = len(os.sched_getaffinity(0)) if self.workers is None else self.workers
        if workers < 1:
            raise InputError(f"--workers {workers}", expected="at least 1", hint="omit it for one process per core")
        kinds = (*KINDS, "prediction", "phase_diagram") if self.kind == "all" else (self.kind,)
        spawn = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
        with ProcessPoolExecutor(workers, mp_context=spawn) if workers > 1 else nullcontext() as executor:
            for kind in kinds:
                directory = base_directory / kind if self.kind == "all" or self.out is None else base_directory
                execution = Execution(out=directory, executor=executor, device=self.device)
                if kind == "phase_diagram":
                    result = run_phase_diagram(self.preset, seed=self.seed, execution=execution)
                elif kind == "prediction":
                    result = run_prediction(self.preset, seed=self.seed, execution=execution)
                else:
                    result = run_preset(preset(kind, self.preset), seed=self.seed, execution=execution)
                print(result)
                print(f"results in {directory}\n", flush=True)
