"""Predictors of labels as functions of rows and labels."""

import pickle

import numpy as np
import pytest
import torch

import kernelmem as km
from kernelmem.compression import KernelPredictor, LearnerPredictor, OnlineOptions

X = torch.randn(25, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = (X[:, 0] > 0).long().numpy()


def rbf(x):
    return torch.exp(-torch.cdist(x, x))


def two_kernels(x):
    return {"rbf": rbf(x), "linear": x @ x.T}


def shares(x, y):
    return lambda rows: np.tile(np.bincount(y, minlength=2) / len(y), (len(rows), 1))


@pytest.mark.parametrize(
    "predictor",
    [KernelPredictor(rbf, 2), KernelPredictor(two_kernels, 2), LearnerPredictor(shares, 2)],
    ids=["kernel", "kernels", "learner"],
)
def test_predictors_are_pickled_and_give_the_same_rows_one_by_one(predictor):
    q = predictor(X, Y)
    assert q.shape == (25, 2)
    assert q.dtype == np.float64
    again = pickle.loads(pickle.dumps(predictor))
    assert np.array_equal(again(X, Y), q)
    steps = predictor.sequential(X)
    rows = [next(steps)] + [steps.send(int(label)) for label in Y[:-1]]
    np.testing.assert_allclose(rows, q, rtol=1e-9)
    for t in (0, 10, 24):  # a decoder does not know later labels
        assert np.array_equal(predictor(X, np.where(np.arange(25) < t, Y, 0))[: t + 1], q[: t + 1])


def test_predictors_check_their_arguments():
    for make in (lambda: KernelPredictor(3, 2), lambda: LearnerPredictor(rbf, 2), lambda: KernelPredictor(rbf, 0)):  # pyright: ignore
        with pytest.raises(km.InputError):
            make()
    with pytest.raises(km.InputError, match="raised ZeroDivisionError"):
        KernelPredictor(lambda x: 1 / 0, 2)(X, Y)
    with pytest.raises(km.InputError, match="LearnerPredictor"):
        KernelPredictor(lambda x: rbf, 2)(X, Y)


def test_default_options_carry_nothing():
    """Grids that differ from the defaults count as values that a predictor brings along, the defaults do not."""
    default, changed = (pickle.dumps(OnlineOptions(**options)) for options in ({}, {"ridges": (0.5, 0.25)}))
    assert pickle.loads(default) == OnlineOptions()
    assert pickle.loads(changed) == OnlineOptions(ridges=(0.5, 0.25))
    assert len(default) < len(changed) < 300
