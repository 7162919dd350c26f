"""Laws of the tangent kernel as an operator, over random networks."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernelmem.kernels import reference
from kernelmem.kernels.operator import ntk_operator
from kernelmem.testing.strategies.networks import linear_networks

KINDS = st.sampled_from(["trace", "pseudo", "full"])
SEEDS = st.integers(0, 2**31)


def formed(case, outputs):
    K = reference.ntk(case.model, case.x, outputs=outputs, dtype=torch.float64)
    return K.transpose(1, 2).flatten(2).flatten(0, 1) if outputs == "full" else K


def vectors(op, seed, *columns):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(op.shape[0], *columns, generator=generator, dtype=torch.float64)


def close(found, expected, tolerance, scale):
    assert float((found.double() - expected).abs().max()) <= tolerance * max(float(scale), 1e-300)


def size(case, v):
    """Rounding is relative to Σ_j |J_i| |J_j| |v_j|, however much of it cancels."""
    lengths = reference.jacobian(case.model, case.x, dtype=torch.float64).flatten(1).norm(dim=1)
    return lengths.max() ** 2 * v.abs().sum()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
@given(case=linear_networks(), outputs=KINDS, seed=SEEDS)
def test_equals_the_reference(dtype, tolerance, case, outputs, seed):
    op = ntk_operator(case.model, case.x, outputs=outputs, dtype=dtype)
    K, V = formed(case, outputs), vectors(op, seed, 2)
    close(op @ V.to(dtype), K @ V, tolerance, size(case, V))
    close(op.diagonal(), K.diagonal(), tolerance, K.diagonal().max())


@given(case=linear_networks(), outputs=KINDS, seed=SEEDS, factor=st.floats(-10, 10))
def test_linear(case, outputs, seed, factor):
    op = ntk_operator(case.model, case.x, outputs=outputs)
    u, v = vectors(op, seed, 2).T
    close(op @ (u + factor * v), op @ u + factor * (op @ v), 1e-13, size(case, u.abs() + 10 * v.abs()))


@given(case=linear_networks(), outputs=KINDS, seed=SEEDS)
def test_symmetric_and_positive(case, outputs, seed):
    op = ntk_operator(case.model, case.x, outputs=outputs)
    u, v = vectors(op, seed, 2).T
    scale = size(case, u) * v.abs().max() + size(case, v) * u.abs().max()
    close(u @ (op @ v), v @ (op @ u), 1e-13 * op.shape[0], scale)
    assert float(v @ (op @ v)) >= -op.shape[0] * 1e-15 * float(scale)


@given(
    case=linear_networks(),
    outputs=KINDS,
    seed=SEEDS,
    chunk=st.integers(1, 6),
    group=st.integers(1, 5),
    keep=st.booleans(),
)
def test_unchanged_by_chunks_and_groups(case, outputs, seed, chunk, group, keep):
    op = ntk_operator(case.model, case.x, outputs=outputs)
    cut = dataclasses.replace(
        op, _plan=dataclasses.replace(op._plan, rows_per_chunk=chunk, directions_per_pass=group, keep_graphs=keep)
    )
    V = vectors(op, seed, 3)
    close(cut @ V, op @ V, 1e-13, size(case, V))


@given(case=linear_networks(), outputs=KINDS, seed=SEEDS)
def test_unchanged_by_the_way(case, outputs, seed):
    op = ntk_operator(case.model, case.x, outputs=outputs)
    assert op._plan.mode == "reverse"
    other = dataclasses.replace(op, _plan=dataclasses.replace(op._plan, mode="forward"))
    v = vectors(op, seed)
    close(other @ v, op @ v, 1e-13, size(case, v))


@given(case=linear_networks(), seed=SEEDS)
def test_kinds_agree_with_one_another(case, seed):
    """trace = Σ_c of the full kernel's blocks (c, c); pseudo = 1ᵀ full 1 / C."""
    trace, pseudo, full = (ntk_operator(case.model, case.x, outputs=kind) for kind in ("trace", "pseudo", "full"))
    n, C = trace.n, trace.n_outputs
    v = vectors(trace, seed)
    spread = torch.einsum("n,cd->ncd", v, torch.eye(C, dtype=torch.float64)).reshape(n * C, C)
    blocks = (full @ spread).reshape(n, C, C)
    close(trace @ v, torch.einsum("ncc->n", blocks), 1e-13, size(case, v) * C)
    close(pseudo @ v, blocks.sum((1, 2)) / C, 1e-13, size(case, v) * C)
