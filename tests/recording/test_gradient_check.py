"""kernelmem.recording.gradient_check: the scale between two gradients, or an error."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernelmem.core.errors import InputError
from kernelmem.recording.gradient_check import fit_scale, random_state


def gradients(dtype=torch.float32, seed=0, small=1e-2):
    generator = torch.Generator().manual_seed(seed)
    return {
        "small": small * torch.randn(5, dtype=dtype, generator=generator),
        "large": torch.randn(4, 3, dtype=dtype, generator=generator),
    }


def scaled(h, c):
    return {name: value * c for name, value in h.items()}


def fit(g, h, tolerance=1e-4):
    return fit_scale(g, h, tolerance=tolerance, description="the loss")


@given(st.floats(1e-6, 1e6), st.integers(0, 50), st.sampled_from([torch.float32, torch.float64]))
def test_a_multiplier_is_found_to_the_bit(c, seed, dtype):
    c = float(torch.tensor(c, dtype=dtype))
    h = gradients(dtype, seed)
    g = scaled(h, c)
    found = fit(g, h)
    assert found == pytest.approx(c, rel=1e-6 if dtype == torch.float32 else 1e-15)
    assert all(torch.equal(h[name] * found, g[name]) for name in g)


def test_rounding_gives_the_least_squares_multiplier():
    h = gradients(torch.float64)
    g = {name: value * 0.25 + 1e-13 * torch.randn(value.shape, dtype=torch.float64) for name, value in h.items()}
    a, b = (torch.cat([v.flatten() for v in x.values()]) for x in (g, h))
    assert fit(g, h, 1e-8) == pytest.approx(float(a @ b / (b @ b)), rel=1e-14)


def test_equal_and_zero_gradients():
    h = gradients()
    zero = scaled(h, 0.0)
    assert fit(h, h) == 1.0
    assert fit(zero, zero) == 1.0
    assert fit(zero, h) == 0.0
    assert fit({}, {}) == 1.0
    with pytest.raises(InputError, match="not a multiple"):
        fit(h, zero)


@pytest.mark.parametrize(("factor", "small"), [(2.0, 1e-5), (0.0, 1e-5), (-1.0, 1e-5), (1.01, 1e-2)])
def test_changing_the_gradient_of_one_small_parameter_is_refused(factor, small):
    h = gradients(small=small)
    with pytest.raises(InputError, match="mismatch is in small"):
        fit({**h, "small": h["small"] * factor}, h)


def test_the_tolerance_is_relative_to_the_norm():
    h = {"only": torch.tensor([1.0, 0.0], dtype=torch.float64)}
    assert fit({"only": torch.tensor([1.0, 0.995e-4], dtype=torch.float64)}, h) == 1.0
    with pytest.raises(InputError, match="mismatch is in only"):
        fit({"only": torch.tensor([1.0, 1.005e-4], dtype=torch.float64)}, h)


def test_nan_is_refused():
    h = gradients()
    bad = h["large"].clone()
    bad[0, 0] = math.nan
    with pytest.raises(InputError, match="mismatch is in large"):
        fit({**h, "large": bad}, h)


def test_the_random_state_is_restored_after_an_error():
    start = torch.get_rng_state()
    other = torch.Generator().manual_seed(5).get_state()

    def draw_and_fail():
        with random_state(other):
            assert torch.equal(torch.get_rng_state(), other)
            torch.rand(3)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        draw_and_fail()
    assert torch.equal(torch.get_rng_state(), start)
