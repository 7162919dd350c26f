"""What every process of a row reads: weights, inputs and the float64 reference, in one .npz file a problem.

JAX peers have no torch, so reading needs NumPy alone. `python -m experiments.benchmarks.ntk.materials W1 512 trace` writes it.
"""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

__all__ = ["Problem", "load", "path_of", "write"]

FOLDER = Path(tempfile.gettempdir()) / "kernelmem-benchmarks"


@dataclass(frozen=True)
class Problem:
    """One kernel to compute."""

    workload: str
    n: int
    outputs: str
    x: np.ndarray  # (n, ...)
    state: dict[str, np.ndarray]  # parameters and buffers by name
    n_parameters: int
    n_outputs: int
    reference: dict[str, np.ndarray]

    @property
    def jacobian_bytes(self) -> int:
        """Of the whole float32 Jacobian."""
        return 4 * self.n * self.n_outputs * self.n_parameters


def path_of(workload: str, n: int, outputs: str) -> Path:
    """Where the materials of a problem are."""
    return FOLDER / f"{workload.replace(':', '_')}-{n}-{outputs}.npz"


def write(workload: str, n: int, outputs: str) -> Path:
    """Write the materials; those there already stay if weights and inputs are the same to the bit (the reference is dear)."""
    from experiments.benchmarks.ntk.reference import reference
    from experiments.benchmarks.ntk.workloads import build

    model, x = build(workload, n)
    arrays = {f"state/{name}": value.numpy().copy() for name, value in model.state_dict().items()}
    counts = np.array([sum(p.numel() for p in model.parameters()), model(x[:1]).shape[1]])
    arrays |= {"x": x.numpy(), "counts": counts}
    path = path_of(workload, n, outputs)
    if path.is_file():
        with np.load(path) as stored:
            if all(name in stored and np.array_equal(stored[name], value) for name, value in arrays.items()):
                return path
    exact = {f"reference/{name}": value for name, value in reference(model, x, outputs).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, **arrays, **exact)
    return partial.rename(path)


def load(workload: str, n: int, outputs: str) -> Problem:
    """Read the materials."""
    path = path_of(workload, n, outputs)
    if not path.is_file():
        command = f"python -m experiments.benchmarks.ntk.materials {workload} {n} {outputs}"
        raise FileNotFoundError(f"no materials for {workload}, n={n}, {outputs}: run `{command}` first")
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    parts = {
        kind: {name.removeprefix(kind): value for name, value in arrays.items() if name.startswith(kind)}
        for kind in ("state/", "reference/")
    }
    n_parameters, n_outputs = (int(count) for count in arrays["counts"])
    return Problem(workload, n, outputs, arrays["x"], parts["state/"], n_parameters, n_outputs, parts["reference/"])


if __name__ == "__main__":
    write(sys.argv[1], int(sys.argv[2]), sys.argv[3])
