from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernelmem.core.checks import seed_sequence
from kernelmem.core.errors import InputError
from kernelmem.double_descent.sweeps.random_features import FeatureOptions, feature_sweep, random_features
from kernelmem.double_descent.sweeps.training_sets import draw_for_seed
from kernelmem.training.datasets import LabeledData


def blobs(n: int = 60, m: int = 50, d: int = 5, C: int = 3) -> LabeledData:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(n + m) % C
    x = torch.randn(n + m, d, generator=generator, dtype=torch.float64) + 2.0 * torch.eye(C, d, dtype=torch.float64)[y]
    return LabeledData("blobs", x[:n], y[:n], x[n:], y[n:])


def test_features_tend_to_the_gaussian_kernel() -> None:
    x = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    phi = random_features(x, 200_000, seed=0, scale=0.7)
    kernel = torch.exp(-(0.7**2) * torch.cdist(x, x).square() / 2)
    assert float((phi @ phi.T / 200_000 - kernel).abs().max()) < 0.01


def test_relu_features_tend_to_the_arc_cosine_kernel() -> None:
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    phi = random_features(x, 200_000, seed=0, features="relu")
    norms = x.norm(dim=1)
    angle = torch.arccos((x @ x.T / norms[:, None] / norms).clamp(-1, 1))
    kernel = norms[:, None] * norms * (angle.sin() + (torch.pi - angle) * angle.cos()) / (2 * torch.pi) * 2 / 3
    torch.testing.assert_close(phi @ phi.T / 200_000, kernel, rtol=0, atol=0.03)


@pytest.mark.parametrize("features", ["cosine", "relu"])
def test_features_are_nested(features: str) -> None:
    x = torch.randn(4, 3, dtype=torch.float64)
    torch.testing.assert_close(
        random_features(x, 7, seed=3, features=features),
        random_features(x, 31, seed=3, features=features)[:, :7],
        rtol=0,
        atol=1e-14,
    )


@given(st.sampled_from([5, 20, 39, 40, 41, 90]), st.sampled_from([0.0, 1e-3, 0.5]), st.sampled_from(["cosine", "relu"]))
def test_metrics_are_those_of_least_squares(width: int, ridge: float, features: str) -> None:
    data, n, C = blobs(), 40, 3
    found = feature_sweep(
        data, "width", [width], n_seeds=1, options=FeatureOptions(n=n, ridge=ridge, features=features)
    )
    drawn = draw_for_seed(data.y_train, seed_sequence(0, ["seed 0"])["seed 0"])
    rows = drawn.training_set(n, 0.2)
    phi, test = (
        random_features(z, width, seed=drawn.init_seed, features=features).numpy() / width**0.5
        for z in (data.x_train[rows.indices], data.x_test)
    )
    targets = np.eye(C)[rows.labels.numpy()] - 1 / C
    if ridge:
        stacked, zeros = np.vstack([phi, ridge**0.5 * np.eye(width)]), np.zeros((width, C))
        w = np.linalg.lstsq(stacked, np.vstack([targets, zeros]), rcond=None)[0]
    else:
        w = np.linalg.lstsq(phi, targets, rcond=np.finfo(float).eps * max(phi.shape))[0]
    loss = ((test @ w - (np.eye(C)[data.y_test.numpy()] - 1 / C)) ** 2).sum(1).mean()
    condition = found.config["condition"][0]
    assert float(found.curves.test_loss) == pytest.approx(loss, rel=1e-9 + 1e-13 * condition)
    assert float(found.curves.train_loss) == pytest.approx(((phi @ w - targets) ** 2).sum(1).mean(), rel=1e-7, abs=1e-9)
    said = (phi @ w).argmax(1)
    flips = rows.flipped.numpy()
    assert float(found.curves.memorized_flips) == (said[flips] == rows.labels.numpy()[flips]).mean()
    assert float(found.curves.recovered_flips) == (said[flips] == rows.true_labels.numpy()[flips]).mean()
    assert float(found.curves.test_error) == ((test @ w).argmax(1) != data.y_test.numpy()).mean()


def test_the_peak_is_where_features_equal_rows() -> None:
    widths, options = [10, 20, 30, 39, 40, 41, 50, 80, 160], FeatureOptions(n=40, scale=1.0)
    found = feature_sweep(blobs(), "width", widths, n_seeds=4, options=options)
    assert found.peak("test_loss").axis_value == 40
    assert found.summary()["threshold"]["value"] == 40
    assert max(found.config["condition"]) == found.config["condition"][4]
    assert float(found.curves.train_loss[:, 5:].max()) < 1e-12
    # a ridge takes the peak away
    calm = feature_sweep(blobs(), "width", widths, n_seeds=4, options=replace(options, ridge=0.1))
    assert calm.peak("test_loss").rise < 0.05 * found.peak("test_loss").rise


def test_axes_meet() -> None:
    common = {"n_seeds": 2, "options": FeatureOptions(n=30, width=50, ridge=0.01)}
    by_width = feature_sweep(blobs(), "width", [20, 50], **common)
    by_samples = feature_sweep(blobs(), "samples", [10, 30], **common)
    by_ridge = feature_sweep(blobs(), "ridge", [0, 0.01], **common)
    for other in (by_samples, by_ridge):
        for name, value in by_width.curves.tensors().items():
            torch.testing.assert_close(other.curves.tensors()[name][:, 1], value[:, 1], rtol=0, atol=1e-9)
    noise = feature_sweep(blobs(), "noise", [0, 0.3], **common)
    assert noise.control is None
    torch.testing.assert_close(noise.curves.test_loss[:, 0], by_width.control.test_loss[:, 1], rtol=0, atol=1e-9)
    assert bool(noise.curves.memorized_flips[:, 0].isnan().all())
    for own in (by_samples, by_ridge, noise):
        own.summary()


def test_ridges_share_a_decomposition() -> None:
    seen: list[tuple[int, int]] = []
    feature_sweep(
        blobs(), "ridge", [0, 0.1, 1], n_seeds=2, options=FeatureOptions(n=30, width=50),
        progress=lambda a, b: seen.append((a, b)),
    )  # fmt: skip
    assert seen == [(1, 2), (2, 2)]


@pytest.mark.parametrize(
    ("over", "values"),
    [
        ("width", [0, 3]),
        ("width", [3, 2]),
        ("samples", [2, 61]),
        ("ridge", [-1]),
        ("noise", [1.5]),
        ("steps", [1]),
        ("width", []),
    ],
)
def test_refused(over: str, values: list[float]) -> None:
    with pytest.raises(InputError):
        feature_sweep(blobs(), over, values)


def test_small_singular_values_are_kept_or_cut_as_asked() -> None:
    smooth = FeatureOptions(n=40, scale=0.005, control=False)
    whole = feature_sweep(blobs(), "width", [30], n_seeds=1, options=smooth).config["condition"][0]
    assert whole > 1e8  # down to rounding, by default
    cut = feature_sweep(blobs(), "width", [30], n_seeds=1, options=replace(smooth, rcond=1e-3))
    assert cut.config["condition"][0] <= 1e3
