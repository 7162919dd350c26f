"""kernelmem.tangents.capture: every use of a parameter counts, however the forward pass reaches it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from kernelmem.core.batches import as_rows
from kernelmem.core.errors import KernelmemError, UnsupportedModelError
from kernelmem.kernels import reference
from kernelmem.kernels.ntk import ntk
from kernelmem.tangents.capture import capture, tensors_in
from kernelmem.tangents.prepare import prepare
from kernelmem.tangents.rules import RULES
from kernelmem.testing.cases import with_random_weights
from kernelmem.testing.closeness import assert_close, assert_exact, scale_of
from kernelmem.testing.modules import Apply, CalledTwice


def rows(*size, seed=1):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_tied_module_sums_its_tangents_before_contraction():
    """f = w (w x): ∂f/∂w = 2 w x; contracting each use alone would give 2 w² x x' instead of 4 w² x x'."""
    inner = nn.Linear(1, 1, bias=False).double()
    x = rows(4, 1)
    w = float(inner.weight.detach())
    for model in (nn.Sequential(inner, inner), nn.Sequential(inner, nn.Identity(), nn.Sequential(inner))):
        assert_close(ntk(model, x), 4 * w**2 * (x @ x.T), 1e-12, 4 * w**2 * float((x @ x.T).max()))


@pytest.mark.parametrize("inner", [nn.Linear(4, 4), nn.LayerNorm(4), nn.PReLU(4)], ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_module_at_two_places(inner, n):
    """The same module object under two names: both must stay one, also after the tangents have been taken."""
    assert_exact(with_random_weights(nn.Sequential(inner, nn.Tanh(), inner, nn.Linear(4, 2))), rows(n, 4))
    assert_exact(with_random_weights(nn.Sequential(CalledTwice(inner), nn.Linear(4, 2))), rows(n, 4))


def test_weight_under_two_names():
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    model = with_random_weights(nn.Sequential(first, nn.Tanh(), second))
    assert len(list(model.named_parameters())) == 3
    assert_exact(model, rows(4, 3))


class Foreign(nn.Module):
    def __init__(self, way):
        super().__init__()
        self.first, self.second, self.way = nn.Linear(4, 4), nn.Linear(4, 3), way

    def forward(self, x):
        h = torch.tanh(self.first(x))
        if self.way == "linear":
            h = F.linear(h, self.first.weight)
        elif self.way == "transposed":
            h = F.linear(h, self.first.weight.T, self.first.bias)
        elif self.way == "scaled":
            h = F.linear(h, 2.0 * self.first.weight, self.first.bias)
        elif self.way == "both":  # as the weight and as the input of one call
            h = h + F.linear(self.first.weight, self.first.weight).sum(0)
        return self.second(h)


@pytest.mark.parametrize("way", ["linear", "transposed", "scaled", "both"])
@pytest.mark.parametrize("n", [2, 4])
def test_weight_of_another_module(way, n):
    assert_exact(with_random_weights(Foreign(way)), rows(n, 4))


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
    inner = ["inner.weight", "inner.bias"]
    if way in ("half", "straight through"):
        assert bool(ntk(model, x, parameters=inner).any())
    else:
        with pytest.raises(UnsupportedModelError, match="depend on none of its 2 selected parameters"):
            ntk(model, x, parameters=inner)


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
        with pytest.raises(UnsupportedModelError, match="depend on none of its 2 selected parameters"):
            ntk(model, x, parameters=[f"{idle}.weight", f"{idle}.bias"])


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


def test_a_function_that_holds_on_to_the_caller_s_weight(by_autograd):
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


def test_a_forward_that_runs_the_caller_s_module_and_not_the_one_it_is_given(by_autograd):
    model, x = with_random_weights(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))), rows(3, 4)
    expected = by_autograd(model, x)
    try:
        found = ntk(model, x, forward=lambda _, batch: model(batch))
    except KernelmemError:
        return
    assert_close(found, expected, 1e-10, float(expected.max()))


def captured(model, x, **options):
    prepared = prepare(model, as_rows(x))
    return capture(prepared, x.clone(), len(x), RULES, **options)


def test_uses_in_order_with_their_parameters():
    model = with_random_weights(nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Tanh(), nn.Linear(3, 2, bias=False)))
    result = captured(model, rows(5, 4))
    assert [use.names for use in result.uses] == [
        {"weight": "0.weight", "bias": "0.bias"},
        {"weight": "1.weight", "bias": "1.bias"},
        {"weight": "3.weight"},
    ]
    assert [use.key.ordinal for use in result.uses] == [1, 1, 1]
    assert not result.uncovered
    assert torch.equal(result.outputs.detach(), model(rows(5, 4)).detach())


def test_a_skipped_call_leaves_its_parameters_uncovered():
    model = with_random_weights(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)))
    first, last = captured(model, rows(5, 4)).uses
    result = captured(model, rows(5, 4), skip=frozenset({first.key}))
    assert [use.key for use in result.uses] == [last.key]
    assert result.uncovered == {"0.weight", "0.bias"}
    dense = captured(model, rows(5, 4), dense=("0.weight", "0.bias"))
    assert [use.names["weight"] for use in dense.uses] == ["2.weight"]
    assert not dense.uncovered


def test_a_computed_weight_names_its_sources():
    model = with_random_weights(Foreign("scaled"))
    derived = [use.sources for use in captured(model, rows(3, 4)).uses if use.derived]
    assert [set(source) for source in derived[0].values()] == [{"first.weight"}]


def test_an_input_that_is_modified_later_is_refused():
    model = nn.Sequential(nn.Linear(4, 4), Apply(lambda h: h.add_(1.0)), nn.Linear(4, 2))
    x = rows(3, 4)
    result = captured(with_random_weights(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))), x)
    result.uses[1].inputs["input"].add_(1.0)
    with pytest.raises(UnsupportedModelError, match=r"1\.weight, 1\.bias"):
        result.uses[1].activation()
    assert_exact(with_random_weights(model), x)


def test_tensors_in_nested_arguments():
    a, b, c = torch.zeros(3)
    assert [id(t) for t in tensors_in((a, [b, {"c": c}], 3, None))] == [id(a), id(b), id(c)]
