"""Powers of the affine map that trains one eigenmode of a kernel, stored as differences from the identity.

(I + D)² = I + (2 D + D²): storing D instead of I + D lets slow modes (D of 1e-12) keep their digits over millions of steps.
"""

import math

import torch
from torch import Tensor

from kernelmem.kernel_machines.linearized.sgd_config import SGDConfig

A, B, E, P, ONE = range(5)  # state: coefficient a, its momentum b, s − 1, the momentum of s, the constant 1


def mode_states(eigenvalues: Tensor, n: int, sgd: SGDConfig, times: tuple[float, ...], *, with_decay: bool) -> Tensor:
    """Return the state of each eigenmode of the kernel after t optimizer steps, for unit sources.

    Args:
        eigenvalues: (N,) eigenvalues κ >= 0 of the kernel.
        n: number of training rows, over which the loss is a mean.
        sgd: hyperparameters of the optimizer.
        times: S times, each a whole number of steps or infinity.
        with_decay: True computes the second source, which matters only with weight decay; otherwise its states are 0.

    Returns:
        (S, N, 5, 2): the state (a, b, s − 1, p, 1) for the sources (r, φ) = (1, 0) and (0, 1), where r is the mode of
        f_0 − y and φ that of J w_0. The gradient is g = (κ a + r + φ (s − 1)) / n + λ a.
    """
    sources = (0, 1) if with_decay else (0,)
    finite_times = [int(t) for t in times if t != math.inf]
    initial_states = eigenvalues.new_zeros(len(eigenvalues), 5, 2)
    initial_states[:, ONE] = 1
    states = eigenvalues.new_zeros(len(times), len(eigenvalues), 5, 2)
    for source in sources:
        first_step = _step_increment(eigenvalues, n, sgd, source, first=True)
        binary_powers = [_step_increment(eigenvalues, n, sgd, source, first=False)]  # D of 1, 2, 4, 8, ... steps
        for _ in range(max(finite_times, default=0).bit_length()):
            binary_powers.append(2 * binary_powers[-1] + binary_powers[-1] @ binary_powers[-1])
        state_0 = initial_states[:, :, source]
        state_1 = state_0 + _multiply_by_mode(first_step, state_0)
        for time_index, t in enumerate(times):
            if t == math.inf:
                states[time_index, :, :, source] = _limit_state(eigenvalues, n, sgd, source)
                continue
            state = state_0 if t == 0 else state_1
            for bit, binary_power in enumerate(binary_powers):
                if t > 0 and (int(t) - 1) >> bit & 1:
                    state = state + _multiply_by_mode(binary_power, state)
            states[time_index, :, :, source] = state
    if not with_decay:
        states[..., 1] = 0
    return states


def _multiply_by_mode(matrix: Tensor, vector: Tensor) -> Tensor:
    """Return the products (N, 5) of ``matrix`` (N, 5, 5) and ``vector`` (N, 5), computed separately for each of N modes."""
    return (matrix @ vector[:, :, None])[:, :, 0]


def _step_increment(eigenvalues: Tensor, n: int, sgd: SGDConfig, source: int, *, first: bool) -> Tensor:
    """Return D (N, 5, 5) for N eigenmodes, where one optimizer step multiplies the state of a mode by I + D.

    ``source`` is 0 for the residual f_0 − y and 1 for J w_0. As in torch, dampening applies neither to the first gradient
    (``first``) nor without momentum.
    """
    lr, momentum, weight_decay = sgd.lr, sgd.momentum, sgd.weight_decay
    gradient_factor = 1.0 if first or momentum == 0 else 1 - sgd.dampening
    gradient = eigenvalues.new_zeros(len(eigenvalues), 2, 5)  # with respect to the coefficient, and to s
    gradient[:, 0, A] = eigenvalues / n + weight_decay
    gradient[:, 0, ONE] = (1 - source) / n
    gradient[:, 0, E] = source / n
    gradient[:, 1, E] = gradient[:, 1, ONE] = weight_decay
    D = eigenvalues.new_zeros(len(eigenvalues), 5, 5)
    for row, (position, buffer) in enumerate(((A, B), (E, P))):
        D[:, buffer] = gradient_factor * gradient[:, row]
        D[:, buffer, buffer] += momentum - 1
        new_buffer = D[:, buffer].clone()
        new_buffer[:, buffer] += 1
        D[:, position] = -lr * (gradient[:, row] + momentum * new_buffer if sgd.nesterov else new_buffer)
    return D


def _limit_state(eigenvalues: Tensor, n: int, sgd: SGDConfig, source: int) -> Tensor:
    """Return the state (N, 5) of N eigenmodes after infinitely many steps, where the gradient is zero.

    ``source`` is 0 for the residual f_0 − y and 1 for J w_0. Modes without curvature keep the coefficient 0.
    """
    weight_decay = sgd.weight_decay
    forcing = 1.0 if source == 0 else (-1.0 if weight_decay > 0 else 0.0)
    curvature = eigenvalues + n * weight_decay
    state = eigenvalues.new_zeros(len(eigenvalues), 5)
    state[:, A] = torch.where(curvature > 0, -forcing / torch.where(curvature > 0, curvature, 1.0), 0.0)
    state[:, E] = -1.0 if weight_decay > 0 else 0.0
    state[:, ONE] = 1
    return state
