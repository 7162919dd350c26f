"""Kernels of modules that need preparation, compared with autograd on the caller's own module."""

import functools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.autograd import forward_ad
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from kernelmem.core.errors import InputError, KernelmemError, NumericalError, UnsupportedModelError, VerificationError
from kernelmem.kernels.ntk import ntk, ntk_plan
from kernelmem.kernels.operator import ntk_operator
from kernelmem.tangents.sketch import tangent_features
from kernelmem.testing.closeness import assert_close
from tests.profiles import examples
from tests.tolerances import summing

DIM = 4096


def rows(n=6, seed=1):
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(n_outputs=2):
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, n_outputs))


class Runs(nn.Module):
    """Runs function(layers, x)."""

    def __init__(self, function, *layers):
        super().__init__()
        self.layers, self.function = nn.ModuleList(layers), function

    def forward(self, x):
        return self.function(self.layers, x)


class Keeps(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.out = nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x):
        self.hidden = torch.tanh(self.inner(x))
        return self.out(self.hidden)


def after_a_pass(model):
    model(rows())
    return model


def pruned():
    model = network().double()
    prune.l1_unstructured(model[0], "weight", 0.5)
    return after_a_pass(model)


def segment(layers, h):
    return torch.tanh(layers[1](torch.tanh(h)))


def checkpointed(use_reentrant):
    def run(layers, x):
        return layers[2](checkpoint(functools.partial(segment, layers), layers[0](x), use_reentrant=use_reentrant))

    return Runs(run, nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(3, 2))


def nested_segments():
    def run(layers, x):
        def outer(h):
            return layers[2](checkpoint(functools.partial(segment, layers), h, use_reentrant=False))

        return checkpoint(outer, layers[0](x), use_reentrant=True)

    return Runs(run, nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(3, 2))


def sequential_segments():
    def run(layers, x):
        return layers[1](checkpoint_sequential(layers[0], 2, layers[2](x), use_reentrant=False))

    return Runs(run, nn.Sequential(nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 4)), nn.Linear(4, 2), nn.Linear(4, 5))


def hooked():
    model = network()
    model[0].register_forward_hook(lambda module, args, output: 2 * output)
    model[2].register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    model[1].register_full_backward_hook(lambda module, inputs, outputs: None)
    return model


def rotated(layers, x):
    pairs = torch.view_as_complex(layers[0](x).unflatten(-1, (2, 2)).contiguous())
    return layers[1](torch.tanh(torch.view_as_real(pairs * layers[0].rotation).flatten(1)))


def rotary(dtype=torch.float64):
    model = Runs(rotated, nn.Linear(4, 4, dtype=dtype), nn.Linear(4, 2, dtype=dtype))
    angles = torch.tensor([0.3, 1.1], dtype=dtype)
    model.layers[0].register_buffer("rotation", torch.polar(torch.ones_like(angles), angles))
    return model


def bare_complex_layer(layers, x):
    return torch.view_as_real(layers[0](x.to(torch.complex128))).flatten(1)


def vmapped(layers, x):
    parameters = dict(layers[0].named_parameters())
    return torch.func.vmap(lambda row: torch.func.functional_call(layers[0], parameters, (row,)))(x)


def forces(layers, x):
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(layers[0](x)[:, 0].sum(), x, create_graph=True)[0]


def differential_equation(layers, x):
    x = x.detach().clone().requires_grad_()
    u = layers[0](x)
    du = torch.autograd.grad(u[:, 0].sum(), x, create_graph=True)[0]
    d2u = torch.autograd.grad(du[:, 1].sum(), x, create_graph=True)[0]
    return torch.cat([u, du[:, :1] + d2u[:, :2]], 1)


def dual_numbers(layers, x):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(layers[0](forward_ad.make_dual(x, torch.ones_like(x)))).tangent


class Spectral(nn.Module):
    """Multiplies the Fourier coefficients by complex and real gains, of which one is used twice."""

    def __init__(self):
        super().__init__()
        self.gains = nn.ParameterList([torch.randn(3, dtype=torch.complex128), torch.randn(3, dtype=torch.float64)])
        self.out = nn.Linear(4, 2, dtype=torch.float64)

    def forward(self, x):
        spectrum = torch.fft.rfft(x) * self.gains[0] * self.gains[1]
        x = torch.tanh(torch.fft.irfft(spectrum, n=4))
        return self.out(torch.fft.irfft(torch.fft.rfft(x) * self.gains[0].conj(), n=4))


