"""kernelmem.kernels.alignment: definitions, invariances, the bias that the debiased one lacks, refusals."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernelmem.core.errors import InputError, NumericalError
from kernelmem.kernels.alignment import (
    AlignmentEstimate,
    alignment,
    centered_alignment,
    centered_target_alignment,
    debiased_alignment,
    kernel_distance,
    relative_distance,
    target_alignment,
)

PAIRS = (alignment, centered_alignment, kernel_distance)
DTYPES = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-4)])


@st.composite
def pairs(draw, dtype=torch.float64, least=3):
    """Features of the same n rows for two kernels, with a common part; n from ``least`` to 12."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    n, common = draw(st.integers(least, 12)), draw(st.floats(0, 1))
    x = torch.randn(n, draw(st.integers(1, 8)), generator=generator, dtype=torch.float64)
    z = torch.randn(n, draw(st.integers(1, 8)), generator=generator, dtype=torch.float64)
    z[:, 0] += 3 * common * x[:, 0]
    return x.to(dtype), z.to(dtype)


def gram(x):
    return x @ x.T


@DTYPES
@given(data=st.data(), scale=st.floats(1e-3, 1e3), seed=st.integers(0, 2**31))
def test_invariances(dtype, tolerance, data, scale, seed):
    x, z = data.draw(pairs(dtype))
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(x.shape[1], x.shape[1], generator=generator, dtype=torch.float64))[0]
    order = torch.randperm(len(x), generator=generator)
    for measure in PAIRS:
        value = measure(gram(x), gram(z))
        assert 0 <= value <= 1
        assert measure(gram(z), gram(x)) == pytest.approx(value, abs=tolerance)
        assert measure(gram(scale * x @ rotation.to(dtype)), gram(z)) == pytest.approx(value, abs=tolerance)
        assert measure(gram(x[order]), gram(z[order])) == pytest.approx(value, abs=tolerance)
    shift = torch.randn(x.shape[1], generator=generator, dtype=torch.float64).to(dtype)
    centered = centered_alignment(gram(x), gram(z))
    assert centered_alignment(gram(x + shift), gram(z)) == pytest.approx(centered, abs=100 * tolerance)
    assert alignment(gram(x), gram(x)) == pytest.approx(1, abs=tolerance)
    assert centered_alignment(gram(x), gram(x)) == pytest.approx(1, abs=tolerance)
    assert kernel_distance(gram(x), gram(x)) == 0


@given(case=pairs())
def test_definitions(case):
    """Beside the definitions: centering on the features, cosines, and the target kernel that is formed here."""
    x, z = case
    K, L = gram(x), gram(z)
    assert kernel_distance(K, L) == pytest.approx(1 - alignment(K, L), abs=1e-12)
    assert alignment(K, L) == pytest.approx(float((K * L).sum() / K.norm() / L.norm()), rel=1e-12)
    free = centered_alignment(K, L)
    assert free == pytest.approx(alignment(gram(x - x.mean(0)), gram(z - z.mean(0))), abs=1e-10)
    assert target_alignment(K, z) == pytest.approx(alignment(K, L), abs=1e-12)
    assert centered_target_alignment(K, z) == pytest.approx(free, abs=1e-10)
    assert relative_distance(K, L) == pytest.approx(float((K - L).norm() / L.norm()), rel=1e-12)
    assert relative_distance(2 * K, K) == pytest.approx(1, rel=1e-12)


def test_nearly_equal_kernels_keep_their_distance():
    """1 − cosine of kernels that differ by 1e-10 is 1e-20: lost if computed so."""
    K = torch.eye(3, dtype=torch.float64)
    other = torch.diag(torch.tensor([1 + 1e-10, 1, 1], dtype=torch.float64))
    assert kernel_distance(K, other) == pytest.approx(1e-20 / 3, rel=1e-5)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_kernels_of_any_size(scale):
    K, L = torch.eye(2, dtype=torch.float64) * scale, torch.ones(2, 2, dtype=torch.float64)
    assert alignment(K, L) == pytest.approx(math.sqrt(0.5), rel=1e-14)
    assert target_alignment(K, torch.tensor([1.0, 1.0])) == pytest.approx(math.sqrt(0.5), rel=1e-14)


