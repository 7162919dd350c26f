"""Models whose state, modes or autograd tricks hide parameters from a capture: right, or refused by name."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from kernelmem.core.errors import KernelmemError, UnsupportedModelError, VerificationError
from kernelmem.kernels import reference
from kernelmem.kernels.ntk import ntk
from kernelmem.testing.cases import with_random_weights
from kernelmem.testing.closeness import assert_close, assert_exact, scale_of
from kernelmem.testing.modules import Apply, Recurrent

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")


def rows(*size, seed=1):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(4), nn.BatchNorm1d(4, track_running_stats=False)])
def test_train_mode_batch_norm_is_refused(norm):
    model = nn.Sequential(nn.Linear(4, 4), norm, nn.Linear(4, 2)).double().train()
    with pytest.raises(UnsupportedModelError, match="eval"):
        ntk(model, rows(4, 4))


def test_batch_norm_without_statistics_mixes_rows_even_in_eval_mode():
    model = with_random_weights(
        nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 2))
    )
    with pytest.raises(KernelmemError):
        ntk(model, rows(4, 4))


class Mixes(nn.Module):
    def __init__(self, way):
        super().__init__()
        self.inner, self.out, self.way = nn.Linear(4, 4), nn.Linear(4, 2), way

    def forward(self, x):
        h = torch.tanh(self.inner(x))
        if self.way == "center":
            h = h - h.mean(0)
        elif self.way == "attend":
            h = torch.softmax(h @ h.T, dim=1) @ h
        elif self.way == "shift":
            h = h + h.roll(1, dims=0)
        else:  # an attention layer that takes (n, d) for one sequence of n positions
            h = F.scaled_dot_product_attention(h[None], h[None], h[None])[0]
        return self.out(h)


@pytest.mark.parametrize("way", ["center", "attend", "shift", "sequence"])
def test_models_that_mix_rows_are_refused(way):
    with pytest.raises(VerificationError, match="mix"):
        ntk(with_random_weights(Mixes(way)), rows(5, 4))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
@pytest.mark.parametrize("batch_first", [True, False])
def test_recurrent_layers(kind, dtype, batch_first):
    inner = Recurrent(kind(3, 2, num_layers=2, bidirectional=True, batch_first=batch_first))
    assert_exact(
        with_random_weights(nn.Sequential(inner, nn.Flatten(), nn.Linear(12, 2))),
        rows(4, 3, 3),
        rows(2, 3, 3),
        dtype=dtype,
    )


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_transformer_encoder_on_its_fast_path(frozen, nested):
    """In eval mode, where nothing of a layer requires a gradient, torch fuses the layer and hides its weights."""
    layer = nn.TransformerEncoderLayer(4, 2, dim_feedforward=5, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested)
    model = with_random_weights(nn.Sequential(nn.Linear(4, 4), encoder, Apply(lambda h: h.mean(1)), nn.Linear(4, 2)))
    if frozen:
        encoder.layers[0].requires_grad_(False)
    x, names = rows(3, 3, 4), [name for name, p in model.named_parameters() if p.requires_grad]
    left = reference.jacobian(model, x, parameters=names)
    assert_close(ntk(model, x), reference.kernel_of(left, left), 1e-10, scale_of(left))
    assert_close(
        ntk(model, x, parameters=names[-2:]),
        reference.kernel_of(*2 * [reference.jacobian(model, x, parameters=names[-2:])]),
        1e-10,
        scale_of(left),
    )


class Untracked(nn.Module):
    """One layer counts; the other is read in a way that autograd does not follow."""

    def __init__(self, way):
        super().__init__()
        self.way, self.inner, self.out = way, nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        W, b = self.inner.weight, self.inner.bias
        if self.way == "data":
            h = F.linear(x, W.data, b.data)
        elif self.way == "detached weight":
            h = F.linear(x, W.detach(), b.detach())
        elif self.way == "detached output":
            h = self.inner(x).detach()
        elif self.way == "output data":
            h = self.inner(x).data
        elif self.way == "no_grad":
            with torch.no_grad():
                h = self.inner(x)
        elif self.way == "half":  # the tracked half of the output counts alone
            h = torch.cat([self.inner(x)[:, :2], self.inner(x)[:, 2:].detach()], dim=1)
        else:  # straight through: the value of the rounded weight, the tangent of the weight
            h = F.linear(x, W + (W.round() - W).detach(), b)
        return self.out(torch.tanh(h))


WAYS = ("data", "detached weight", "detached output", "output data", "no_grad", "half", "straight through")


@pytest.mark.parametrize("way", WAYS)
def test_what_autograd_does_not_follow_has_no_tangent(way):
    model, x = with_random_weights(Untracked(way)), rows(4, 4)
    assert_exact(model, x)
    inner = ntk(model, x, parameters=["inner.weight", "inner.bias"])
    assert bool(inner.any()) == (way in ("half", "straight through"))


def test_parameters_that_have_no_part_in_the_outputs():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.called, self.never = nn.Linear(4, 2), nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x):
            self.called(x)
            return self.used(x)

    model, x = with_random_weights(Idle()), rows(3, 4)
    assert_exact(model, x)
    for idle in ("called", "never"):
        assert not bool(ntk(model, x, parameters=[f"{idle}.weight", f"{idle}.bias"]).any())


def test_the_rows_are_not_written_over():
    """A first layer in place would write into the caller's tensor."""
    model, x = with_random_weights(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 2))), rows(5, 4)
    before = x.clone()
    ntk(model, x)
    assert torch.equal(x, before)


