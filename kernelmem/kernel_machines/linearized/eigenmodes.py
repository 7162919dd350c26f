"""Powers of the affine map by which one eigenvalue of a kernel is trained, kept as their difference from the identity.

(I + D)² = I + (2 D + D²): with D in place of I + D, slow modes (D of 1e-12) keep their digits over millions of steps.
"""

import math

import torch
from torch import Tensor

from kernelmem.kernel_machines.linearized.sgd_config import SGDConfig

__all__ = ["A", "B", "E", "P", "solution"]

A, B, E, P, ONE = range(5)  # coefficient, its momentum, s − 1, the momentum of s, the constant


def solution(values: Tensor, n: int, descent: SGDConfig, moments: tuple[float, ...], *, pulled: bool) -> Tensor:
    """Coefficient of each mode after t steps, by unit gradients, and s − 1.

    Args:
        values: (N,) eigenvalues κ >= 0.
        n: training rows, over which the loss is a mean.
        descent: the optimizer.
        moments: whole numbers, or infinity.
        pulled: whether the second of the two sources below is wanted.

    Returns:
        (S, N, 5, 2): the state (a, b, s − 1, p, 1) for the sources (r, φ) = (1, 0) and (0, 1), where r is the mode of
        f_0 − y and φ that of J w_0: g = (κ a + r + φ (s−1)) / n + λ a.
    """
    sources = (0, 1) if pulled else (0,)
    finite = [int(t) for t in moments if t != math.inf]
    state = values.new_zeros(len(values), 5, 2)
    state[:, ONE] = 1
    found = values.new_zeros(len(moments), len(values), 5, 2)
    for source in sources:
        first = _step(values, n, descent, source, first=True)
        squares = [_step(values, n, descent, source, first=False)]
        for _ in range(max(finite, default=0).bit_length()):
            squares.append(2 * squares[-1] + squares[-1] @ squares[-1])
        start = state[:, :, source]
        begun = start + _times(first, start)
        for index, t in enumerate(moments):
            if t == math.inf:
                found[index, :, :, source] = _limit(values, n, descent, source)
                continue
            own = start if t == 0 else begun
            for bit, square in enumerate(squares):
                if t > 0 and (int(t) - 1) >> bit & 1:
                    own = own + _times(square, own)
            found[index, :, :, source] = own
    if not pulled:
        found[..., 1] = 0
    return found


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector[:, :, None])[:, :, 0]


def _step(values: Tensor, n: int, descent: SGDConfig, source: int, *, first: bool) -> Tensor:
    """D of one step: (N, 5, 5). torch does not dampen the first gradient, and nothing where there is no momentum."""
    h, mu, decay = descent.lr, descent.momentum, descent.weight_decay
    taken = 1.0 if first or mu == 0 else 1 - descent.dampening
    gradient = values.new_zeros(len(values), 2, 5)  # of the coefficient, and of s
    gradient[:, 0, A] = values / n + decay
    gradient[:, 0, ONE] = (1 - source) / n
    gradient[:, 0, E] = source / n
    gradient[:, 1, E] = gradient[:, 1, ONE] = decay
    D = values.new_zeros(len(values), 5, 5)
    for row, (position, buffer) in enumerate(((A, B), (E, P))):
        D[:, buffer] = taken * gradient[:, row]
        D[:, buffer, buffer] += mu - 1
        after = D[:, buffer].clone()
        after[:, buffer] += 1
        D[:, position] = -h * (gradient[:, row] + mu * after if descent.nesterov else after)
    return D


def _limit(values: Tensor, n: int, descent: SGDConfig, source: int) -> Tensor:
    """Where the gradient is zero; directions without curvature keep no coefficient."""
    decay = descent.weight_decay
    drive = 1.0 if source == 0 else (-1.0 if decay > 0 else 0.0)
    curvature = values + n * decay
    state = values.new_zeros(len(values), 5)
    state[:, A] = torch.where(curvature > 0, -drive / torch.where(curvature > 0, curvature, 1.0), 0.0)
    state[:, E] = -1.0 if decay > 0 else 0.0
    state[:, ONE] = 1
    return state
