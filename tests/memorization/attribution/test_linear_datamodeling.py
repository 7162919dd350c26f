"""Linear datamodeling score: closed forms, invariances, its ceiling and null, refusals."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import kernelmem as km
from kernelmem.memorization.attribution import kernel_refit
from tests.memorization.attribution import banks
from tests.profiles import examples

SEEDS = st.integers(0, 2**32 - 1)


def slow_lds(effects, shadows):
    """Mean over rows of scipy's Spearman correlation, subset by subset."""
    margins = shadows.test_statistic("margin")
    subsets = {}
    for mask, values in zip(shadows.masks, margins, strict=True):
        subsets.setdefault(tuple(mask.tolist()), []).append(values)
    measured = torch.stack([torch.stack(values).mean(0) for values in subsets.values()])
    predicted = torch.stack([effects[:, list(mask)].sum(1) for mask in subsets])
    return [float(stats.spearmanr(predicted[:, z], measured[:, z]).statistic) for z in range(margins.shape[1])]


@examples(0.25)
@given(seed=SEEDS, seeds=st.integers(1, 3), noise=st.floats(0, 3))
def test_the_score_is_the_mean_spearman_correlation_over_subsets(seed, seeds, noise):
    effects, shadows = banks.noisy_linear(seed, seeds=seeds, noise=noise, n=20, t=4, n_subsets=12)
    attribution = effects + torch.randn(effects.shape, generator=torch.Generator().manual_seed(1))
    expected = slow_lds(attribution, shadows)
    found = km.lds(attribution, shadows)
    torch.testing.assert_close(found.per_row[0].tolist(), expected, rtol=0, atol=1e-12)
    assert float(found.values[0]) == pytest.approx(np.mean(expected), abs=1e-12)
    assert found.n_subsets == 12
    assert found.models_per_subset == seeds
    assert math.isnan(found.ceiling) == (seeds == 1)


@examples(0.25)
@given(seed=SEEDS, scale=st.floats(1e-3, 1e3), shift=st.floats(-10, 10))
def test_only_ranks_matter(seed, scale, shift):
    """Scale of attributions, a constant added to all training rows (subsets have one size), rows and models in another order."""
    effects, shadows = banks.noisy_linear(seed, n=20, t=4, n_subsets=12)
    attribution = effects + torch.randn(effects.shape, generator=torch.Generator().manual_seed(1))
    expected = km.lds(attribution, shadows)
    order = torch.randperm(shadows.n_models, generator=torch.Generator().manual_seed(seed))
    for other, ensemble in (
        (scale * attribution, shadows),
        (attribution + shift, shadows),
        (attribution.numpy(), shadows.select(order)),
    ):
        torch.testing.assert_close(km.lds(other, ensemble).values, expected.values, rtol=0, atol=1e-12)