def test_labels_and_real_targets():
    labels = torch.tensor([0, 1, 2, 1, 0, 2])
    one_hot = torch.nn.functional.one_hot(labels).double() - 1 / 3
    ideal = gram(one_hot)
    assert target_alignment(ideal, labels) == pytest.approx(1, rel=1e-14)
    assert target_alignment(ideal, labels.numpy()) == pytest.approx(1, rel=1e-14)
    assert target_alignment(ideal, one_hot) == pytest.approx(1, rel=1e-14)
    K = gram(torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    signs = torch.tensor([1.0, -1, 1, -1, 1, -1])
    assert target_alignment(K, signs) == pytest.approx(float(signs.double() @ K @ signs.double() / K.norm() / 6))
    assert target_alignment(K, signs) == pytest.approx(target_alignment(K, signs[:, None]))
    # two classes: one-hot − 1/2 and ±1 are the same target up to scale
    assert target_alignment(K, (signs > 0).long()) == pytest.approx(target_alignment(K, signs), rel=1e-12)


def unbiased_hsic(K, L):
    """Song et al. 2012 in the form of a sum over distinct indices: U-statistic of order 4."""
    n, total = len(K), 0.0
    for i, j, q, r in itertools.permutations(range(n), 4):
        total += K[i, j] * (L[i, j] + L[q, r] - 2 * L[i, q])
    return total / math.perm(n, 4)


@given(case=pairs(least=6))
def test_debiased_alignment_is_the_ratio_of_u_statistics_and_its_error_the_jackknife(case):
    x, z = (part[:7] for part in case)
    K, L = gram(x).tolist(), gram(z).tolist()

    def ratio(keep):
        K_, L_ = (np.array(M)[np.ix_(keep, keep)] for M in (K, L))
        one, two = unbiased_hsic(K_, K_), unbiased_hsic(L_, L_)
        return unbiased_hsic(K_, L_) / math.sqrt(one * two) if min(one, two) > 0 else None

    n = len(x)
    left_out = [ratio([j for j in range(n) if j != i]) for i in range(n)]
    if ratio(list(range(n))) is None or None in left_out:
        with pytest.raises(NumericalError, match="HSIC"):
            debiased_alignment(gram(x), gram(z))
        return
    found = debiased_alignment(gram(x), gram(z))
    assert found.value == pytest.approx(ratio(list(range(n))), rel=1e-7, abs=1e-9)
    spread = np.array(left_out)
    assert found.se == pytest.approx(math.sqrt((n - 1) / n * ((spread - spread.mean()) ** 2).sum()), rel=1e-6, abs=1e-8)


def draws(n, d, common, repeats):
    """Pairs of linear kernels of d features each, the first of which have correlation ``common``."""
    generator = torch.Generator().manual_seed(5)
    for _ in range(repeats):
        x, z = torch.randn(2, n, d, generator=generator, dtype=torch.float64)
        z = common * x + math.sqrt(1 - common**2) * z
        yield gram(x), gram(z)


@pytest.mark.parametrize("common", [0.0, 0.6])
def test_debiased_alignment_has_no_bias_and_a_true_error(common):
    """Population value: |Σ_xz|² / (|Σ_xx| |Σ_zz|) = common²; the biased one is far above it at n = 2 d."""
    found = [debiased_alignment(K, L) for K, L in draws(60, 30, common, 150)]
    values, errors = np.array([f.value for f in found]), np.array([f.se for f in found])
    spread = values.std(ddof=1)
    assert abs(values.mean() - common**2) < 4 * spread / math.sqrt(150)
    biased = np.mean([centered_alignment(K, L) for K, L in draws(60, 30, common, 20)])
    assert biased > common**2 + 0.15
    if common:
        assert errors.mean() == pytest.approx(spread, rel=0.25)
    else:
        # Independent kernels make HSIC degenerate: the jackknife's variance is then about twice too large.
        assert spread <= errors.mean() <= 1.8 * spread


def test_debiased_refuses_what_it_cannot_estimate():
    K = gram(torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    with pytest.raises(InputError, match="kernels of 4 examples"):
        debiased_alignment(K[:4, :4], K[:4, :4])
    for constant in (torch.ones(8, 8), torch.full((8, 8), 1 / 3, dtype=torch.float64), torch.zeros(8, 8)):
        with pytest.raises(NumericalError, match="HSIC"):
            debiased_alignment(K, constant)


@pytest.mark.parametrize("measure", [*PAIRS, debiased_alignment, relative_distance])
def test_refusals_of_pairs(measure):
    K = gram(torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    with pytest.raises(InputError, match=r"\(6, 6\) and \(5, 5\)"):
        measure(K, K[:5, :5])
    with pytest.raises(NumericalError, match=r"second kernel.*asymmetry"):
        measure(K, K + torch.triu(torch.ones(6, 6)))
    with pytest.raises(InputError, match="NaN"):
        measure(K, K * float("nan"))
    with pytest.raises(NumericalError, match=r"zeros|constant|HSIC"):
        measure(K, torch.zeros(6, 6))
    if measure is centered_alignment:
        with pytest.raises(NumericalError, match="second kernel that is constant"):
            measure(K, torch.full((6, 6), 0.1))


@pytest.mark.parametrize("measure", [target_alignment, centered_target_alignment])
def test_refusals_of_targets(measure):
    K = torch.eye(4)
    for y in ([0, 1, 0], torch.zeros(4, 0), torch.zeros(4, 2, 2), torch.zeros(4, dtype=torch.complex64)):
        with pytest.raises(InputError, match="y of shape"):
            measure(K, y)
    with pytest.raises(InputError, match="outside"):
        measure(K, [0, 1, -1, 0])
    with pytest.raises(NumericalError, match="variation"):
        measure(K, torch.zeros(4))
    with pytest.raises(NumericalError, match=r"zeros|constant"):
        measure(torch.zeros(4, 4), [0, 1, 0, 1])


def test_constant_targets_have_no_centered_direction():
    with pytest.raises(NumericalError, match="variation"):
        centered_target_alignment(torch.eye(3), torch.full((3,), 0.1))
    with pytest.raises(NumericalError, match="variation"):
        centered_target_alignment(torch.eye(3), [1, 1, 1])


def test_an_estimate_is_a_result(tmp_path):
    K, L = next(draws(20, 5, 0.5, 1))
    estimate = debiased_alignment(K, L)
    loaded = AlignmentEstimate.load(estimate.save(tmp_path / "alignment.safetensors"))
    assert (loaded.value, loaded.se) == (estimate.value, estimate.se)
    assert str(estimate) == f"debiased alignment {estimate.value:.4g} ± {estimate.se:.2g} (jackknife standard error)"
    assert repr(estimate) == str(estimate)
    assert list(estimate.to_frame().columns) == ["value", "se"]
