"""Gauss-Legendre rules: exactness and errors by theory; schedule of the number of nodes."""

import math
from itertools import pairwise

import pytest

from kernelmem.trajectory.integration.node_schedule import NodeSchedule
from kernelmem.trajectory.integration.quadrature import NODE_COUNTS, gauss_legendre
from kernelmem.trajectory.integration.step_integral import nodes_on


@pytest.mark.parametrize("n", NODE_COUNTS)
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
    nodes = nodes_on([((0, -1, 0.0, 0.3), 2), ((0, -1, 0.3, 1.0), 2)], 1, 1)
    places, weights = nodes.by_row[0, -1]
    found = math.fsum(w * abs(s - 0.3) ** 3 for s, w in zip(places, weights, strict=True))
    assert abs(found - (0.3**4 + 0.7**4) / 4) < 1e-15
    assert abs(math.fsum(weights) - 1) < 1e-15
    assert nodes.evaluations.tolist() == [4]


def tried(needed):
    """The orders that are tried, step by step, where these are needed."""
    schedule, order, found = NodeSchedule(), 3, []
    for need in needed:
        found.append(order)
        order = schedule.next_count(order, max(order, need))
    return found


def test_fewer_nodes_are_tried_less_often_after_failures():
    found = tried([3] * 2000)
    failures = [t for t, order in enumerate(found) if order < 3]
    assert set(found) == {2, 3}
    assert 6 <= len(failures) <= 12  # after 8, 16, 32, ..., 512, 512 steps that went well
    gaps = [b - a for a, b in pairwise(failures)]
    assert gaps == sorted(gaps)
    assert 500 <= max(gaps) <= 514


def test_number_of_nodes_follows_the_need():
    found = tried([16] * 10 + [1] * 60 + [4] * 5)
    assert 16 in found[:4]
    assert found[69] == 1
    assert min(found) == 1
    assert found[71] == 4


def test_large_numbers_of_nodes_are_lowered_at_every_success():
    assert tried([16, 1, 1, 1, 1, 1, 1, 1])[1:] == [16, 12, 9, 7, 6, 5, 4]


def test_a_success_with_fewer_nodes_resets_the_wait():
    schedule = NodeSchedule(wait=64, n_succeeded=63)
    assert schedule.next_count(3, 3) == 2  # a try with one node less
    assert schedule.fallback == 3
    assert schedule.next_count(2, 2) == 2  # which goes well
    assert (schedule.wait, schedule.fallback) == (8, None)
    assert [schedule.next_count(2, 2) for _ in range(7)] == [2] * 6 + [1]


def test_steps_of_one_pass_count_separately():
    schedule = NodeSchedule()
    assert [schedule.next_count(3, 3, 4), schedule.next_count(3, 3, 4)] == [3, 2]
