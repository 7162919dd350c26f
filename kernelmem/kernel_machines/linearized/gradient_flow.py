r"""Exact training of the linearized network in function space: gradient flow and full-batch gradient descent.

For f(x; w) = f_0(x) + J(x)(w − w_0), Θ = J Jᵀ on n training rows with eigenpairs (κ_j, u_j), loss (1/2n) Σ_i |f(x_i) − y_i|²:

    gradient flow       a = −Σ_j u_j u_jᵀ(f_0 − y) (1 − e^{−κ_j t / n}) / κ_j,     f_t(x) = f_0(x) + Θ(x, X) a
    gradient descent    a = −Σ_j u_j u_jᵀ(f_0 − y) (1 − (1 − h κ_j / n)^T) / κ_j
    momentum, decay     powers of one affine map of five numbers per mode (:mod:`.eigenmodes`)

Minibatches, other losses and schedules have no closed form; :func:`minibatch_sgd` takes their steps one by one. Adam has no
function-space form: its denominators couple parameters that the kernel does not distinguish.

Source: Lee et al. 2019 (flow, descent); Polyak 1964 (heavy ball); the map with weight decay: derived here.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from kernelmem.core.checks import ArrayLike, as_number, check_instance
from kernelmem.kernel_machines.linearized.eigenmodes import A, B, E, P, mode_states
from kernelmem.kernel_machines.linearized.function_space import (
    FunctionSpace,
    Linearization,
    LinearizedTraining,
    as_times,
    function_space,
)
from kernelmem.kernel_machines.linearized.sgd_config import SGDConfig, check_stability
from kernelmem.kernel_machines.linearized.sgd_step import FunctionSpaceSGD
from kernelmem.kernel_machines.solvers.factorization import eigensystem

EPS = torch.finfo(torch.float64).eps


def gradient_flow(
    kernel: ArrayLike,
    y: ArrayLike,
    times: float | Iterable[float],
    *,
    weight_decay: float = 0.0,
    linearization: Linearization | None = None,
) -> LinearizedTraining:
    """Compute the outputs of the linearized network at given times of gradient flow, dw/dt = −∇L − λ w.

    Time is learning rate times steps: gradient descent with learning rate h differs by O(h). Infinity is allowed: the
    minimum-norm interpolation, or with λ kernel ridge regression with ridge n λ around the origin.

    Args:
        kernel: Θ of the n training rows: (n, n), which acts on every output by itself, (n, n, C, C) from
            ``km.ntk(outputs="full")``, or (nC, nC) with row i C + c.
        y: (n, C) or (n,) targets; integer labels (n,) become one-hot rows.
        times: one or several times >= 0.
        weight_decay: λ of the decay towards zero weights.
        linearization: outputs at w_0 and the kernel of the test rows; None: f_0 = 0, no test rows.

    Raises:
        InputError: shapes do not match, or there is NaN.
        NumericalError: the kernel is asymmetric, or indefinite beyond float32 rounding.

    Cost: one eigendecomposition of the kernel, (nC)³ for a full one, then O((nC)²) per time.

    Source: Lee et al. 2019.

    >>> training = gradient_flow([[2.0]], [1.0], times=[0.0, 0.5 * math.log(2), math.inf])
    >>> [round(f, 6) for f in training.train.flatten().tolist()]
    [0.0, 0.5, 1.0]
    """
    checked_times = as_times(times, "times", whole=False)
    decay = as_number(weight_decay, "weight_decay")
    space = function_space(kernel, y, linearization, with_decay=decay > 0)
    eigenvalues, U, condition = _eigendecomposition(space)
    residual_modes, Jw0_modes = _source_modes(space, U)
    n = space.n
    coefficients, shrinkage = [], []
    for t in checked_times:
        # With q = κ/n + λ: a = −[(r − φ) (1 − e^{−qt})/q + φ e^{−λt} (1 − e^{−κt/n})/(κ/n)]/n
        modes = -_integrated_exponential(eigenvalues / n + decay, t)[:, None] * (residual_modes - Jw0_modes)
        coefficients.append(
            U @ (modes - _decayed_integrated_exponential(eigenvalues / n, decay, t)[:, None] * Jw0_modes) / n
        )
        shrinkage.append(math.expm1(-decay * t) if decay > 0 else 0.0)
    a = torch.stack(coefficients)  # (S, N, k)
    s_minus_1 = torch.tensor(shrinkage, dtype=torch.float64, device=eigenvalues.device)
    train, test = space.outputs(a, s_minus_1)
    # Residual: da/dt of the closed form, compared with the gradient that the kernel gives.
    last_time, mode_rates = checked_times[-1], eigenvalues / n + decay
    decay_factors = torch.exp(-torch.where(mode_rates > 0, mode_rates * last_time, 0.0))
    velocity_modes = (
        decay_factors[:, None] * residual_modes
        - decay * _decayed_integrated_exponential(eigenvalues / n, decay, last_time)[:, None] * Jw0_modes
    ) / n
    gradient = space.fold(train[-1] - space.targets) / n + decay * a[-1]
    kappa_max = float(eigenvalues[-1])
    return LinearizedTraining(
        times=checked_times,
        train=train,
        test=test,
        coefficients=space.unfold(a),
        scale=1 + s_minus_1,
        stability=0.0,
        limit=2.0,
        largest=kappa_max,
        condition=condition,
        residual=_relative_output_norm(space, gradient - U @ velocity_modes, kappa_max) / _first_gradient_norm(space),
        full=space.full,
    )


def gradient_descent(
    kernel: ArrayLike,
    y: ArrayLike,
    steps: float | Iterable[float],
    *,
    sgd: SGDConfig,
    linearization: Linearization | None = None,
) -> LinearizedTraining:
    """Compute the outputs of the linearized network after given numbers of full-batch steps of torch.optim.SGD.

    The loss is the mean over rows of half the squared error.

    Args:
        kernel: as in :func:`gradient_flow`.
        y: as in :func:`gradient_flow`.
        steps: one or several whole numbers >= 0, in any order; infinity is the limit.
        sgd: learning rate, momentum, dampening, Nesterov momentum, weight decay.
        linearization: outputs at w_0 and the kernel of the test rows; None: f_0 = 0, no test rows.

    Raises:
        InputError: shapes do not match, there is NaN, or torch rejects the hyperparameters.
        NumericalError: h (κ_max / n + λ) is at or above the limit (2; with momentum 2 (1 + μ) / (1 − τ), Nesterov
            2 (1 + μ) / (1 + 2 μ)); or the kernel is asymmetric, or indefinite beyond float32 rounding.

    Cost: one eigendecomposition, (nC)³ for a full kernel, then O((nC)²) per entry of ``steps``, whatever its size.

    Source: Lee et al. 2019; Polyak 1964.

    >>> training = gradient_descent([[2.0]], [1.0], steps=[0, 1, 2, 10**9], sgd=SGDConfig(lr=0.25))
    >>> training.train.flatten().tolist(), training.stability
    ([0.0, 0.5, 0.75, 1.0], 0.5)
    """
    checked_steps = as_times(steps, "steps", whole=True)
    check_instance(sgd, "sgd", SGDConfig, hint="pass sgd=SGDConfig(lr=0.1, momentum=0.9)")
    space = function_space(kernel, y, linearization, with_decay=sgd.weight_decay > 0)
    eigenvalues, U, condition = _eigendecomposition(space)
    kappa_max = float(eigenvalues[-1])
    check_stability(sgd, kappa_max, space.n)
    residual_modes, Jw0_modes = _source_modes(space, U)
    # One step more than the last: it is also taken with the kernel itself, and the difference is the residual.
    last_step = checked_steps[-1]
    states = mode_states(eigenvalues, space.n, sgd, (*checked_steps, last_step + 1), with_decay=sgd.weight_decay > 0)

    def combine_modes(states: Tensor) -> Tensor:
        """Return U (state × source modes, summed over the 2 sources), mapping (..., N modes, 2) to (..., N, k)."""
        return U @ (states[..., :1] * residual_modes + states[..., 1:] * Jw0_modes)

    a, s_minus_1 = combine_modes(states[:, :, A]), states[:, 0, E, 0]  # (S + 1, N, k), (S + 1,)
    train, test = space.outputs(a[:-1], s_minus_1[:-1])
    next_step = FunctionSpaceSGD(space)
    b, s_buffer = combine_modes(states[-2, :, B]), float(states[-2, 0, P, 0])
    next_step.restore(a[-2], b, float(s_minus_1[-2]), s_buffer, n_steps=int(last_step > 0))
    all_rows = torch.arange(space.n, device=a.device)
    next_step.step(all_rows, (train[-1] - space.targets) / space.n, sgd)
    step_error = _relative_output_norm(space, next_step.a - a[-1], kappa_max) / (sgd.lr or 1.0)
    return LinearizedTraining(
        times=checked_steps,
        train=train,
        test=test,
        coefficients=space.unfold(a[:-1]),
        scale=1 + s_minus_1[:-1],
        stability=sgd.lr * (kappa_max / space.n + sgd.weight_decay),
        limit=sgd.limit,
        largest=kappa_max,
        condition=condition,
        residual=step_error / _first_gradient_norm(space),
        full=space.full,
    )


def _relative_output_norm(space: FunctionSpace, difference: Tensor, kappa_max: float) -> float:
    """Return |K d| / κ_max for a difference d of coefficients (N, k), where κ_max is the largest eigenvalue of the kernel K.

    This measures only the part of d that changes outputs. The result is 0 for a zero kernel.
    """
    return float((space.matrix @ difference).norm() / kappa_max) if kappa_max > 0 else 0.0


def _first_gradient_norm(space: FunctionSpace) -> float:
    """Return |f_0 − y + J w_0| / n, the scale of the first gradient, for n rows; 1 if it is zero.

    Here f_0 are the outputs at the initial weights w_0, J their Jacobian and y the targets.
    """
    return float((space.initial - space.targets + space.Jw0).norm()) / space.n or 1.0


def _eigendecomposition(space: FunctionSpace) -> tuple[Tensor, Tensor, float]:
    """Return the N eigenvalues of the kernel, ascending, its eigenvectors (N, N), and its condition number.

    Eigenvalues at the level of rounding are set to 0. The condition number is the ratio of the largest to the smallest
    nonzero eigenvalue.
    """
    eigenvalues, U = eigensystem(space.matrix)
    rounding = max(len(eigenvalues) * EPS * float(eigenvalues[-1]), -2 * float(eigenvalues[0]))
    nonzero = eigenvalues[eigenvalues > rounding]
    condition = float(nonzero[-1] / nonzero[0]) if len(nonzero) else 1.0
    return torch.where(eigenvalues > rounding, eigenvalues, 0.0), U, condition


def _source_modes(space: FunctionSpace, U: Tensor) -> tuple[Tensor, Tensor]:
    """Return the residual f_0 − y and the product J w_0 in the eigenbasis U (N, N) of the kernel, each (N, k).

    Here f_0 are the outputs at the initial weights w_0, J their Jacobian and y the targets.
    """
    return U.T @ space.fold(space.initial - space.targets), U.T @ space.fold(space.Jw0)


def _integrated_exponential(rate: Tensor, t: float) -> Tensor:
    """Return ∫_0^t e^{−rate u} du = (1 − e^{−rate t}) / rate for each entry of ``rate``.

    Where the rate is 0, the result is t, or 0 for infinite t.
    """
    positive_rate = torch.where(rate > 0, rate, 1.0)
    return torch.where(rate > 0, -torch.expm1(-positive_rate * t) / positive_rate, 0.0 if t == math.inf else t)


def _decayed_integrated_exponential(rate: Tensor, weight_decay: float, t: float) -> Tensor:
    """Return e^{−λt} (1 − e^{−rate t}) / rate for each entry of ``rate``, where λ is the weight decay."""
    if weight_decay > 0 and t == math.inf:
        return torch.zeros_like(rate)
    return _integrated_exponential(rate, t) * (math.exp(-weight_decay * t) if weight_decay > 0 else 1.0)
