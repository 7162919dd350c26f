"""kernelmem.tangents.rules.elementwise: closed forms of sums, products and expansions; PReLU."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kernelmem.kernels import reference
from kernelmem.kernels.ntk import ntk
from kernelmem.testing.cases import with_random_weights
from kernelmem.testing.closeness import assert_close, assert_exact, scale_of
from kernelmem.testing.modules import Shift


def rows(*size, seed=1):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_free_parameter_counts():
    """f = x + b: K = 1 for every pair and output."""
    x = rows(4, 3)
    assert_close(ntk(Shift(3).double(), x), torch.full((4, 4), 3.0), 1e-14, 3.0)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("C", [2, 3, 4])
@pytest.mark.parametrize("size", [1, 4])
def test_prelu_where_sizes_agree_and_where_not(n, C, size):
    """torch.func's rule for the weight's gradient gives other values, or none, as the sizes meet."""
    assert_exact(with_random_weights(nn.Sequential(nn.Linear(4, 4), nn.PReLU(size), nn.Linear(4, C))), rows(n, 4))


class Elementwise(nn.Module):
    """One parameter in one operation with the rows."""

    def __init__(self, run, shape):
        super().__init__()
        self.p, self.run = nn.Parameter(torch.zeros(shape)), run

    def forward(self, x):
        return self.run(x, self.p).reshape(len(x), -1)


OPERATIONS = {
    "x + p": (lambda x, p: x + p, lambda x: torch.ones_like(x)),
    "x - p": (lambda x, p: x - p, lambda x: -torch.ones_like(x)),
    "p - x": (lambda x, p: p - x, lambda x: torch.ones_like(x)),
    "x * p": (lambda x, p: x * p, lambda x: x),
}


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("shape", [(), (1,), (4,), (3, 1), (1, 3, 4)], ids=str)
def test_sums_and_products_by_hand(name, shape):
    """∂f/∂p is ±1 or x, summed over the entries that share a parameter."""
    run, slope = OPERATIONS[name]
    x = rows(5, 3, 4)
    J = torch.zeros(5, 12, max(1, torch.Size(shape).numel()), dtype=torch.float64)
    index = torch.arange(J.shape[2]).reshape(shape).expand(1, 3, 4).flatten()
    J[:, torch.arange(12), index] = slope(x).flatten(1)
    for outputs in ("trace", "full"):
        found = ntk(with_random_weights(Elementwise(run, shape)), x, outputs=outputs)
        assert_close(found, reference.kernel_of(J, J, outputs), 1e-13, scale_of(J))


@pytest.mark.parametrize(
    "run",
    [lambda x, p: torch.cat([p.expand(len(x), 1, 4), x], 1), lambda x, p: torch.cat([p.repeat(len(x), 1, 1), x], 1)],
    ids=["expand", "repeat"],
)
def test_a_class_token_has_the_kernel_of_a_constant(run):
    expected = torch.full((5, 5), 4.0, dtype=torch.float64)
    assert_close(ntk(with_random_weights(Elementwise(run, (1, 1, 4))), rows(5, 3, 4)), expected, 1e-14, 4.0)


class InsideNetwork(nn.Module):
    """One parameter in one operation with hidden activations (n, 3, 4)."""

    def __init__(self, run, *shapes):
        super().__init__()
        self.inner, self.run, self.out = nn.Linear(4, 4), run, nn.Linear(4, 2)
        self.parameters_of_run = nn.ParameterList([torch.zeros(shape) for shape in shapes])

    def forward(self, x):
        h = self.run(torch.tanh(self.inner(x)), *self.parameters_of_run)
        return self.out(torch.tanh(h)).reshape(len(x), -1)


# h is (n, 3, 4); every parameter has a shape
FORMS = {
    "w * h": (lambda h, w: w * h, (4,)),
    "h - w": (lambda h, w: torch.sub(h, w, alpha=2), (4,)),
    "w - h": (lambda h, w: torch.sub(w, h, alpha=0.5), (3, 4)),
    "add with alpha": (lambda h, w: torch.add(h, w, alpha=-1.5), (3, 1)),
    "add with alpha, first": (lambda h, w: torch.add(w, h, alpha=-1.5), (3, 1)),
    "w[None]": (lambda h, w: h + w[None], (3, 4)),
    "w[None] * h": (lambda h, w: w[None] * h, (3, 4)),
    "w.expand": (lambda h, w: h + w.expand(len(h), -1, -1), (3, 4)),
    "w.expand_as": (lambda h, w: h * w.expand_as(h), (4,)),
    "w.expand with one axis": (lambda h, w: h + w.expand(1, 3, 4), (1, 1, 4)),
    "w.T": (lambda h, w: h + w.T, (4, 3)),
    "w.view": (lambda h, w: h * w.view(1, 3, 4), (12,)),
    "w[:T]": (lambda h, w: h + w[: h.shape[1]], (7, 4)),
    "w[:, :T]": (lambda h, w: h + w[:, : h.shape[1]], (1, 7, 4)),
    "w[::2]": (lambda h, w: h + w[::2].unsqueeze(0), (6, 4)),
    "w[mask]": (lambda h, w: h + w[torch.tensor([0, 2, 2])], (6, 4)),
    "repeat": (lambda h, w: h + w.repeat(len(h), 3, 1), (1, 4)),
    "repeat of a longer axis": (lambda h, w: h + w.repeat(1, 2), (3, 2)),
    "tile": (lambda h, w: h + torch.tile(w, (len(h), 3, 1)), (1, 4)),
    "broadcast_to": (lambda h, w: h * torch.broadcast_to(w, h.shape), (4,)),
    "class token": (lambda h, w: torch.cat([w.expand(len(h), -1, -1), h], 1), (1, 1, 4)),
    "h / w": (lambda h, w: h / w, (4,)),
    "w / h": (lambda h, w: w / (2 + h), (3, 4)),
    "h ** w": (lambda h, w: (2 + h) ** w, (4,)),
    "w ** h": (lambda h, w: (1 + w.square()) ** h, (4,)),
    "pow": (lambda h, w: torch.pow(h.abs(), w.abs()), (3, 1)),
    "1 / w": (lambda h, w: h * (1 / w), (4,)),
    "where": (lambda h, w: torch.where(h > 0, w, h), (4,)),
    "where with two parameters": (lambda h, v, w: torch.where(h > 0, v, w), (4,), (3, 1)),
    "masked_fill": (lambda h, w: h.masked_fill(h > 0, w), ()),
    "lerp": (lambda h, v, w: torch.lerp(v, h, w), (4,), ()),
    "addcmul": (lambda h, v, w: torch.addcmul(v, h, w, value=0.5), (4,), (3, 4)),
    "Tensor.addcmul": (lambda h, v, w: h.addcmul(v, w), (4,), (3, 4)),
    "addcdiv": (lambda h, v, w: torch.addcdiv(h, v, 1 + w.square()), (4,), (3, 4)),
    "maximum": (lambda h, w: torch.maximum(h, w), (4,)),
    "max": (lambda h, w: torch.max(w, h), (4,)),
    "clamp": (lambda h, v, w: h.clamp(min=v, max=1 + w.square()), (4,), (3, 4)),
    "atan2": (lambda h, w: torch.atan2(h, w), (3, 4)),
    "cosine similarity": (lambda h, w: h * F.cosine_similarity(h, w, dim=-1)[..., None], (4,)),
    "pairwise distance": (lambda h, w: h * F.pairwise_distance(h, w)[..., None], (4,)),
    "distances to centers": (lambda h, w: torch.cdist(h[:, 0], w)[..., None] * h[:, :1], (5, 4)),
    "distances at all positions": (lambda h, w: torch.cdist(w, h, p=1).mT @ w, (5, 4)),
    "distances from centers": (lambda h, w: torch.cdist(w, h[:, 0]).T[..., None] * h[:, :1], (5, 4)),
    "in place": (lambda h, v, w: (2 * h).add_(v).mul_(w), (4,), (3, 4)),
    "augmented": (lambda h, w: h.clone().__iadd__(w), (4,)),
    "prelu": (lambda h, w: F.prelu(h, w), (3,)),
    "prelu with one slope": (lambda h, w: F.prelu(h, w), (1,)),
    "two parameters first": (lambda h, v, w: h + v * w, (4,), (3, 4)),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_notation(name, assert_covered):
    assert_covered(InsideNetwork(*FORMS[name]), rows(4, 3, 4))


@pytest.mark.parametrize("name", ["w[None]", "w[:, :T]", "class token", "h / w", "in place"])
@pytest.mark.parametrize("n", [1, 2])
def test_batches_of_one_and_two(name, n, assert_covered):
    """With one row, the shapes of a parameter and of the activations may agree."""
    assert_covered(InsideNetwork(*FORMS[name]), rows(n, 3, 4))


@pytest.mark.parametrize("name", ["add with alpha", "w[:T]", "addcmul", "h / w"])
def test_float32(name, assert_covered):
    assert_covered(InsideNetwork(*FORMS[name]), rows(4, 3, 4), torch.float32)


def test_a_parameter_that_is_used_in_two_views(assert_covered):
    model = InsideNetwork(lambda h, w: h * w.T + torch.cat([w[:1], w[1:]]).T / (2 + h), (4, 3))
    assert_covered(model, rows(4, 3, 4))
