"""Curves and simulations as values: tables, plots, generators."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from kernelmem.core.errors import InputError
from kernelmem.double_descent.argument_checks import spawn_generators
from kernelmem.double_descent.theory import (
    Curve,
    gaussian_features_curve,
    gradient_flow_curve,
    isotropic_curve,
    simulate,
    simulate_gaussian_features,
    superposition_curve,
)
from kernelmem.double_descent.theory.curve import RCOND, least_squares

SHIFT = np.array([2.5, 3.0, 4.0])


def test_a_curve_is_a_table():
    curve = gaussian_features_curve([5, 20, 60], n=20, power=[0.02] * 60, noise=0.5)
    frame = curve.to_frame()
    assert list(frame.columns) == ["test", "excess", "train"]
    assert frame.index.name == "features p"
    assert np.array_equal(frame["test"], curve.test)
    assert math.isclose(frame["excess"][5], float(curve.test[0]) - 0.5)
    with pytest.raises(InputError, match="axis"):
        Curve("a", "b", torch.ones(2), torch.ones(3), 0.0, True, "c")


def test_plots_show_the_values():
    curve = gaussian_features_curve([5, 20, 60], n=20, power=[0.02] * 60, noise=0.5)
    lines = {line.get_label(): line for line in curve.plot().axes[0].lines}
    shown = lines["new rows"].get_ydata()
    assert np.isnan(shown[1])
    assert math.isclose(shown[0], float(curve.test[0]))
    assert lines["threshold"].get_xdata()[0] == 20
    assert np.isnan(lines["training rows"].get_ydata()[2])
    simulated = simulate_gaussian_features([5, 10], n=20, power=[0.02] * 60, noise=0.5, repetitions=5)
    axes = simulated.plot().axes[0]
    assert any("5 draws" in text.get_text() for text in axes.get_legend().get_texts())
    for other in (
        gradient_flow_curve([0, 1, 2], ratio=2, signal=1, noise=1),
        superposition_curve([1, 2], scales=[1.0], coefficients=[1.0], n=5, noise=1, lr=0.1),
        isotropic_curve([1.0], signal=1, noise=1),
    ):
        other.plot().canvas.draw()
    assert "exact" in curve.plot().axes[0].get_title(loc="left")


def test_simulated_means_errors_and_scores():
    theory = isotropic_curve([0.5, 1.0, 2.0], signal=1, noise=1)
    draws = []

    def draw(rng):
        draws.append(rng.standard_normal(3) + SHIFT)
        return draws[-1]

    got = simulate(theory, draw, repetitions=9, seed=4)
    table = np.stack(draws)
    assert np.allclose(got.mean, table.mean(0))
    assert np.allclose(got.se, table.std(0, ddof=1) / 3)
    assert math.isclose(float(got.z[0]), (table[:, 0].mean() - 2.0) / float(got.se[0]), rel_tol=1e-9)
    assert torch.isnan(got.z[1])
    assert math.isclose(float(got.relative[2]), 2.5 / table[:, 2].mean() - 1, rel_tol=1e-9)
    assert list(got.to_frame().columns) == ["theory", "mean", "se", "z"]
    assert "9 draws" in str(got)
    again = simulate(theory, lambda rng: rng.standard_normal(3) + SHIFT, repetitions=9, seed=4)
    assert torch.equal(again.mean, got.mean)
    assert got.seed == 4
    assert torch.equal(got.axis, theory.axis)


def test_more_repetitions_only_add_draws():
    few, many = (np.stack([rng.standard_normal(2) for rng in spawn_generators(3, k)]) for k in (2, 5))
    assert np.array_equal(few, many[:2])
    assert not np.array_equal(
        spawn_generators(3, 1)[0].standard_normal(2), spawn_generators(4, 1)[0].standard_normal(2)
    )


def test_least_squares_is_ridge_and_of_least_norm():
    rng = np.random.default_rng(0)
    for shape in ((5, 9), (9, 5)):
        X, Y = rng.standard_normal(shape), rng.standard_normal((shape[0], 2))
        ridge = np.linalg.solve(X.T @ X + 0.3 * np.eye(shape[1]), X.T @ Y)
        assert np.allclose(least_squares(X, Y, 0.3), ridge)
        assert np.allclose(least_squares(X, Y), np.linalg.pinv(X, rcond=RCOND) @ Y)
        assert np.allclose(least_squares(X, Y[:, 0]), least_squares(X, Y)[:, 0])
    near = np.diag([1.0, 1e-10])
    assert np.allclose(least_squares(near, np.ones(2)), [1.0, 1e10])  # the peak is not cut off
    assert np.allclose(least_squares(np.diag([1.0, 1e-14]), np.ones(2)), [1.0, 0.0])


def test_importing_the_theory_is_light():
    heavy = ["pandas", "matplotlib", "sklearn", "scipy.stats", "jinja2"]
    code = f"import sys, kernelmem.double_descent.theory; sys.exit(any(name in sys.modules for name in {heavy!r}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
