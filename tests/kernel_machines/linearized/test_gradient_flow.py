"""Tests of linearized training: equal to torch.optim.SGD on the linearized network; limits with a closed form."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import kernelmem as km
from kernelmem.core.errors import InputError, NumericalError
from kernelmem.core.models.torch_func import functional_call, jvp
from kernelmem.kernel_machines.linearized.eigenmodes import mode_states
from kernelmem.kernel_machines.linearized.function_space import Linearization
from kernelmem.kernel_machines.linearized.gradient_flow import gradient_descent, gradient_flow
from kernelmem.kernel_machines.linearized.minibatch_sgd import minibatch_sgd
from kernelmem.kernel_machines.linearized.sgd_config import SGDConfig
from kernelmem.tangents.derivatives.jvp import load_dual_rules

N, M, C = 7, 4, 3
load_dual_rules()


class Linear(nn.Module):
    """The linearization of a small network at its initial weights, as a module that torch.optim can train."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.base = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, C)).double().requires_grad_(False)
        self.names = [name for name, _ in self.base.named_parameters()]
        self.weights = nn.ParameterList(p.detach().clone() for p in self.base.parameters())

    def away(self):
        return {n: w - p for n, w, p in zip(self.names, self.weights, self.base.parameters(), strict=True)}

    def forward(self, x):
        start = {n: p.detach() for n, p in self.base.named_parameters()}
        value, slope = jvp(lambda w: functional_call(self.base, w, (x,)), (start,), (self.away(),))
        return value + slope

    def at_zero(self, x):
        with torch.no_grad():
            kept = [w.clone() for w in self.weights]
            for w in self.weights:
                w.zero_()
            found = self(x)
            for w, old in zip(self.weights, kept, strict=True):
                w.copy_(old)
        return found


def setting(seed=0):
    model = Linear(seed)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(N + M, 5, generator=generator, dtype=torch.float64)
    y = torch.randn(N, C, generator=generator, dtype=torch.float64)
    model.base.requires_grad_(True)
    K = km.ntk(model.base, x, outputs="full")
    model.base.requires_grad_(False)
    with torch.no_grad():
        start = model(x)
    zero = model.at_zero(x)
    where = {
        "initial": start[:N],
        "initial_test": start[N:],
        "origin": zero[:N],
        "origin_test": zero[N:],
        "K_test": K[N:, :N],
    }
    return model, x, y, K[:N, :N], where


def trained(model, x, y, steps, *, loss="mse", batches=None, rates=None, **options):
    """Outputs on all rows after each number of steps, by torch.optim.SGD in float64."""
    optimizer = torch.optim.SGD(model.weights.parameters(), **options)
    found = {}
    for t in range(max(steps) + 1):
        if t in steps:
            with torch.no_grad():
                found[t] = model(x)
        index = torch.arange(N) if batches is None or t >= len(batches) else batches[t]
        if rates is not None and t < len(rates):
            optimizer.param_groups[0]["lr"] = rates[t]
        optimizer.zero_grad()
        f = model(x[index])
        own = 0.5 * (f - y[index]).square().sum(1) if loss == "mse" else nn.functional.cross_entropy(f, y[index])
        own.mean().backward()
        optimizer.step()
    return torch.stack([found[t] for t in steps])


OPTIONS = {
    "descent": {},
    "heavy ball": {"momentum": 0.9},
    "dampened": {"momentum": 0.8, "dampening": 0.3},
    "dampening alone": {"dampening": 0.3},
    "nesterov": {"momentum": 0.7, "nesterov": True},
    "decay": {"weight_decay": 0.3},
    "heavy ball, decay": {"momentum": 0.9, "weight_decay": 0.1},
    "dampened, decay": {"momentum": 0.5, "dampening": 0.4, "weight_decay": 0.2},
    "nesterov, decay": {"momentum": 0.6, "nesterov": True, "weight_decay": 0.05},
}
STEPS = [0, 1, 2, 3, 50, 20]


