"""``kernelmem ntk``: the tangent kernel of a network from files to a file."""

import io
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro
from tqdm import tqdm

from kernelmem.cli.model_factory import build_model
from kernelmem.core.atomic_files import write_file
from kernelmem.core.errors import InputError
from kernelmem.core.weight_files import fit_weights, load_weights
from kernelmem.kernels.ntk import ntk, ntk_plan
from kernelmem.training.datasets import read_arrays

__all__ = ["NtkCommand"]


@dataclass(frozen=True)
class NtkCommand:
    """Compute the empirical tangent kernel of a network: model factory, weights and .npz in, .npy out."""

    data: Annotated[Path, tyro.conf.arg(metavar="FILE.npz")]
    """Array x (n, ...), and y (m, ...) for a kernel between two sets of rows; without x, x_train is taken."""
    model: Annotated[str, tyro.conf.arg(metavar="PACKAGE.MODULE:FACTORY")]
    """Function that returns a torch.nn.Module (this runs its code)."""
    weights: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Trained weights (.safetensors; .pt by weights_only loading). Default: as the factory made them."""
    outputs: Literal["trace", "diagonal", "full", "pseudo"] = "trace"
    """Which kernel."""
    dtype: Literal["float32", "float64"] = "float32"
    """In which precision."""
    memory: str = "4GiB"
    """Bytes that may be allocated."""
    out: Annotated[Path, tyro.conf.arg(metavar="FILE.npy")] = Path("kernel.npy")
    """Where the kernel goes."""
    plan: bool = False
    """Only show what would be done."""
    device: str = "cpu"
    """Where to compute, e.g. cuda."""

    def run(self) -> None:
        """Carry it out."""
        if self.out.suffix != ".npy":
            raise InputError(f"--out {self.out}", expected="a .npy file", hint="e.g. --out kernel.npy")
        arrays = read_arrays(self.data)
        x, y = self._rows(arrays)
        model = build_model(self.model, input_shape=x.shape[1:])
        if self.weights is not None:
            fit_weights(model, load_weights(self.weights), f"weights file {self.weights}")
        options = {"outputs": self.outputs, "dtype": getattr(torch, self.dtype), "memory": self.memory}
        model.eval().to(self.device)
        print(ntk_plan(model, x, y, **options), file=sys.stdout if self.plan else sys.stderr)
        if self.plan:
            return
        started = time.perf_counter()
        with tqdm(desc="kernel", unit="tile", file=sys.stderr, disable=None) as bar:

            def step(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            kernel = ntk(model, x, y, device=self.device, progress=step, **options)
        stream = io.BytesIO()
        np.save(stream, kernel.cpu().numpy(), allow_pickle=False)
        write_file(self.out, stream.getvalue())
        print(f"{self.out}: {tuple(kernel.shape)} {self.dtype}, {time.perf_counter() - started:.1f} s")

    def _rows(self, arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray | None]:
        if "x" in arrays:
            return arrays["x"], arrays.get("y")
        if "x_train" in arrays:
            return arrays["x_train"], None
        held = ", ".join(f"{name} {array.shape}" for name, array in arrays.items()) or "nothing"
        raise InputError(
            f"data file {self.data} without x (it holds {held})",
            expected="an array x (n, ...), and y (m, ...) where wanted",
            hint="write it with numpy.savez(path, x=...)",
        )
