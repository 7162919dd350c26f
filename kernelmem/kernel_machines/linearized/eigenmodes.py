"""Powers of the affine map that trains one eigenmode of a kernel, stored as differences from the identity.

(I + D)² = I + (2 D + D²): storing D instead of I + D lets slow modes (D of 1e-12) keep their digits over millions of steps.
"""

import math

import torch
from torch import Tensor

from kernelmem.kernel_machines.linearized.sgd_config import SGDConfig

A, B, E, P, ONE = range(5)  # state: coefficient a, its momentum b, s − 1, the momentum of s, the constant 1


def mode_states(values: Tensor, n: int, sgd: SGDConfig, times: tuple[float, ...], *, decay: bool) -> Tensor:
    """Return the state of each eigenmode after t steps, for unit sources.

    Args:
        values: (N,) eigenvalues κ >= 0.
        n: training rows, over which the loss is a mean.
        sgd: the optimizer.
        times: S whole numbers of steps, or infinity.
        decay: compute the second source, which matters only with weight decay; otherwise it is 0.

    Returns:
        (S, N, 5, 2): the state (a, b, s − 1, p, 1) for the sources (r, φ) = (1, 0) and (0, 1), where r is the mode of
        f_0 − y and φ that of J w_0. The gradient is g = (κ a + r + φ (s − 1)) / n + λ a.
    """
    sources = (0, 1) if decay else (0,)
    finite_times = [int(t) for t in times if t != math.inf]
    initial = values.new_zeros(len(values), 5, 2)
    initial[:, ONE] = 1
    states = values.new_zeros(len(times), len(values), 5, 2)
    for source in sources:
        first_step = _step(values, n, sgd, source, first=True)
        squares = [_step(values, n, sgd, source, first=False)]  # D of 1, 2, 4, 8, ... steps
        for _ in range(max(finite_times, default=0).bit_length()):
            squares.append(2 * squares[-1] + squares[-1] @ squares[-1])
        state_0 = initial[:, :, source]
        state_1 = state_0 + _times(first_step, state_0)
        for index, t in enumerate(times):
            if t == math.inf:
                states[index, :, :, source] = _limit(values, n, sgd, source)
                continue
            state = state_0 if t == 0 else state_1
            for bit, square in enumerate(squares):
                if t > 0 and (int(t) - 1) >> bit & 1:
                    state = state + _times(square, state)
            states[index, :, :, source] = state
    if not decay:
        states[..., 1] = 0
    return states


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector[:, :, None])[:, :, 0]


def _step(values: Tensor, n: int, sgd: SGDConfig, source: int, *, first: bool) -> Tensor:
    """Return D of one step, (N, 5, 5). torch does not dampen the first gradient, and nothing without momentum."""
    h, mu, decay = sgd.lr, sgd.momentum, sgd.weight_decay
    undamped = 1.0 if first or mu == 0 else 1 - sgd.dampening
    gradient = values.new_zeros(len(values), 2, 5)  # with respect to the coefficient, and to s
    gradient[:, 0, A] = values / n + decay
    gradient[:, 0, ONE] = (1 - source) / n
    gradient[:, 0, E] = source / n
    gradient[:, 1, E] = gradient[:, 1, ONE] = decay
    D = values.new_zeros(len(values), 5, 5)
    for row, (position, buffer) in enumerate(((A, B), (E, P))):
        D[:, buffer] = undamped * gradient[:, row]
        D[:, buffer, buffer] += mu - 1
        new_buffer = D[:, buffer].clone()
        new_buffer[:, buffer] += 1
        D[:, position] = -h * (gradient[:, row] + mu * new_buffer if sgd.nesterov else new_buffer)
    return D


def _limit(values: Tensor, n: int, sgd: SGDConfig, source: int) -> Tensor:
    """Return the state with zero gradient; directions without curvature keep coefficient 0."""
    decay = sgd.weight_decay
    drive = 1.0 if source == 0 else (-1.0 if decay > 0 else 0.0)
    curvature = values + n * decay
    state = values.new_zeros(len(values), 5)
    state[:, A] = torch.where(curvature > 0, -drive / torch.where(curvature > 0, curvature, 1.0), 0.0)
    state[:, E] = -1.0 if decay > 0 else 0.0
    state[:, ONE] = 1
    return state
