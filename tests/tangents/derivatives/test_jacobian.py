"""kernelmem.tangents.derivatives.jacobian: closed form, and vectorized equals row by row."""

import pytest
import torch
from torch import nn

from kernelmem.core.batches import as_rows
from kernelmem.tangents.derivatives.jacobian import rowwise_jacobian, supports_vectorized_jacobian, vectorized_jacobian
from kernelmem.tangents.prepare import prepare
from kernelmem.testing.cases import with_random_weights
from kernelmem.testing.closeness import assert_close
from kernelmem.testing.modules import Apply


def rows(*size, seed=1):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def prepared_and_rows(model, x):
    data = as_rows(x)
    return prepare(model, data), data, [data.slice(i, i + 1) for i in range(data.n)]


def test_linear_model_by_hand():
    """∂f_c/∂W_kj = δ_ck x_j and ∂f_c/∂b_k = δ_ck."""
    x = rows(4, 3)
    prepared, _, single = prepared_and_rows(nn.Linear(3, 2).double(), x)
    J = rowwise_jacobian(prepared, single, ["weight", "bias"])
    eye = torch.eye(2, dtype=torch.float64)
    expected = torch.cat([torch.einsum("ck,nj->nckj", eye, x).flatten(2), eye.expand(4, 2, 2)], 2)
    assert torch.equal(J, expected)
    v = rows(4, 5, 2, seed=3)
    torch.testing.assert_close(rowwise_jacobian(prepared, single, ["weight", "bias"], v), v @ expected)


@pytest.mark.parametrize(
    "body",
    [
        lambda: nn.Sequential(nn.Linear(4, 3), nn.PReLU(3), nn.Linear(3, 2)),
        lambda: nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Conv1d(2, 3, 2), nn.Flatten(), nn.LayerNorm(3)),
    ],
    ids=["prelu", "convolution"],
)
def test_vectorized_equals_row_by_row(body):
    x = rows(5, 4)
    prepared, data, single = prepared_and_rows(with_random_weights(body()), x)
    names = list(prepared.parameters)
    assert supports_vectorized_jacobian(prepared, data, names)
    for v in (None, rows(5, 3, prepared.n_outputs, seed=3)):
        expected = rowwise_jacobian(prepared, single, names, v)
        assert_close(
            vectorized_jacobian(prepared, data.slice(0, 5), names, v), expected, 1e-13, float(expected.abs().max())
        )


def test_parameters_without_influence_have_zero_columns():
    model = with_random_weights(nn.Sequential(nn.Linear(4, 3), Apply(torch.detach), nn.Linear(3, 2)))
    prepared, _, single = prepared_and_rows(model, rows(3, 4))
    J = rowwise_jacobian(prepared, single, list(prepared.parameters))
    assert not bool(J[..., :15].any())
    assert bool(J[..., 15:].any())


def test_models_that_vmap_does_not_support_are_left_to_the_rows():
    data_dependent = nn.Sequential(nn.Linear(4, 2), Apply(lambda h: h * float(h.sum() > 0)))
    prepared, data, _ = prepared_and_rows(with_random_weights(data_dependent), rows(3, 4))
    assert not supports_vectorized_jacobian(prepared, data, list(prepared.parameters))
    inner = nn.Linear(4, 4)
    prepared, data, _ = prepared_and_rows(with_random_weights(nn.Sequential(inner, nn.Tanh(), inner)), rows(3, 4))
    assert not supports_vectorized_jacobian(prepared, data, list(prepared.parameters))  # a module in two places