DERIVATIVES = {
    "functional_call under vmap": lambda: Runs(vmapped, network()),
    "jvp": lambda: Runs(lambda layers, x: torch.func.jvp(layers[0], (x,), (torch.ones_like(x),))[1], network()),
    "forces by torch.func": lambda: Runs(
        lambda layers, x: torch.func.vmap(torch.func.grad(lambda row: layers[0](row)[0]))(x), network()
    ),
    "second derivatives by torch.func": lambda: Runs(
        lambda layers, x: torch.func.vmap(torch.func.hessian(lambda row: layers[0](row)[0]))(x).flatten(1)[:, :3],
        network(),
    ),
    "forces": lambda: Runs(forces, network()),
    "differential equation": lambda: Runs(differential_equation, network()),
    "dual numbers": lambda: Runs(dual_numbers, network()),
}
KINDS = DERIVATIVES | {
    "spectral convolution": Spectral,
    "kept activation": lambda: after_a_pass(Keeps().double()),
    "pruned": pruned,
    "weight norm": lambda: after_a_pass(nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 2))).double()),
    "spectral norm": lambda: nn.Sequential(nn.utils.spectral_norm(nn.Linear(4, 2).double())),
    "orthogonal": lambda: nn.Sequential(nn.utils.parametrizations.orthogonal(nn.Linear(4, 4))).double(),
    "hooks": hooked,
    "compiled": lambda: torch.compile(network(), backend="eager"),
    "compiled part": lambda: nn.Sequential(torch.compile(nn.Linear(4, 5), backend="eager"), nn.Linear(5, 2)),
    "data parallel": lambda: nn.DataParallel(network()),
    "script": lambda: torch.jit.script(network().double()),
    "trace": lambda: torch.jit.trace(network().double(), rows()),
    "fx": lambda: torch.fx.symbolic_trace(network()),
    "reentrant checkpoint": lambda: checkpointed(True),
    "checkpoint": lambda: checkpointed(False),
    "nested checkpoints": nested_segments,
    "sequential checkpoints": sequential_segments,
    "complex buffer": rotary,
    "complex layer": lambda: Runs(bare_complex_layer, nn.Linear(4, 2, dtype=torch.complex128)),
}
WARNINGS = ("ignore:.*weight_norm:FutureWarning", "ignore:.*torch.jit:DeprecationWarning", "ignore:.*deprecated")


def kernel_by_autograd(model, x):
    """Trace kernel from the caller's own module by ``backward``; nothing of this package."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    tangents = []
    for row in x:
        for c in range(model(row[None].clone()).shape[1]):
            model.zero_grad()
            model(row[None].clone())[0, c].backward()
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
            tangents.append(torch.cat([(torch.view_as_real(g) if g.is_complex() else g).flatten() for g in gradients]))
    model.zero_grad()
    J = torch.stack(tangents).reshape(len(x), -1)
    return J @ J.T


def assert_all_agree(model, x, tolerance=1e-10):
    """The kernel, the operator and the features of a model agree with autograd on the caller's module."""
    expected = kernel_by_autograd(model, x)
    scale = float(expected.diagonal().max())
    assert_close(ntk(model, x), expected, tolerance, scale)
    assert_close(ntk_operator(model, x) @ torch.eye(len(x), dtype=x.dtype), expected, tolerance, scale)
    features = tangent_features(model, x, DIM, seed=0, outputs="trace")
    assert_close(features @ features.T, expected, 5 * 3 / DIM**0.5, scale)  # five standard deviations


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings(*WARNINGS)
def test_kernels_operators_and_features_are_those_of_the_module(kind):
    model = KINDS[kind]()
    model = model if kind in ("script", "trace") or "complex" in kind or "spectral" in kind else model.double()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    assert_all_agree(model.eval(), rows())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_complex_buffers_in_the_precision_asked_for():
    model, x = rotary(torch.float32), rows().float()
    assert model.layers[0].rotation.dtype == torch.complex64
    expected = kernel_by_autograd(model, x)
    scale = float(expected.max())
    assert_close(ntk(model, x), expected, summing(4, 4, 4, dtype=torch.float32), scale)
    assert_close(ntk(model, x, dtype=torch.float64).float(), expected, summing(4, 4, 4, dtype=torch.float32), scale)


class Autocasts(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.net(x).to(x.dtype)


def computations(model, x):
    """Results of every public tangent computation of a model."""
    operator = ntk_operator(model, x)
    identity = torch.eye(len(x), dtype=x.dtype)
    return {
        "ntk": ntk(model, x),
        "operator": operator @ identity,
        "diagonal": operator.diagonal(),
        "features": tangent_features(model, x, 8, seed=0),
    }


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_autocast_does_not_reduce_the_precision(inside, dtype):
    """Inside, around: computed in the dtype of the model, as without autocast."""
    model, x = Autocasts().to(dtype), rows().to(dtype)
    expected = computations(model.net, x)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not inside):
        found = computations(model if inside else model.net, x)
        assert torch.is_autocast_enabled("cpu") != inside
    for name, value in expected.items():
        assert found[name].dtype == dtype
        assert_close(found[name], value, summing(4, 5, 6, dtype=dtype), float(value.abs().max()))


