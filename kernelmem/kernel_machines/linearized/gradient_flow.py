r"""Exact training dynamics of the linearized network, in function space: what gradients make of a kernel that stands still.

For f(x; w) = f_0(x) + J(x)(w − w_0), Θ = J Jᵀ on n training rows with eigenpairs (κ_j, u_j), loss (1/2n) Σ_i |f(x_i) − y_i|²:

    gradient flow       a = −Σ_j u_j u_jᵀ(f_0 − y) (1 − e^{−κ_j t / n}) / κ_j,     f_t(x) = f_0(x) + Θ(x, X) a
    gradient descent    a = −Σ_j u_j u_jᵀ(f_0 − y) (1 − (1 − h κ_j / n)^T) / κ_j
    momentum, decay     powers of one affine map of five numbers a mode (:mod:`kernelmem.kernel_machines.linearized.eigenmodes`)

Minibatches, other losses and schedules have no closed form; their recursion is
:func:`minibatch_sgd`. Adam has no
function-space form at all: its denominators tie parameters that no kernel tells apart.

Source: Lee et al. 2019 (flow, descent); Polyak 1964 (heavy ball); the map with weight decay: derived here.
"""

import math
from typing import Any

import torch
from torch import Tensor

from kernelmem.kernel_machines.linearized.eigenmodes import A, B, E, P, solution
from kernelmem.kernel_machines.linearized.function_space import (
    FunctionSpace,
    LinearizedTraining,
    as_moments,
    function_space,
)
from kernelmem.kernel_machines.linearized.minibatch_sgd import minibatch_sgd
from kernelmem.kernel_machines.linearized.sgd_config import as_number, as_sgd_config, refuse_divergence
from kernelmem.kernel_machines.linearized.sgd_step import Recursion
from kernelmem.kernel_machines.solvers.factorization import eigensystem

__all__ = ["LinearizedTraining", "gradient_descent", "gradient_flow", "minibatch_sgd"]

EPS = torch.finfo(torch.float64).eps


def gradient_flow(
    kernel: Any,
    y: Any,
    *,
    times: Any,
    weight_decay: float = 0.0,
    initial: Any = None,
    origin: Any = None,
    k_test: Any = None,
    initial_test: Any = None,
    origin_test: Any = None,
) -> LinearizedTraining:
    """Compute the linearized network under gradient flow, dw/dt = −∇L − λ w, at given times.

    Time is learning rate times steps: gradient descent of learning rate h is off by O(h). Infinity is allowed: the
    minimum-norm interpolation, or with λ kernel ridge regression of ridge n λ around the origin.

    Args:
        kernel: Θ of the n training rows: (n, n), which acts on every output by itself, (n, n, C, C) as
            ``km.ntk(outputs="full")`` gives it, or (nC, nC) with row i C + c.
        y: (n, C) or (n,) targets; integer labels (n,) are one-hot rows.
        times: one or several, >= 0.
        weight_decay: λ, towards zero weights.
        initial: f_0 on the training rows, (n, C); None: zeros.
        origin: f_0 − J w_0, the outputs at zero weights; needed with weight decay.
        k_test: Θ(x_test, X): (m, n), (m, n, C, C) or (mC, nC), for outputs on test rows.
        initial_test: f_0 there.
        origin_test: f_0 − J w_0 there.

    Raises:
        InputError: shapes that do not fit, NaN. NumericalError: a kernel that is asymmetric, or indefinite beyond float32.

    Cost: one eigendecomposition of the kernel, (nC)³ for a full one, then O((nC)²) a moment.

    Source: Lee et al. 2019.

    >>> found = gradient_flow([[2.0]], [1.0], times=[0.0, 0.5 * math.log(2), math.inf])
    >>> [round(f, 6) for f in found.train.flatten().tolist()]
    [0.0, 0.5, 1.0]
    """
    moments = as_moments(times, "times", whole=False)
    decay = as_number(weight_decay, "weight_decay", least=0.0)
    space = function_space(
        kernel,
        y,
        initial=initial,
        origin=origin,
        k_test=k_test,
        initial_test=initial_test,
        origin_test=origin_test,
        decay=decay > 0,
    )
    values, U, condition = _spectrum(space)
    still, pulled = _folded_sources(space, U)
    n = space.n
    coefficients, shrunk = [], []
    for t in moments:
        # with q = κ/n + λ: a = −[(r − φ) (1 − e^{−qt})/q + φ e^{−λt} (1 − e^{−κt/n})/(κ/n)]/n
        own = -_rise(values / n + decay, t)[:, None] * (still - pulled)
        coefficients.append(U @ (own - _fading(values / n, decay, t)[:, None] * pulled) / n)
        shrunk.append(math.expm1(-decay * t) if decay > 0 else 0.0)
    a, away = torch.stack(coefficients), torch.tensor(shrunk, dtype=torch.float64, device=values.device)
    largest = float(values[-1])
    # the derivative of the closed form by time, beside the gradient that the kernel says
    last, rate = moments[-1], values / n + decay
    gone = torch.exp(-torch.where(rate > 0, rate * last, 0.0))
    moving = (gone[:, None] * still - decay * _fading(values / n, decay, last)[:, None] * pulled) / n
    train, test = space.outputs(a, away)
    slope = space.fold(train[-1] - space.targets) / n + decay * a[-1]
    gap = _seen(space, slope - U @ moving, largest)
    return LinearizedTraining(
        moments,
        train,
        test,
        space.unfold(a),
        1 + away,
        0.0,
        2.0,
        largest,
        condition,
        gap / _first_gradient(space),
        space.full,
    )


