"""kernelmem.tangents.rules.embedding: closed form, index dtypes, tables that torch changes."""

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