@examples(0.25)
@given(seed=SEEDS)
def test_training_rows_in_another_order(seed):
    effects, shadows = banks.noisy_linear(seed, n=20, t=4, n_subsets=12)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(seed))
    moved = banks.ensemble(shadows.masks[:, order], shadows.test_logits, shadows.test_labels)
    torch.testing.assert_close(
        km.lds(effects[:, order], moved).values, km.lds(effects, shadows).values, rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_linear_training_has_score_one(dtype):
    """One step of full-batch descent from zero: the outputs are sums over the rows of the subset."""
    generator = torch.Generator().manual_seed(3)
    x, z = torch.randn(40, 5, generator=generator, dtype=dtype), torch.randn(7, 5, generator=generator, dtype=dtype)
    y = torch.randint(2, (40,), generator=generator)
    masks = banks.subset_masks(30, 40, 20, generator)
    residuals = torch.nn.functional.one_hot(y).to(dtype) - 0.5  # gradient of cross-entropy at zero logits
    logits = torch.stack([z @ (x[mask].T @ residuals[mask]) / 20 for mask in masks])
    shadows = banks.ensemble(masks, logits, torch.zeros(7, dtype=torch.int64))
    attribution = (z @ x.T) * (residuals[:, 0] - residuals[:, 1])
    found = km.lds(attribution, shadows)
    # Two subsets may have equal margins up to rounding, so that their ranks are exchanged.
    assert float(found.values[0]) == pytest.approx(1, abs=1e-12 if dtype == torch.float64 else 1e-3)


@examples(0.25)
@given(seed=SEEDS, ridge=st.floats(1e-2, 10))
def test_kernel_machines_are_predicted_by_refits(seed, ridge):
    """Gradient descent with weight decay until it has converged: the refit of each subset is that model."""
    generator = torch.Generator().manual_seed(seed)
    x, z = (torch.randn(rows, 4, generator=generator, dtype=torch.float64) for rows in (24, 5))
    y, labels = torch.randint(3, (24,), generator=generator), torch.randint(3, (5,), generator=generator)
    y[:3] = torch.arange(3)
    masks = banks.subset_masks(12, 24, 12, generator)
    targets = torch.nn.functional.one_hot(y, 3).double() - 1 / 3
    logits = []
    for mask in masks:
        gram = x[mask].T @ x[mask] + ridge * torch.eye(4, dtype=torch.float64)
        logits.append(z @ torch.linalg.solve(gram, x[mask].T @ targets[mask]))
    shadows = banks.ensemble(masks, torch.stack(logits), labels)
    refit = kernel_refit(x @ x.T, y, z @ x.T, labels, ridge)
    torch.testing.assert_close(refit(masks), shadows.test_statistic("margin"), rtol=1e-9, atol=1e-9)
    assert float(km.lds(refit, shadows).values[0]) == pytest.approx(1, abs=1e-3)


def test_refits_are_leave_block_out_predictions():
    """The refit without the rows B, at these rows, is the closed form of leave-one-out."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 3, generator=generator, dtype=torch.float64)
    K, y = x @ x.T + 1, torch.arange(12) % 2
    mask = torch.ones(12, dtype=torch.bool)
    mask[3:6] = False
    block = km.leave_one_out(K, y, 0.5).block([3, 4, 5])
    margins = kernel_refit(K, y, K[3:6], y[3:6], 0.5)(mask[None])[0]
    sign = 1 - 2 * y[3:6].double()
    torch.testing.assert_close(margins, sign * (block[:, 0] - block[:, 1]), rtol=1e-10, atol=1e-10)


def test_a_metric_that_ignores_the_rows_has_no_score():
    """Attributions of the wrong training rows (an index that is shifted by one) score as permuted ones do."""
    effects, shadows = banks.noisy_linear(0, n_subsets=60)
    found = km.lds({"right": effects, "shifted": effects.roll(1, 1)}, shadows)
    assert float(found.values[0]) > 0.6
    assert abs(float(found.values[1])) < 0.1
    assert found.difference("right", "shifted").low > 0.5


def test_null_and_ceiling():
    """Noise of variance r of the effects' on each of two models: reliability 1 / (1 + r / 2), its root bounds the score."""
    effects, shadows = banks.noisy_linear(0, n=60, t=100, n_subsets=100, noise=1.0)
    found = km.lds(effects, shadows)
    # Spearman's correlation of normal variables is 6/π asin(ρ/2), 2 % below ρ
    assert found.reliability == pytest.approx(1 / 1.5, abs=0.04)
    assert found.ceiling == pytest.approx(float(found.values[0]), abs=0.02)
    assert abs(float(found.null.mean())) < 0.02
    assert float(found.values[0]) > found.null.max() + 0.5


@examples(0.1)
@given(seed=SEEDS)
def test_standard_error_is_that_of_repeated_experiments(seed):
    """The interval contains the score of many more subsets in all but rare cases (it has level 99.999 %)."""
    effects, _ = banks.noisy_linear(seed, n=40, t=10)
    attribution = effects + torch.randn(effects.shape, generator=torch.Generator().manual_seed(seed + 1))
    generator = torch.Generator().manual_seed(seed)
    masks = banks.subset_masks(40, 40, 20, generator)
    found = km.lds(attribution, banks.of_margins(masks, masks.double() @ effects.T), level=0.99999)
    many = banks.subset_masks(600, 40, 20, generator)
    expected = float(km.lds(attribution, banks.of_margins(many, many.double() @ effects.T)).values[0])
    assert found.interval().low <= expected <= found.interval().high


def test_models_that_start_from_trained_weights_are_named():
    """Their outputs on the rows of a subset do not differ from those on the other rows."""
    effects, shadows = banks.noisy_linear(0)
    warm = banks.ensemble(
        shadows.masks,
        shadows.test_logits,
        shadows.test_labels,
        logits=torch.randn(*shadows.masks.shape, 2, generator=torch.Generator().manual_seed(0)),
    )
    assert "WARNING" in str(km.lds(effects, warm))
    assert "WARNING" not in str(km.lds(effects, shadows))


def test_training_rows_can_be_the_explained_rows():
    _, shadows = banks.noisy_linear(0, n=20)
    found = km.lds(torch.eye(20), shadows, rows="train")  # margin 1 for rows of the subset, 0 for others
    torch.testing.assert_close(found.per_row, torch.ones(1, 20, dtype=torch.float64))


def test_rows_without_variation_are_left_out_and_constant_predictions_score_zero():
    effects, shadows = banks.noisy_linear(0, t=4)
    margins = shadows.test_statistic("margin")
    margins[:, 1] = 2.0
    effects[2] = 0.0
    found = km.lds(effects, banks.of_margins(shadows.masks, margins))
    assert found.per_row[0, 1].isnan()
    assert float(found.per_row[0, 2]) == 0
    assert "1 rows left out" in str(found)
    with pytest.raises(km.InputError, match="the same for all subsets"):
        km.lds(effects, banks.of_margins(shadows.masks, margins[:, 1:2].expand(-1, 4)))


def test_several_attributions_text_table_figure_and_file(tmp_path):
    effects, shadows = banks.noisy_linear(0)
    found = km.lds({"exact": effects, "reversed": -effects}, shadows)
    assert float(found.values.sum()) == pytest.approx(0, abs=1e-12)
    text = str(found)
    assert "exact" in text
    assert "ceiling" in text
    assert list(found.to_frame().index) == ["exact", "reversed"]
    assert str(km.LDS.load(found.save(tmp_path / "lds.safetensors"))) == text
    assert found.plot().axes
    with pytest.raises(km.InputError, match="attribution 'other'"):
        found.interval("other")
    with pytest.raises(km.InputError, match="attribution None"):
        found.interval()


def test_refusals():
    effects, shadows = banks.noisy_linear(0)
    for attribution, message in (
        (effects.T, "of shape"),
        (effects[0], "of shape"),
        (effects.log(), "NaN"),
        ({}, "at least one attribution"),
        ({"a": lambda masks: masks.sum(1)}, "predictions of a of shape"),
        ("influence", "attribution"),
    ):
        with pytest.raises(km.InputError, match=message):
            km.lds(attribution, shadows)
    with pytest.raises(km.InputError, match="9 different subsets"):
        km.lds(effects, shadows.select(torch.arange(9)))
    with pytest.raises(km.InputError, match="rows"):
        km.lds(effects, shadows, rows="all")
    with pytest.raises(km.InputError, match="statistic"):
        km.lds(effects, shadows, statistic="loss")
    diverged = shadows.test_logits.clone()
    diverged[3, 2] = torch.nan
    with pytest.raises(km.InputError, match="1 of 80 models"):
        km.lds(effects, banks.ensemble(shadows.masks, diverged, shadows.test_labels))