def close(found, expected, tolerance=1e-12):
    assert float((found.train - expected[:, :N]).abs().max()) < tolerance
    assert float((found.test - expected[:, N:]).abs().max()) < tolerance
    assert found.residual < 1e-12
    assert float((expected[0] - expected[-1]).abs().max()) > 0.05


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("closed", [True, False])
def test_squared_error_equals_torch(name, closed):
    model, x, y, K, where = setting()
    options = {"lr": 0.1, **OPTIONS[name]}
    expected = trained(model, x, y, STEPS, **options)
    verb = gradient_descent if closed else minibatch_sgd
    found = verb(K, y, steps=STEPS, sgd=SGDConfig(**options), linearization=Linearization(**where))
    close(found, expected)
    again = found.predict(where["K_test"], initial=where["initial_test"], origin=where["origin_test"])
    assert float((again - found.test).abs().max()) < 1e-14


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_minibatches_with_a_schedule_equal_torch(name, loss):
    model, x, y, K, where = setting(1)
    generator = torch.Generator().manual_seed(3)
    batches = [torch.randperm(N, generator=generator)[: 1 + t % 4] for t in range(30)]
    batches[4] = torch.tensor([2, 2, 5])  # with replacement
    rates = [0.05 / (1 + 0.1 * t) for t in range(30)]
    labels = torch.arange(N) % C if loss == "cross_entropy" else y
    options = OPTIONS[name]
    steps = [0, 1, 30, 17]
    expected = trained(model, x, labels, steps, loss=loss, batches=batches, rates=rates, lr=0.05, **options)
    found = minibatch_sgd(
        K,
        labels,
        steps=steps,
        batches=batches,
        loss=loss,
        sgd=SGDConfig(lr=1.0, **options),
        lr_factors=rates,
        linearization=Linearization(**where),
    )
    assert float((found.train - expected[:, :N]).abs().max()) < 1e-12
    assert float((found.test - expected[:, N:]).abs().max()) < 1e-12
    assert found.residual < 1e-13


@pytest.mark.parametrize("name", ["descent", "dampened, decay"])
def test_cross_entropy_of_the_whole_batch_equals_torch(name):
    model, x, _, K, where = setting(2)
    labels = torch.arange(N) % C
    options = {"lr": 0.5, **OPTIONS[name]}
    expected = trained(model, x, labels, STEPS, loss="cross_entropy", **options)
    found = minibatch_sgd(
        K, labels, steps=STEPS, loss="cross_entropy", sgd=SGDConfig(**options), linearization=Linearization(**where)
    )
    close(found, expected)
    own = minibatch_sgd(
        K,
        labels,
        steps=STEPS,
        loss=lambda f, t: nn.functional.cross_entropy(f, t, reduction="none"),
        sgd=SGDConfig(**options),
        linearization=Linearization(**where),
    )
    assert float((own.train - found.train).abs().max()) < 1e-14


def test_three_layouts_of_one_kernel():
    _, _, y, K, _ = setting()
    flat = K.transpose(1, 2).reshape(N * C, N * C)
    ours = [gradient_descent(k, y, steps=9, sgd=SGDConfig(lr=0.1)).train for k in (K, flat)]
    assert torch.equal(*ours)
    shared = K.diagonal(dim1=2, dim2=3).sum(-1)
    apart = torch.einsum("ij,cd->ijcd", shared, torch.eye(C).double())
    ours = [
        verb(k, y, steps=9, sgd=SGDConfig(lr=0.1), linearization=Linearization(K_test=k[:2])).test
        for k in (shared, apart)
        for verb in (gradient_descent, minibatch_sgd)
    ]
    for other in ours[1:]:
        assert float((other - ours[0]).abs().max()) < 1e-13


