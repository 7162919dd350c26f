"""kernelmem.tangents.rules.embedding: closed form, index dtypes, tables that torch changes."""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kernelmem.core.errors import KernelmemError
from kernelmem.kernels import reference
from kernelmem.kernels.ntk import ntk
from kernelmem.testing.cases import with_random_weights
from kernelmem.testing.closeness import assert_close, assert_exact, scale_of
from kernelmem.testing.modules import Apply


def test_embedding_by_hand():
    """f = mean_s E[x_s]: K = C Σ_v share_v(x) share_v(x'); the padding token has no tangent."""
    x = torch.tensor([[0, 1, 1], [2, 2, 2], [1, 0, 3]])
    share = F.one_hot(x, 4).double().mean(1)
    for padding in (None, 0):
        model = with_random_weights(nn.Sequential(nn.Embedding(4, 5, padding_idx=padding), Apply(lambda h: h.mean(1))))
        mine = share if padding is None else share[:, 1:]
        assert_close(ntk(model, x), 5 * mine @ mine.T, 1e-13, 5.0)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_integer_inputs(dtype):
    body = nn.Sequential(nn.Embedding(5, 3), nn.Tanh(), nn.Flatten(), nn.Linear(9, 2))
    x = torch.randint(5, (4, 3), generator=torch.Generator().manual_seed(0)).to(dtype)
    assert_exact(with_random_weights(body), x)


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


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding", [None, 1, -2])
@pytest.mark.parametrize("vocabulary", [3, 30])
def test_bags_of_embeddings(mode, padding, vocabulary, assert_covered):
    layers = [nn.EmbeddingBag(vocabulary, 3, mode=mode, padding_idx=padding), nn.Tanh(), nn.Linear(3, 2)]
    x = torch.randint(vocabulary, (5, 4), generator=torch.Generator().manual_seed(0))
    x[0] = vocabulary - 2 if padding == -2 else 1  # a bag of padding alone
    assert_covered(nn.Sequential(*layers), x)


class Bags(nn.Module):
    """Bags from one sequence of tokens and offsets, with weights of the tokens."""

    def __init__(self, lengths, mode, *, include_last, weighted):
        super().__init__()
        self.bag = nn.EmbeddingBag(9, 3, mode=mode, include_last_offset=include_last)
        self.out, self.lengths = nn.Linear(3, 2), torch.tensor(lengths)
        self.include_last, self.weighted = include_last, weighted

    def forward(self, x):
        kept = torch.arange(x.shape[1]) < self.lengths[x[:, 0]][:, None]
        lengths = kept.sum(1)
        offsets = lengths.cumsum(0) - lengths
        if self.include_last:
            offsets = torch.cat([offsets, lengths.sum()[None]])
        weights = 1 + x.sin().to(self.out.weight.dtype)[kept] if self.weighted else None
        return self.out(torch.tanh(self.bag(x[kept], offsets, weights)))


@pytest.mark.parametrize("include_last", [False, True])
@pytest.mark.parametrize(("mode", "weighted"), [("sum", True), ("mean", False), ("max", False)])
@pytest.mark.parametrize("lengths", [[4] * 9, [1, 2, 3, 4, 0, 2, 1, 3, 4]], ids=["equal", "ragged"])
def test_bags_by_offsets(mode, weighted, include_last, lengths):
    x = torch.randint(9, (5, 4), generator=torch.Generator().manual_seed(0))
    model = Bags(lengths, mode, include_last=include_last, weighted=weighted)
    assert_exact(with_random_weights(model), x)


@pytest.mark.parametrize("option", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}], ids=str)
def test_bags_whose_weights_or_gradients_torch_changes(option):
    model = with_random_weights(nn.Sequential(nn.EmbeddingBag(9, 3, **option), nn.Tanh(), nn.Linear(3, 2)))
    x, before = torch.tensor([[0, 1, 1], [2, 2, 2], [1, 0, 3]]), model[0].weight.detach().clone()
    with contextlib.suppress(KernelmemError):
        assert_exact(model, x)
    assert torch.equal(model[0].weight, before)


class Lookup(nn.Module):
    """One parameter, read at positions that the rows give."""

    def __init__(self, run, shape):
        super().__init__()
        self.table, self.run = nn.Parameter(torch.zeros(shape)), run

    def forward(self, x):
        return torch.tanh(self.run(self.table, x)).reshape(len(x), -1)


LOOKUPS = {
    "table[x]": (lambda t, x: t[x], (9, 3)),
    "table[x] of a vector": (lambda t, x: t[x], (9,)),
    "table[x] of matrices": (lambda t, x: t[x], (9, 2, 3)),
    "table[:, x]": (lambda t, x: t[:, x].movedim(0, -1), (2, 9)),
    "table[:, x] in the middle": (lambda t, x: t[:, x].movedim(1, 0), (2, 9, 3)),
    "table[-x]": (lambda t, x: t[-x], (9, 3)),
    "table.T[x]": (lambda t, x: t.T[x], (3, 9)),
    "a part of a table": (lambda t, x: t[2:][x % 4], (9, 3)),
    "table[i] of one number": (
        lambda t, x: x * t[x.new_tensor(3)] + torch.stack([t[i] for i in x.new_tensor([0, 3])]).sum(0),
        (9, 4),
    ),
    "index_select": (lambda t, x: torch.index_select(t, 0, x.flatten()).unflatten(0, x.shape), (9, 3)),
    "index_select along 1": (lambda t, x: t.index_select(1, x[:, 0]).T, (3, 9)),
    "F.embedding of a view": (lambda t, x: F.embedding(x, t.T), (3, 9)),
    "F.embedding of a computed table": (lambda t, x: F.embedding(x, 2 * t), (9, 3)),
    "relative positions": (lambda t, x: x[..., None] * t[torch.tensor([[0, 1], [1, 0]])].flatten(), (9, 1)),
}


@pytest.mark.parametrize("name", LOOKUPS)
def test_every_notation_of_a_lookup(name, assert_covered):
    x = torch.randint(9, (5, 4), generator=torch.Generator().manual_seed(0))
    assert_covered(Lookup(*LOOKUPS[name]), x)
