"""kernelmem.tangents.derivatives.jvp: J u and Jᵀ w in both ways against the dense Jacobian; refusals; flags put back."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from kernelmem.core.batches import as_rows
from kernelmem.core.errors import NumericalError, UnsupportedModelError, VerificationError
from kernelmem.kernels.reference import jacobian_of
from kernelmem.tangents.derivatives.jvp import Linearized, choose_mode, jvp, vjp
from kernelmem.tangents.prepare import prepare


class Attention(nn.Module):
    """LayerNorm, self-attention, a residual branch, pooling."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.out = nn.Linear(8, 3)

    def forward(self, x):
        h = self.norm(x)
        return self.out((x + self.attention(h, h, h, need_weights=False)[0]).mean(1))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, activation="gelu")
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(8, 3)

    def forward(self, tokens):
        return self.out(self.body(self.embedding(tokens)).mean(1))


class Recurrent(nn.Module):
    def __init__(self, kind=nn.LSTM):
        super().__init__()
        self.rnn = kind(5, 4, num_layers=2, bidirectional=True, batch_first=True)
        self.out = nn.Linear(8, 3)

    def forward(self, x):
        return self.out(self.rnn(x[:, None] * torch.ones(1, 3, 1, dtype=x.dtype))[0][:, -1])


class Tied(nn.Module):
    """A layer called twice, a free parameter, a weight used in functional form, a parameter that is not used."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(5, 5)
        self.same = self.inner
        self.gain = nn.Parameter(torch.linspace(-1, 1, 5))
        self.idle = nn.Parameter(torch.ones(2))
        self.out = nn.Linear(5, 3)

    def forward(self, x):
        x = self.same(torch.tanh(self.inner(x)) * self.gain)
        return self.out(nn.functional.linear(x, self.out.weight.T @ self.out.weight))


class Embedding(nn.Module):
    def __init__(self, *, sparse):
        super().__init__()
        self.embedding, self.out = nn.Embedding(11, 4, sparse=sparse), nn.Linear(4, 3)

    def forward(self, tokens):
        return self.out(torch.tanh(self.embedding(tokens).mean(1)))


def convolutional():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.GroupNorm(2, 4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, stride=2, groups=2),
        nn.BatchNorm2d(6),
        nn.GELU(),
        nn.MaxPool2d(2, 1),
        nn.Flatten(),
        nn.Linear(6, 3),
    )


def perceptron():
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(inplace=True), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def tokens(n):
    return torch.randint(0, 11, (n, 4), generator=torch.Generator().manual_seed(7))


ZOO = {  # name -> (make the model, make n rows)
    "perceptron": (perceptron, lambda n: normal(n, 5)),
    "convolutional": (convolutional, lambda n: normal(n, 2, 6, 6)),
    "attention": (Attention, lambda n: normal(n, 4, 8)),
    "encoder": (Encoder, tokens),
    "lstm": (Recurrent, lambda n: normal(n, 5)),
    "gru": (lambda: Recurrent(nn.GRU), lambda n: normal(n, 5)),
    "tied": (Tied, lambda n: normal(n, 5)),
}


def ready(name, n, dtype=torch.float64):
    make, rows = ZOO[name]
    torch.manual_seed(0)
    x = as_rows(rows(n))
    prepared = prepare(make().eval(), x, dtype=dtype)
    return prepared, x.to(dtype=dtype, device=prepared.device)


def unflatten(prepared, vector):
    parts = vector.split([p.numel() for p in prepared.parameters.values()])
    return {name: part.view_as(p) for part, (name, p) in zip(parts, prepared.parameters.items(), strict=True)}


def flatten(tangents):
    return torch.cat([tensor.flatten() for tensor in tangents.values()])


def relative(found, expected):
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("mode", ["reverse", "forward", "chosen"])
@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_products_equal_the_dense_jacobian(name, mode, dtype, tolerance):
    prepared, x = ready(name, 4, dtype)
    exact, rows = ready(name, 4)
    J = jacobian_of(exact, rows)  # (n, C, P)
    w, u = torch.randn(4, 3, dtype=dtype), torch.randn(J.shape[2], dtype=dtype)
    assert relative(flatten(vjp(prepared, x.tree, 4, w)), torch.einsum("ncp,nc->p", J, w.double())) < tolerance
    if mode == "forward" and name == "lstm" and dtype == torch.float32:
        pytest.skip("torch has no forward-mode rule for it")
    mode = choose_mode(prepared, x) if mode == "chosen" else mode
    assert relative(jvp(prepared, x.tree, 4, unflatten(prepared, u), mode=mode), J @ u.double()) < tolerance


def test_sparse_gradients_are_taken():
    x = as_rows(tokens(4))
    torch.manual_seed(0)
    sparse = prepare(Embedding(sparse=True), x, dtype=torch.float64)
    dense = prepare(Embedding(sparse=False), x, dtype=torch.float64)
    dense.module.load_state_dict(sparse.module.state_dict())
    w, u = normal(4, 3), unflatten(sparse, normal(sparse.n_parameters))
    assert relative(flatten(vjp(sparse, x.tree, 4, w)), flatten(vjp(dense, x.tree, 4, w))) < 1e-14
    found = jvp(sparse, x.tree, 4, u, mode=choose_mode(sparse, x))
    assert relative(found, jacobian_of(dense, x) @ flatten(u)) < 1e-12


@pytest.mark.parametrize("keep_graph", [False, True])
@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_one_graph_serves_products_in_any_order(mode, keep_graph):
    prepared, x = ready("attention", 3)
    J = jacobian_of(prepared, x)
    linearized = Linearized(prepared, x.tree, 3, mode=mode, keep_graph=keep_graph)
    for _ in range(2):
        w, u = torch.randn(3, 3, dtype=torch.float64), torch.randn(J.shape[2], dtype=torch.float64)
        assert relative(flatten(linearized.vjp(w)), torch.einsum("ncp,nc->p", J, w)) < 1e-12
        assert relative(linearized.jvp(unflatten(prepared, u)), J @ u) < 1e-12


@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_outputs_without_parameters_have_zero_products(mode):
    model = nn.Linear(2, 2, bias=False).double()
    prepared = replace(prepare(model, as_rows(normal(3, 2))), forward=lambda module, batch: batch * 2)
    assert choose_mode(prepared, as_rows(normal(3, 2))) == "reverse"
    assert flatten(vjp(prepared, normal(3, 2), 3, normal(3, 2))).tolist() == [0, 0, 0, 0]
    assert not jvp(prepared, normal(3, 2), 3, {"weight": normal(2, 2)}, mode=mode).any()


def test_convolutions_go_forward_and_all_else_in_reverse():
    assert {name: choose_mode(*ready(name, 2)) for name in ZOO} == {
        name: "forward" if name == "convolutional" else "reverse" for name in ZOO
    }


class OnlyForward(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * gradient

    @staticmethod
    def jvp(ctx, tangent):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * tangent


class OnlyBackward(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * gradient


class WrongTangent(OnlyForward):
    """Its dual numbers say 2 x² where its backward says 3 x²."""

    @staticmethod
    def jvp(ctx, tangent):
        (x,) = ctx.saved_tensors
        return 2 * x**2 * tangent


class Custom(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function, self.first, self.second = function, nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.second(self.function.apply(self.first(x)))


def test_the_other_way_is_taken_where_the_first_fails():
    x = as_rows(normal(4, 5))
    prepared = prepare(Custom(OnlyForward), x, dtype=torch.float64)
    assert choose_mode(prepared, x) == "forward"
    u = torch.randn(prepared.n_parameters, dtype=torch.float64)
    expected = jacobian_of(prepared, x) @ u
    assert relative(jvp(prepared, x.tree, 4, unflatten(prepared, u), mode="forward"), expected) < 1e-12


class MixesRows(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(5, 3)

    def forward(self, x):
        return self.out(x - x.mean(0, keepdim=True))


class WritesOver(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x):
        h = torch.tanh(self.first(x)) * 1.0
        out = self.second(h)
        h.add_(1.0)
        return out + h[:, :3]


class InfiniteSlope(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(5, 3)

    def forward(self, x):
        return (self.out(x) * 0).sqrt()


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Custom(OnlyBackward), UnsupportedModelError, "forward mode: .*km.ntk"),
        (lambda: Custom(WrongTangent), UnsupportedModelError, "forward mode: J u has relative error"),
        (MixesRows, VerificationError, "mix"),
        (WritesOver, UnsupportedModelError, "in place"),
        (InfiniteSlope, NumericalError, "NaN or infinite"),
    ],
)
@pytest.mark.parametrize("n", [1, 4])
def test_what_cannot_be_trusted_is_refused(make, error, words, n):
    if make is MixesRows and n == 1:
        pytest.skip("one row has nothing to mix with")
    x = as_rows(normal(n, 5))
    prepared = prepare(make(), x, dtype=torch.float64)
    with pytest.raises(error, match=words) as caught:
        choose_mode(prepared, x)
    assert caught.value.expected
    assert caught.value.hint


def flags():
    backends = torch.backends.cuda
    return (
        torch.backends.mha.get_fastpath_enabled(),
        backends.flash_sdp_enabled(),
        backends.mem_efficient_sdp_enabled(),
        backends.math_sdp_enabled(),
        torch.is_grad_enabled(),
        torch.is_autocast_enabled("cpu"),
    )


@pytest.mark.parametrize("make", [Encoder, WritesOver])
def test_flags_random_state_and_parameters_are_left_alone(make):
    rows = as_rows(tokens(3) if make is Encoder else normal(3, 5))
    prepared = prepare(make().eval(), rows, dtype=torch.float64)
    before = copy.deepcopy(prepared.module)
    torch.backends.mha.set_fastpath_enabled(True)  # whatever an earlier test may have left
    state, seen = torch.get_rng_state(), flags()
    try:
        mode = choose_mode(prepared, rows)
        Linearized(prepared, rows.tree, 3, mode=mode).vjp(normal(3, 3))
    except UnsupportedModelError:
        assert make is WritesOver
    assert flags() == seen
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), prepared.module.parameters(), strict=True))
    assert all(p.grad is None and p._backward_hooks is None for p in prepared.module.parameters())


@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_surrounding_modes_do_not_matter(mode):
    prepared, x = ready("encoder", 3)
    w, u = normal(3, 3), unflatten(prepared, torch.randn(prepared.n_parameters, dtype=torch.float64))
    gradient, tangent = flatten(vjp(prepared, x.tree, 3, w)), jvp(prepared, x.tree, 3, u, mode=mode)
    for surrounding in (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)):
        with surrounding:
            assert torch.equal(flatten(vjp(prepared, x.tree, 3, w)), gradient)
            assert torch.equal(jvp(prepared, x.tree, 3, u, mode=mode), tangent)
