"""The pool equations on real data: digits with 20 % wrong labels, kernel ridge and random Fourier features."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from kernelmem.double_descent.theory import estimate_risk, feature_curve, flip_noise, learning_curve, pool_task
from kernelmem.double_descent.theory.curve import least_squares
from kernelmem.kernels.infinite import infinite_ntk

NOISE = flip_noise(0.2, 10)
EYE = np.eye(10) - 0.1


@pytest.fixture(scope="module")
def digits():
    x, labels = load_digits(return_X_y=True)
    return (x / 16 - 0.3) * 2, labels


def draw(labels: np.ndarray, n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training examples, held-out examples, and labels of which exactly a fifth is wrong."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    train, test = order[:n], order[n:]
    noisy = labels[train].copy()
    wrong = rng.permutation(n)[: n // 5]
    noisy[wrong] = (noisy[wrong] + rng.integers(1, 10, len(wrong))) % 10
    return train, test, noisy


@pytest.mark.soak
def test_kernel_ridge_within_ten_percent(digits):
    x, labels = digits
    K = infinite_ntk(torch.from_numpy(x), depth=2).numpy()
    task, samples, ridge = pool_task(K, EYE[labels]), [150, 400, 800, 1400], 0.1
    theory = learning_curve(task, samples, ridge=ridge, noise=NOISE)
    plain = learning_curve(task.as_population(), samples, ridge=ridge, noise=NOISE)
    noisy_risk, clean_risk, train_risk = (np.zeros(4) for _ in range(3))
    for i, n in enumerate(samples):
        for seed in (0, 1):
            train, test, noisy = draw(labels, n, seed)
            alpha = np.linalg.solve(K[np.ix_(train, train)] + ridge * np.eye(n), EYE[noisy])
            outputs = K[np.ix_(test, train)] @ alpha
            mean_target = NOISE.shrink * EYE[labels[test]]
            noisy_risk[i] += ((outputs - mean_target) ** 2).sum(1).mean() / 2 + NOISE.variance / 2
            clean_risk[i] += ((outputs - EYE[labels[test]]) ** 2).sum(1).mean() / 2
            train_risk[i] += ((ridge * alpha) ** 2).sum(1).mean() / 2
    assert np.abs(theory.test.numpy() / noisy_risk - 1).max() < 0.10
    assert np.abs(theory.clean.numpy() / clean_risk - 1).max() < 0.10
    assert np.abs(theory.train.numpy() / train_risk - 1).max() < 0.15
    assert plain.test[-1] / noisy_risk[-1] > 1.2  # what the pool corrects
    train, _, noisy = draw(labels, 400, 0)
    estimate = estimate_risk(K[np.ix_(train, train)], noisy, ridge=ridge)
    assert abs(estimate.gcv / noisy_risk[1] - 1) < 0.15
    assert abs(estimate.leave_one_out - noisy_risk[1]) < 3 * estimate.leave_one_out_se


@pytest.mark.soak
def test_width_curve_of_random_fourier_features_within_twenty_percent(digits):
    x, labels = digits
    widths, n, scale = [20, 50, 100, 200, 280, 320, 400, 800, 2000], 300, 0.6
    squares = (x**2).sum(1)
    K = np.exp(-(scale**2) / 2 * np.maximum(squares[:, None] + squares - 2 * x @ x.T, 0))
    task = pool_task(K, EYE[labels])
    theory = feature_curve(task, widths, n=n, noise=NOISE)
    plain = feature_curve(task.as_population(), widths, n=n, noise=NOISE)
    risks = []
    for seed in range(4):
        train, test, noisy = draw(labels, n, seed)
        rng = np.random.default_rng(100 + seed)
        row = []
        for k in widths:
            features = np.cos(x @ (scale * rng.standard_normal((64, k))) + rng.uniform(0, 2 * np.pi, k))
            outputs = features[test] @ least_squares(features[train], EYE[noisy])
            row.append(((outputs - EYE[labels[test]]) ** 2).sum(1).mean())
        risks.append(row)
    mean = np.mean(risks, 0)
    assert np.abs(theory.clean.numpy() / mean - 1).max() < 0.20
    assert np.abs(plain.clean.numpy() / mean - 1).max() < 0.25
    assert mean.argmax() == theory.clean.argmax() or abs(mean[4] / mean[5] - 1) < 0.2
    away = [0, 1, 2, 3, 6, 7, 8]
    assert np.abs(theory.clean.numpy() / mean - 1)[away].max() < 0.06
