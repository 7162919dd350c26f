"""experiments/benchmarks/machines: all engines solve the same system; counts of detected invalid systems."""

import json
from pathlib import Path

import numpy as np
import pytest

from experiments.benchmarks.machines import direct, noticed, streamed
from experiments.benchmarks.machines.configs import RIDGE
from kernelmem.testing.kernels import INVALID_KINDS, SOLVABLE_KINDS

RESULTS = Path(direct.__file__).with_name("results.json")


def test_the_kernel_of_the_file_is_that_of_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(streamed, "BLOCK", 17)
    streamed.write(tmp_path / "K.npy", 50)
    K = direct.kernel_of_rows(50)
    assert np.abs(np.load(tmp_path / "K.npy") - K).max() < 1e-6
    assert np.allclose(K.diagonal(), 1)
    assert np.linalg.eigvalsh((K + K.T) / 2)[0] > 0
    found = streamed.measure(tmp_path / "K.npy")
    assert found["code"] == "solved"


def test_engines_agree():
    K = direct.kernel_of_rows(40)
    K = (K + K.T) / 2
    y = np.random.default_rng(1).standard_normal((40, 3))
    A = K + RIDGE * np.eye(40)
    want = np.linalg.solve(A, y)
    for name in ("kernelmem solve", "kernelmem KernelMachineRegressor", "scikit-learn KernelRidge"):
        got = direct.ENGINES[name](K, A, y)
        dual = got.coefficients.numpy() if hasattr(got, "coefficients") else got.dual_coef_
        assert np.allclose(dual, want, atol=1e-9)
    assert np.allclose(direct.ENGINES["scipy.linalg.cho_solve"](K, A, y), want, atol=1e-9)
    left_out = direct.ENGINES["kernelmem leave_one_out"](K, A, y).predictions.numpy()
    assert np.allclose(direct.ENGINES["leave-one-out by scipy.linalg.inv"](K, A, y), left_out, atol=1e-9)


@pytest.mark.parametrize("library", list(noticed.LIBRARIES))
def test_counts_are_of_every_kind(library, monkeypatch):
    monkeypatch.setattr(noticed, "SYSTEMS", 3)
    counts = noticed.count(library)
    assert list(counts) == [*INVALID_KINDS, *SOLVABLE_KINDS]
    assert all(0 <= value <= 3 for value in counts.values())
    if library.startswith("kernelmem"):
        assert set(counts.values()) == {3}


def test_the_committed_figures_are_whole():
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert set(results["noticed"]["kernelmem KernelMachineRegressor"].values()) == {50}
    assert results["streamed"]["residual"] <= 1e-6
    assert set(results["direct"]["10000"]) >= set(direct.ENGINES)
