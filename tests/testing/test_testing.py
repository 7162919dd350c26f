"""The test tools that users get: exports, systems of solvers, messages of failed assertions, random networks."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from torch import nn

from kernelmem.kernels.ntk import ntk
from kernelmem.testing import Inputs, assert_close, assert_exact, make_case, zoo_entries
from kernelmem.testing.kernels import (
    INVALID_KINDS,
    SOLVABLE_KINDS,
    invalid_system,
    kernel_with_spectrum,
    solvable_system,
)
from kernelmem.testing.strategies import linear_networks, networks
from tests.profiles import examples


def test_kernels_have_the_spectrum_that_was_asked_for():
    values = np.array([0.1, 1.0, 3.0])
    K = kernel_with_spectrum(values, np.random.default_rng(0))
    assert np.allclose(np.linalg.eigvalsh(K), values, atol=1e-14)
    assert np.array_equal(K, K.T)


@pytest.mark.parametrize("kind", SOLVABLE_KINDS)
def test_solvable_systems_are_symmetric_and_positive(kind):
    for seed in range(5):
        K, y, ridge = solvable_system(kind, seed)
        assert y.shape == (len(K), 2)
        assert np.linalg.eigvalsh(K + ridge * np.eye(len(K)))[0] > 0


@pytest.mark.parametrize("kind", INVALID_KINDS)
def test_invalid_systems_have_their_defect(kind):
    for seed in range(5):
        K, _, ridge = invalid_system(kind, seed)
        if kind == "nan":
            assert not np.isfinite(K).all()
        elif kind == "asymmetric":
            assert np.abs(K - K.T).max() >= 0.99e-4 * np.abs(K).max() / 2
        elif kind == "indefinite":
            assert (np.linalg.eigvalsh(K) < -ridge).sum() == 2
        else:
            assert np.linalg.cond(K) > 1e15


def test_failed_assertions_say_what_differs():
    with pytest.raises(AssertionError, match=r"trace: differs by 0\.5 of the scale, at most 0\.1 allowed"):
        assert_close(torch.tensor([1.5]), torch.tensor([1.0]), 0.1, scale=1.0, label="trace")
    with pytest.raises(AssertionError, match="shape"):
        assert_close(torch.ones(2), torch.ones(3), 0.1, scale=1.0)


def test_a_case_is_the_same_in_both_dtypes_up_to_rounding():
    double = make_case("linear", nn.Linear(3, 2), Inputs((3,)), seed=4)
    single = make_case("linear", nn.Linear(3, 2), Inputs((3,)), seed=4, dtype=torch.float32)
    assert torch.equal(single.model.weight, double.model.weight.float())
    assert torch.equal(single.x, double.x.float())
    tokens = make_case("tokens", nn.EmbeddingBag(5, 2), Inputs((3,), vocabulary=5))
    assert tokens.x.dtype == torch.int64
    assert tokens.x.max() < 5


@examples(0.125)
@given(networks(), linear_networks())
def test_strategies_draw_networks_that_take_their_inputs(any_case, linear_case):
    for case in (any_case, linear_case):
        assert ntk(case.model, case.x, case.y).shape == (len(case.x), len(case.y))
    assert_exact(linear_case.model, linear_case.x, linear_case.y)


def test_the_zoo_is_imported_without_hypothesis():
    code = "import sys, kernelmem.testing; sys.exit('hypothesis' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert len(zoo_entries()) > 100
