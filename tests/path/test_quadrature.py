"""kernelmem.path.quadrature: exact where it must be, of the order that theory gives elsewhere."""

import math

import pytest

from kernelmem.path.quadrature import LEFT, ORDERS, gauss_legendre, panels


@pytest.mark.parametrize("n", ORDERS)
def test_exact_for_polynomials_of_degree_2n_minus_1(n):
    rule = gauss_legendre(n)
    for degree in range(2 * n):
        found = math.fsum(w * s**degree for s, w in zip(rule.nodes, rule.weights, strict=True))
        assert abs(found - 1 / (degree + 1)) < 1e-15
    beyond = math.fsum(w * s ** (2 * n) for s, w in zip(rule.nodes, rule.weights, strict=True))
    # The error of s^2n is (n!)^4 / ((2n + 1) ((2n)!)^2).
    error = math.factorial(n) ** 4 / ((2 * n + 1) * math.factorial(2 * n) ** 2)
    assert abs(1 / (2 * n + 1) - beyond - error) < 1e-15


def test_panels_are_exact_on_each_side_of_a_kink():
    rule = panels([0.0, 0.3, 1.0], 2)
    found = math.fsum(w * abs(s - 0.3) ** 3 for s, w in zip(rule.nodes, rule.weights, strict=True))
    assert abs(found - (0.3**4 + 0.7**4) / 4) < 1e-15
    assert abs(math.fsum(rule.weights) - 1) < 1e-15
    assert LEFT.nodes == (0.0,)
