"""The membership experiment on few rows and models."""

import math

import pytest

from experiments.membership.run import ATTACKS, CELLS, CLAIM, RATIO, Cell, Options, claims, line, measure


def test_every_attack_is_measured_with_its_control():
    values = measure(Cell(noise=0.15, steps=5), 0, Options(seeds=1, n_train=1000, n_models=6))
    for attack in ATTACKS:
        assert 0.4 < values[f"{attack}_auc"] < 1
        assert values[f"{attack}_permuted_auc"] == pytest.approx(0.5, abs=0.06)
    assert "lira_tpr_0.001" not in values  # 3,000 non-members are too few
    assert math.isfinite(values[RATIO])


def test_claims_are_compared_with_the_results():
    metrics = {f"{a}_{k}": {"mean": 0.5, "min": 0.5} for a in ATTACKS for k in ("auc", "tpr_0.01", "permuted_auc")}
    cells = {cell.name: {**metrics, RATIO: {"min": CLAIM - 1}} for cell in CELLS}
    assert all(text.endswith("FAILS") for text in claims(cells))
    assert "lira 0.500 / 0.500" in line("noise", metrics)
