"""Descent of the linearized network that has no closed form: minibatches, cross-entropy, schedules."""

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from kernelmem.core.checks import as_tensor
from kernelmem.core.errors import InputError
from kernelmem.kernel_machines.linearized.function_space import (
    FunctionSpace,
    LinearizedTraining,
    as_moments,
    function_space,
)
from kernelmem.kernel_machines.linearized.sgd_config import as_number, as_sgd_config, refuse_divergence
from kernelmem.kernel_machines.linearized.sgd_step import Recursion, gradient_of, largest_eigenvalue

__all__ = ["minibatch_sgd"]


def minibatch_sgd(
    kernel: Any,
    y: Any,
    *,
    lr: float | Iterable[float],
    batches: Iterable[Any] | None = None,
    steps: Any = None,
    loss: Literal["mse", "cross_entropy"] | Callable[[Tensor, Tensor], Tensor] = "mse",
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    initial: Any = None,
    origin: Any = None,
    k_test: Any = None,
    initial_test: Any = None,
    origin_test: Any = None,
) -> LinearizedTraining:
    """Compute the linearized network under minibatches, cross-entropy or a schedule, by the exact recursion.

    With r_i = ∂ℓ_i/∂f (f − y, or softmax(f) − y) and plain steps, f ← f − (h / B) Σ_{i in batch} Θ(·, x_i) r_i.

    Args:
        kernel: as in :func:`kernelmem.kernel_machines.linearized.gradient_flow.gradient_flow`, with y, initial, origin and the test rows.
        y: targets (n, C) or labels (n,); of cross-entropy labels or class probabilities.
        lr: the learning rate, or one for every step.
        batches: the training rows of every step, integers (B,); None: all of them in every step.
        steps: after how many steps outputs are wanted; None: after the last batch alone.
        loss: "mse" (half the squared error), "cross_entropy", or a callable (outputs (B, C), targets) -> (B,); its mean over
            the batch is descended.
        momentum: as in :func:`kernelmem.kernel_machines.linearized.gradient_flow.gradient_descent`, like the constants below.
        dampening: τ.
        nesterov: w −= h (g_t + μ b_t).
        weight_decay: λ.
        initial: f_0 on the training rows.
        origin: f_0 − J w_0 there; needed with weight decay.
        k_test: kernel of test with training rows.
        initial_test: f_0 on the test rows.
        origin_test: f_0 − J w_0 there.

    Returns:
        LinearizedTraining: ``stability`` is that of the full batch at the largest learning rate. Of cross-entropy it is an
        upper bound (with curvature 1/2) and nothing is refused: above the limit descent may swing without end, and rounding
        grows with it. Of a callable it is NaN.

    Raises:
        InputError: shapes that do not fit, NaN, rows out of range, too few batches or learning rates.
        NumericalError: squared error at or above the limit; outputs that overflow (small batches can diverge below it).

    Cost: O(n B C²) a step for a full kernel, O(n B C) for one of (n, n), and the largest eigenvalue.

    >>> found = minibatch_sgd([[1.0, 0.0], [0.0, 1.0]], [1.0, 1.0], lr=0.5, batches=[[0], [0], [1]])
    >>> found.train.flatten().tolist()
    [0.75, 0.5]
    """
    rates = None if isinstance(lr, int | float) else [as_number(rate, "lr", least=0.0) for rate in lr]
    known = [as_number(lr, "lr", least=0.0)] if rates is None else rates
    descent = as_sgd_config(max(known, default=0.0), momentum, dampening, nesterov, weight_decay)
    space = function_space(
        kernel,
        y,
        initial=initial,
        origin=origin,
        k_test=k_test,
        initial_test=initial_test,
        origin_test=origin_test,
        decay=descent.weight_decay > 0,
        one_hot=loss == "mse",
    )
    rows = None if batches is None else [_batch(batch, space) for batch in batches]
    moments = as_moments(len(rows) if steps is None and rows is not None else steps, "steps", whole=True)
    lengths = [len(own) for own in (rows, rates) if own is not None]
    if min(lengths, default=math.inf) < max(moments) or max(moments) == math.inf:
        raise InputError(
            f"steps={steps!r} with {lengths or 'no'} batches or learning rates",
            expected="finite numbers of steps, and a batch (and a learning rate, where there are several) for each",
            hint="pass as many, or fewer steps",
        )
    curvature = {"mse": 1.0, "cross_entropy": 0.5}.get(loss, math.nan) if isinstance(loss, str) else math.nan
    slope = gradient_of(loss)
    largest = largest_eigenvalue(space.matrix)
    if loss == "mse":
        refuse_divergence(descent, largest, space.n)
    every = torch.arange(space.n, device=space.matrix.device)
    recursion = Recursion(space)
    wanted = set(moments)
    kept = {0.0: recursion.state()} if 0 in wanted else {}
    for t in range(int(max(moments))):
        index = every if rows is None else rows[t]
        own = descent if rates is None else as_sgd_config(rates[t], momentum, dampening, nesterov, weight_decay)
        recursion.step(index, slope(recursion.outputs(index), space.targets[index]) / len(index), own)
        if t + 1 in wanted:
            kept[float(t + 1)] = recursion.state()
    a, away = (torch.stack([kept[t][part] for t in moments]) for part in (0, 1))
    train, test = space.outputs(a, away)
    scale = float((train - space.initial).abs().max()) or 1.0
    return LinearizedTraining(
        moments,
        train,
        test,
        space.unfold(a),
        1 + away,
        descent.lr * (curvature * largest / space.n + descent.weight_decay),
        descent.limit,
        largest,
        math.inf,
        recursion.drift() / scale,
        space.full,
    )


def _batch(batch: Any, space: FunctionSpace) -> Tensor:
    index = as_tensor(batch, "batch")
    whole = not (index.is_floating_point() or index.is_complex() or index.dtype == torch.bool)
    if not whole or index.ndim != 1 or len(index) == 0 or bool(((index < 0) | (index >= space.n)).any()):
        raise InputError(
            f"a batch of shape {tuple(index.shape)} and dtype {index.dtype}".replace("torch.", ""),
            expected=f"at least one row number in 0..{space.n - 1}",
            hint="pass the indices that the sampler drew",
        )
    return index.to(torch.int64).to(space.matrix.device)
