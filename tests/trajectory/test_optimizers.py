"""Optimizer filters: steps equal torch.optim's, and the backward recursion is the adjoint."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernelmem.core.errors import InputError
from kernelmem.recording.storage.param_groups import OPTIMIZERS
from kernelmem.trajectory.optimizers import FILTERS, filter_class
from tests.profiles import examples

rates, small = st.floats(1e-4, 0.5), st.floats(0.0, 0.3)
fractions = st.floats(0.0, 0.99)
booleans = st.booleans()

OPTIONS = {
    "SGD": st.one_of(
        st.fixed_dictionaries({"lr": rates, "weight_decay": small, "maximize": booleans}),
        st.fixed_dictionaries(
            {
                "lr": rates,
                "momentum": st.floats(0.01, 0.99),
                "dampening": fractions,
                "weight_decay": small,
                "maximize": booleans,
            }
        ),
        st.fixed_dictionaries({"lr": rates, "momentum": st.floats(0.01, 0.99), "nesterov": st.just(True)}),
    ),
    "Adam": st.fixed_dictionaries(
        {
            "lr": rates,
            "betas": st.tuples(fractions, st.floats(0.5, 0.999)),
            "eps": st.floats(1e-8, 1e-3),
            "weight_decay": small,
            "amsgrad": booleans,
            "maximize": booleans,
        }
    ),
    "RMSprop": st.fixed_dictionaries(
        {
            "lr": rates,
            "alpha": st.floats(0.5, 0.99),
            "eps": st.floats(1e-6, 1e-3),
            "momentum": fractions,
            "centered": booleans,
            "weight_decay": small,
            "maximize": booleans,
        }
    ),
    "Adagrad": st.fixed_dictionaries(
        {"lr": rates, "lr_decay": small, "eps": st.floats(1e-8, 1e-3), "weight_decay": small, "maximize": booleans}
    ),
}
OPTIONS["AdamW"] = OPTIONS["Adam"]
CASES = st.sampled_from(sorted(OPTIONS)).flatmap(lambda name: st.tuples(st.just(name), OPTIONS[name]))


def run(name, options, *, steps, seed, idle=()):
    """Gradients, the weights that torch.optim makes of them, and what the filter says; no gradient in ``idle`` steps."""
    generator = torch.Generator().manual_seed(seed)
    parameter = torch.nn.Parameter(torch.randn(4, 3, dtype=torch.float64, generator=generator))
    optimizer = OPTIMIZERS[name]([parameter], **options)
    own, gradients, weights, moved = FILTERS[name](), [], [parameter.detach().clone()], []
    for t in range(steps):
        gradients.append(torch.randn(4, 3, dtype=torch.float64, generator=generator) * 3 ** float(t % 3))
        parameter.grad = None if t in idle else gradients[-1].clone()
        recorded = optimizer.param_groups[0]
        moved.append(None if t in idle else own.forward(gradients[-1], parameter.detach().clone(), recorded))
        optimizer.step()
        weights.append(parameter.detach().clone())
    return gradients, weights, moved


@given(case=CASES, seed=st.integers(0, 2**16), idle=st.sets(st.integers(0, 6), max_size=3))
@examples(3.75)
def test_steps_equal_those_of_torch(case, seed, idle):
    name, options = case
    gradients, weights, moved = run(name, options, steps=7, seed=seed, idle=idle)
    for t, own in enumerate(moved):
        actual = weights[t + 1] - weights[t]
        formula = torch.zeros_like(actual) if own is None else own.step
        scale = float(torch.cat([weights[t], weights[t + 1], formula]).abs().max())
        # 1e-15 of what is subtracted; where a gradient nearly cancels its decay, its rounding over a small denominator;
        # centered RMSprop divides by a root of a difference.
        if own is not None and own.denominator is not None:
            size = float(gradients[t].abs().max()) + options["weight_decay"] * float(weights[t].abs().max())
            scale = max(scale, options["lr"] * size / float(own.denominator.min()))
        tolerance = 1e-11 if options.get("centered") else 2e-15
        assert float((actual - formula).abs().max()) <= tolerance * max(1.0, scale), (t, name, options)


@given(case=CASES, seed=st.integers(0, 2**16), idle=st.sets(st.integers(0, 6), max_size=3))
@examples(3.75)
def test_backward_is_the_adjoint_of_forward(case, seed, idle):
    """Σ_t ⟨J̄_t, d_t⟩ = Σ_s ⟨A_s, g_s⟩ + decay, whatever the cotangents are."""
    name, options = case
    gradients, _, moved = run(name, options, steps=7, seed=seed, idle=idle)
    generator = torch.Generator().manual_seed(seed + 1)
    own, left, right, size = FILTERS[name](), torch.zeros(5), torch.zeros(5), 0.0
    left, right = left.double(), right.double()
    for t in reversed(range(7)):
        if moved[t] is None:
            continue
        cotangent = torch.randn(5, 4, 3, dtype=torch.float64, generator=generator)
        left += (cotangent * moved[t].step).sum((1, 2))
        share, decay = own.backward(cotangent, moved[t])
        part = (share * gradients[t]).sum((1, 2))
        right += part if decay is None else part + decay
        size += float((share * gradients[t]).abs().sum((1, 2)).max()) + (
            0.0 if decay is None else float(decay.abs().max())
        )
    assert float((left - right).abs().max()) <= 1e-13 * max(1.0, size)


@given(case=CASES, seed=st.integers(0, 2**16), idle=st.sets(st.integers(0, 6), max_size=3))
@examples(2.5)
def test_parts_of_the_gradient_make_parts_of_the_step(case, seed, idle):
    """The filter is linear given its statistics: parts that add up to the gradient, decay among them, make up the step."""
    name, options = case
    gradients, weights, moved = run(name, options, steps=7, seed=seed, idle=idle)
    generator, own, state = torch.Generator().manual_seed(seed + 2), FILTERS[name](), {}
    for t in range(7):
        if moved[t] is None:
            continue
        sign = -1.0 if options.get("maximize") else 1.0
        split = torch.randn(3, 12, dtype=torch.float64, generator=generator)
        split[-1] = sign * gradients[t].flatten() - split[:-1].sum(0)
        decay = options.get("weight_decay", 0.0) * weights[t].flatten()
        decoupled = own.has_decoupled_decay(options)
        flat = dataclasses.replace(
            moved[t],
            step=moved[t].step.flatten(),
            denominator=None if moved[t].denominator is None else moved[t].denominator.flatten(),
        )
        rows = split if decoupled else torch.cat([split, decay[None]])
        found = own.filter_gradients(rows, flat, state).sum(0) - (options["lr"] * decay if decoupled else 0.0)
        size = 1.0 + float(own.filter_gradients(rows, flat, dict(state)).abs().max())
        assert float((found - flat.step).abs().max()) <= 1e-12 * size


def test_hyper_parameters_may_change_from_step_to_step():
    """A schedule of rates and momenta: the factor carried over is that of the later step."""
    generator = torch.Generator().manual_seed(0)
    parameter = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.5, foreach=False)
    forward, moved, gradients = FILTERS["SGD"](), [], []
    for t in range(5):
        optimizer.param_groups[0].update(lr=0.1 / (t + 1), momentum=0.5 + 0.1 * t)
        gradients.append(torch.randn(3, dtype=torch.float64, generator=generator))
        parameter.grad = gradients[-1].clone()
        moved.append(forward.forward(gradients[-1], parameter.detach().clone(), dict(optimizer.param_groups[0])))
        optimizer.step()
    assert float((parameter.detach() - sum(own.step for own in moved)).abs().max()) < 1e-15
    backward, total = FILTERS["SGD"](), torch.zeros(3, dtype=torch.float64)
    for t in reversed(range(5)):
        share, _ = backward.backward(torch.eye(3, dtype=torch.float64), moved[t])
        total += share @ gradients[t]
    assert float((total - parameter.detach()).abs().max()) < 1e-15


def test_an_optimizer_without_a_filter_is_refused():
    with pytest.raises(InputError, match=r"LBFGS.*Adagrad"):
        filter_class("LBFGS")
