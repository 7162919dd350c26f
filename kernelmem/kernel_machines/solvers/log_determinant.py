"""The log-determinant of K + ridge I from products alone, with an interval: stochastic Lanczos quadrature."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernelmem.core.checks import seed_sequence
from kernelmem.core.errors import InputError, NumericalError
from kernelmem.kernel_machines.solvers.linear_system import EPS, System, as_system

__all__ = ["LogDeterminant", "log_determinant"]


@dataclass(frozen=True)
class LogDeterminant:
    """An estimate of log det (K + ridge I) and the interval that it lies in.

    Attributes:
        value: middle of the two quadratures, averaged over the probes.
        se: standard error over the probes, 0 where they span the whole space.
        low: lower end: mean of the lower quadratures, less 2 se and the rounding.
        high: upper end: mean of the upper quadratures, plus 2 se and the rounding.
        quadrature_gap: mean distance of the upper and the lower quadrature: what more steps would close.
        probes: number of random vectors.
        steps: Lanczos steps of each.
        rounding: n eps λ_max / ridge, how far rounding of the products may move the smallest eigenvalues' logarithms.
    """

    value: float
    se: float
    low: float
    high: float
    quadrature_gap: float
    probes: int
    steps: int
    rounding: float


def log_determinant(kernel: Any, ridge: float, *, probes: int = 30, steps: int = 60, seed: int) -> LogDeterminant:
    """Estimate log det (K + ridge I) = tr log (K + ridge I) for a positive semidefinite K, by products with K alone.

    n zᵀ log(A) z of unit random z has this mean. Each is bracketed by two quadratures of the Lanczos matrix: Gauss from
    above, Gauss-Radau with a node at the ridge, below which A has no eigenvalue, from below; the interval adds twice the
    standard error over the probes, about 95 %. With ``probes >= n`` the probes are an orthonormal basis, the estimate is
    the trace itself, and the interval is that of the quadratures.

    Args:
        kernel: (n, n) tensor, array, memory-mapped array, NTKOperator or SciPy LinearOperator.
        ridge: what is added to the diagonal, > 0.
        probes: random vectors, >= 2.
        steps: Lanczos steps, >= 1; their vectors are orthogonalized twice against all before.
        seed: of the probes.

    Raises:
        InputError: ridge not > 0; probes < 2; steps < 1.
        NumericalError: an eigenvalue below 0 beyond rounding was met, where the bracket does not hold.

    Cost: probes x steps products with one vector (a block of probes shares each pass), probes · steps · n numbers.

    Source: Ubaru, Chen, Saad 2017; bounds: Golub and Meurant 1994.

    >>> import math
    >>> K = torch.diag(torch.tensor([1.0, 2.0, 3.0]))
    >>> found = log_determinant(K, 1.0, probes=3, seed=0)
    >>> round(found.value, 9), found.low <= math.log(2 * 3 * 4) <= found.high
    (3.17805383, True)
    """
    if not 0 < ridge < torch.inf or probes < 2 or steps < 1:
        raise InputError(
            f"ridge {ridge!r}, probes {probes!r}, steps {steps!r}",
            expected="ridge > 0, at least 2 probes and 1 step",
            do="pass ridge=1e-3, probes=30, steps=60",
        )
    system = as_system(kernel)
    n = system.n
    generator = torch.Generator().manual_seed(seed_sequence(seed, ["probes"])["probes"])
    exact = probes >= n
    if exact:
        z = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q
    else:
        z = torch.randint(0, 2, (n, probes), generator=generator).to(torch.float64) * 2 - 1
        z /= n**0.5
    pairs, largest = _brackets(system, z.to(system.device), ridge, min(steps, n))
    rounding = n * (system.eps if system.matrix_free else EPS) * max(1.0, largest / ridge)
    weight = 1.0 if exact else float(n)
    low, high = weight * pairs[:, 0], weight * pairs[:, 1]
    middle = (low + high) / 2
    if exact:
        least, most = float(low.sum()) - rounding, float(high.sum()) + rounding
        gap = float((high - low).sum())
        return LogDeterminant(float(middle.sum()), 0.0, least, most, gap, n, min(steps, n), rounding)
    se = float(middle.std() / probes**0.5)
    gap = float((high - low).mean())
    least, most = float(low.mean()) - 2 * se - rounding, float(high.mean()) + 2 * se + rounding
    return LogDeterminant(float(middle.mean()), se, least, most, gap, probes, min(steps, n), rounding)


def _brackets(system: System, z: Tensor, ridge: float, steps: int) -> tuple[Tensor, float]:
    """Lower and upper quadrature of zᵀ log(A) z of each column, (probes, 2), and about the largest eigenvalue."""
    n, k = z.shape
    basis = torch.zeros(steps, n, k, dtype=torch.float64, device=z.device)
    main = torch.zeros(k, steps, dtype=torch.float64)
    beside = torch.zeros(k, steps, dtype=torch.float64)
    length = torch.full((k,), steps)
    v = z
    for j in range(steps):
        basis[j] = v
        w = system @ v + ridge * v
        main[:, j] = (v * w).sum(0).cpu()
        for _ in range(2):
            w = w - torch.einsum("jnk,jk->nk", basis[: j + 1], torch.einsum("jnk,nk->jk", basis[: j + 1], w))
        norms = w.norm(dim=0)
        # A residual at the level of rounding: the Krylov space is exhausted and the quadrature is exact.
        scale = main[:, : j + 1].abs().amax(1).to(z.device)
        ended = norms <= 10 * n * system.eps * scale
        length = torch.where(ended.cpu() & (length == steps), torch.tensor(j + 1), length)
        beside[:, j] = torch.where(ended, torch.zeros_like(norms), norms).cpu()
        v = torch.where(ended, torch.zeros_like(w), w / norms.clamp_min(torch.finfo(torch.float64).tiny))
    largest = float(main.max()) + 2 * float(beside.max())
    return torch.stack([_bracket(main[i], beside[i], int(length[i]), ridge) for i in range(k)]), largest


def _bracket(main: Tensor, beside: Tensor, steps: int, ridge: float) -> Tensor:
    T = torch.diag(main[:steps]) + torch.diag(beside[: steps - 1], 1) + torch.diag(beside[: steps - 1], -1)
    upper, least = _quadrature(T)
    if least < ridge * (1 - 1e-6) - steps * torch.finfo(torch.float64).eps * float(main.abs().max()):
        raise NumericalError(
            f"a kernel with an eigenvalue of at most {least - ridge:.3g}",
            expected="a positive semidefinite one: the interval rests on it",
            do="compute the kernel in float64, or raise the ridge above its rounding",
        )
    last = float(beside[steps - 1])
    if last == 0:
        return torch.stack([upper, upper])
    # Gauss-Radau: the last diagonal entry that puts an eigenvalue at the ridge.
    unit = torch.zeros(steps, dtype=torch.float64)
    unit[-1] = last**2
    shifted = T - ridge * (1 - 1e-9) * torch.eye(steps, dtype=torch.float64)
    node = ridge * (1 - 1e-9) + float(torch.linalg.solve(shifted, unit)[-1])
    extended = torch.zeros(steps + 1, steps + 1, dtype=torch.float64)
    extended[:steps, :steps] = T
    extended[steps - 1, steps] = extended[steps, steps - 1] = last
    extended[steps, steps] = node
    lower, _ = _quadrature(extended)
    return torch.stack([torch.minimum(lower, upper), upper])


def _quadrature(T: Tensor) -> tuple[Tensor, float]:
    values, vectors = torch.linalg.eigh(T)
    floor = torch.finfo(torch.float64).tiny
    return (vectors[0].square() * values.clamp_min(floor).log()).sum(), float(values[0])