def gradient_descent(
    kernel: Any,
    y: Any,
    *,
    steps: Any,
    lr: float,
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
    """Compute the linearized network after given numbers of full-batch steps of torch.optim.SGD on the squared error.

    Args:
        kernel: as in :func:`gradient_flow`, with y, initial, origin and the test rows.
        y: likewise; the loss is the mean over rows of half the squared error.
        steps: one or several whole numbers >= 0, in any order; infinity is the limit.
        lr: learning rate h.
        momentum: μ: b_0 = g_0, b_t = μ b_{t−1} + (1 − τ) g_t, w −= h b_t.
        dampening: τ.
        nesterov: w −= h (g_t + μ b_t).
        weight_decay: λ: g_t includes λ w_t.
        initial: f_0 on the training rows.
        origin: f_0 − J w_0 there; needed with weight decay.
        k_test: kernel of test with training rows.
        initial_test: f_0 on the test rows.
        origin_test: f_0 − J w_0 there.

    Raises:
        InputError: shapes that do not fit, NaN, constants that torch refuses.
        NumericalError: h (κ_max / n + λ) at or above the limit (2; with momentum 2 (1 + μ) / (1 − τ), Nesterov
            2 (1 + μ) / (1 + 2 μ)); a kernel that is asymmetric, or indefinite beyond float32.

    Cost: one eigendecomposition, (nC)³ for a full kernel, then O((nC)²) a moment, whatever the number of steps.

    Source: Lee et al. 2019; Polyak 1964.

    >>> found = gradient_descent([[2.0]], [1.0], steps=[0, 1, 2, 10**9], lr=0.25)
    >>> found.train.flatten().tolist(), found.stability
    ([0.0, 0.5, 0.75, 1.0], 0.5)
    """
    moments = as_moments(steps, "steps", whole=True)
    descent = as_sgd_config(lr, momentum, dampening, nesterov, weight_decay)
    space = function_space(
        kernel,
        y,
        initial=initial,
        origin=origin,
        k_test=k_test,
        initial_test=initial_test,
        origin_test=origin_test,
        decay=descent.weight_decay > 0,
    )
    values, U, condition = _spectrum(space)
    refuse_divergence(descent, float(values[-1]), space.n)
    still, pulled = _folded_sources(space, U)
    # one more step than the last, to hold it against the kernel itself
    last = moments[-1]
    found = solution(values, space.n, descent, (*moments, last + 1), pulled=descent.weight_decay > 0)
    weights = found[:, :, A]  # (S + 1, N, 2)
    modes = weights[..., :1] * still + weights[..., 1:] * pulled  # (S + 1, N, k)
    a, away = U @ modes, found[:, 0, E, 0]
    train, test = space.outputs(a[:-1], away[:-1])
    stepped = Recursion(space)
    buffer = U @ (found[-2, :, B, :1] * still + found[-2, :, B, 1:] * pulled)
    stepped.put(a[-2], buffer, float(away[-2]), float(found[-2, 0, P, 0]), taken=last > 0)
    every = torch.arange(space.n, device=a.device)
    stepped.step(every, (train[-1] - space.targets) / space.n, descent)
    gap = _seen(space, stepped.a - a[-1], float(values[-1])) / (descent.lr or 1.0)
    return LinearizedTraining(
        moments,
        train,
        test,
        space.unfold(a[:-1]),
        1 + away[:-1],
        descent.lr * (float(values[-1]) / space.n + descent.weight_decay),
        descent.limit,
        float(values[-1]),
        condition,
        gap / _first_gradient(space),
        space.full,
    )


def _seen(space: FunctionSpace, difference: Tensor, largest: float) -> float:
    """|K d| / κ_max: what of a difference of coefficients outputs see."""
    return float((space.matrix @ difference).norm() / largest) if largest > 0 else 0.0


def _first_gradient(space: FunctionSpace) -> float:
    return float((space.initial - space.targets + space.pull).norm()) / space.n or 1.0


def _spectrum(space: FunctionSpace) -> tuple[Tensor, Tensor, float]:
    """Eigenvalues, ascending and with those that are rounding at 0, eigenvectors, and the condition of the others."""
    values, U = eigensystem(space.matrix)
    noise = max(len(values) * EPS * float(values[-1]), -2 * float(values[0]))
    kept = values[values > noise]
    condition = float(kept[-1] / kept[0]) if len(kept) else 1.0
    return torch.where(values > noise, values, 0.0), U, condition


def _folded_sources(space: FunctionSpace, U: Tensor) -> tuple[Tensor, Tensor]:
    return U.T @ space.fold(space.initial - space.targets), U.T @ space.fold(space.pull)


def _rise(rate: Tensor, t: float) -> Tensor:
    """(1 − e^{−rate t}) / rate; t where the rate is 0, and 0 for it in the limit."""
    safe = torch.where(rate > 0, rate, 1.0)
    return torch.where(rate > 0, -torch.expm1(-safe * t) / safe, 0.0 if t == math.inf else t)


def _fading(rate: Tensor, decay: float, t: float) -> Tensor:
    """e^{−λt} (1 − e^{−rate t}) / rate."""
    if decay > 0 and t == math.inf:
        return torch.zeros_like(rate)
    return _rise(rate, t) * (math.exp(-decay * t) if decay > 0 else 1.0)
