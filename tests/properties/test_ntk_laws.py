"""Laws of the empirical tangent kernel, over random networks."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kernelmem.kernels import oracle
from kernelmem.kernels.ntk import ntk
from kernelmem.testing.strategies import linear_networks

KINDS = st.sampled_from(["trace", "diagonal", "full", "pseudo"])


def close(found, expected, tolerance, scale=None):
    scale = float(expected.abs().max() if scale is None else scale)
    assert float((found.double() - expected).abs().max()) <= tolerance * max(scale, 1e-300)


def norms(model, x, y):
    """Entries are inner products of tangents: rounding is relative to the product of their norms."""
    left, right = (
        oracle.jacobian(model, x, dtype=torch.float64),
        oracle.jacobian(model, y, dtype=torch.float64),
    )
    return left.flatten(1).norm(dim=1).max() * right.flatten(1).norm(dim=1).max()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
@given(case=linear_networks(), outputs=KINDS)
def test_equals_the_oracle(dtype, tolerance, case, outputs):
    found = ntk(case.model, case.x, case.y, outputs=outputs, dtype=dtype)
    close(
        found,
        oracle.ntk(case.model, case.x, case.y, outputs=outputs),
        tolerance,
        norms(case.model, case.x, case.y),
    )


@given(case=linear_networks())
def test_symmetric_to_the_bit_and_positive(case):
    K = ntk(case.model, case.x)
    assert torch.equal(K, K.T)
    full = ntk(case.model, case.x, outputs="full")
    assert torch.equal(full, full.permute(1, 0, 3, 2))
    values = torch.linalg.eigvalsh(K)
    assert float(values.min()) >= -len(K) * torch.finfo(K.dtype).eps * float(values.max())


@given(case=linear_networks(), seed=st.integers(0, 2**31))
def test_permuting_rows_permutes_the_kernel(case, seed):
    order = torch.randperm(len(case.x), generator=torch.Generator().manual_seed(seed))
    K = ntk(case.model, case.x)
    close(ntk(case.model, case.x[order]), K[order][:, order], 1e-13, K.diagonal().max())


@given(case=linear_networks())
def test_half_the_work_gives_the_same(case):
    close(ntk(case.model, case.x), ntk(case.model, case.x, case.x.clone()), 1e-13)


@given(case=linear_networks(), outputs=KINDS, rows=st.integers(1, 3))
def test_tiles_change_nothing(case, outputs, rows):
    whole = ntk(case.model, case.x, case.y, outputs=outputs)
    parts = [ntk(case.model, part, case.y, outputs=outputs) for part in case.x.split(rows)]
    close(torch.cat(parts), whole, 1e-13, norms(case.model, case.x, case.y))


@given(case=linear_networks())
def test_additive_over_parameters(case):
    names = [name for name, _ in case.model.named_parameters()]
    total = ntk(case.model, case.x)
    close(
        sum(ntk(case.model, case.x, parameters=[name]) for name in names),
        total,
        1e-13,
        total.diagonal().max(),
    )


class Scaled(nn.Module):
    def __init__(self, inner, factor):
        super().__init__()
        self.inner, self.factor = inner, factor

    def forward(self, x):
        return self.inner(x) * self.factor


@given(case=linear_networks(), factor=st.floats(0.1, 10.0))
def test_scales_with_the_square_of_the_outputs_and_ignores_nesting(case, factor):
    K = ntk(case.model, case.x)
    close(ntk(Scaled(case.model, factor), case.x), factor**2 * K, 1e-13, factor**2 * K.diagonal().max())


@given(case=linear_networks())
def test_kinds_agree_with_one_another(case):
    scale = norms(case.model, case.x, case.y)
    full = ntk(case.model, case.x, case.y, outputs="full")
    diagonal = full.diagonal(dim1=2, dim2=3)
    close(ntk(case.model, case.x, case.y, outputs="diagonal"), diagonal, 1e-13, scale)
    close(ntk(case.model, case.x, case.y, outputs="trace"), diagonal.sum(-1), 1e-13, scale)
    close(ntk(case.model, case.x, case.y, outputs="pseudo"), full.sum((2, 3)) / full.shape[2], 1e-13, scale)
