"""Gauss-Legendre rules on [0, 1]: the mean of a tangent along one step of the weights.

With n nodes a rule is exact for polynomials of degree 2n − 1; for a smooth function of a step of length h its error is
O(h^{2n+1}) a step, O(h^{2n}) over a run of fixed length. Between two kinks, a network that is piecewise linear in its
inputs is a polynomial of the step, of its number of weight layers.

Source: Gauss 1814; nodes from NumPy (Golub and Welsch 1969).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np

__all__ = ["LEFT", "MOST_NODES", "ORDERS", "Rule", "gauss_legendre", "panels"]

ORDERS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)  # nodes, from which the certificate chooses
MOST_NODES = 32  # on a panel, that may be asked for


@dataclass(frozen=True)
class Rule:
    """Nodes in [0, 1], and weights that sum to 1."""

    nodes: tuple[float, ...]
    weights: tuple[float, ...]


LEFT = Rule((0.0,), (1.0,))  # the tangent at the start of a step: TracIn, the telescoped linearization


@cache
def gauss_legendre(n: int) -> Rule:
    """The rule with n nodes.

    >>> gauss_legendre(1)
    Rule(nodes=(0.5,), weights=(1.0,))
    >>> rule = gauss_legendre(3)
    >>> round(sum(w * s**5 for s, w in zip(rule.nodes, rule.weights)), 12)  # the mean of s^5 on [0, 1] is 1/6
    0.166666666667
    """
    nodes, weights = np.polynomial.legendre.leggauss(n)
    return Rule(tuple(float(0.5 * (node + 1)) for node in nodes), tuple(float(0.5 * weight) for weight in weights))


def panels(edges: Sequence[float], n: int) -> Rule:
    """One rule with n nodes on each panel between edges 0 = e_0 < e_1 < ... = 1.

    >>> panels([0.0, 0.5, 1.0], 1)
    Rule(nodes=(0.25, 0.75), weights=(0.5, 0.5))
    """
    rule, nodes, weights = gauss_legendre(n), [], []
    for start, stop in pairwise(edges):
        nodes += [start + (stop - start) * node for node in rule.nodes]
        weights += [(stop - start) * weight for weight in rule.weights]
    return Rule(tuple(nodes), tuple(weights))
