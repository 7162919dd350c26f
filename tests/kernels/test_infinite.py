"""kernelmem.kernels.infinite: independent values, 50-digit arithmetic, laws, and the finite networks that tend to it."""

import json
import math
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import nn
from torch.utils.data import TensorDataset

from kernelmem.core.errors import InputError
from kernelmem.kernels import infinite
from kernelmem.kernels.infinite import infinite_nngp, infinite_ntk
from kernelmem.kernels.ntk import ntk
from kernelmem.testing.ntk_parametrization import ntk_mlp

CASES = json.loads((Path(__file__).parents[1] / "cases" / "infinite_width.json").read_text())
SETTINGS = ("depth", "activation", "weight_var", "bias_var")
KERNELS = {"nngp": infinite_nngp, "ntk": infinite_ntk}
EPS = torch.finfo(torch.float64).eps


def gap(found, expected, left=None, right=None):
    """Entries are inner products: their rounding is relative to the product of the two norms."""
    left = expected.diagonal() if left is None else left
    right = left if right is None else right
    scale = (left[:, None] * right).sqrt().clamp_min(1e-300)
    return float(((found.double() - expected).abs() / scale).max())


networks = st.fixed_dictionaries(
    {
        "depth": st.integers(0, 6),
        "activation": st.sampled_from(["relu", "erf"]),
        "weight_var": st.floats(0.3, 4.0),
        "bias_var": st.sampled_from([0.0, 1e-6, 0.1, 2.0]),
    }
)


@st.composite
def inputs(draw, dtype=torch.float64):
    """Rows in general position, then duplicates, opposites, multiples, near duplicates and zeros among them."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    d = draw(st.integers(1, 6))
    rows = list(torch.randn(draw(st.integers(1, 5)), d, generator=generator, dtype=torch.float64))
    for kind in draw(st.lists(st.sampled_from(["same", "opposite", "multiple", "near", "zero"]), max_size=4)):
        row, other = rows[0], torch.randn(d, generator=generator, dtype=torch.float64)
        near = row + 10.0 ** -draw(st.integers(1, 15)) * other
        rows.append({"same": row, "opposite": -row, "multiple": 3 * row, "near": near, "zero": 0 * row}[kind])
    return torch.stack(rows).to(dtype)


def exactly(x, *, depth, activation, weight_var, bias_var):
    """The recursions as the literature writes them, on correlations, in 50 digits."""
    with mpmath.workdps(50):
        w, b, pi = mpmath.mpf(weight_var), mpmath.mpf(bias_var), mpmath.pi
        rows = [[mpmath.mpf(value) for value in row] for row in x.tolist()]

        def step(cross, first, second):
            if activation == "erf":
                d = (1 + 2 * first) * (1 + 2 * second)
                slope = w * 4 / pi / mpmath.sqrt(d - 4 * cross**2)
                return w * 2 / pi * mpmath.asin(2 * cross / mpmath.sqrt(d)) + b, slope
            size = mpmath.sqrt(first * second)
            if size == 0:
                return b, mpmath.mpf(0)
            rho = max(min(cross / size, mpmath.mpf(1)), mpmath.mpf(-1))
            rest = pi - mpmath.acos(rho)
            return w / 2 * size * (rho * rest + mpmath.sqrt(1 - rho**2)) / pi + b, w / 2 * rest / pi

        def entry(u, v):
            cross, first, second = (w * mpmath.fdot(p, q) / len(u) + b for p, q in ((u, v), (u, u), (v, v)))
            tangent = cross
            for _ in range(depth):
                after, slope = step(cross, first, second)
                tangent = after + tangent * slope
                cross, first, second = after, step(first, first, first)[0], step(second, second, second)[0]
            return cross, tangent

        both = [[entry(u, v) for v in rows] for u in rows]
        tensor = torch.tensor([[[float(v) for v in pair] for pair in row] for row in both], dtype=torch.float64)
        return {"nngp": tensor[..., 0], "ntk": tensor[..., 1]}


@pytest.mark.parametrize("kind", KERNELS)
@pytest.mark.parametrize("case", CASES["cases"], ids=lambda case: "-".join(str(case[name]) for name in SETTINGS))
def test_independent_values_to_machine_precision(case, kind):
    x = torch.tensor(CASES["inputs"], dtype=torch.float64)
    found = KERNELS[kind](x, **{name: case[name] for name in SETTINGS})
    assert gap(found, torch.tensor(case[kind], dtype=torch.float64)) <= 10 * EPS


@pytest.mark.parametrize("many", [1, 10**9], ids=["gathered pairs", "whole blocks"])
@pytest.mark.parametrize("kind", KERNELS)
@given(x=inputs(), network=networks)
def test_fifty_digits(many, kind, x, network):
    """Also at angles of 1e-15, where arccos of the correlation has lost half the digits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(infinite, "GATHERED_PAIR_COST", many)
        assert gap(KERNELS[kind](x, **network), exactly(x, **network)[kind]) <= 100 * EPS