def test_labels_are_one_hot_rows():
    K = torch.eye(4).double()
    found = gradient_descent(K, torch.tensor([0, 1, 2, 1]), steps=math.inf, sgd=SGDConfig(lr=1.0))
    assert float((found.train[0] - torch.eye(3).double()[[0, 1, 2, 1]]).abs().max()) < 1e-14


@pytest.mark.parametrize("decay", [0.0, 0.4])
def test_small_steps_tend_to_the_flow_at_order_one(decay):
    _, _, y, K, where = setting()
    flow = gradient_flow(K, y, times=1.5, weight_decay=decay, linearization=Linearization(**where))
    gaps = []
    for steps in (40, 80, 160):
        found = gradient_descent(
            K, y, steps=steps, sgd=SGDConfig(lr=1.5 / steps, weight_decay=decay), linearization=Linearization(**where)
        )
        gaps.append([float((found.train - flow.train).norm()), float((found.test - flow.test).norm())])
    orders = np.log2(np.array(gaps[:-1]) / np.array(gaps[1:]))
    assert np.all(np.abs(orders[-1] - 1) < 0.05), orders
    assert flow.residual < 1e-13


@pytest.mark.parametrize("decay", [0.0, 0.4])
def test_the_flow_solves_its_equation(decay):
    """f' = −K (f − y)/n − λ (f − origin), by an ODE solver."""
    from scipy.integrate import solve_ivp

    _, _, y, K, where = setting()
    flat = K.transpose(1, 2).reshape(N * C, N * C).numpy()
    start, origin, goal = (v.flatten().numpy() for v in (where["initial"], where["origin"], y))
    solved = solve_ivp(
        lambda _, f: -flat @ (f - goal) / N - decay * (f - origin),
        (0, 2.0),
        start,
        method="DOP853",
        rtol=1e-12,
        atol=1e-13,
        t_eval=[0.0, 0.5, 2.0],
    )
    found = gradient_flow(K, y, times=[0.0, 0.5, 2.0], weight_decay=decay, linearization=Linearization(**where))
    assert float((found.train.reshape(3, -1).T - torch.tensor(solved.y)).abs().max()) < 1e-9


@pytest.mark.parametrize("options", [{"lr": 0.1}, {"lr": 0.1, "momentum": 0.9}, {}])
def test_with_decay_the_limit_is_kernel_ridge_around_the_outputs_at_zero_weights(options):
    _, _, y, K, where = setting()
    decay = 0.05
    flat = K.transpose(1, 2).reshape(N * C, N * C)
    ridge = torch.linalg.solve(
        flat + N * decay * torch.eye(N * C, dtype=torch.float64), (y - where["origin"]).flatten()
    )
    cross = where["K_test"].transpose(1, 2).reshape(M * C, N * C)
    expected = where["origin_test"] + (cross @ ridge).view(M, C)
    for end in (math.inf, 10**5):
        if options:
            found = gradient_descent(
                K, y, steps=end, sgd=SGDConfig(weight_decay=decay, **options), linearization=Linearization(**where)
            )
        else:
            found = gradient_flow(K, y, times=end, weight_decay=decay, linearization=Linearization(**where))
        assert float((found.test[0] - expected).abs().max()) < 1e-12
        assert found.scale.abs().max() < 1e-12
        assert found.residual < 1e-12