def test_operators_in_inference_mode():
    model, x = network().double(), rows()
    operator, v = ntk_operator(model, x), torch.ones(6, dtype=torch.float64)
    expected = operator @ v, operator.diagonal(), operator.trace()
    with torch.inference_mode():
        assert torch.equal(operator @ v, expected[0])
        assert torch.equal(ntk_operator(model, x).diagonal(), expected[1])
        assert operator.trace() == expected[2]


def unpicklable(model):
    model.callback = (value for value in [1])
    return model


REFUSED = {
    "argmax": (
        lambda: Runs(lambda layers, x: F.one_hot(layers[0](x).argmax(1), 2).to(x.dtype), network()),
        UnsupportedModelError,
        "depend on none of its 4 selected parameters.*argmax",
    ),
    "detached": (
        lambda: Runs(lambda layers, x: layers[0](x).detach(), network()),
        UnsupportedModelError,
        "depend on none of its 4 selected parameters.*detach",
    ),
    "NaN": (
        lambda: Runs(lambda layers, x: layers[0](x).abs().neg().log(), network()),
        NumericalError,
        "NaN outputs for 2 rows in a batch of 2 .the first: row 0",
    ),
    "complex outputs": (
        lambda: Runs(lambda layers, x: layers[0](x) * 1j, network()),
        UnsupportedModelError,
        "outputs of dtype complex128.*view_as_real",
    ),
    "integer outputs": (
        lambda: Runs(lambda layers, x: layers[0](x).argmax(1, keepdim=True), network()),
        UnsupportedModelError,
        "outputs of dtype int64",
    ),
    "reentrant segment": (
        lambda: Runs(lambda layers, x: layers[1](checkpoint(layers[0], x, use_reentrant=True)), *network()[::2]),
        UnsupportedModelError,
        "use_reentrant=False",
    ),
    "scripted BatchNorm": (
        lambda: torch.jit.script(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))),
        UnsupportedModelError,
        r"BatchNorm1d\) in training mode",
    ),
    "batch statistics": (
        lambda: Runs(lambda layers, x: F.batch_norm(layers[0](x), None, None, training=True), network()),
        (UnsupportedModelError, VerificationError),
        "one row|but not 1 of them|other rows",
    ),
    "bfloat16": (lambda: network().bfloat16(), InputError, "dtype=bfloat16"),
    "lazy": (
        lambda: nn.Sequential(nn.Linear(4, 3), nn.LazyLinear(2)),
        UnsupportedModelError,
        "run the model on one batch",
    ),
    "generator": (lambda: unpicklable(network()), UnsupportedModelError, "attribute 'callback' of type generator"),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.filterwarnings(*WARNINGS, "ignore:Lazy modules")
def test_refusals_give_the_reason(kind):
    build, error, words = REFUSED[kind]
    model = build()
    model = model if kind in ("bfloat16", "lazy") else model.double()
    for compute in (ntk, ntk_operator, functools.partial(tangent_features, dim=8, seed=0)):
        with pytest.raises(error, match=words):
            compute(model, rows())


class Converts(nn.Module):
    """Normalizes in another dtype, as the RMSNorm of Llama does in float32."""

    def __init__(self, dtype):
        super().__init__()
        self.inner, self.out, self.dtype = nn.Linear(4, 4), nn.Linear(4, 2), dtype

    def forward(self, x):
        h = self.inner(x)
        normalized = h.to(self.dtype) * torch.rsqrt(h.to(self.dtype).square().mean(1, keepdim=True) + 1e-6)
        return self.out(normalized.to(h.dtype))


def test_models_that_compute_in_float32_are_as_accurate_as_that():
    model, x = Converts(torch.float32).double(), rows()
    tolerance = summing(4, 4, 4, dtype=torch.float32)
    assert_all_agree(model, x, tolerance)


def test_models_that_end_in_float32():
    model, x = Runs(lambda layers, x: layers[0](x).float(), network()).double(), rows()
    expected = ntk(model.layers[0], x)
    kernel = ntk(model, x)
    assert kernel.dtype == torch.float64
    assert_close(kernel, expected, summing(4, 5, dtype=torch.float32), float(expected.max()))


def test_models_that_compute_in_half_precision_are_refused_by_name():
    with pytest.raises(UnsupportedModelError, match="computes in bfloat16 inside"):
        ntk(Converts(torch.bfloat16), rows().float())


def test_a_forward_function_that_runs_the_callers_module():
    model = network().double()
    with pytest.raises(UnsupportedModelError, match="use the model argument in forward="):
        ntk(model, rows(), forward=lambda copy, batch: model(batch))


