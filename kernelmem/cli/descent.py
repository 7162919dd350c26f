"""``kernelmem descent``: double descent on digits, with intervals over seeds and a control without label noise."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import tyro

from kernelmem.cli.options import DEVICE, default_hint
from kernelmem.cli.worker_pool import worker_pool

if TYPE_CHECKING:
    from kernelmem.double_descent.presets.digits import Kind


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
        from kernelmem.core.errors import InputError
        from kernelmem.core.files.atomic_files import check_directory
        from kernelmem.double_descent.presets.digits import KINDS

        base_directory = Path("out/descent") if self.out is None else self.out
        check_directory(base_directory)
        workers = len(os.sched_getaffinity(0)) if self.workers is None else self.workers
        if workers < 1:
            raise InputError(f"--workers {workers}", expected="at least 1", hint="omit it for one process per core")
        kinds = (*KINDS, "prediction", "phase_diagram") if self.kind == "all" else (self.kind,)
        try:
            self._run_kinds(kinds, base_directory, workers)
        except KeyboardInterrupt as interruption:
            interruption.add_note(_kept_files(base_directory))
            raise

    def _run_kinds(self, kinds: Sequence[str], base_directory: Path, workers: int) -> None:
        """Run the experiments one after the other, and print their summaries."""
        from kernelmem.core.errors import printable
        from kernelmem.double_descent.presets.digits import preset, run_phase_diagram, run_prediction, run_preset
        from kernelmem.double_descent.sweeps.options import Execution

        with worker_pool(workers) as executor:
            for kind in kinds:
                directory = base_directory / kind if self.kind == "all" or self.out is None else base_directory
                execution = Execution(out=directory, executor=executor, device=self.device)
                if kind == "phase_diagram":
                    result = run_phase_diagram(self.preset, seed=self.seed, execution=execution)
                elif kind == "prediction":
                    result = run_prediction(self.preset, seed=self.seed, execution=execution)
                else:
                    result = run_preset(preset(cast("Kind", kind), self.preset), seed=self.seed, execution=execution)
                print(result)
                print(f"results in {printable(str(directory))}\n", flush=True)


def _kept_files(directory: Path) -> str:
    """Return a sentence about the finished networks that an interrupted run left in ``directory``."""
    chunks = sorted(directory.glob("**/chunks/*.safetensors"))
    if not chunks:
        return "no networks were finished, so nothing is kept of them"
    folders = ", ".join(str(folder) for folder in sorted({chunk.parent for chunk in chunks}))
    return f"finished networks are kept in {folders} ({len(chunks)} files); the same command resumes from them"
