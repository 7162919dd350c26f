"""kernelmem.double_descent.variance.bias_variance: identities, unbiasedness, standard errors, refusals."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernelmem.core.errors import InputError
from kernelmem.double_descent.variance.bias_variance import decompose_cross_entropy, decompose_squared
from tests.tolerances import summing


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.integers(2, 7), st.integers(1, 5), st.integers(1, 4), st.integers(0, 10**6))
def test_squared_matches_the_definition_and_adds_up(K, m, C, seed):
    f, y = draw(K, m, C, seed=seed), draw(m, C, seed=seed + 1)
    result = decompose_squared(f, y)
    assert result.risk == pytest.approx(float((f - y).square().sum(2).mean()), rel=1e-12)
    assert result.variance == pytest.approx(float(f.var(0, correction=1).sum(1).mean()), rel=1e-12)
    assert result.plug_in_variance == pytest.approx(result.variance * (K - 1) / K, rel=1e-12)
    assert result.bias + result.variance == pytest.approx(result.risk, rel=1e-12)
    mean = (f.mean(0) - y).square().sum(1).mean()
    assert result.bias == pytest.approx(float(mean) - result.variance / K, rel=1e-9, abs=1e-12)
    assert float(result.example_bias.mean()) == pytest.approx(result.bias, abs=summing(m) * result.risk)
    assert float(result.example_variance.mean()) == pytest.approx(result.variance, abs=summing(m) * result.risk)
    # the measured risk of the mean of all members is what the formula says of K
    assert result.averaged(K) == pytest.approx(float(mean), rel=1e-9, abs=1e-12)


@given(st.integers(2, 7), st.integers(1, 5), st.integers(2, 5), st.integers(0, 10**6), st.booleans())
def test_cross_entropy_matches_the_definition_and_adds_up(K, m, C, seed, soft):
    log_p = draw(K, m, C, seed=seed).log_softmax(2)
    y = draw(m, C, seed=seed + 1).softmax(1) if soft else torch.arange(m) % C
    p0 = y if soft else torch.nn.functional.one_hot(y, C).double()
    result = decompose_cross_entropy(log_p, y)

    def kl(p, log_q):
        return (torch.special.xlogy(p, p) - p * log_q).sum(-1)

    center = log_p.mean(0).log_softmax(1)
    plug_in = kl(center.exp(), log_p).mean(0)
    assert result.risk == pytest.approx(float(kl(p0, log_p).mean()), rel=1e-12)
    assert result.plug_in_variance == pytest.approx(float(plug_in.mean()), rel=1e-10, abs=1e-14)
    assert result.risk == pytest.approx(float((kl(p0, center) + plug_in).mean()), rel=1e-10)  # of the K themselves
    assert result.bias + result.variance == pytest.approx(result.risk, rel=1e-12)
    rest = []
    for k in range(K):
        others = torch.cat([log_p[:k], log_p[k + 1 :]])
        centroid = others.mean(0).log_softmax(1)
        rest.append(float(kl(centroid.exp(), others).mean()))
    jackknife = K * result.plug_in_variance - (K - 1) * sum(rest) / K
    assert result.variance == pytest.approx(jackknife, rel=1e-9, abs=1e-13)


@pytest.mark.parametrize("decompose", [decompose_squared, decompose_cross_entropy])
def test_order_of_members_rows_and_outputs_does_not_matter(decompose):
    f, y = draw(5, 6, 3).log_softmax(2), draw(6, 3, seed=1).softmax(1)
    want = decompose(f, y)
    got = decompose(f[[3, 1, 4, 0, 2]][:, [5, 0, 2, 1, 4, 3]][:, :, [2, 0, 1]], y[[5, 0, 2, 1, 4, 3]][:, [2, 0, 1]])
    for name in ("risk", "risk_se", "bias", "bias_se", "variance", "variance_se"):
        assert getattr(got, name) == pytest.approx(getattr(want, name), rel=1e-10)


@pytest.mark.parametrize("decompose", [decompose_squared, decompose_cross_entropy])
def test_equal_members_have_no_variance_and_their_risk_is_the_bias(decompose):
    f = draw(1, 6, 3).log_softmax(2).expand(4, 6, 3)
    result = decompose(f, torch.tensor([0, 1, 2, 2, 1, 0]))
    assert result.variance == pytest.approx(0, abs=1e-14)
    assert result.bias == pytest.approx(result.risk, rel=1e-12)
    assert result.variance_se < 1e-14
    assert result.risk_se < 1e-14


def test_squared_is_unbiased_and_its_standard_errors_are_those_of_repeated_experiments():
    K, m, C, repeats = 6, 40, 2, 400
    center, y = draw(m, C), draw(m, C, seed=1)
    want_bias = float((center - y).square().sum(1).mean())
    want_variance = 0.25 * C
    # members share a shift over all rows, so that rows are no independent repeats
    noise = 0.3 * draw(repeats, K, 1, C, seed=2) + 0.4 * draw(repeats, K, m, C, seed=3)
    result = [decompose_squared(center + one, y) for one in noise]
    for name, want in (("bias", want_bias), ("variance", want_variance), ("risk", want_bias + want_variance)):
        got = torch.tensor([getattr(one, name) for one in result])
        assert abs(float(got.mean()) - want) < 3 * float(got.std()) / repeats**0.5, name
        squares = torch.tensor([getattr(one, name + "_se") ** 2 for one in result])
        assert 0.8 < float(squares.mean().sqrt() / got.std()) < 1.3, name
    plain = torch.tensor([one.plug_in_variance for one in result])
    assert abs(float(plain.mean()) - want_variance) > 5 * float(plain.std()) / repeats**0.5  # the bias taken away


def test_the_jackknife_removes_most_of_the_bias_of_the_cross_entropy_variance():
    m, C, repeats, K = 20, 3, 300, 5
    center = draw(m, C)
    truth = decompose_cross_entropy((center + 0.7 * draw(20_000, m, C, seed=1)).log_softmax(2), torch.zeros(m).long())
    result = [
        decompose_cross_entropy((center + 0.7 * one).log_softmax(2), torch.zeros(m).long())
        for one in draw(repeats, K, m, C, seed=2)
    ]
    got = torch.tensor([one.variance for one in result])
    plain = torch.tensor([one.plug_in_variance for one in result])
    error = float(got.std()) / repeats**0.5
    assert abs(float(got.mean()) - truth.variance) < 3 * error
    assert float(plain.mean()) - truth.variance < -10 * error
    assert 0.8 < float((torch.tensor([one.variance_se for one in result]).square().mean().sqrt()) / got.std()) < 1.3


def test_small_fluctuations_of_logits_agree_with_half_the_softmax_weighted_variance():
    """KL variance to second order: ½ Σ_c π_c Var(log π_c), the common shift of all logits removed."""
    f = draw(1, 30, 4) + 1e-3 * draw(50, 30, 4, seed=1)
    log_p = f.log_softmax(2)
    result = decompose_cross_entropy(log_p, torch.zeros(30).long())
    weights = log_p.mean(0).softmax(1)
    want = 0.5 * (weights * log_p.var(0)).sum(1).mean()
    assert result.variance == pytest.approx(float(want), rel=5e-3)


@pytest.mark.parametrize("decompose", [decompose_squared, decompose_cross_entropy])
def test_standard_errors_are_the_jackknife_by_leaving_members_out(decompose):
    f, y, K = draw(5, 6, 3).log_softmax(2), torch.tensor([0, 1, 2, 2, 1, 0]), 5
    whole = decompose(f, y)
    without = [decompose(torch.cat([f[:k], f[k + 1 :]]), y) for k in range(K)]

    def figures(one):
        return torch.tensor([one.risk, one.risk - one.plug_in_variance, one.plug_in_variance], dtype=torch.float64)

    rest = torch.stack([figures(one) for one in without])
    errors = ((rest - rest.mean(0)).square().sum(0) * (K - 1) / K).sqrt()
    assert [whole.risk_se, whole.bias_se, whole.variance_se] == pytest.approx(errors.tolist(), rel=1e-9)
    corrected = K * figures(whole) - (K - 1) * rest.mean(0)
    assert [whole.risk, whole.bias, whole.variance] == pytest.approx(corrected.tolist(), rel=1e-9)


def test_two_members_give_no_standard_error_of_the_variance():
    result = decompose_squared(draw(2, 5, 3), draw(5, 3, seed=1))
    assert math.isnan(result.variance_se)
    assert math.isnan(result.bias_se)
    assert result.risk_se > 0
    assert not math.isnan(decompose_squared(draw(3, 5, 3), draw(5, 3, seed=1)).variance_se)
    assert "jackknife over members" in str(result)


def test_labels_are_one_hot_and_one_output_needs_no_axis():
    f, labels = draw(4, 6, 3), torch.tensor([0, 1, 2, 2, 1, 0])
    assert (
        decompose_squared(f, labels).risk == decompose_squared(f, torch.nn.functional.one_hot(labels, 3).double()).risk
    )
    assert decompose_squared(f[:, :, 0], draw(6)).bias == decompose_squared(f[:, :, :1], draw(6)[:, None]).bias
    got = decompose_squared(f.numpy().astype("float32"), labels)
    assert got.variance == pytest.approx(decompose_squared(f, labels).variance, rel=1e-5)


@pytest.mark.parametrize(
    ("outputs", "targets"),
    [
        (draw(1, 4, 3), torch.zeros(4).long()),
        (draw(4), torch.zeros(4)),
        (draw(3, 0, 3), torch.zeros(0).long()),
        (draw(3, 4, 3), torch.zeros(5).long()),
        (draw(3, 4, 3), torch.tensor([0, 1, 2, 3])),
        (draw(3, 4, 3), draw(4)),
        (draw(3, 4, 3), draw(4, 2)),
        (draw(3, 4, 3) * float("nan"), torch.zeros(4).long()),
        (draw(3, 4, 3), torch.tensor([0.0, float("nan"), 1, 2])),
    ],
)
def test_invalid_shapes_are_refused(outputs, targets):
    for decompose in (decompose_squared, decompose_cross_entropy):
        with pytest.raises(InputError):
            decompose(outputs, targets)


def test_invalid_log_probabilities_are_refused():
    labels = torch.zeros(4).long()
    log_p = draw(3, 4, 3).log_softmax(2)
    for bad in (draw(3, 4, 3), log_p.exp(), log_p + 1e-3, log_p.masked_fill(log_p > -1, -math.inf)):
        with pytest.raises(InputError):
            decompose_cross_entropy(bad, labels)
    for bad in (draw(4, 3), torch.full((4, 3), 0.5, dtype=torch.float64)):
        with pytest.raises(InputError, match="not probabilities"):
            decompose_cross_entropy(log_p, bad)


def test_the_mean_of_members_has_no_formula_for_cross_entropy():
    result = decompose_cross_entropy(draw(3, 4, 3).log_softmax(2), torch.zeros(4).long())
    with pytest.raises(InputError, match="squared loss"):
        result.averaged(2)
    for k in (0, -1, 1.5, True):
        with pytest.raises(InputError):
            decompose_squared(draw(3, 4, 3), torch.zeros(4).long()).averaged(k)