def by_autograd(model, x):
    """The trace kernel from the caller's own module: no copy, nothing of this package."""
    tangents = [
        torch.cat([g.flatten() for g in torch.autograd.grad(f, list(model.parameters()), retain_graph=True)])
        for row in x
        for f in model(row[None])[0]
    ]
    J = torch.stack(tangents).reshape(len(x), -1)
    return J @ J.T


TOKENS = {
    "channels": lambda h: h.square().flatten(1),  # the control, which torch has right
    "tokens": lambda h: h.flatten(2).transpose(1, 2).square().flatten(1),
    "one token": lambda h: h.flatten(2).transpose(1, 2)[:, 0],
}


def by_arithmetic(norm):
    """The same normalization from elementary operations."""

    def batch_norm(h):
        scale = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
        return (h - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias.detach()[:, None, None]

    def instance_norm(h):
        centered = h - h.mean((2, 3), keepdim=True)
        return centered / (centered.square().mean((2, 3), keepdim=True) + norm.eps).sqrt()

    return Apply(batch_norm if isinstance(norm, nn.BatchNorm2d) else instance_norm)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(3), nn.InstanceNorm2d(3)], ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("way", TOKENS)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_normalized_images_that_are_read_as_tokens(norm, way, n):
    """Torch's CPU backward of batch_norm is wrong for a batch of one whose output gradient is strided as channels-last.

    A batch of one is what a row-by-row definition runs, and what instance_norm makes of every batch.
    """
    conv = nn.Conv2d(2, 3, 2)
    model = with_random_weights(nn.Sequential(conv, norm, Apply(TOKENS[way])))
    same = with_random_weights(nn.Sequential(conv, by_arithmetic(norm), Apply(TOKENS[way])))
    with_random_weights(model)  # both share the layers: the same draw again
    x, names = rows(n, 2, 4, 4), ["0.weight", "0.bias"]
    expected = by_autograd(same, x)
    scale = float(expected.diagonal().max())
    assert_close(reference.ntk(model, x, parameters=names), expected, 1e-10, scale, "the reference")
    assert_close(ntk(model, x, parameters=names), expected, 1e-10, scale)


class Recomputed(nn.Module):
    """Activation checkpointing: the layer runs again in the backward pass, out of sight of a capture."""

    def __init__(self):
        super().__init__()
        self.inner, self.out = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.out(checkpoint(lambda h: torch.tanh(self.inner(h)), x, use_reentrant=False))


def test_activation_checkpoints():
    model, x = with_random_weights(Recomputed()), rows(4, 4)
    try:
        found = ntk(model, x)
    except KernelmemError:
        return
    left = reference.jacobian(model, x)
    assert_close(found, reference.kernel_of(left, left), 1e-10, scale_of(left))


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight.T

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        return gradient @ weight, gradient.T @ x


class Custom(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.out = nn.Parameter(torch.zeros(4, 4)), nn.Linear(4, 2)

    def forward(self, x):
        return self.out(torch.tanh(Product.apply(x, self.weight)))


def test_custom_autograd_functions():
    assert_exact(with_random_weights(Custom()), rows(3, 4))


def test_hooks_of_the_module():
    model = with_random_weights(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)))
    model[0].register_forward_hook(lambda module, args, output: output * module.bias)
    model[2].register_forward_pre_hook(lambda module, args: (torch.sin(args[0]),))
    assert_exact(model, rows(3, 4))


def test_a_function_that_holds_on_to_the_caller_s_weight():
    """A copy of the network does not copy what a lambda closes over: that use of the weight must not be lost."""
    inner = nn.Linear(4, 4)
    model, x = (
        with_random_weights(nn.Sequential(inner, nn.Tanh(), Apply(lambda h: F.linear(h, inner.weight)))),
        rows(3, 4),
    )
    expected = by_autograd(model, x)
    try:
        found = ntk(model, x)
    except KernelmemError:
        return
    assert_close(found, expected, 1e-10, float(expected.max()))


def test_a_forward_that_runs_the_caller_s_module_and_not_the_one_it_is_given():
    model, x = with_random_weights(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))), rows(3, 4)
    expected = by_autograd(model, x)
    try:
        found = ntk(model, x, forward=lambda _, batch: model(batch))
    except KernelmemError:
        return
    assert_close(found, expected, 1e-10, float(expected.max()))


@pytest.mark.parametrize("option", [{"sparse": True}, {"scale_grad_by_freq": True}, {"max_norm": 1.0}], ids=str)
def test_embeddings_whose_gradients_or_weights_torch_changes(option):
    model = with_random_weights(nn.Sequential(nn.Embedding(4, 3, **option), nn.Tanh(), nn.Flatten(), nn.Linear(9, 2)))
    x, before = torch.tensor([[0, 1, 1], [2, 2, 2], [1, 0, 3]]), model[0].weight.detach().clone()
    try:
        found = ntk(model, x)
        left = reference.jacobian(model, x)
        assert_close(found, reference.kernel_of(left, left), 1e-10, scale_of(left))
    except KernelmemError:
        pass
    assert torch.equal(model[0].weight, before)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_inside_no_grad_and_inference_mode(mode):
    """The caller's mode is no concern of the kernel's; rows that were made in it are fine too."""
    model, x = with_random_weights(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))), rows(3, 4)
    expected = ntk(model, x)
    with mode():
        found = ntk(model, 1.0 * x)
    assert_close(found, expected, 1e-14, float(expected.max()))


def test_rows_that_require_gradients():
    model, x = with_random_weights(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))), rows(3, 4)
    found = ntk(model, x.clone().requires_grad_())
    assert not found.requires_grad
    assert_close(found, ntk(model, x), 1e-14, float(found.max()))
