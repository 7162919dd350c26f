r"""What the kernel must be, in float64: its exact products with a few vectors and its exact columns at a few rows.

Both come from J v and Jᵀ u over the whole batch, by torch's own reverse mode twice (J v is the derivative of the linear
map u ↦ Jᵀ u), so nothing here shares code with an engine, forms a Jacobian or costs n² backward passes. Columns at
anchor rows show an error on any row; products with random signs show an error in any entry.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["reference"]


class Tangents:
    """J and Jᵀ of a float64 copy of a network, over all rows, in chunks."""

    def __init__(self, model: nn.Module, x: Tensor, chunk: int = 500) -> None:
        self.model = model
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.chunks = x.split(chunk)
        self.graphs = [self._graph(rows) for rows in self.chunks]

    def _graph(self, rows: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        outputs = self.model(rows)
        dual = torch.zeros_like(outputs, requires_grad=True)
        pulled = torch.autograd.grad(outputs, self.parameters, dual, create_graph=True)
        return outputs, dual, pulled

    def transpose(self, u: Tensor) -> list[Tensor]:
        """Jᵀ u for u (n, C), one tensor a parameter."""
        total = [torch.zeros_like(p) for p in self.parameters]
        start = 0
        for outputs, _, _ in self.graphs:
            part = u[start : start + len(outputs)]
            start += len(outputs)
            if bool(part.any()):
                grads = torch.autograd.grad(outputs, self.parameters, part, retain_graph=True)
                total = [t + g for t, g in zip(total, grads, strict=True)]
        return total

    def product(self, v: list[Tensor]) -> Tensor:
        """J v, shape (n, C)."""
        parts = [torch.autograd.grad(pulled, dual, v, retain_graph=True)[0] for _, dual, pulled in self.graphs]
        return torch.cat(parts)


def reference(model: nn.Module, x: Tensor, outputs: str, *, anchors: int = 3, probes: int = 1) -> dict[str, np.ndarray]:
    """Exact float64 columns (n, anchors[, C, C]) and products with random signs (n, probes[, C])."""
    model = model.double()
    n = len(x)
    with sdpa_kernel(SDPBackend.MATH):
        tangents = Tangents(model, x.double() if x.is_floating_point() else x)
        n_outputs = tangents.graphs[0][0].shape[1]
        rows = np.unique(np.linspace(0, n - 1, anchors).astype(int))
        columns = torch.stack([_column(tangents, int(row), n, n_outputs) for row in rows], 1)  # (n, anchors, C, C)
        generator = torch.Generator().manual_seed(2)
        shape = (n, probes, n_outputs) if outputs == "full" else (n, probes)
        signs = torch.randint(2, shape, generator=generator).double() * 2 - 1
        products = torch.stack([_product(tangents, signs[:, i], n_outputs) for i in range(probes)], 1)
    if outputs == "trace":
        columns = columns.diagonal(dim1=2, dim2=3).sum(-1)
    names = ("anchors", "columns", "signs", "products")
    return dict(zip(names, (rows, columns.numpy(), signs.numpy(), products.numpy()), strict=True))


def _column(tangents: Tangents, row: int, n: int, n_outputs: int) -> Tensor:
    """K(x, x_row) as (n, C, C)."""
    blocks = []
    for c in range(n_outputs):
        u = torch.zeros(n, n_outputs, dtype=torch.float64)
        u[row, c] = 1.0
        blocks.append(tangents.product(tangents.transpose(u)))
    return torch.stack(blocks, 2)


def _product(tangents: Tangents, signs: Tensor, n_outputs: int) -> Tensor:
    """K s: for the full kernel s is (n, C); for the trace s is (n,) and every output is taken by itself."""
    if signs.ndim == 2:
        return tangents.product(tangents.transpose(signs))
    total = torch.zeros_like(signs)
    for c in range(n_outputs):
        u = torch.zeros(len(signs), n_outputs, dtype=torch.float64)
        u[:, c] = signs
        total += tangents.product(tangents.transpose(u))[:, c]
    return total
