import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import kernelmem as km
from kernelmem.memorization.leave_one_out import to_pred_probs
from kernelmem.statistics import fit_calibration
from tests.profiles import examples


@st.composite
def predictions(draw):
    """Outputs that predict the labels well, badly or not at all, and labels of which some classes may be missing."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, C = draw(st.integers(2, 40)), draw(st.integers(2, 6))
    labels = rng.integers(0, C, n)
    signal = draw(st.sampled_from([0.0, 0.5, 5.0]))
    return signal * np.eye(C)[labels] + rng.standard_normal((n, C)), labels


def log_likelihood(probabilities, labels):
    return np.log(probabilities[np.arange(len(labels)), labels]).mean()


@examples(0.5)
@given(predictions())
def test_rows_are_distributions_more_likely_than_any_of_a_grid(case):
    outputs, labels = case
    p = to_pred_probs(outputs, labels)
    assert p.dtype == np.float64
    assert (p > 0).all()
    assert np.abs(p.sum(1) - 1).max() < 1e-14
    C = outputs.shape[1]
    for temperature in np.logspace(-2, 2, 15) * np.std(outputs):
        q = torch.from_numpy(outputs / temperature).softmax(1).numpy()
        for floor in (1e-4, 0.01, 0.05, 0.2, 0.5, 0.9):
            other = log_likelihood((1 - floor) * q + floor / C, labels)
            assert log_likelihood(p, labels) >= other - 1e-3 * max(1, abs(other))


@examples(0.3)
@given(predictions(), st.integers(0, 2**32 - 1))
def test_scale_shift_of_a_row_order_and_names_do_not_matter(case, seed):
    outputs, labels = case
    rng = np.random.default_rng(seed)
    p = to_pred_probs(outputs, labels)
    tolerance = 1e-2  # the likelihood is flat near its maximum: the optimizer ends at another point of it
    shifted = to_pred_probs(4 * outputs + rng.integers(-8, 9, (len(labels), 1)), labels)
    rows, classes = rng.permutation(len(labels)), rng.permutation(outputs.shape[1])
    moved = to_pred_probs(outputs[rows][:, classes], np.argsort(classes)[labels[rows]])
    for other in (shifted, moved[np.argsort(rows)][:, np.argsort(classes)]):
        assert abs(log_likelihood(other, labels) - log_likelihood(p, labels)) < 1e-4
        assert np.abs(other - p).max() < tolerance or np.abs(outputs).max() == 0


def test_temperature_and_floor_are_recovered():
    rng = np.random.default_rng(0)
    outputs = 3 * rng.standard_normal((20_000, 4))
    p = 0.8 * torch.from_numpy(outputs / 1.5).softmax(1).numpy() + 0.05
    labels = (rng.random((20_000, 1)) > p.cumsum(1)).sum(1).clip(0, 3)
    temperature, floor = fit_calibration(torch.from_numpy(outputs), torch.from_numpy(labels))
    assert abs(temperature - 1.5) < 0.15
    assert abs(floor - 0.2) < 0.02


def test_leave_one_out_fits_one_logit_and_constant_outputs_are_taken():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 3, generator=generator, dtype=torch.float64)
    y = (x[:, 0] > 0).long()
    fit = km.leave_one_out(torch.exp(-torch.cdist(x, x).square()), y, 0.1)
    p = to_pred_probs(fit)
    assert np.array_equal(p, to_pred_probs(fit.predictions, y))
    assert ((p.argmax(1) == y.numpy()).mean()) > 0.7
    assert to_pred_probs(x[:, :1], y).shape == (30, 2)
    assert np.allclose(to_pred_probs(torch.zeros(4, 3), [0, 0, 1, 2]), 1 / 3)


def test_a_thousand_classes_and_one_row_in_a_thousand():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 1000, 300)
    p = to_pred_probs(np.eye(1000)[labels] + 0.1 * rng.standard_normal((300, 1000)), labels)
    assert p.shape == (300, 1000)
    rare = np.zeros(2000, dtype=int)
    rare[:2] = 1
    p = to_pred_probs(np.eye(2)[rare] + 0.3 * rng.standard_normal((2000, 2)), rare)
    assert (p > 0).all()
    assert abs(p[:, 1].mean() - rare.mean()) < 0.02


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"predictions": np.zeros((3, 2))}, "without labels"),
        ({"predictions": np.zeros(3), "labels": [0, 1, 0]}, "shape"),
        ({"predictions": np.zeros((3, 2)), "labels": [0, 1]}, "3 labels"),
        ({"predictions": np.zeros((3, 2)), "labels": [0, 1, 2]}, "outside 0..1"),
        ({"predictions": np.full((3, 2), np.nan), "labels": [0, 1, 0]}, "NaN"),
        ({"predictions": km.leave_one_out(np.eye(3), [0, 1, 0], 0.1), "labels": [0, 1, 0]}, "leave labels out"),
        ({"predictions": km.leave_one_out(np.eye(3), [0.0, 1.0, 0.5], 0.1)}, "real targets"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(km.InputError, match=message):
        to_pred_probs(**arguments)