def test_descent_without_end_interpolates_and_slow_modes_keep_their_digits():
    generator = torch.Generator().manual_seed(0)
    U = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64))[0]
    K = U @ torch.diag(torch.tensor([1.0, 0.5, 1e-3, 1e-5, 1e-7, 1e-8]).double()) @ U.T
    y = torch.randn(6, 1, generator=generator, dtype=torch.float64)
    for options in ({}, {"momentum": 0.9}):
        for end in (math.inf, 10**13):
            found = gradient_descent(K, y, steps=end, sgd=SGDConfig(lr=1.0, **options))
            assert float((found.train[0] - y).abs().max()) < 1e-6
    # a mode with lr κ / n = 1e-9 / 6, after 10⁶ steps
    slow = gradient_descent(
        torch.diag(torch.tensor([1.0, 1e-09], dtype=torch.float64)), [0.0, 1.0], steps=10**6, sgd=SGDConfig(lr=1.0)
    )
    exact = -math.expm1(1e6 * math.log1p(-0.5e-9))
    assert abs(float(slow.train[0, 1, 0]) / exact - 1) < 1e-6  # eps κ_max of an eigenvalue is rounding
    assert slow.condition == pytest.approx(1e9, rel=1e-6)
    powers = mode_states(torch.tensor([1e-9], dtype=torch.float64), 2, SGDConfig(1.0), (10**6,), with_decay=False)
    assert abs(-1e-9 * float(powers[0, 0, 0, 0]) / exact - 1) < 1e-13


