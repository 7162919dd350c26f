"""kernelmem.kernels.spectrum: closed forms, limits, laws over random spectra, refusals, table and picture."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernelmem.core.errors import InputError, NumericalError
from kernelmem.kernels.spectrum import PowerLaw, Spectrum, spectrum

EPS = torch.finfo(torch.float64).eps


def rotated(values, seed=0):
    """A symmetric matrix with these eigenvalues in random directions."""
    values = torch.as_tensor(values, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64))[0]
    return (basis * values) @ basis.T


@st.composite
def kernels(draw, dtype=torch.float64):
    """XXᵀ of n rows with d features of decaying size, n and d in either order; sometimes scaled far from 1."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    n, d = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    x = torch.randn(n, d, generator=generator, dtype=torch.float64) * torch.arange(1, d + 1) ** -draw(st.floats(0, 2))
    return (x @ x.T * 10.0 ** draw(st.integers(-6, 6))).to(dtype)


ridges = st.floats(1e-6, 1e6)


@given(kernel=kernels(), ridge=ridges)
def test_effective_dimension_is_the_trace_of_the_hat_matrix(kernel, ridge):
    ridge *= float(kernel.diagonal().mean())
    identity = torch.eye(len(kernel), dtype=torch.float64)
    hat = torch.linalg.solve(kernel + ridge * identity, kernel)
    # the solve loses digits as ridge/λ falls: its condition number is at most 1e6 here
    assert spectrum(kernel).effective_dimension(ridge) == pytest.approx(float(hat.trace()), rel=1e-8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@given(data=st.data(), scale=st.floats(1e-3, 1e3), ridge=ridges)
def test_laws_of_the_effective_dimension(dtype, data, scale, ridge):
    kernel = data.draw(kernels(dtype))
    found = spectrum(kernel)
    ridge *= found.trace / len(kernel)  # a ridge of the size of rounding resolves rounding
    some = found.effective_dimension(ridge)
    assert 0 <= some <= len(kernel)
    assert some <= found.trace / ridge * (1 + 1e-12)
    assert found.effective_dimension(2 * ridge) <= some * (1 + 1e-12)
    assert found.effective_dimension(0.0) == found.rank
    tiny, huge = (found.effective_dimension(factor * float(found.eigenvalues[0])) for factor in (1e-30, 1e12))
    assert tiny >= found.rank * (1 - 1e-9)  # what is within rounding of 0 may add to it
    assert huge == pytest.approx(found.trace / float(found.eigenvalues[0]) / 1e12, rel=1e-9)
    if dtype == torch.float64:
        assert spectrum(scale * kernel).effective_dimension(scale * ridge) == pytest.approx(some, rel=1e-6)


@given(kernel=kernels())
def test_eigenvalues_decrease_and_add_up_to_the_trace(kernel):
    found = spectrum(kernel)
    assert bool((found.eigenvalues.diff() <= 0).all())
    assert float(found.eigenvalues[-1]) >= 0
    assert found.trace == pytest.approx(float(kernel.trace()), rel=1e-12)
    assert found.rank <= len(kernel)


@given(kernel=kernels(), seed=st.integers(0, 2**31))
def test_permuting_rows_changes_nothing(kernel, seed):
    order = torch.randperm(len(kernel), generator=torch.Generator().manual_seed(seed))
    one, two = spectrum(kernel), spectrum(kernel[order][:, order])
    assert float((one.eigenvalues - two.eigenvalues).abs().max()) <= 10 * len(kernel) * EPS * float(one.eigenvalues[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_rank_of_duplicate_rows(dtype):
    """Half of the rows twice: negative eigenvalues of the size of rounding are rounding, in each dtype's own units."""
    x = torch.randn(40, 60, dtype=dtype, generator=torch.Generator().manual_seed(0))
    x = torch.cat([x, x])
    found = spectrum(x @ x.T)
    assert found.rank == 40
    assert found.condition() == math.inf
    assert found.rounding == pytest.approx(80 * torch.finfo(dtype).eps * float(found.eigenvalues[0]), rel=10)


def test_float32_numbers_in_a_float64_kernel():
    """What a kernel was rounded to shows in its negative eigenvalues, whatever its dtype says now."""
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
    found = spectrum((x @ x.T).double().numpy())
    assert found.rank < 40
    assert found.rounding > 1e-9 * float(found.eigenvalues[0])


def test_condition():
    found = spectrum(rotated([8.0, 4.0, 2.0]))
    assert found.condition() == pytest.approx(4, rel=1e-13)
    assert found.condition(ridge=1.0) == pytest.approx(3, rel=1e-13)
    singular = spectrum(rotated([8.0, 4.0, 0.0]))
    assert singular.condition() == math.inf
    assert singular.condition(ridge=2.0) == pytest.approx(5, rel=1e-13)


def test_kernel_of_zeros():
    found = spectrum(torch.zeros(3, 3))
    assert (found.rank, found.trace, found.condition(), found.condition(1.0)) == (0, 0.0, math.inf, 1.0)
    assert found.effective_dimension(0.5) == 0
    assert found.plot().axes
    with pytest.raises(InputError, match="rank 0"):
        found.decay()


@given(exponent=st.floats(0.2, 3.0), scale=st.floats(1e-3, 1e3), seed=st.integers(0, 100))
def test_decay_of_a_power_law(exponent, scale, seed):
    values = scale * torch.arange(1, 21, dtype=torch.float64) ** -exponent
    fit = spectrum(rotated(values, seed)).decay()
    assert (fit.first, fit.last) == (1, 10)
    assert fit.exponent == pytest.approx(exponent, rel=1e-9)
    assert fit.scale == pytest.approx(scale, rel=1e-9)
    assert fit.se < 1e-9


def test_standard_error_of_the_decay_is_that_of_a_noisy_power_law():
    """Independent noise on log λ: the stated error is the spread over draws, and 95 % of the intervals hold 1.5."""
    generator = np.random.default_rng(0)
    ranks = np.arange(1, 61)
    fits = []
    for _ in range(200):
        noisy = np.sort(ranks**-1.5 * np.exp(0.05 * generator.standard_normal(60)))[::-1]
        noisy[:40] = ranks[:40] ** -1.5 * np.exp(0.05 * generator.standard_normal(40))
        fits.append(spectrum(np.diag(np.sort(noisy)[::-1])).decay(first=1, last=30))
    exponents, errors = np.array([fit.exponent for fit in fits]), np.array([fit.se for fit in fits])
    assert exponents.mean() == pytest.approx(1.5, abs=0.02)
    # sorting takes away some of the noise at close ranks, so the two agree to a third, not to the last digit
    assert errors.mean() == pytest.approx(exponents.std(), rel=1 / 3)


def test_decay_takes_the_range_that_is_asked_for():
    values = torch.cat([torch.full((5,), 100.0), 50 * torch.arange(1.0, 31.0) ** -2])
    found = spectrum(torch.diag(values.double()))
    fit = found.decay(first=20, last=35)
    assert (fit.first, fit.last) == (20, 35)
    logs = found.eigenvalues[19:35].log().numpy()
    assert fit.exponent == pytest.approx(-np.polyfit(np.log(np.arange(20, 36)), logs, 1)[0], rel=1e-10)
    slope = np.sqrt(np.polyfit(np.log(np.arange(20, 36)), logs, 1, cov=True)[1][0, 0])
    assert fit.se == pytest.approx(slope, rel=1e-10)


@pytest.mark.parametrize(("first", "last"), [(0, 5), (1, 2), (4, 5), (1, 9), (9, None)])
def test_decay_refuses(first, last):
    with pytest.raises(InputError, match="numerical rank 8"):
        spectrum(rotated([2.0**-k for k in range(8)] + [0.0, 0.0])).decay(first=first, last=last)


def test_refusals():
    with pytest.raises(NumericalError, match="eigenvalues from -1 to 1"):
        spectrum([[0.0, 1.0], [1.0, 0.0]])
    with pytest.raises(NumericalError, match="eigenvalues from -3 to -1"):
        spectrum(-torch.diag(torch.tensor([1.0, 3.0])))
    with pytest.raises(NumericalError, match="asymmetry"):
        spectrum([[1.0, 1.0], [0.0, 1.0]])
    with pytest.raises(InputError, match="NaN"):
        spectrum([[float("nan")]])
    for ridge in (-1.0, float("inf"), float("nan"), True, [1.0]):
        with pytest.raises(InputError, match="ridge"):
            spectrum(torch.eye(2)).effective_dimension(ridge)
        with pytest.raises(InputError, match="ridge"):
            spectrum(torch.eye(2)).condition(ridge)


def test_table():
    frame = spectrum(torch.diag(torch.tensor([3.0, 1.0, 0.0]))).to_frame()
    assert frame.index.name == "rank"
    assert frame.index.tolist() == [1, 2, 3]
    assert frame["eigenvalue"].tolist() == [3.0, 1.0, 0.0]
    assert frame["cumulative"].tolist() == [0.75, 1.0, 1.0]
    assert frame["above_rounding"].tolist() == [True, True, False]


@pytest.mark.parametrize("values", [[1.0], [2.0, 1.0, 0.5, 0.25, 0.0], [2.0, 1.0, 1e-20]])
def test_picture(values, tmp_path):
    figure = spectrum(torch.diag(torch.tensor(values, dtype=torch.float64))).plot()
    figure.savefig(tmp_path / "spectrum.png")
    (axes,) = figure.axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert axes.get_xlabel() == "rank k"
    drawn = axes.get_lines()[0]
    assert sorted(drawn.get_ydata(), reverse=True) == list(drawn.get_ydata())


def test_a_spectrum_is_a_result(tmp_path):
    K = torch.diag(torch.arange(8.0, 0.0, -1.0, dtype=torch.float64) ** 2)
    result = spectrum(K)
    loaded = Spectrum.load(result.save(tmp_path / "spectrum.safetensors"))
    assert torch.equal(loaded.eigenvalues, result.eigenvalues)
    assert loaded.rounding == result.rounding
    text = str(result)
    assert repr(result) == text
    assert all(part in text for part in ("8 x 8 kernel", "204", "64, 49, 36, 25, 16, ...", "8 of 8", "ranks 1 to 4"))
    assert len(text.splitlines()) <= 8
    assert list(result.to_frame().columns) == ["eigenvalue", "cumulative", "above_rounding"]
    assert "<table" in result._repr_html_()


def test_a_zero_kernel_prints():
    text = str(spectrum(torch.zeros(3, 3)))
    assert "0 of 3" in text
    assert "inf" in text


def test_a_power_law_is_a_result(tmp_path):
    law = spectrum(torch.diag(torch.arange(1.0, 9.0, dtype=torch.float64) ** -2)).decay()
    assert PowerLaw.load(law.save(tmp_path / "law.safetensors")).exponent == law.exponent
    assert str(law).startswith("1 · k^−2.000 (± ")
    assert law.to_frame().shape == (1, 5)
