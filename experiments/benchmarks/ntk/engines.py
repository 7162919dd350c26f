"""Who is measured: name, title, module, the Python and the folder of packages it needs."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ENGINES", "JAX_PYTHON", "ROOT", "TORCH_PACKAGES", "Entry"]

ROOT = Path(__file__).parents[3]
TORCH_PACKAGES = ROOT / ".venv-peers" / "torch"
JAX_PYTHON = ROOT / ".venv-peers" / "jax" / "bin" / "python"


@dataclass(frozen=True)
class Entry:
    """One engine."""

    name: str
    title: str
    module: str
    function: str = "prepare"
    memory: str | None = None  # ours only
    variable: str | None = None  # environment variable that names another Python
    needs: Path | None = None  # what peers_setup makes

    @property
    def jax(self) -> bool:
        """Whether it runs in an environment of its own."""
        return self.module == "neural_tangents_kernels"

    def python(self) -> Path:
        """The interpreter for it."""
        if not self.jax:
            return Path(sys.executable)
        return Path(os.environ.get(self.variable or "", "") or JAX_PYTHON)

    def missing(self) -> str | None:
        """Why it cannot start, if so."""
        needed = self.python() if self.jax else self.needs
        if needed is None or needed.exists():
            return None
        return "not installed: see `python -m experiments.benchmarks.ntk.peers_setup`"


ENGINES = {
    entry.name: entry
    for entry in (
        Entry("ours", "kernelmem", "ours"),
        Entry("ours-1GiB", 'kernelmem, memory="1GiB"', "ours", memory="1GiB"),
        Entry("ours-unverified", "kernelmem, verify=False", "ours", "prepare_unverified"),
        Entry("torch_func_recipe", "torch.func, tutorial recipe", "torch_func", "prepare_recipe"),
        Entry("torch_func_one", "torch.func, one Jacobian", "torch_func", "prepare_one"),
        Entry("torch_func_improved", "torch.func, one Jacobian, fastest GEMM", "torch_func", "prepare_improved"),
        Entry("torch_func_classes", "torch.func, class by class", "torch_func", "prepare_classes"),
        Entry("nngeometry", "nngeometry GramMatrix", "nngeometry_gram", needs=TORCH_PACKAGES),
        Entry("backpack", "BackPACK BatchGrad + GEMM", "backpack_gradients", needs=TORCH_PACKAGES),
        Entry(
            "nt_contraction",
            "neural-tangents, Jacobian contraction",
            "neural_tangents_kernels",
            "prepare_contraction",
        ),
        Entry(
            "nt_vector_products",
            "neural-tangents, NTK-vector products",
            "neural_tangents_kernels",
            "prepare_vector_products",
        ),
        Entry(
            "nt_structured",
            "neural-tangents, structured derivatives",
            "neural_tangents_kernels",
            "prepare_structured",
            variable="NEURAL_TANGENTS_PYTHON",
        ),
    )
}
