"""Derivatives of every optimizer's update, entry by entry; classification of recorded gradient factors."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernelmem.core.errors import InputError
from kernelmem.trajectory.influence.unrolled import _find_clipped_steps, step_derivatives
from kernelmem.trajectory.optimizers import filter_class
from tests.profiles import examples
from tests.trajectory.retrained import UPDATES

NAMES = sorted(UPDATES)


def walked(update, seed, steps, *, silent=0):
    """A filter that has made some steps, and the next gradient; the first ``silent`` entries never had one."""
    kind, options = UPDATES[update]
    generator = torch.Generator().manual_seed(seed)
    options = kind([torch.nn.Parameter(torch.zeros(1))], **options).param_groups[0]
    weights, own = torch.randn(9, dtype=torch.float64, generator=generator), filter_class(kind.__name__)()
    gradients = torch.randn(steps + 1, 9, dtype=torch.float64, generator=generator)
    gradients[:, :silent] = 0
    for gradient in gradients[:-1]:
        own.forward(gradient, weights, options)
    return own, dict(own.state), gradients[-1], weights, options


@given(update=st.sampled_from(NAMES), seed=st.integers(0, 2**16), steps=st.integers(0, 4))
@examples(2)
def test_the_derivative_of_an_update_is_its_change(update, seed, steps):
    own, state, gradient, weights, options = walked(update, seed, steps)
    kind, count = type(own), own.count
    found = step_derivatives(kind, count, state, gradient, weights, options)
    inputs = {"weights": weights, "gradient": gradient, **state}

    def outputs(values):
        again = kind(count=count, state={key: values[key] for key in state})
        step = again.forward(values["gradient"], values["weights"], options).step
        return {"weights": values["weights"] + step, **again.state}

    assert set(found) == set(outputs(inputs))
    for key, value in inputs.items():
        h = 1e-5 * value.abs()
        up, down = (outputs(inputs | {key: value + sign * h}) for sign in (1, -1))
        for output, row in found.items():
            change = (up[output] - down[output]) / (2 * h)
            derivative = row.get(key, torch.zeros_like(value))
            rounding = 1e-14 * (1 + up[output].abs()) / h
            close = 1e-5 * derivative.abs() + 1e-6 * float(derivative.abs().max()) + rounding
            assert bool(((change - derivative).abs() <= close).all()), (key, output)


@given(update=st.sampled_from(NAMES), seed=st.integers(0, 2**16), steps=st.integers(0, 3))
@examples(1)
def test_entries_without_a_gradient_so_far_have_a_finite_derivative(update, seed, steps):
    """Pixels that are always dark: a first gradient δ moves the step by δ/ε, and no root of zero is divided by."""
    own, state, gradient, weights, options = walked(update, seed, steps, silent=3)
    options = dict(options, weight_decay=0.0)
    found = step_derivatives(type(own), own.count, state, gradient, weights, options)
    assert all(bool(value.isfinite().all()) for row in found.values() for value in row.values())
    slope = found["weights"]["gradient"][:3]
    h = 1e-9
    moved = type(own)(count=own.count, state=dict(state)).forward(gradient + h, weights, options).step
    still = type(own)(count=own.count, state=dict(state)).forward(gradient, weights, options).step
    assert torch.allclose((moved - still)[:3] / h, slope, rtol=1e-4)


@pytest.mark.parametrize(
    ("scales", "norms", "clip", "expected"),
    [
        ([1.0, 1.0], [3.0, 4.0], None, [False, False]),
        ([1.0, 0.5, 0.2], [0.9, 1.0, 1.0], None, [False, True, True]),
        ([1.0, 0.5, 0.2], [0.9, 1.0, 1.00002], None, [False, True, True]),  # rounded in float32
        ([0.5, 0.5, 0.5], [1.0, 2.0, 3.0], None, [False, False, False]),
        ([2.0, 3.0], [1.0, 2.0], None, [False, False]),  # above 1 is no clipping
        ([1.0, 0.5, 0.2], [0.9, 1.0, 2.0], "norm", [False, True, True]),
        ([1.0, 0.5, 0.2], [0.9, 1.0, 1.0], "fixed", [False, False, False]),
    ],
)
def test_factors_that_give_one_norm_are_clipping(scales, norms, clip, expected):
    assert _find_clipped_steps(scales, norms, clip) == expected


def test_other_factors_are_refused():
    with pytest.raises(InputError, match=r"0\.2 to 0\.5.*norms 1 to 2"):
        _find_clipped_steps([1.0, 0.5, 0.2], [0.9, 1.0, 2.0], None)
