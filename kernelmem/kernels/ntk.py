"""The empirical neural tangent kernel of a network, exactly, by the cheapest contraction of its tangents."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from kernelmem.ground.batches import Rows, as_rows
from kernelmem.ground.errors import InputError, VerificationError
from kernelmem.kernels.oracle import jacobian_of, kernel_of
from kernelmem.tangents.blocks import Engine, Outputs
from kernelmem.tangents.prepare import Prepared, prepare

__all__ = ["ntk"]


def ntk(
    model: nn.Module,
    x: Any,
    y: Any = None,
    *,
    outputs: Outputs = "trace",
    parameters: Iterable[str] | None = None,
    forward: Callable[[nn.Module, Any], Tensor] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    memory: int | str = "4GiB",
    progress: Callable[[int, int], None] | None = None,
    verify: bool = True,
) -> Tensor:
    r"""Compute the empirical neural tangent kernel K(x, y) = J(x) J(y)ᵀ with J = ∂f/∂θ.

    ========== ============================== ============
    outputs    value                          shape
    ========== ============================== ============
    "trace"    Σ_c K^{cc} (a sum, no mean)    (n, m)
    "diagonal" K^{cc}                         (n, m, C)
    "full"     K^{cc'}                        (n, m, C, C)
    "pseudo"   kernel of Σ_c f_c / √C         (n, m)
    ========== ============================== ============

    Linear layers are contracted layer by layer, K = Σ_layers (A Aᵀ + 1) ∘ (G Gᵀ), with input activations A (n, in) and
    output gradients G (n, C·out); parameters that no rule covers go through their dense Jacobian. Both are exact.

    Args:
        model: any module whose ``model(x)`` is (n, C); never changed (a copy is analyzed). It must be in eval mode where
            that matters.
        x: n rows: tensor, array, dict or tuple of them, Dataset or DataLoader.
        y: m rows, likewise; None means y = x.
        outputs: which of the kernels above.
        parameters: names of the parameters to differentiate by; None: those with requires_grad.
        forward: maps (model, batch) to (n, C) outputs, for models with other inputs or outputs.
        dtype: torch.float32 or torch.float64; None: the model's own.
        device: where to compute; None: where the model is.
        memory: bytes that the call may allocate above what is resident when it starts, as a number or "4GiB".
        progress: called with (tiles done, tiles in all).
        verify: compare a few rows with the dense definition first.

    Returns:
        The kernel, in ``dtype`` on ``device``. With y=None it is symmetric to the bit.

    Raises:
        InputError: rows the model does not take, NaN, unknown parameters or kind of outputs, too little memory.
        UnsupportedModelError: train-mode BatchNorm, active dropout, outputs that are not (n, C).
        VerificationError: the contraction differs from the definition (a model that mixes the rows of its batch).

    Cost: nC backward passes + n²(in + C·out) operations a Linear layer for the trace, n²C²·out for the full kernel;
    nC·P memory for dense parameters.

    Source: Jacot, Gabriel, Hongler 2018; layerwise contraction: Novak, Sohl-Dickstein, Schoenholz 2022.

    >>> model = nn.Linear(2, 3)
    >>> ntk(model, torch.tensor([[1.0, 0.0], [0.0, 2.0]]))  # linear model: C (x·x' + 1)
    tensor([[ 6.,  3.],
            [ 3., 15.]])
    """
    if outputs not in ("trace", "diagonal", "full", "pseudo"):
        raise InputError(
            f"outputs={outputs!r}",
            expected='"trace", "diagonal", "full" or "pseudo"',
            do='use "trace" for one kernel value a pair of rows',
        )
    left = as_rows(x, "x")
    right = None if y is None else as_rows(y, "y")
    prepared = prepare(model, left, forward=forward, parameters=parameters, dtype=dtype, device=device)
    left = left.to(dtype=prepared.dtype, device=prepared.device)
    right = None if right is None else right.to(dtype=prepared.dtype, device=prepared.device)
    engine = Engine.plan(prepared, left, outputs, as_bytes(memory), n=left.n, m=(right or left).n)
    if verify:
        _verify(engine, prepared, left, right, outputs)
    return engine.kernel(left, right, progress)


def _verify(engine: Engine, prepared: Prepared, left: Rows, right: Rows | None, outputs: Outputs) -> None:
    """Compare the engine with the definition on the first and last rows of both sides, in one batch."""
    picks = sorted({0, left.n // 2, left.n - 1})
    probe = Rows(left.take(picks), len(picks))
    other = probe if right is None else Rows(right.take([0, right.n - 1]), 2)
    found = engine.kernel(probe, None if right is None else other, None)
    exact_left = jacobian_of(prepared, probe)
    exact_right = exact_left if right is None else jacobian_of(prepared, other)
    expected = kernel_of(exact_left, exact_right, outputs)
    # Entries are inner products of tangents: their scale is the product of the norms, not their own size.
    scale = exact_left.flatten(1).norm(dim=1).max() * exact_right.flatten(1).norm(dim=1).max()
    gap = float((found - expected).abs().max() / scale.clamp_min(torch.finfo(scale.dtype).tiny))
    tolerance = 1e-3 if prepared.dtype == torch.float32 else 1e-9
    if not gap <= tolerance:
        raise VerificationError(
            f"a model whose kernel on {probe.n} rows in one batch differs from the row-by-row definition by {gap:.2g}"
            " (relative)",
            expected=f"a difference of at most {tolerance:g}",
            do="check that no operation mixes the rows of a batch (batch statistics, shuffling, attention over rows)",
        )


def as_bytes(memory: int | str) -> int:
    """Read "4GiB", "500MB" or a number as bytes.

    >>> as_bytes("1.5KiB")
    1536
    """
    units = {
        "B": 1,
        "KB": 10**3,
        "MB": 10**6,
        "GB": 10**9,
        "KIB": 2**10,
        "MIB": 2**20,
        "GIB": 2**30,
        "TIB": 2**40,
    }
    if isinstance(memory, str):
        text = memory.strip().upper()
        digits = text.rstrip("KMGTIB ")
        try:
            value = float(digits) * units[text[len(digits) :].strip() or "B"]
        except (ValueError, KeyError):
            value = -1.0
    else:
        value = float(memory)
    if not 0 < value < float("inf"):
        raise InputError(f"memory={memory!r}", expected='a positive number of bytes, or "4GiB"', do='pass "2GiB"')
    return int(value)
