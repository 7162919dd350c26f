"""Gauss-Legendre rules on [0, 1], for the mean of a tangent along one step of the weights.

With n nodes a rule is exact for polynomials of degree 2n − 1. For a smooth function of a step of length h its error is
O(h^{2n+1}) per step, O(h^{2n}) over a run of fixed length. Between two kinks, a network that is piecewise linear in its
inputs is a polynomial of the step whose degree is the number of weight layers.

Source: Gauss 1814; nodes from NumPy (Golub and Welsch 1969).
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

from kernelmem.core.checks import as_count, as_number

NODE_COUNTS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)  # tried by the adaptive quadrature
MAX_NODES = 32  # per panel


@dataclass(frozen=True)
class Quadrature:
    """Accuracy of the integrals along the steps.

    Raises:
        InputError: a negative or infinite ``tolerance``; ``n_nodes`` outside 1..32.
    """

    n_nodes: int | None = None
    """Gauss-Legendre nodes per panel at the start, 1..32; None: as many as the steps before needed. More are used where the
    residual exceeds the tolerance."""
    tolerance: float = 1e-12
    """Largest residual of the whole run. The quadrature is refined until every step has at most its share of it or is down
    to rounding (0: always down to rounding)."""

    def __post_init__(self) -> None:
        as_number(self.tolerance, "tolerance")
        if self.n_nodes is not None:
            as_count(self.n_nodes, "n_nodes", maximum=MAX_NODES)


DEFAULT_QUADRATURE = Quadrature()


@dataclass(frozen=True)
class QuadratureRule:
    """Nodes in [0, 1], and weights that sum to 1."""

    nodes: tuple[float, ...]
    weights: tuple[float, ...]


def gauss_legendre(n: int) -> QuadratureRule:
    """Return the rule with n nodes.

    Raises:
        InputError: n outside 1..100.

    >>> gauss_legendre(1)
    QuadratureRule(nodes=(0.5,), weights=(1.0,))
    >>> rule = gauss_legendre(3)
    >>> round(sum(w * s**5 for s, w in zip(rule.nodes, rule.weights)), 12)  # the mean of s^5 on [0, 1] is 1/6
    0.166666666667
    """
    return _gauss_legendre(as_count(n, "n", maximum=100))


@cache
def _gauss_legendre(n: int) -> QuadratureRule:
    nodes, weights = np.polynomial.legendre.leggauss(n)
    return QuadratureRule(
        tuple(float(0.5 * (node + 1)) for node in nodes), tuple(float(0.5 * weight) for weight in weights)
    )
