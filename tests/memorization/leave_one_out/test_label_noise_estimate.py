import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import multivariate_normal

import kernelmem as km
from kernelmem.memorization.leave_one_out import LabelNoiseEstimate, estimate_label_noise
from kernelmem.memorization.leave_one_out.noise_mixture import fit_mixture
from kernelmem.training import digits
from tests.profiles import examples


@st.composite
def mixtures(draw):
    """Outputs near one mean for each true class, labels by a transition matrix; few rows, empty classes, equal outputs."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, C = draw(st.integers(2, 60)), draw(st.integers(2, 4))
    true = rng.integers(0, C, n)
    labels = np.where(rng.random(n) < 0.3, rng.integers(0, C, n), true)
    outputs = np.eye(C)[true] + draw(st.sampled_from([0.0, 0.3, 2.0])) * rng.standard_normal((n, C))
    return torch.from_numpy(outputs), torch.from_numpy(labels)


@examples(1)
@given(mixtures())
def test_every_step_increases_the_objective(case):
    mixture = fit_mixture(*case)
    objectives = np.array(mixture.objectives)
    assert np.isfinite(objectives).all()
    assert (np.diff(objectives) >= -1e-9 * np.abs(objectives).max()).all()
    assert torch.allclose(mixture.posterior.sum(1), torch.ones((), dtype=torch.float64), rtol=0, atol=1e-12)
    assert torch.allclose(mixture.transition.sum(1), torch.ones((), dtype=torch.float64), rtol=0, atol=1e-12)
    wrong = 1 - mixture.posterior.gather(1, case[1][:, None])[:, 0]
    assert torch.allclose(torch.sigmoid(mixture.log_odds), wrong, rtol=0, atol=1e-9)


@examples(0.5)
@given(mixtures(), st.integers(0, 2**32 - 1))
def test_order_of_rows_and_names_of_classes_do_not_matter(case, seed):
    outputs, labels = case
    rng = np.random.default_rng(seed)
    rows, classes = torch.from_numpy(rng.permutation(len(labels))), torch.from_numpy(rng.permutation(outputs.shape[1]))
    one = fit_mixture(outputs, labels, max_iterations=5)
    two = fit_mixture(outputs[rows][:, classes], classes.argsort()[labels[rows]], max_iterations=5)
    if len(outputs.argmax(1).unique()) and bool((outputs.topk(2).values.diff() != 0).all()):  # no ties at the start
        assert torch.allclose(two.posterior, one.posterior[rows][:, classes], rtol=0, atol=1e-6)


def simulated(n, C, seed):
    """A mixture that satisfies the assumptions, with 35 % of each class labeled as the next one."""
    rng = np.random.default_rng(seed)
    true = rng.integers(0, C, n)
    flipped = rng.random(n) < 0.35
    means = 0.65 * np.eye(C) + 0.35 * np.roll(np.eye(C), 1, 1)
    outputs = means[true] + 0.25 * rng.standard_normal((n, C))
    return outputs, (true + flipped) % C, flipped, means


def test_the_posterior_is_that_of_the_true_parameters_up_to_their_error():
    outputs, labels, flipped, means = simulated(4000, 3, 0)
    mixture = fit_mixture(torch.from_numpy(outputs), torch.from_numpy(labels))
    T = 0.65 * np.eye(3) + 0.35 * np.roll(np.eye(3), 1, 1)
    assert np.abs(mixture.transition.numpy() - T).max() < 5 * np.sqrt(0.25 * 3 / 4000) + 3 / 4000
    density = np.stack([multivariate_normal(mean, 0.25**2).pdf(outputs) for mean in means], 1) * T[:, labels].T
    exact = density / density.sum(1, keepdims=True)
    assert np.abs(mixture.posterior.numpy() - exact).mean() < 0.02
    # calibrated: among rows with P(wrong) near p, a share p is wrong
    wrong = 1 - mixture.posterior.numpy()[np.arange(4000), labels]
    for low in (0.0, 0.25, 0.5, 0.75):
        rows = (wrong >= low) & (wrong <= low + 0.25)
        error = np.sqrt(0.25 / rows.sum())
        assert abs(flipped[rows].mean() - wrong[rows].mean()) < 5 * error
    margin = outputs[np.arange(4000), (labels + 1) % 3] - outputs[np.arange(4000), labels]
    auroc = km.detect(mixture.log_odds, flipped, seed=0).auroc
    assert auroc > km.detect(margin, flipped, seed=0).auroc + 0.02


@pytest.fixture(scope="module")
def data():
    return digits(n_train=500, seed=3)


@pytest.fixture(scope="module")
def kernel(data):
    return km.infinite_ntk(data.x_train.double(), depth=2)


@pytest.mark.parametrize(
    ("kind", "rate", "least"), [("pair", 0.4, 0.97), ("symmetric", 0.2, 0.99), ("instance", 0.1, 0.99)]
)
def test_flips_are_found_that_the_margin_confuses(data, kernel, kind, rate, least):
    noisy = km.corrupt_labels(data.y_train, rate, kind, seed=7, x=data.x_train)
    estimate = estimate_label_noise(kernel, noisy.y)
    detection = km.detect(estimate.suspicion.values, noisy.flipped, seed=0)
    assert detection.auroc > least
    assert abs(detection.permuted_auroc - 0.5) < 4 * detection.permuted_sd / 200**0.5
    assert abs(estimate.noise_rate - rate) < 0.05
    assert estimate.log_likelihood > estimate.baseline
    if kind == "pair":
        assert estimate.transition.diagonal(1).mean() > 0.3


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(200, 210))
@pytest.mark.parametrize(("kind", "least"), [("pair", 0.97), ("confusable", 0.9), ("symmetric", 0.99)])
def test_forty_percent_of_flips_are_found_on_other_seeds(seed, kind, least):
    data = digits(seed=seed)
    noisy = km.corrupt_labels(data.y_train, 0.4, kind, seed=seed + 1, x=data.x_train)
    estimate = estimate_label_noise(km.infinite_ntk(data.x_train.double(), depth=2), noisy.y)
    assert km.detect(estimate.suspicion.values, noisy.flipped, seed=0).auroc > least
    assert abs(estimate.noise_rate - 0.4) < 0.05


def test_clean_labels_are_not_suspected_and_the_scale_of_the_kernel_does_not_matter(data, kernel, tmp_path):
    estimate = estimate_label_noise(kernel, data.y_train)
    assert estimate.noise_rate < 0.05
    scaled = estimate_label_noise(1024 * kernel, data.y_train)
    assert torch.allclose(scaled.posterior, estimate.posterior, rtol=0, atol=1e-4)
    assert "labels are estimated to be wrong" in str(estimate)
    loaded = LabelNoiseEstimate.load(estimate.save(tmp_path / "estimate"))
    assert torch.equal(loaded.posterior, estimate.posterior)
    assert list(estimate.to_frame()) == ["label", "suggested", "wrong"]


def test_a_class_without_labels_has_no_rows(data, kernel):
    """Labels 0 and 3 give the same estimate as labels 0 and 1."""
    noisy = km.corrupt_labels(data.y_train % 2, 0.2, seed=3)
    two, four = estimate_label_noise(kernel, noisy.y), estimate_label_noise(kernel, 3 * noisy.y)
    assert four.posterior[:, 1:3].abs().max() == 0
    assert torch.equal(four.transition[1:3], torch.eye(4, dtype=torch.float64)[1:3])
    assert torch.equal(four.posterior[:, [0, 3]], two.posterior)
    assert km.detect(four.log_odds, noisy.flipped, seed=0).auroc > 0.95
    assert "(-" not in str(two)


def test_a_kernel_that_knows_nothing_is_reported():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 40))
    estimate = estimate_label_noise(x @ x.T, rng.integers(0, 3, 60))
    assert estimate.log_likelihood < estimate.baseline + 0.2
    if estimate.log_likelihood <= estimate.baseline:
        assert "says nothing" in str(estimate)


def test_predictions_that_contradict_most_labels_are_refused():
    """Left out of balanced classes, a row is predicted to be of the class that has one row more: never its own."""
    with pytest.raises(km.NumericalError, match="predicts these labels"):
        estimate_label_noise(torch.ones(20, 20) + torch.eye(20), [0, 1] * 10)


def test_more_classes_than_a_covariance_can_be_fitted_to():
    rng = np.random.default_rng(0)
    y = np.arange(100).repeat(3)
    x = np.eye(100)[y] + 0.02 * rng.standard_normal((300, 100))
    noisy = y.copy()
    noisy[0] = 5
    estimate = estimate_label_noise(x @ x.T, noisy)
    assert estimate.suspicion.top(1)[0][0] == 0


@pytest.mark.parametrize(
    ("kernel", "y", "message"),
    [
        (np.eye(3), [0, 0, 0], "one class"),
        (np.eye(3), [0.5, 1.0, 2.0], "whole numbers"),
        (np.eye(3), [0, 1], "3 labels"),
        (np.zeros((3, 3)), [0, 1, 0], "mean diagonal"),
    ],
)
def test_what_has_no_classes_or_no_kernel_is_refused(kernel, y, message):
    with pytest.raises(km.KernelmemError, match=message):
        estimate_label_noise(kernel, y)