@pytest.mark.parametrize("size", [1e-8, 1e-3, 1e3, 1e6])
@pytest.mark.parametrize("activation", ["relu", "erf"])
def test_rows_of_any_size(size, activation):
    """Raw pixels (0..255) drive erf into saturation, where 1 − ρ² cancels."""
    x = size * torch.tensor(CASES["inputs"], dtype=torch.float64)
    network = {"depth": 3, "activation": activation, "weight_var": 1.7, "bias_var": 0.2}
    assert gap(infinite_ntk(x, **network), exactly(x, **network)["ntk"]) <= 100 * EPS


@pytest.mark.parametrize("kernel", KERNELS.values())
@pytest.mark.parametrize("activation", ["relu", "erf"])
@pytest.mark.parametrize("bias_var", [0.0, 0.3])
def test_duplicates_equal_the_diagonal_to_the_bit(kernel, activation, bias_var):
    x = torch.randn(40, 17, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[23] = x[4]
    K = kernel(x, depth=5, activation=activation, bias_var=bias_var)
    assert K[23, 4] == K[4, 4] == K[23, 23]
    assert torch.equal(K, K.T)
    assert torch.equal(kernel(x, x, depth=5, activation=activation, bias_var=bias_var).diagonal(), K.diagonal())


@given(scale=st.floats(1e-3, 1e3))
def test_opposite_rows_share_no_unit_of_the_first_layer(scale):
    x = torch.randn(1, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert float(infinite_ntk(x, -scale * x, depth=1)) == pytest.approx(0, abs=1e-14 * scale)
    assert float(infinite_ntk(x, -x, depth=1)) == 0


@pytest.mark.parametrize("activation", ["relu", "erf"])
@pytest.mark.parametrize("bias_var", [0.0, 0.5])
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_zero_rows(activation, bias_var, depth):
    """The value is the limit: without biases 0; otherwise that of the network of a row that is very small."""
    x = torch.tensor([[0.0, 0.0], [1.0, 2.0], [0.0, 0.0]], dtype=torch.float64)
    network = {"depth": depth, "activation": activation, "bias_var": bias_var}
    K = infinite_ntk(x, **network)
    assert bool(torch.isfinite(K).all())
    tiny = x.clone()
    tiny[[0, 2]] = torch.tensor([1e-30, 0.0], dtype=torch.float64)
    torch.testing.assert_close(K, infinite_ntk(tiny, **network), rtol=1e-14, atol=1e-25)
    if bias_var == 0:
        assert not K[0].any()


@given(x=inputs(), network=networks)
def test_depth_zero_is_the_linear_kernel(x, network):
    w, b = network["weight_var"], network["bias_var"]
    for kernel in KERNELS.values():
        assert gap(kernel(x, **{**network, "depth": 0}), w * x @ x.T / x.shape[1] + b) <= 4 * EPS


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@given(data=st.data(), network=networks)
def test_symmetric_positive_and_permuted(dtype, data, network):
    x = data.draw(inputs(dtype))
    for kernel in KERNELS.values():
        K = kernel(x, **network)
        assert K.dtype == dtype
        assert torch.equal(K, K.T)
        values = torch.linalg.eigvalsh(K.double())
        assert float(values[0]) >= -max(4, len(x)) * torch.finfo(dtype).eps * float(values[-1])
        order = torch.tensor(data.draw(st.permutations(range(len(x)))))
        few = 100 * torch.finfo(dtype).eps
        assert gap(kernel(x[order], **network), K.double()[order][:, order]) <= few
        own = K.diagonal().double()
        assert gap(kernel(x, x[order], **network), K.double()[:, order], own, own[order]) <= few


@given(x=inputs(), network=networks, scale=st.floats(1e-6, 1e6))
def test_relu_without_biases_is_homogeneous(x, network, scale):
    network = {**network, "activation": "relu", "bias_var": 0.0}
    for kernel in KERNELS.values():
        assert gap(kernel(scale * x, **network), scale**2 * kernel(x, **network)) <= 100 * EPS


@given(x=inputs(), network=networks, seed=st.integers(0, 2**31))
def test_rotations_of_the_inputs_change_nothing(x, network, seed):
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(x.shape[1], x.shape[1], generator=generator, dtype=torch.float64))[0]
    # A rotation rounds its rows, which turns them by eps; the slope of the kernel in the angle is up to depth.
    assert gap(infinite_ntk(x @ rotation, **network), infinite_ntk(x, **network)) <= 200 * EPS


@given(x=inputs(), network=networks)
def test_blocks_change_nothing(x, network):
    whole = infinite_ntk(x, **network)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(infinite, "BLOCK_ENTRIES", 3)
        assert gap(infinite_ntk(x, **network), whole) <= 100 * EPS
        K = infinite_ntk(x, **network)
        assert torch.equal(K, K.T)
        assert gap(infinite_ntk(x, x, **network), whole) <= 100 * EPS


def test_tangent_kernel_of_the_last_layer_is_the_nngp():
    x = torch.tensor(CASES["inputs"], dtype=torch.float64)
    one = infinite_ntk(x, depth=1, bias_var=0.2)
    slope = (one - infinite_nngp(x, depth=1, bias_var=0.2)) / infinite_ntk(x, depth=0, bias_var=0.2)
    # Θ¹ − Σ¹ = Θ⁰ κ₀: between 0 (opposite rows) and 1 (equal rows), and 1 on the diagonal with w = 2
    assert float(slope.min()) >= -1e-14
    assert float((slope.diagonal() - 1).abs().max()) <= 1e-14


def test_slope_is_the_derivative_of_the_covariance():
    """E[φ'(u) φ'(v)] = ∂ E[φ(u) φ(v)] / ∂Σ(x, y): the two closed forms of each activation belong together."""
    step, angle = 1e-5, torch.linspace(0.2, 2.9, 7, dtype=torch.float64)
    start = torch.tensor([[1.0, 0.0]], dtype=torch.float64)

    def at(cosine):
        return torch.stack([cosine, (1 - cosine**2).sqrt()], 1)

    for activation in ("relu", "erf"):
        network = {"depth": 1, "activation": activation, "weight_var": 2.0}
        up, down = (infinite_nngp(start, at(angle.cos() + sign * step), **network) for sign in (1, -1))
        tangent = infinite_ntk(start, at(angle.cos()), **network) - infinite_nngp(start, at(angle.cos()), **network)
        slope = tangent / infinite_ntk(start, at(angle.cos()), depth=0)
        torch.testing.assert_close((up - down) / (2 * step), slope, rtol=1e-7, atol=1e-9)


def convergence(x, *, widths, seeds, outputs=1, limit=None, **network):
    """Slope of log |K_width − limit| against log width, one fit a seed: mean and half of its 95 % interval."""
    limit = outputs * infinite_ntk(x, **network) if limit is None else limit

    def of_width(width, seed):
        model = ntk_mlp(x.shape[1], width, outputs, seed=1_000_003 * seed + width, **network)
        return ntk(model, x, verify=seed == 0)  # networks of one architecture

    errors = np.array([[float((of_width(width, seed) - limit).norm()) for width in widths] for seed in range(seeds)])
    away = np.log(widths) - np.log(widths).mean()
    slopes = np.log(errors) @ away / (away @ away)
    return slopes.mean(), stats.t.ppf(0.975, seeds - 1) * slopes.std(ddof=1) / math.sqrt(seeds)


ROWS = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
LAWS = [
    {"depth": 1, "activation": "relu", "weight_var": 2.0, "bias_var": 0.0},
    {"depth": 2, "activation": "relu", "weight_var": 1.5, "bias_var": 0.3},
    {"depth": 2, "activation": "erf", "weight_var": 1.5, "bias_var": 0.3},
]


@pytest.mark.parametrize("network", LAWS, ids=lambda n: f"{n['activation']}-{n['depth']}")
def test_finite_networks_tend_to_it_as_one_over_the_root_of_the_width(network):
    slope, half = convergence(torch.cat([ROWS, -ROWS[:1]]), widths=[16, 32, 64, 128], seeds=40, **network)
    assert half < 0.12
    assert abs(slope + 0.5) < half + 0.02


def test_the_law_sees_a_wrong_limit():
    """The break test: with the biases forgotten in the limit, the error stops falling and the slope leaves −1/2."""
    wrong = infinite_ntk(ROWS, **{**LAWS[1], "bias_var": 0.0})
    slope, half = convergence(ROWS, widths=[32, 128, 512], seeds=12, limit=wrong, **LAWS[1])
    assert slope - half > -0.3


@pytest.mark.soak
@pytest.mark.parametrize("activation", ["relu", "erf"])
@pytest.mark.parametrize("depth", [1, 3])
def test_the_law_over_a_wide_range(activation, depth):
    network = {"depth": depth, "activation": activation, "weight_var": 1.8, "bias_var": 0.1}
    slope, half = convergence(ROWS, widths=[32, 64, 128, 256, 512], seeds=60, outputs=2, **network)
    assert half < 0.06
    assert abs(slope + 0.5) < half + 0.01


def test_inputs_as_users_have_them():
    x = torch.randn(6, 3, 2, 2, dtype=torch.float32, generator=torch.Generator().manual_seed(2))
    expected = infinite_ntk(x.flatten(1), depth=2)
    assert expected.dtype == torch.float32
    assert torch.equal(infinite_ntk(x, depth=2), expected)
    assert torch.equal(infinite_ntk(x.numpy(), depth=np.int64(2), weight_var=np.float32(2)), expected)
    assert torch.equal(infinite_ntk(TensorDataset(x, torch.zeros(6)), depth=2), expected)
    assert infinite_ntk(x, x.double(), depth=2).dtype == torch.float64
    assert infinite_ntk([[1, 2], [3, 4]], depth=1).dtype == torch.float64
    assert infinite_ntk(x.half(), depth=1).dtype == torch.float32
    assert infinite_ntk(x, x[:2], depth=2).shape == (6, 2)
    before = x.clone()
    infinite_ntk(x, depth=2, bias_var=0.1)
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"depth": -1}, "depth=-1"),
        ({"depth": 1.5}, "depth=1.5"),
        ({"depth": True}, "depth=True"),
        ({"activation": "tanh"}, "activation='tanh'"),
        ({"weight_var": 0.0}, "weight_var=0.0"),
        ({"weight_var": float("nan")}, "weight_var=nan"),
        ({"bias_var": -0.1}, "bias_var=-0.1"),
        ({"bias_var": "0"}, "bias_var='0'"),
        ({"x": torch.ones(3)}, r"shape \(3,\)"),
        ({"x": torch.ones(0, 3)}, "leading lengths"),
        ({"x": torch.ones(3, 0)}, r"shape \(3, 0\)"),
        ({"x": torch.ones(3, 2, dtype=torch.complex64)}, "complex64"),
        ({"x": {"ids": torch.ones(3, 2)}}, "a dict"),
        ({"x": torch.tensor([[1.0, float("nan")]])}, "NaN"),
        ({"y": torch.ones(2, 3)}, "2 and y with 3 features"),
        ({"x": torch.full((2, 2), 1e80, dtype=torch.float64)}, "norm 1.41e.80"),
        ({"depth": 500, "weight_var": 100.0}, "overflows"),
        ({"x": torch.full((2, 2), 1e30)}, "overflows"),
    ],
)
def test_refusals(change, words):
    arguments = {"x": torch.eye(2), "depth": 1, **change}
    with pytest.raises(InputError, match=words):
        infinite_ntk(arguments.pop("x"), **arguments)


def test_builder_is_in_the_parametrization_it_names():
    model = ntk_mlp(3, 5, 2, depth=0, weight_var=1.5, bias_var=0.4, seed=0)
    assert isinstance(model, nn.Sequential)
    x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(ntk(model, x), 2 * infinite_ntk(x, depth=0, weight_var=1.5, bias_var=0.4))
