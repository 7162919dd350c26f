"""``kernelmem ntk``: tangent kernel of a network, from files to a file."""

import io
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from kernelmem.cli.options import DEVICE, default_hint

if TYPE_CHECKING:  # numpy and torch are slow to import, and --help does not need them
    import numpy as np


@dataclass(frozen=True)
class NtkCommand:
    """Compute the empirical neural tangent kernel (NTK) of a network and write it to a .npy file."""

    data: Annotated[Path, tyro.conf.arg(metavar="FILE.npz")]
    """File with an array x (n, ...), and y (m, ...) for the kernel between two sets of rows. Without x, x_train is used."""
    model: Annotated[str, tyro.conf.arg(metavar="PACKAGE.MODULE:FACTORY")]
    """Function that returns a torch.nn.Module. Its code is executed."""
    weights: Annotated[
        Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint=default_hint("those that the factory sets"))
    ] = None
    """Trained weights: a .safetensors file, or a .pt file (loaded with weights_only=True)."""
    outputs: Literal["trace", "diagonal", "full", "pseudo"] = "trace"
    """Treatment of the C outputs: trace (n, m), sum of the kernels of all outputs; diagonal (n, m, C), one kernel per output;
    full (n, m, C, C), all pairs of outputs; pseudo (n, m), kernel of the sum of outputs over the root of C."""
    dtype: Literal["float32", "float64"] = "float32"
    """Floating-point precision of the computation and of the kernel."""
    memory: Annotated[str, tyro.conf.arg(metavar="BYTES")] = "4GiB"
    """Memory that the computation may allocate, in bytes or with a unit, such as 500MB or 2GiB."""
    out: Annotated[Path, tyro.conf.arg(metavar="FILE.npy")] = Path("kernel.npy")
    """File for the kernel."""
    plan: bool = False
    """Print the planned computation with its operations and bytes, and compute nothing."""
    device: DEVICE = "cpu"
    """Device of the network, in the notation of torch."""

    def run(self) -> None:
        """Print the plan of the computation, compute the kernel and write it to a file."""
        import numpy as np
        import torch

        from kernelmem.cli.model_factory import build_model
        from kernelmem.cli.options import as_device
        from kernelmem.core.errors import InputError
        from kernelmem.core.files.atomic_files import write_file
        from kernelmem.core.files.weight_files import fit_weights, load_weights
        from kernelmem.kernels.ntk import ntk, ntk_plan
        from kernelmem.training.datasets import read_arrays

        if self.out.suffix != ".npy":
            raise InputError(f"--out {self.out}", expected="a .npy file", hint="pass for example --out kernel.npy")
        device = as_device(self.device)
        x, y = self._kernel_inputs(read_arrays(self.data))
        model = build_model(self.model, input_shape=x.shape[1:])
        if self.weights is not None:
            fit_weights(model, load_weights(self.weights), f"weights file {self.weights}")
        options = {"outputs": self.outputs, "dtype": getattr(torch, self.dtype), "memory": self.memory}
        model.eval().to(device)
        print(ntk_plan(model, x, y, **options), file=sys.stdout if self.plan else sys.stderr)
        if self.plan:
            return
        started = time.perf_counter()
        kernel = ntk(model, x, y, **options)
        stream = io.BytesIO()
        np.save(stream, kernel.cpu().numpy(), allow_pickle=False)
        write_file(self.out, stream.getvalue())
        print(f"{self.out}: {tuple(kernel.shape)} {self.dtype}, {time.perf_counter() - started:.1f} s")

    def _kernel_inputs(self, arrays: "dict[str, np.ndarray]") -> "tuple[np.ndarray, np.ndarray | None]":
        """Return (x, y) from the arrays of the input file; y is None unless the kernel is between two sets of rows."""
        from kernelmem.core.errors import InputError

        if "x" in arrays:
            return arrays["x"], arrays.get("y")
        if "x_train" in arrays:
            return arrays["x_train"], None
        content = ", ".join(f"{name} {array.shape}" for name, array in arrays.items()) or "no arrays"
        raise InputError(
            f"data file {self.data} without x (it contains {content})",
            expected="an array x (n, ...), and optionally y (m, ...)",
            hint="write it with numpy.savez(path, x=...)",
        )
