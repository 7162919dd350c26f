"""Memorization and influence by retraining: laws, rows that cannot be estimated, reliability, agreement, texts."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernelmem.core import InputError
from kernelmem.memorization import Score, ShadowEnsemble
from kernelmem.memorization.output_statistics import STATISTICS, Statistic
from kernelmem.memorization.retraining import (
    Retraining,
    c_score,
    counterfactual_memorization,
    feldman_zhang,
)
from kernelmem.memorization.shadows.masks import draw_masks
from tests.memorization.retraining.enumerated import all_subsets, random_models
from tests.profiles import examples
from tests.tolerances import summing

ANYTHING: Any = "anything"
SIZES = {"m": st.integers(6, 24), "n": st.integers(2, 9), "C": st.integers(2, 4), "seed": st.integers(0, 2**32)}


def random_ensemble(m: int, n: int, C: int, seed: int, *, dtype=torch.float64, integers=False) -> ShadowEnsemble:
    """Random outputs; balanced subsets of half of the rows, so that all rows are estimable. ``integers`` gives ties."""
    generator = torch.Generator().manual_seed(seed)
    masks = draw_masks(0, m, n, share=0.5, sampling="balanced", seed=seed)
    logits = torch.randn(m, n + 3, C, generator=generator, dtype=torch.float64) * 2
    logits = (logits.round() if integers else logits).to(dtype)
    labels = torch.randint(0, C, (n + 3,), generator=generator)
    return ShadowEnsemble.from_logits(
        masks, logits[:, :n], labels[:n], test_logits=logits[:, n:], test_labels=labels[n:]
    )


def slow(ensemble: ShadowEnsemble, statistic: Statistic, i: int) -> tuple[float, float]:
    values, mask = ensemble.statistic(statistic)[:, i].tolist(), ensemble.masks[:, i].tolist()
    groups = [[v for v, inside in zip(values, mask, strict=True) if inside is side] for side in (True, False)]
    variances = []
    for group in groups:
        if statistic == "correct":
            smoothed = (sum(group) + 0.5) / (len(group) + 1)
            variances.append(smoothed * (1 - smoothed) / (len(group) + 2))
        else:
            variances.append(float(np.var(group, ddof=1)) / len(group))
    return sum(groups[0]) / len(groups[0]) - sum(groups[1]) / len(groups[1]), math.sqrt(sum(variances))


@pytest.mark.parametrize("statistic", STATISTICS)
@examples(0.5)
@given(**SIZES)
def test_differences_and_errors_are_those_of_the_slow_definition(statistic, m, n, C, seed):
    ensemble = random_ensemble(m, n, C, seed)
    result = feldman_zhang(ensemble, statistic=statistic)
    error = result.memorization.standard_error
    assert error is not None
    scale = float(ensemble.statistic(statistic).abs().max()) + 1
    for i in range(n):
        value, expected_error = slow(ensemble, statistic, i)
        assert float(result.memorization.values[i]) == pytest.approx(value, abs=summing(m) * scale)
        # a variance near 0 is the square of what rounding leaves
        assert float(error[i]) == pytest.approx(expected_error, abs=math.sqrt(summing(m)) * scale * 1e-3, rel=1e-6)
        assert float(result.low[i]) <= value + 1e-12
        assert value - 1e-12 <= float(result.high[i])


@pytest.mark.parametrize("statistic", STATISTICS)
@examples(0.5)
@given(**SIZES)
def test_influence_on_the_row_itself_is_memorization(statistic, m, n, C, seed):
    ensemble = random_ensemble(m, n, C, seed)
    on_itself = ShadowEnsemble.from_logits(
        ensemble.masks, ensemble.logits, ensemble.labels, test_logits=ensemble.logits, test_labels=ensemble.labels
    )
    result = feldman_zhang(on_itself, statistic=statistic)
    influence = result.influence()
    scale = float(ensemble.statistic(statistic).abs().max()) + 1
    assert result.memorization.standard_error is not None
    torch.testing.assert_close(influence.values.diagonal(), result.memorization.values, rtol=0, atol=summing(m) * scale)
    torch.testing.assert_close(
        influence.standard_error.diagonal(),
        result.memorization.standard_error,
        rtol=1e-6,
        atol=math.sqrt(summing(m)) * scale,
    )
    assert torch.equal(result.influence([n - 1]).test_rows, torch.tensor([n - 1]))


@pytest.mark.parametrize("statistic", STATISTICS)
@examples(0.5)
@given(**SIZES, integers=st.booleans())
def test_order_names_and_shifts_do_not_matter(statistic, m, n, C, seed, integers):
    ensemble = random_ensemble(m, n, C, seed, integers=integers)
    generator = torch.Generator().manual_seed(seed + 1)
    rows, models, classes = (torch.randperm(size, generator=generator) for size in (n, m, C))
    shift = torch.randint(-3, 4, (m, n, 1), generator=generator).double()
    changed = ShadowEnsemble.from_logits(
        ensemble.masks[models][:, rows],
        (ensemble.logits + shift)[models][:, rows][:, :, classes],
        classes.argsort()[ensemble.labels[rows]],
    )
    scale = float(ensemble.logits.abs().max()) + 4
    tolerance = summing(m + C) * scale
    expected, result = (feldman_zhang(e, statistic=statistic) for e in (ensemble, changed))
    torch.testing.assert_close(result.memorization.values, expected.memorization.values[rows], rtol=0, atol=tolerance)
    if statistic == "correct":  # other intervals amplify rounding where a variance is nearly 0
        torch.testing.assert_close(result.low, expected.low[rows], rtol=0, atol=1e-12)
        score, changed_score = c_score(ensemble).c_score, c_score(changed).c_score
        torch.testing.assert_close(changed_score, score[rows], rtol=0, atol=1e-12)


@examples(0.5)
@given(**SIZES)
def test_float32_outputs_agree_with_float64(m, n, C, seed):
    ensemble = random_ensemble(m, n, C, seed, dtype=torch.float32)
    double = ShadowEnsemble.from_logits(ensemble.masks, ensemble.logits.double(), ensemble.labels)
    for statistic in STATISTICS:
        values = [feldman_zhang(e, statistic=statistic).memorization.values for e in (ensemble, double)]
        torch.testing.assert_close(*values, rtol=0, atol=1e-12)


def test_larger_is_more_memorized_for_every_score():
    """Row 0 is right only in the models that train on it; row 1 in all; row 2 in none; row 3 only without it."""
    masks = draw_masks(0, 20, 4, share=0.5, sampling="balanced", seed=0)
    sign = torch.stack([2.0 * masks[:, 0] - 1, torch.ones(20), -torch.ones(20), 1 - 2.0 * masks[:, 3]], 1)
    logits = torch.stack([-sign, sign], 2) + torch.randn(20, 4, 1, generator=torch.Generator().manual_seed(0)) * 0.1
    ensemble = ShadowEnsemble.from_logits(masks, logits, [1, 1, 1, 1])
    for statistic in STATISTICS:
        result = feldman_zhang(ensemble, statistic=statistic)
        assert result.memorization.top(1)[0][0] == 0
        assert int(result.memorization.values.argmin()) == 3
        assert float(result.low[0]) > 0
    exact = feldman_zhang(ensemble)
    assert exact.memorization.values.tolist() == [1, 0, 0, -1]
    assert exact.memorization.standard_error is not None
    assert float(exact.memorization.standard_error.min()) > 0.04  # proportions of 0 and 1 are not certain
    assert float(exact.high[1]) > 0.1
    assert float(exact.low[1]) < -0.1
    assert c_score(ensemble).score.values.tolist() == [1, 0, 1, 0]
    counterfactual = counterfactual_memorization(ensemble, statistic="correct")
    assert torch.equal(counterfactual.values, exact.memorization.values)


@pytest.mark.parametrize("column", [0, 1])
def test_rows_in_all_or_in_no_model_are_named(column):
    ensemble = random_ensemble(8, 5, 3, 0)
    masks = ensemble.masks.clone()
    masks[:, 3] = bool(column)
    masks[0, 3] = not column
    changed = ShadowEnsemble.from_logits(masks, ensemble.logits, ensemble.labels)
    with pytest.raises(InputError, match=r"rows 3 \(1 of 5 rows\).*sampling='balanced'"):
        feldman_zhang(changed)
    if column:
        masks[0, 3] = True
        with pytest.raises(InputError, match="rows 3"):
            c_score(ShadowEnsemble.from_logits(masks, ensemble.logits, ensemble.labels))


def test_constant_values_have_no_width_except_for_proportions():
    ensemble = random_ensemble(8, 3, 2, 0)
    constant = ShadowEnsemble.from_logits(ensemble.masks, torch.ones(8, 3, 2), ensemble.labels)
    result = feldman_zhang(constant, statistic="margin")
    assert result.memorization.standard_error is not None
    for values in (result.memorization.values, result.memorization.standard_error, result.low, result.high):
        assert torch.equal(values, torch.zeros(3, dtype=torch.float64))
    assert "reliability (Spearman-Brown): not defined" in str(result)


def test_real_targets_have_the_log_likelihood_only():
    ensemble = random_ensemble(8, 3, 2, 0)
    targets = ShadowEnsemble.from_logits(ensemble.masks, ensemble.logits, torch.zeros(3, 2))
    assert feldman_zhang(targets, statistic="log_likelihood").memorization.values.shape == (3,)
    assert "mean of −|f − target|²/2" in str(feldman_zhang(targets, statistic="log_likelihood"))
    with pytest.raises(InputError, match="log_likelihood"):
        feldman_zhang(targets)
    with pytest.raises(InputError, match=r'km\.feldman_zhang\(shadows, statistic="log_likelihood"\)'):
        c_score(targets)


def test_models_that_diverged_are_named():
    e = random_ensemble(12, 6, 3, 0)
    logits = e.logits.clone()
    logits[[2, 5], 0, 1] = torch.nan
    broken = ShadowEnsemble(e.masks, logits, e.labels, e.test_logits, e.test_labels, e.identity)
    for function in (feldman_zhang, c_score):
        with pytest.raises(InputError, match=r"not finite, or beyond 1e140, of models 2, 5; .*shadows\.select"):
            function(broken)


def test_the_text_counts_rows_with_permuted_subsets_too():
    """Every model is right on the rows that it was trained on, and wrong on the others."""
    masks = draw_masks(0, 40, 50, share=0.5, sampling="balanced", seed=0)
    sign = 2.0 * masks - 1
    memorized = feldman_zhang(ShadowEnsemble.from_logits(masks, torch.stack([-sign, sign], 2), [1] * 50))
    assert memorized.n_memorized(1.0) == (50, 0)  # no interval excludes values below 1
    assert memorized.n_memorized(0.5) == (50, 50)
    line = next(line for line in str(memorized).splitlines() if "at least 0.25" in line)
    assert "50 of 50 rows; with the whole 95% interval: 50 (with permuted subsets" in line
    assert int(line.split("permuted subsets ")[1].split(" ")[0]) < 15
    constant = ShadowEnsemble.from_logits(masks, torch.zeros(40, 50, 2), [1] * 50)
    assert "above 0: 0 of 50 rows; with the whole 95% interval: 0" in str(feldman_zhang(constant, statistic="logit"))


def test_influence_is_looked_up_by_the_number_of_the_test_row():
    ensemble = random_ensemble(12, 6, 3, 0)
    result = feldman_zhang(ensemble)
    everything, chosen = result.influence(), result.influence([2, 1])
    for row in (2, 1):
        assert chosen.top(row, 6) == everything.top(row, 6)
    for row in (0, 3, -1):
        with pytest.raises(InputError):
            chosen.top(row)


def test_reliability_is_that_of_the_noise_that_was_added():
    """Values with signal and noise of equal variance in the mean over models have reliability 1/2."""
    n, m = 1500, 100
    generator = torch.Generator().manual_seed(0)
    masks = draw_masks(0, m, n, share=0.5, sampling="balanced", seed=0)
    signal = torch.randn(n, generator=generator, dtype=torch.float64)
    # the variance of a difference of two means of m/2 models each is 4 / m
    noise = torch.randn(m, n, generator=generator, dtype=torch.float64) * math.sqrt(m) / 2
    margins = masks * signal + noise
    logits = torch.stack([torch.zeros(m, n), margins], 2)
    result = feldman_zhang(ShadowEnsemble.from_logits(masks, logits, torch.ones(n)), statistic="margin")
    reliability = result.reliability(n_splits=4)
    assert reliability == pytest.approx(0.5, abs=0.07)
    agreement = result.agreement(signal)
    assert agreement.ceiling == pytest.approx(math.sqrt(0.5), abs=0.05)
    assert agreement.spearman == pytest.approx(agreement.ceiling, abs=0.07)
    assert agreement.corrected == pytest.approx(1.0, abs=0.1)
    assert agreement.low < agreement.spearman < agreement.high
    noisy = signal + torch.randn(n, generator=generator, dtype=torch.float64)
    assert result.agreement(noisy, score_reliability=0.5).corrected == pytest.approx(1.0, abs=0.15)
    assert agreement.tie_ceiling == 1
    null = result.agreement(signal[torch.randperm(n, generator=generator)])
    assert null.low < 0 < null.high


def test_ties_limit_the_correlation_of_a_score_without_ties():
    """Half of the rows are memorized, half are not: the best order has the correlation √(1 − 1/4) for many rows."""
    n = 40
    masks = draw_masks(0, 8, n, share=0.5, sampling="balanced", seed=0)
    sign = torch.where(torch.arange(n) < n // 2, 1.0, 2.0 * masks - 1)
    logits = torch.stack([-sign, sign], 2)
    result = feldman_zhang(ShadowEnsemble.from_logits(masks, logits, torch.ones(n)))
    agreement = result.agreement(torch.arange(n))
    assert agreement.tie_ceiling == pytest.approx(math.sqrt(0.75), abs=0.01)
    assert agreement.spearman == pytest.approx(agreement.tie_ceiling, abs=1e-12)
    assert "ties limit" in str(agreement)


def test_agreement_on_chosen_rows():
    result = feldman_zhang(random_models(all_subsets(0), 100, torch.Generator().manual_seed(0)), statistic="margin")
    score = feldman_zhang(all_subsets(0), statistic="margin").memorization
    numbers, mask = torch.tensor([0, 2, 3, 5, 8]), torch.zeros(10, dtype=torch.bool)
    mask[numbers] = True
    by_numbers, by_mask = (result.agreement(score, rows=rows) for rows in (numbers, mask.numpy()))
    assert str(by_numbers) == str(by_mask)
    assert by_numbers.n_rows == 5
    assert isinstance(score, Score)
    for rows, message in (([0, 0], "distinct"), ([10], r"0\.\.9"), ([], "at least one row"), ([0.5], "whole numbers")):
        with pytest.raises(InputError, match=message):
            result.agreement(score, rows=rows)
    with pytest.raises(InputError, match="one value per training row"):
        result.agreement(score.values[:4])


def test_high_influence_pairs_and_their_control():
    """Test row 0 is right exactly in the models that train on row 0; all else is chance."""
    masks = draw_masks(0, 60, 30, share=0.5, sampling="balanced", seed=0)
    generator = torch.Generator().manual_seed(0)
    sign, test_sign = 2 * torch.rand(60, 30, generator=generator) - 1, torch.rand(60, 2, generator=generator) - 1
    sign[:, 0] = test_sign[:, 0] = 2.0 * masks[:, 0] - 1
    test_sign[:, 1] = 1
    ensemble = ShadowEnsemble.from_logits(
        masks, torch.stack([-sign, sign], 2), [1] * 30,
        test_logits=torch.stack([-test_sign, test_sign], 2), test_labels=[1, 1],
    )  # fmt: skip
    pairs = feldman_zhang(ensemble).high_influence_pairs(influence=0.9)
    assert (pairs.train.tolist(), pairs.test.tolist()) == ([0], [0])
    assert float(pairs.influence[0]) == float(pairs.memorization[0]) == 1
    assert pairs.expected_by_chance == 0
    assert "1 high-influence pairs" in str(pairs)
    many = feldman_zhang(ensemble).high_influence_pairs(memorization=-1, influence=0.15)
    assert many.expected_by_chance == pytest.approx(len(many.train), abs=8)  # chance explains all but one
    none = feldman_zhang(ensemble).high_influence_pairs(memorization=2)
    assert len(none.train) == 0
    with pytest.raises(InputError, match="without test rows"):
        feldman_zhang(ShadowEnsemble.from_logits(masks, ensemble.logits, ensemble.labels)).influence()


def test_the_profile_over_shares():
    first = random_ensemble(10, 6, 3, 0)
    second = ShadowEnsemble.from_logits(~first.masks[:9], first.logits[:9], first.labels)
    both = c_score([first, second])
    parts = [c_score(e) for e in sorted((first, second), key=lambda e: e.identity.share)]
    torch.testing.assert_close(both.c_score, (parts[0].c_score + parts[1].c_score) / 2)
    assert torch.equal(both.accuracy[0], parts[0].c_score)
    assert both.shares.tolist() == sorted(both.shares.tolist())
    assert both.score.n_models == 19
    assert len(both.to_frame().columns) >= 3
    with pytest.raises(InputError, match="different rows"):
        c_score([first, random_ensemble(10, 6, 3, 1)])
    with pytest.raises(InputError, match="the same models twice, as ensemble 2"):
        c_score([first, second, first])
    with pytest.raises(InputError, match="no ensemble"):
        c_score([])


def test_results_are_saved_printed_and_drawn(tmp_path):
    result = feldman_zhang(random_models(all_subsets(1), 40, torch.Generator().manual_seed(0)))
    loaded = Retraining.load(result.save(tmp_path / "retraining.safetensors"))
    assert str(loaded) == str(result)
    assert torch.equal(loaded.influence().values, result.influence().values)
    assert "at least 0.25: " in str(result)
    frame = result.to_frame()
    np.testing.assert_allclose(frame.mean_with - frame.mean_without, frame.memorization, atol=1e-12)
    line, control = result.plot().axes[0].lines[:2]
    assert np.asarray(line.get_ydata()).tolist() == sorted(result.memorization.values.tolist())
    assert len(np.asarray(control.get_ydata())) == 10
    assert str(result.influence()).startswith("Influence of 10 training rows on 4 test rows (correct)")
    assert result.influence().to_frame().shape == (10, 4)
    assert result.influence().top(0, 2)[0][1] >= result.influence().top(0, 2)[1][1]
    assert "Spearman" in str(result.agreement(torch.arange(10)))


@pytest.mark.parametrize(
    "call",
    [
        lambda e: feldman_zhang(ANYTHING),
        lambda e: feldman_zhang(e, statistic=ANYTHING),
        lambda e: feldman_zhang(e, level=1),
        lambda e: feldman_zhang(e).reliability(n_splits=0),
        lambda e: feldman_zhang(e).reliability(rows=[0]),
        lambda e: feldman_zhang(e).influence([3]),
        lambda e: feldman_zhang(e).high_influence_pairs(memorization=ANYTHING),
        lambda e: feldman_zhang(e).high_influence_pairs(n_null=0),
        lambda e: feldman_zhang(e).n_memorized(ANYTHING),
        lambda e: feldman_zhang(e).agreement(torch.ones(5)),
        lambda e: feldman_zhang(e).agreement(torch.arange(5), score_reliability=0),
    ],
)
def test_other_arguments_are_refused(call):
    with pytest.raises(InputError):
        call(random_ensemble(8, 5, 3, 0))
