"""Training of the linearized network by explicit SGD steps: minibatches, cross-entropy, learning-rate schedules."""

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import Tensor

from kernelmem.core.checks import ArrayLike, as_list, as_number, as_tensor, check_instance
from kernelmem.core.errors import InputError
from kernelmem.kernel_machines.linearized.function_space import (
    FunctionSpace,
    Linearization,
    LinearizedTraining,
    as_times,
    function_space,
)
from kernelmem.kernel_machines.linearized.sgd_config import SGDConfig, check_stability
from kernelmem.kernel_machines.linearized.sgd_step import FunctionSpaceSGD, largest_eigenvalue, output_gradient_function


def minibatch_sgd(
    kernel: ArrayLike,
    y: ArrayLike,
    steps: float | Iterable[float] | None = None,
    *,
    sgd: SGDConfig,
    batches: Iterable[ArrayLike] | None = None,
    lr_factors: Iterable[float] | None = None,
    loss: Literal["mse", "cross_entropy"] | Callable[[Tensor, Tensor], Tensor] = "mse",
    linearization: Linearization | None = None,
) -> LinearizedTraining:
    """Compute the outputs of the linearized network under SGD with minibatches, cross-entropy or a learning-rate schedule.

    With r_i = ∂ℓ_i/∂f (f − y, or softmax(f) − y) and plain steps, f ← f − (h / B) Σ_{i in batch} Θ(·, x_i) r_i.

    Args:
        kernel: as in :func:`.gradient_flow`.
        y: targets (n, C) or labels (n,); for cross-entropy labels or class probabilities.
        steps: numbers of steps after which outputs are returned; None: after the last batch only.
        sgd: learning rate, momentum, dampening, Nesterov momentum, weight decay.
        batches: row numbers of the training rows of every step, integers (B,); None: all rows in every step.
        lr_factors: learning rate of every step as a multiple of ``sgd.lr`` (as in torch's LambdaLR); None: constant.
        loss: "mse" (half the squared error), "cross_entropy", or a callable (outputs (B, C), targets) -> (B,); SGD
            minimizes its mean over the batch.
        linearization: outputs at w_0 and the kernel of the test rows; None: f_0 = 0, no test rows.

    Returns:
        LinearizedTraining: ``stability`` is that of the full batch at the largest learning rate. For cross-entropy it is an
        upper bound (with curvature 1/2) and nothing is refused: above the limit training may oscillate forever, and
        rounding grows with it. For a callable it is NaN.

    Raises:
        InputError: shapes do not match, there is NaN, rows are out of range, or there are too few batches or factors.
        NumericalError: the squared error is trained at or above the limit, or outputs overflow (small batches can diverge
            below it).

    Cost: O(n B C²) per step for a full kernel, O(n B C) for one of (n, n), and the largest eigenvalue.

    >>> training = minibatch_sgd([[1.0, 0.0], [0.0, 1.0]], [1.0, 1.0], sgd=SGDConfig(lr=0.5), batches=[[0], [0], [1]])
    >>> training.train.flatten().tolist()
    [0.75, 0.5]
    """
    check_instance(sgd, "sgd", SGDConfig, hint="pass sgd=SGDConfig(lr=0.1, momentum=0.9)")
    learning_rates = (
        None
        if lr_factors is None
        else [sgd.lr * as_number(factor, "lr_factors") for factor in as_list(lr_factors, "lr_factors")]
    )
    if learning_rates is not None:
        sgd = dataclasses.replace(sgd, lr=max(learning_rates, default=0.0))
    is_mse = isinstance(loss, str) and loss == "mse"
    space = function_space(kernel, y, linearization, with_decay=sgd.weight_decay > 0, one_hot=is_mse)
    batch_rows = None if batches is None else [_check_batch(batch, space) for batch in as_list(batches, "batches")]
    times = as_times(len(batch_rows) if steps is None and batch_rows is not None else steps, "steps", whole=True)
    sequence_lengths = [len(per_step) for per_step in (batch_rows, learning_rates) if per_step is not None]
    if min(sequence_lengths, default=math.inf) < max(times) or max(times) == math.inf:
        raise InputError(
            f"steps={steps!r} with {sequence_lengths or 'no'} batches or learning rates",
            expected="finite numbers of steps, with one batch (and one learning-rate factor, if these are given) per step",
            hint="pass more batches or factors, or fewer steps",
        )
    curvature = {"mse": 1.0, "cross_entropy": 0.5}.get(loss, math.nan) if isinstance(loss, str) else math.nan
    output_gradient = output_gradient_function(loss)
    kappa_max = largest_eigenvalue(space.matrix)
    if is_mse:
        check_stability(sgd, kappa_max, space.n)
    all_rows = torch.arange(space.n, device=space.matrix.device)
    training = FunctionSpaceSGD(space)
    output_steps = set(times)
    states = {0.0: training.state()} if 0 in output_steps else {}
    for t in range(int(max(times))):
        batch_index = all_rows if batch_rows is None else batch_rows[t]
        step_sgd = sgd if learning_rates is None else dataclasses.replace(sgd, lr=learning_rates[t])
        gradient = output_gradient(training.outputs(batch_index), space.targets[batch_index]) / len(batch_index)
        training.step(batch_index, gradient, step_sgd)
        if t + 1 in output_steps:
            states[float(t + 1)] = training.state()
    a, s_minus_1 = (torch.stack([states[t][state_index] for t in times]) for state_index in (0, 1))
    train, test = space.outputs(a, s_minus_1)
    scale = float((train - space.initial).abs().max()) or 1.0
    return LinearizedTraining(
        times=times,
        train=train,
        test=test,
        coefficients=space.unfold(a),
        scale=1 + s_minus_1,
        stability=sgd.lr * (curvature * kappa_max / space.n + sgd.weight_decay),
        limit=sgd.limit,
        largest=kappa_max,
        condition=math.inf,
        residual=training.drift() / scale,
        full=space.full,
    )


def _check_batch(batch: ArrayLike, space: FunctionSpace) -> Tensor:
    """Check the B row numbers of a batch and return them as (B,) int64.

    Raises:
        InputError: they are not integers, there are none, or a row number is out of range.
    """
    rows = as_tensor(batch, "batch")
    are_integers = not (rows.is_floating_point() or rows.is_complex() or rows.dtype == torch.bool)
    if not are_integers or rows.ndim != 1 or len(rows) == 0 or bool(((rows < 0) | (rows >= space.n)).any()):
        raise InputError(
            f"batch of shape {tuple(rows.shape)} and dtype {rows.dtype}".replace("torch.", ""),
            expected=f"at least one row number in 0..{space.n - 1}",
            hint="pass the indices that the sampler drew",
        )
    return rows.to(torch.int64).to(space.matrix.device)
