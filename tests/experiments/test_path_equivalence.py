"""The experiment on path equivalence: its parts, held against closed forms on networks of a few steps."""

import copy
import json

import matplotlib as mpl
import pytest
import torch
from torch import nn

from experiments.path_equivalence import figure, machines, quadrature
from experiments.path_equivalence.configs import N_TRAIN, STEPS
from experiments.path_equivalence.run import EXPECTED, table
from experiments.path_equivalence.training import Scaled, problem, recorded, trained


def linear():
    own = problem(0, nn.Tanh)
    torch.manual_seed(0)
    return type(own)(own.x, own.y, own.x_test, own.y_test, nn.Sequential(nn.Linear(64, 10).double()))


def test_of_a_linear_network_every_rule_is_exact():
    found = quadrature.residuals(linear(), trained(linear(), 0.05, 4))
    assert found.pop("change") > 1e-2
    assert max(found.values()) < 1e-13


@pytest.mark.soak
def test_frozen_kernel_descent_and_ridge_are_a_linear_network():
    own = linear()
    model = Scaled(own.network, 2.0)
    with recorded(own, model, 0.01, 12) as run:
        found = machines._of_run(own, model, run)
    errors = found["errors"]
    assert tuple(errors) == machines.MACHINES
    for name in ("SGD with the initial kernel", "SGD with the final kernel", "first-order ledger", "exact ledger"):
        assert errors[name] < 1e-12, name
    assert errors["SGD with the mean path kernel"] < 1e-12
    assert errors["Domingos, constant coefficients"] < 1e-12
    assert errors["ridge on outputs, path kernel"] < 1e-3
    assert errors["null: path kernel, outputs permuted"] > 0.5
    assert found["movement"] < 1e-14
    largest = float(torch.linalg.eigvalsh(4 * (own.x @ own.x.T + 1))[-1])
    assert found["stability"]["initial"] == pytest.approx(0.01 * largest / N_TRAIN, rel=1e-9)


@pytest.mark.soak
def test_exact_ledgers_leave_the_network_as_it_was():
    own = problem(0, nn.ReLU)
    before = own.network[0].weight.clone()
    assert quadrature.exact(own, 4) < 1e-12
    assert torch.equal(own.network[0].weight, before)


def test_scaled_networks_start_at_zero_and_own_no_second_set_of_weights():
    own = problem(1, nn.ReLU)
    model = Scaled(copy.deepcopy(own.network), 16.0)
    assert float(model(own.x).detach().abs().max()) == 0.0
    assert sum(p.requires_grad for p in model.parameters()) == 6


@pytest.mark.parametrize(("power", "rule"), [(1, "left"), (4, "GL2")])
def test_orders_are_slopes_above_rounding(power, rule):
    lines = [
        {"activation": "tanh", "seed": s, "rule": rule, "steps": n, "residual": 1e-4 * (50 / n) ** power}
        for s in (0, 1)
        for n in STEPS
    ]
    found = quadrature.order_of(lines, "tanh", rule)
    assert (found["mean"], found["se"]) == (power, 0.0)
    assert quadrature.order_of([line | {"residual": 1e-15} for line in lines], "tanh", rule) is None


@pytest.mark.soak
def test_the_committed_results_hold_what_is_claimed():
    results = json.loads(EXPECTED.read_text(encoding="utf-8"))
    assert "committed" in table(results)
    for activation in ("tanh", "gelu"):
        for rule, found in results["orders"][activation].items():
            assert found is None or found["mean"] > found["expected"] - 0.1, (activation, rule)
    assert max(v for values in results["residuals"]["relu"]["event split"].values() for v in values) < 1e-12
    for own in results["machines"].values():
        errors = own["errors"]
        assert max(errors["exact ledger"]["values"]) < 1e-11
        assert errors["ridge on outputs, path kernel"]["mean"] < errors["ridge on outputs, initial kernel"]["mean"]
        assert min(errors["null: path kernel, outputs permuted"]["values"]) > 0.5
    rich = {name: own["mean"] for name, own in results["machines"]["rich"]["errors"].items()}
    fitted = [rich[f"ridge on outputs, {kernel} kernel"] for kernel in ("path", "final", "initial")]
    assert fitted == sorted(fitted)
    frozen = rich["Domingos, constant coefficients"]
    assert frozen == max(value for name, value in rich.items() if not name.startswith("null"))
    with mpl.rc_context():
        assert set(figure.files("rules", figure.draw_rules(results))) == {"rules.svg", "rules.png"}
        assert figure.files("machines", figure.draw_machines(results))["machines.png"]
