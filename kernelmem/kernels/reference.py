"""Reference: the slow definition of the empirical tangent kernel, which the fast code is compared with."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from kernelmem.core.batches import Batch, Forward, Rows, as_rows
from kernelmem.tangents.derivatives.jacobian import rowwise_jacobian
from kernelmem.tangents.prepare import PreparedModel, prepare


def jacobian(
    model: nn.Module,
    x: Batch,
    *,
    parameters: Iterable[str] | None = None,
    forward: Forward | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Compute the Jacobian ∂f_c(x_n)/∂θ of C outputs f in P parameters θ, (n examples, C, P), from its definition.

    Each row is run in a batch of its own. Cost: nC backward passes; memory nCP.
    """
    rows = as_rows(x)
    return jacobian_of(prepare(model, rows, parameters=parameters, forward=forward, dtype=dtype), rows)


def jacobian_of(prepared: PreparedModel, rows: Rows, directions: Tensor | None = None) -> Tensor:
    """Compute the Jacobian (n examples, k, P parameters) along ``directions`` (n, k, C outputs); None means each output."""
    rows = rows.to(dtype=prepared.dtype, device=prepared.device)
    single_rows = [rows.slice(i, i + 1) for i in range(rows.n)]
    return rowwise_jacobian(prepared, single_rows, list(prepared.parameters), directions)


def kernel_of(left: Tensor, right: Tensor, outputs: str = "trace") -> Tensor:
    """Contract Jacobians (n, C, P) and (m, C, P) to a kernel of one kind of ``outputs``.

    full: K^{cc'}_{nm} = Σ_p J_ncp J_mc'p, (n, m, C, C); trace: Σ_c K^{cc}, (n, m); diagonal: K^{cc}, (n, m, C);
    pseudo: Σ_cc' K^{cc'} / C, (n, m).

    >>> kernel_of(torch.ones(2, 3, 5), torch.ones(1, 3, 5), "pseudo").flatten().tolist()
    [15.0, 15.0]
    """
    full = torch.einsum("ncp,mdp->nmcd", left, right)
    if outputs == "full":
        return full
    diagonal = torch.diagonal(full, dim1=2, dim2=3)
    if outputs == "diagonal":
        return diagonal
    return diagonal.sum(-1) if outputs == "trace" else full.sum((2, 3)) / left.shape[1]


def ntk(model: nn.Module, x: Batch, y: Batch | None = None, *, outputs: str = "trace", **options: Any) -> Tensor:
    """Compute the empirical tangent kernel K(x, y) = J(x) J(y)ᵀ from the definition.

    The arguments are those of :func:`jacobian`. Cost: (n + m)C backward passes and nmC²P operations; for tests and for
    checks of a few rows.
    """
    left = jacobian(model, x, **options)
    right = left if y is None else jacobian(model, y, **options)
    return kernel_of(left, right, outputs)
