"""Results of the theory package: saved and loaded, printed on one screen, as tables."""

import math

import numpy as np
import pytest
import torch

from kernelmem.core.errors import FileCorruptError
from kernelmem.double_descent.theory import (
    Curve,
    RiskEstimate,
    Simulation,
    SpectralTask,
    estimate_risk,
    flip_noise,
    gaussian_features_curve,
    learning_curve,
    pool_task,
    population_task,
    simulate_isotropic,
)

SQUARES = np.arange(1.0, 61) ** -1.5


def check_text(result, word):
    assert repr(result) == str(result)
    assert word in str(result)
    assert len(str(result).splitlines()) <= 40
    assert "tensor(" not in str(result)
    assert "<table" in result._repr_html_()


def test_a_curve(tmp_path):
    curve = gaussian_features_curve(np.arange(1, 61), n=20, power=SQUARES, noise=0.5)
    loaded = Curve.load(curve.save(tmp_path / "curve"))
    assert torch.equal(loaded.test, curve.test)
    assert torch.equal(loaded.train, curve.train)
    assert loaded.clean is None
    assert str(loaded) == str(curve)
    check_text(curve, "interpolation threshold: features p = 20")
    assert "26 of 60 values" in str(curve)
    assert float(str(curve).splitlines()[-2].split()[0]) == 60
    assert "inf" in str(curve)  # at p = 20, which evenly spaced values miss


def test_a_curve_with_flipped_labels(tmp_path):
    task = population_task(SQUARES, SQUARES)
    curve = learning_curve(task, [5, 20, 40], ridge=0.1, noise=flip_noise(0.2, 10))
    loaded = Curve.load(curve.save(tmp_path / "curve"))
    assert torch.equal(loaded.clean, curve.clean)
    assert list(curve.to_frame().columns) == ["test", "excess", "train", "clean"]
    check_text(curve, "asymptotic")
    assert "values; all:" not in str(curve)


def test_a_simulation(tmp_path):
    simulation = simulate_isotropic([0.5, 2.0], n=10, signal=1, noise=0.1, repetitions=3)
    loaded = Simulation.load(simulation.save(tmp_path / "simulation"))
    assert torch.equal(loaded.mean, simulation.mean)
    assert torch.equal(loaded.theory.test, simulation.theory.test)
    assert loaded.theory.name == simulation.theory.name
    assert loaded.seed == 0
    check_text(simulation, "3 draws")
    with pytest.raises(FileCorruptError, match="Curve 1"):
        Curve.load(tmp_path / "simulation")


def test_a_risk_estimate(tmp_path):
    estimate = estimate_risk(np.eye(5) + 0.1, np.arange(5.0), ridge=0.1)
    loaded = RiskEstimate.load(estimate.save(tmp_path / "estimate"))
    assert loaded.gcv == estimate.gcv
    assert math.isclose(estimate.to_frame()["leave_one_out"][0], estimate.leave_one_out)
    check_text(estimate, "leave-one-out")


def test_a_spectral_task(tmp_path):
    for task in (population_task(SQUARES, SQUARES), pool_task(np.diag(SQUARES), np.arange(60.0))):
        loaded = SpectralTask.load(task.save(tmp_path / "task"))
        assert torch.equal(loaded.eigenvalues, task.eigenvalues)
        assert loaded.pool == task.pool
        frame = task.to_frame()
        assert frame["eigenvalue"].is_monotonic_decreasing
        assert math.isclose(frame["power"].sum(), float(task.power.sum()))
        check_text(task, "60 positive eigenvalues, 1 to")
