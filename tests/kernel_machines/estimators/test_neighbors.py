"""Tests of the memorizing baselines: equality with scikit-learn and with their definitions."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsRegressor

from kernelmem.core.errors import InputError
from kernelmem.kernel_machines.estimators.neighbors import kernel_distances, nadaraya_watson, nearest_neighbors

RNG = np.random.default_rng(0)
X, X_TEST, Y = RNG.standard_normal((30, 3)), RNG.standard_normal((7, 3)), RNG.standard_normal((30, 2))
D = kernel_distances(X_TEST @ X.T, (X_TEST**2).sum(1), (X**2).sum(1))


def test_linear_kernel_distances_are_euclidean():
    want = ((X_TEST[:, None] - X) ** 2).sum(-1)
    assert np.allclose(D.numpy(), want)
    assert float(kernel_distances([[1.0 + 1e-15]], [1.0], [1.0])) == 0


@pytest.mark.parametrize("k", [1, 5, 30])
def test_nearest_neighbors_are_those_of_scikit_learn(k):
    want = KNeighborsRegressor(k).fit(X, Y).predict(X_TEST)
    assert np.allclose(nearest_neighbors(D, Y, k).numpy(), want)
    assert np.allclose(nearest_neighbors(D, Y[:, 0], k).numpy()[:, 0], want[:, 0])


def test_of_rows_as_near_the_first_is_taken():
    assert nearest_neighbors(torch.zeros(1, 3), [1.0, 2.0, 3.0], 1).item() == 1.0


def test_nadaraya_watson_is_a_weighted_mean():
    K = np.exp(-D.numpy())
    assert np.allclose(nadaraya_watson(K, Y).numpy(), K @ Y / K.sum(1, keepdims=True))
    assert np.allclose(nadaraya_watson(K, np.ones(30)).numpy(), 1.0)
    assert np.allclose(nadaraya_watson(7 * K, Y), nadaraya_watson(K, Y))


@pytest.mark.parametrize("k", [0, 31, 2.5, True])
def test_k_is_a_number_of_rows(k):
    with pytest.raises(InputError, match="k="):
        nearest_neighbors(D, Y, k)


def test_shapes_and_signs_are_checked():
    with pytest.raises(InputError, match="diagonals"):
        kernel_distances(np.ones((2, 3)), np.ones(3), np.ones(2))
    with pytest.raises(InputError, match="targets"):
        nearest_neighbors(D, Y[:5], 1)
    with pytest.raises(InputError, match="sum to 0"):
        nadaraya_watson(np.zeros((1, 30)), Y)
    with pytest.raises(InputError, match=">= 0"):
        nadaraya_watson(X_TEST @ X.T, Y)
