"""kernelmem.path.quadrature: exact where it must be, of the order that theory gives elsewhere."""

import math
from itertools import pairwise

import pytest

from kernelmem.path.pace import Pace
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
    assert (LEFT.nodes, LEFT.weights) == ((0.0,), (1.0,))


def tried(needed):
    """The orders that are tried, step by step, where these are needed."""
    pace, order, found = Pace(), 3, []
    for need in needed:
        found.append(order)
        order = pace.next(order, max(order, need))
    return found


def test_fewer_nodes_are_tried_more_rarely_where_that_fails():
    found = tried([3] * 400)
    failures = [t for t, order in enumerate(found) if order < 3]
    assert set(found) == {2, 3}
    assert 5 <= len(failures) <= 14  # after 1, 2, 4, ..., 64, 64 successes
    gaps = [b - a for a, b in pairwise(failures)]
    assert gaps == sorted(gaps)
    assert max(gaps) <= 66


def test_the_order_follows_what_is_needed_down_and_up():
    found = tried([16] * 10 + [1] * 20 + [4] * 5)
    assert 16 in found[:4]
    assert found[29] == 1
    assert min(found) == 1
    assert found[31] == 4
    assert tried([1] * 30)[-1] == 1


def test_a_fall_starts_the_waiting_anew():
    """After fewer nodes were enough, the next try comes at once."""
    found = tried([4] * 100 + [2] * 40)
    first = next(t for t in range(100, 140) if found[t] < 4)
    assert found[first : first + 2] == [3, 2]
    assert found[-1] <= 2