def test_a_singular_kernel_leaves_the_residual_in_its_null_space():
    K = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 2.0]]).double()
    y = torch.tensor([1.0, 0.0, 3.0]).double()
    for found in (
        gradient_descent(K, y, steps=math.inf, sgd=SGDConfig(lr=1.0), linearization=Linearization(K_test=K[:1])),
        gradient_flow(K, y, times=math.inf, linearization=Linearization(K_test=K[:1])),
    ):
        assert float((found.train.flatten() - torch.tensor([0.5, 0.5, 3.0])).abs().max()) < 1e-12
        assert found.condition == pytest.approx(1.0)
        assert found.residual < 1e-12
    finite = gradient_descent(K, y, steps=10, sgd=SGDConfig(lr=1.0))  # there the coefficient grows as h T / n
    assert float(finite.coefficients[0, 0] - finite.coefficients[0, 1]) == pytest.approx(10 / 3, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_eigenvalues_that_are_rounding_make_no_coefficients(dtype):
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(12, 4, generator=generator, dtype=torch.float64)
    K = (A @ A.T).to(dtype).double()
    y = torch.randn(8, 2, generator=generator, dtype=torch.float64)
    expected = A[8:] @ torch.linalg.lstsq(A[:8], y).solution  # the fit of least norm
    tolerance = 1e-11 if dtype == torch.float64 else 1e-4
    for end in (
        gradient_descent(
            K[:8, :8], y, steps=math.inf, sgd=SGDConfig(lr=0.1), linearization=Linearization(K_test=K[8:, :8])
        ),
        gradient_descent(
            K[:8, :8],
            y,
            steps=math.inf,
            sgd=SGDConfig(lr=0.1, momentum=0.5),
            linearization=Linearization(K_test=K[8:, :8]),
        ),
        gradient_flow(K[:8, :8], y, times=math.inf, linearization=Linearization(K_test=K[8:, :8])),
    ):
        assert float((end.test[0] - expected).abs().max()) < tolerance
        assert end.condition < 1e3
        assert end.coefficients.abs().max() < 10
    for grown in (
        gradient_flow(K[:8, :8], y, times=1000.0),
        gradient_descent(K[:8, :8], y, steps=10**4, sgd=SGDConfig(lr=0.1)),
    ):
        assert grown.coefficients.abs().max() < 1e3 * y.abs().max()  # h T / n at most


@pytest.mark.parametrize(
    ("options", "limit"),
    [
        ({}, 2.0),
        ({"momentum": 0.9}, 3.8),
        ({"momentum": 0.5, "dampening": 0.4}, 5.0),
        ({"momentum": 0.9, "nesterov": True}, 3.8 / 2.8),
        ({"weight_decay": 0.5}, 2.0),
        ({"momentum": 0.9, "weight_decay": 0.5}, 3.8),
    ],
)
def test_the_limit_of_stability_is_where_descent_begins_to_grow(options, limit):
    K, y = torch.diag(torch.tensor([4.0, 1.0]).double()), torch.tensor([1.0, 1.0]).double()
    curvature = 2.0 + options.get("weight_decay", 0.0)
    origin = Linearization(origin=[0.0, 0.0])
    below = gradient_descent(
        K, y, steps=[10**4, math.inf], sgd=SGDConfig(0.99 * limit / curvature, **options), linearization=origin
    )
    assert float((below.train[0] - below.train[1]).abs().max()) < 1e-9
    assert below.limit == pytest.approx(limit)
    assert below.stability == pytest.approx(0.99 * limit)
    for verb in (gradient_descent, minibatch_sgd):
        with pytest.raises(NumericalError, match=f"{1.01 * limit:.4g}; expected below {limit:.4g}"):
            verb(K, y, steps=5, sgd=SGDConfig(1.01 * limit / curvature, **options), linearization=origin)
    with pytest.raises(NumericalError):
        gradient_descent(K, y, steps=5, sgd=SGDConfig(limit / curvature * (1 + 1e-15), **options), linearization=origin)
    # the optimizer itself, just above: one weight with that curvature
    weight = nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = torch.optim.SGD([weight], lr=1.01 * limit / curvature, **options)
    for _ in range(2000):
        optimizer.zero_grad()
        weight.square().sum().backward()  # curvature 2, and the decay on top
        optimizer.step()
    assert float(weight.detach().abs()) > 1e3


def test_small_batches_may_diverge_below_the_limit():
    K = torch.diag(torch.tensor([8.0, 1.0, 1.0, 1.0]).double())
    with pytest.raises(NumericalError, match="no longer finite after"):
        minibatch_sgd(K, torch.ones(4), batches=[[0]] * 4000, sgd=SGDConfig(lr=0.9))


def test_the_figure_of_cross_entropy_is_a_bound_and_refuses_nothing():
    K = 10 * torch.eye(4).double()
    found = minibatch_sgd(K, torch.tensor([0, 1, 0, 1]), steps=30, loss="cross_entropy", sgd=SGDConfig(lr=2.0))
    assert found.stability == pytest.approx(2.5)
    assert (found.train[0].argmax(1) == torch.tensor([0, 1, 0, 1])).all()


def test_large_kernels_take_lanczos():
    from kernelmem.kernel_machines.linearized.sgd_step import largest_eigenvalue

    generator = torch.Generator().manual_seed(0)
    A = torch.randn(600, 40, generator=generator, dtype=torch.float64)
    assert largest_eigenvalue(A @ A.T) == pytest.approx(float(torch.linalg.eigvalsh(A.T @ A)[-1]), rel=1e-9)


def test_a_permuted_kernel_is_a_null():
    """Rows of the kernel that belong to other targets: the same training, nothing of it on test rows."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(120, 3, generator=generator, dtype=torch.float64)
    y = torch.sin(x[:, :1])
    K = torch.exp(-torch.cdist(x, x).square() / 2)
    order = torch.randperm(80, generator=generator)
    errors = []
    for goal in (y[:80], y[:80][order]):
        found = gradient_descent(
            K[:80, :80], goal, steps=2000, sgd=SGDConfig(lr=1.0), linearization=Linearization(K_test=K[80:, :80])
        )
        errors.append(float((found.test[0] - y[80:]).square().mean() / y[80:].square().mean()))
    assert errors[0] < 0.1
    assert errors[1] > 0.8


def test_invalid_arguments_are_refused():
    _, _, y, K, where = setting()
    cases = [
        (lambda: gradient_descent(K[:3, :3], y, steps=1, sgd=SGDConfig(lr=0.1)), "kernel of shape"),
        (lambda: gradient_descent(K.transpose(1, 2), y, steps=1, sgd=SGDConfig(lr=0.1)), "kernel of shape"),
        (lambda: gradient_descent(K, y, steps=1.5, sgd=SGDConfig(lr=0.1)), "steps=1.5"),
        (lambda: gradient_descent(K, y, steps=-1, sgd=SGDConfig(lr=0.1)), "steps=-1"),
        (lambda: gradient_descent(K, y, steps=[], sgd=SGDConfig(lr=0.1)), "steps"),
        (lambda: gradient_descent(K, y, steps=1, sgd=SGDConfig(lr=-0.1)), "lr="),
        (lambda: gradient_descent(K, y, steps=1, sgd=SGDConfig(lr=math.nan)), "lr="),
        (lambda: gradient_descent(K, y, steps=1, sgd=SGDConfig(lr=0.1, momentum=1.0)), "momentum"),
        (lambda: gradient_descent(K, y, steps=1, sgd=SGDConfig(lr=0.1, nesterov=True)), "nesterov"),
        (
            lambda: gradient_descent(K, y, steps=1, sgd=SGDConfig(lr=0.1, weight_decay=0.1)),
            "zero weights of the training",
        ),
        (
            lambda: gradient_descent(
                K,
                y,
                steps=1,
                sgd=SGDConfig(lr=0.1, weight_decay=0.1),
                linearization=Linearization(origin=where["origin"], K_test=where["K_test"]),
            ),
            "zero weights of the test",
        ),
        (lambda: gradient_descent(K, y * math.nan, steps=1, sgd=SGDConfig(lr=0.1)), "NaN"),
        (
            lambda: gradient_descent(K, y, steps=1, sgd=SGDConfig(lr=0.1), linearization=Linearization(initial=y[:2])),
            "initial of shape",
        ),
        (
            lambda: gradient_descent(
                K, y, steps=1, sgd=SGDConfig(lr=0.1), linearization=Linearization(initial=y[:, :2])
            ),
            "and initial outputs",
        ),
        (
            lambda: gradient_descent(
                K, [0, 1, 2, 3, 0, 1, 2], steps=1, sgd=SGDConfig(lr=0.1), linearization=Linearization(initial=y)
            ),
            "outside 0..2",
        ),
        (
            lambda: gradient_descent(
                K, y, steps=1, sgd=SGDConfig(lr=0.1), linearization=Linearization(K_test=torch.ones(2, N))
            ),
            "K_test of shape",
        ),
        (lambda: gradient_flow(K, y, times=-0.1), "times"),
        (lambda: minibatch_sgd(K, y, sgd=SGDConfig(lr=0.1)), "steps=None"),
        (lambda: minibatch_sgd(K, y, batches=[[0, N]], sgd=SGDConfig(lr=0.1)), "batch of shape"),
        (lambda: minibatch_sgd(K, y, batches=[[]], sgd=SGDConfig(lr=0.1)), "batch of shape"),
        (lambda: minibatch_sgd(K, y, steps=2, sgd=SGDConfig(lr=0.1), lr_factors=[1.0]), "learning rates"),
        (lambda: minibatch_sgd(K, y, steps=math.inf, sgd=SGDConfig(lr=0.1)), "finite"),
        (lambda: minibatch_sgd(K, y, steps=2, loss="hinge", sgd=SGDConfig(lr=0.1)), "loss="),
    ]
    for call, message in cases:
        with pytest.raises(InputError, match=message):
            call()
    flat = K.transpose(1, 2).reshape(N * C, N * C)
    with pytest.raises(NumericalError, match="smallest eigenvalue"):
        gradient_descent(-flat, y, steps=1, sgd=SGDConfig(lr=0.1))
    with pytest.raises(NumericalError, match="asymmetry"):
        gradient_descent(flat + torch.triu(flat, 1), y, steps=1, sgd=SGDConfig(lr=0.1))
    found = gradient_descent(
        K, y, steps=3, sgd=SGDConfig(lr=0.1, weight_decay=0.1), linearization=Linearization(**where)
    )
    with pytest.raises(InputError, match="rows to predict"):
        found.predict(where["K_test"])
    assert "condition" in str(found)
