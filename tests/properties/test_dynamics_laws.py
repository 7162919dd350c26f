"""Laws of linearized training: scaling, permutation, linearity, the semigroup, and closed form against recursion."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from kernelmem.kernel_machines.linearized.function_space import Linearization
from kernelmem.kernel_machines.linearized.gradient_flow import gradient_descent, gradient_flow
from kernelmem.kernel_machines.linearized.minibatch_sgd import minibatch_sgd
from kernelmem.kernel_machines.linearized.sgd_config import SGDConfig
from tests.profiles import examples

COMMON = examples(0.625)


@st.composite
def problems(draw, decay=True):
    """A PSD kernel of n + m rows, possibly singular, targets, starting outputs, and constants below the limit."""
    n, m, C = draw(st.integers(1, 6)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    full = draw(st.booleans())
    wide = C if full else 1
    rank = draw(st.integers(1, (n + m) * wide))
    A = torch.randn((n + m) * wide, rank, generator=generator, dtype=torch.float64)
    K = A @ A.T
    cut = n * wide
    y, start, origin = torch.randn(3, n + m, C, generator=generator, dtype=torch.float64)
    momentum = draw(st.sampled_from([0.0, 0.5, 0.9]))
    nesterov = momentum > 0 and draw(st.booleans())
    dampening = 0.0 if nesterov or momentum == 0 else draw(st.sampled_from([0.0, 0.3]))
    weight_decay = draw(st.sampled_from([0.0, 0.05, 0.5])) if decay else 0.0
    constants = {"momentum": momentum, "dampening": dampening, "nesterov": nesterov, "weight_decay": weight_decay}
    curvature = float(torch.linalg.eigvalsh(K[:cut, :cut])[-1]) / n + weight_decay
    lr = draw(st.sampled_from([0.05, 0.4, 0.9])) * SGDConfig(1.0, **constants).limit / curvature
    where = {"initial": start[:n], "initial_test": start[n:], "origin": origin[:n], "origin_test": origin[n:]}
    return K[:cut, :cut], K[cut:, :cut], y[:n], where, {"lr": lr, **constants}, full


def near(first, second, tolerance=1e-9):
    scale = 1 + float(second.train.abs().max()) + float(second.test.abs().max())
    assert float((first.train - second.train).abs().max()) < tolerance * scale
    assert float((first.test - second.test).abs().max()) < tolerance * scale


@COMMON
@given(problems())
def test_closed_form_and_recursion_agree(problem):
    K, cross, y, where, constants, _ = problem
    steps = [0, 1, 2, 17, 60]
    closed = gradient_descent(
        K, y, steps=steps, sgd=SGDConfig(**constants), linearization=Linearization(K_test=cross, **where)
    )
    near(
        closed,
        minibatch_sgd(
            K, y, steps=steps, sgd=SGDConfig(**constants), linearization=Linearization(K_test=cross, **where)
        ),
    )
    assert closed.residual < 1e-9
    assert closed.stability < closed.limit


@COMMON
@given(problems(), st.sampled_from([0.01, 3.0, 1e4]))
def test_a_kernel_scaled_is_a_time_scaled(problem, c):
    """Without decay (K, h) and (c K, h / c) are one training; so are times of flow."""
    K, cross, y, where, constants, _ = problem
    constants = {**constants, "weight_decay": 0.0, "lr": 0.5 * constants["lr"]}
    near(
        gradient_descent(
            c * K,
            y,
            steps=[3, 40],
            sgd=SGDConfig(**{**constants, "lr": constants["lr"] / c}),
            linearization=Linearization(K_test=c * cross, **where),
        ),
        gradient_descent(
            K, y, steps=[3, 40], sgd=SGDConfig(**constants), linearization=Linearization(K_test=cross, **where)
        ),
    )
    near(
        gradient_flow(c * K, y, times=[0.3 / c, math.inf], linearization=Linearization(K_test=c * cross, **where)),
        gradient_flow(K, y, times=[0.3, math.inf], linearization=Linearization(K_test=cross, **where)),
        1e-6,
    )


@COMMON
@given(problems(), st.integers(0, 2**20))
def test_the_order_of_rows_plays_no_part(problem, seed):
    K, cross, y, where, constants, full = problem
    n, C = y.shape
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    columns = (order[:, None] * C + torch.arange(C)).flatten() if full and C > 1 else order
    moved = {**where, "initial": where["initial"][order], "origin": where["origin"][order]}
    found = gradient_descent(
        K[columns][:, columns],
        y[order],
        steps=[1, 30],
        sgd=SGDConfig(**constants),
        linearization=Linearization(K_test=cross[:, columns], **moved),
    )
    expected = gradient_descent(
        K, y, steps=[1, 30], sgd=SGDConfig(**constants), linearization=Linearization(K_test=cross, **where)
    )
    assert float((found.test - expected.test).abs().max()) < 1e-9 * (1 + float(expected.test.abs().max()))
    assert float((found.train - expected.train[:, order]).abs().max()) < 1e-9 * (1 + float(expected.train.abs().max()))


@COMMON
@given(problems(decay=False), st.integers(0, 40), st.integers(1, 40))
def test_plain_descent_goes_on_from_where_it_was(problem, first, second):
    K, cross, y, where, constants, _ = problem
    lr = min(constants["lr"], 1.8 * len(y) / float(torch.linalg.eigvalsh(K)[-1]))
    whole = gradient_descent(
        K, y, steps=first + second, sgd=SGDConfig(lr=lr), linearization=Linearization(K_test=cross, **where)
    )
    half = gradient_descent(K, y, steps=first, sgd=SGDConfig(lr=lr), linearization=Linearization(K_test=cross, **where))
    rest = gradient_descent(
        K,
        y,
        steps=second,
        sgd=SGDConfig(lr=lr),
        linearization=Linearization(K_test=cross, initial=half.train[0], initial_test=half.test[0]),
    )
    near(rest, whole)


@COMMON
@given(problems())
def test_the_flow_goes_on_from_where_it_was_and_decays_to_its_limit(problem):
    K, cross, y, where, constants, _ = problem
    decay = constants["weight_decay"]
    whole = gradient_flow(K, y, times=1.1, weight_decay=decay, linearization=Linearization(K_test=cross, **where))
    half = gradient_flow(K, y, times=0.4, weight_decay=decay, linearization=Linearization(K_test=cross, **where))
    later = {**where, "initial": half.train[0], "initial_test": half.test[0]}
    near(gradient_flow(K, y, times=0.7, weight_decay=decay, linearization=Linearization(K_test=cross, **later)), whole)
    if decay:
        ends = gradient_flow(
            K, y, times=[math.inf, 2000.0], weight_decay=decay, linearization=Linearization(K_test=cross, **where)
        )
        assert float((ends.test[0] - ends.test[1]).abs().max()) < 1e-8 * (1 + float(ends.test.abs().max()))