def test_autocast_that_the_forward_pass_needs_is_named():
    def run(layers, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return layers[0](x.bfloat16()).float()

    with pytest.raises(InputError, match="autocast inside the model is ignored"):
        ntk(Runs(run, network()), rows().float())


def test_infinite_outputs_of_a_mask_have_tangents():
    """A masked logit is constant: its tangent is zero, whatever its value."""
    mask = torch.tensor([0.0, float("-inf")], dtype=torch.float64)
    plain, x = network().double(), rows()
    masked = Runs(lambda layers, x: torch.where(mask.isinf(), mask, layers[0](x)), plain)
    kept = ntk(plain, x, forward=lambda model, batch: model(batch)[:, :1])
    assert_close(ntk(masked, x), kept, 1e-12, float(kept.max()))


def test_an_expert_that_only_later_rows_use():
    """The first rows do not depend on the selected parameters; others do."""
    expert = Runs(lambda layers, x: torch.where(x[:, :1] > 0, layers[0](x), layers[1](x.flip(1))), network(), network())
    model, x = expert.double(), rows(5)
    x[:, 0] = torch.tensor([-1.0, -1.0, -1.0, 1.0, 1.0])
    names = [name for name, _ in model.named_parameters() if name.startswith("layers.0")]
    kernel = ntk(model, x, parameters=names)
    assert not kernel[:3].any()
    assert_close(kernel[3:, 3:], ntk(model.layers[0], x[3:]), 1e-12, float(kernel.max()))


def test_a_plan_names_parameters_that_the_outputs_do_not_use():
    model = Runs(lambda layers, x: layers[1](torch.tanh(layers[0](x)).detach()), *network()[::2]).double()
    assert ntk_plan(model, rows()).unused == ("layers.0.weight", "layers.0.bias")
    assert "not used by the outputs of the first rows: layers.0.weight, layers.0.bias" in str(ntk_plan(model, rows()))
    assert "not used" not in str(ntk_plan(network(), rows().float()))


@pytest.mark.parametrize("device", ["cuda:99", "junk", "meta", 3.5])
def test_devices_that_are_not_there(device):
    for compute in (ntk, ntk_operator, functools.partial(tangent_features, dim=8, seed=0)):
        with pytest.raises(InputError, match="device"):
            compute(network().double(), rows(), device=device)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64, torch.complex64, "float32"])
def test_dtypes_that_tangents_cannot_have(dtype):
    with pytest.raises(KernelmemError, match="dtype"):
        ntk(network(), rows().float(), dtype=dtype)


# Stages (n, 4) -> (n, 4) of random programs, each with one layer.
STAGES = {
    "plain": lambda layer, x: torch.tanh(layer(x)),
    "reentrant": lambda layer, x: checkpoint(lambda h: torch.tanh(layer(h)), x, use_reentrant=True),
    "checkpoint": lambda layer, x: checkpoint(lambda h: torch.tanh(layer(h)), x, use_reentrant=False),
    "vmap": lambda layer, x: torch.tanh(vmapped([layer], x)),
    "jvp": lambda layer, x: torch.func.jvp(lambda h: torch.tanh(layer(h)), (x,), (x.cos(),))[1],
    "energy": lambda layer, x: torch.func.vmap(torch.func.grad(lambda row: layer(row).square().sum()))(x),
    "rotation": lambda layer, x: torch.view_as_real(
        torch.view_as_complex(layer(x).unflatten(-1, (2, 2)).contiguous()) * (0.6 + 0.8j)
    ).flatten(1),
    "spectrum": lambda layer, x: torch.fft.irfft(torch.fft.rfft(x) * layer.weight[0, :3], n=4),
}


class Program(nn.Module):
    def __init__(self, stages, shared):
        super().__init__()
        layers = [nn.Linear(4, 4) for _ in range(1 if shared else len(stages))]
        self.layers, self.stages = nn.ModuleList(layers), stages
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        h = self.first(x)
        for i, stage in enumerate(self.stages):
            h = STAGES[stage](self.layers[i % len(self.layers)], h)
        return self.last(h)


@examples(0.3)
@given(st.lists(st.sampled_from(sorted(STAGES)), min_size=1, max_size=4), st.booleans(), st.integers(1, 7))
@pytest.mark.filterwarnings(*WARNINGS)
def test_random_programs(stages, shared, n):
    """Layers that are checkpointed, differentiated, vectorized, multiplied by complex numbers; also shared by the stages."""
    torch.manual_seed(0)
    model, x = Program(stages, shared).double(), rows(n)
    expected = kernel_by_autograd(model, x)
    scale = float(expected.diagonal().max())
    assert_close(ntk(model, x), expected, 1e-10, scale)
    assert_close(ntk_operator(model, x) @ torch.eye(n, dtype=x.dtype), expected, 1e-10, scale)
