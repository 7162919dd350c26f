"""Laws of the empirical tangent kernel, over random compositions of every supported layer."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kernelmem.core.errors import InputError
from kernelmem.kernels import reference
from kernelmem.kernels.ntk import ntk
from kernelmem.testing.closeness import assert_close, scale_of
from kernelmem.testing.strategies.networks import linear_networks, networks
from tests.profiles import examples

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")

KINDS = st.sampled_from(["trace", "diagonal", "full", "pseudo"])
SEEDS = st.integers(0, 2**31)
EPS = torch.finfo(torch.float64).eps


def fast(model, x, y=None, **options):
    """The kernel without its own verification, which doubles the cost: these laws verify it."""
    return ntk(model, x, y, verify=False, **options)


def norms(model, x, y=None):
    """Largest norm of the tangents of x, times that of y: what rounding is relative to."""
    left = reference.jacobian(model, x, dtype=torch.float64)
    return scale_of(left, None if y is None else reference.jacobian(model, y, dtype=torch.float64))


def of_kind(case, outputs):
    """The kernel by the definition, in float64, and its scale."""
    left, right = (reference.jacobian(case.model, rows, dtype=torch.float64) for rows in (case.x, case.y))
    return reference.kernel_of(left, right, outputs), scale_of(left, right)


@examples(3)
@given(case=networks(), outputs=KINDS)
def test_equals_the_reference(case, outputs):
    assert_close(fast(case.model, case.x, case.y, outputs=outputs), *_with(1e-10, of_kind(case, outputs)))


@examples(1)
@given(case=networks(dtype=torch.float32, smooth=True), outputs=KINDS)
def test_equals_the_reference_in_float32(case, outputs):
    found = fast(case.model, case.x, case.y, outputs=outputs)
    assert found.dtype == torch.float32
    assert_close(found, *_with(1e-4, of_kind(case, outputs)))


def _with(tolerance, expected_and_scale):
    expected, scale = expected_and_scale
    return expected, tolerance, scale


@examples(0.5)
@given(case=networks(), outputs=KINDS)
def test_is_verified(case, outputs):
    """The probe on a few rows accepts whatever is right."""
    left = reference.jacobian(case.model, case.x)
    found = ntk(case.model, case.x, outputs=outputs)
    assert_close(found, reference.kernel_of(left, left, outputs), 1e-10, scale_of(left))


@examples(0.5)
@given(case=linear_networks(), outputs=KINDS, dtype=st.sampled_from([torch.float64, torch.float32]))
def test_linear_layers_equal_the_reference(case, outputs, dtype):
    found = ntk(case.model, case.x, case.y, outputs=outputs, dtype=dtype)
    assert_close(found, *_with(1e-12 if dtype == torch.float64 else 1e-4, of_kind(case, outputs)))


@examples(0.5)
@given(width=st.integers(1, 8), C=st.integers(1, 5), bias=st.booleans(), seed=SEEDS)
def test_linear_model_has_the_closed_form(width, C, bias, seed):
    """f = W x + b: K^{cc'} = δ_cc' (x·x' + 1)."""
    torch.manual_seed(seed)
    model, x = nn.Linear(width, C, bias=bias).double(), torch.randn(5, width, dtype=torch.float64)
    inner = x @ x.T + float(bias)
    full = fast(model, x, outputs="full")
    assert_close(full, inner[:, :, None, None] * torch.eye(C), 1e-14, float(inner.abs().max()))
    assert_close(fast(model, x), C * inner, 1e-14, C * float(inner.abs().max()))


@examples(0.5)
@given(case=networks())
def test_symmetric_to_the_bit_and_positive(case):
    K = fast(case.model, case.x)
    assert torch.equal(K, K.T)
    full = fast(case.model, case.x, outputs="full")
    assert torch.equal(full, full.permute(1, 0, 3, 2))
    n, C = full.shape[1:3]
    for matrix in (K, full.permute(0, 2, 1, 3).reshape(n * C, n * C)):
        values = torch.linalg.eigvalsh(matrix)
        largest = max(float(values.abs().max()), 1e-3 * EPS)
        assert float(values.min()) >= -len(matrix) * EPS * largest


@examples(0.5)
@given(case=networks(), outputs=KINDS, seed=SEEDS)
def test_permuting_rows_permutes_the_kernel(case, outputs, seed):
    order = torch.randperm(len(case.x), generator=torch.Generator().manual_seed(seed))
    K = fast(case.model, case.x, outputs=outputs)
    found = fast(case.model, case.x[order], outputs=outputs)
    assert_close(found, K[order][:, order], 1e-12, norms(case.model, case.x))


@examples(0.5)
@given(case=networks(), outputs=KINDS)
def test_half_the_work_gives_the_same(case, outputs):
    found = fast(case.model, case.x, outputs=outputs)
    twice = fast(case.model, case.x, case.x.clone(), outputs=outputs)
    assert_close(found, twice, 1e-12, norms(case.model, case.x))


@examples(0.5)
@given(case=networks(), outputs=KINDS, rows=st.integers(1, 3), seed=SEEDS)
def test_tiles_and_their_order_change_nothing(case, outputs, rows, seed):
    whole = fast(case.model, case.x, case.y, outputs=outputs)
    tiled = torch.full_like(whole, torch.nan)
    tiles = [(i, j) for i in range(0, len(case.x), rows) for j in range(0, len(case.y), rows)]
    for k in torch.randperm(len(tiles), generator=torch.Generator().manual_seed(seed)).tolist():
        i, j = tiles[k]
        left, right = case.x[i : i + rows], case.y[j : j + rows]
        tiled[i : i + rows, j : j + rows] = fast(case.model, left, right, outputs=outputs)
    assert_close(tiled, whole, 1e-12, norms(case.model, case.x, case.y))


@examples(0.5)
@given(case=networks(rows=8), outputs=KINDS)
def test_the_memory_limit_changes_nothing(case, outputs):
    whole = fast(case.model, case.x, outputs=outputs)
    for exponent in range(11, 31):
        try:
            tiled = fast(case.model, case.x, outputs=outputs, memory=2**exponent)
        except InputError:
            continue
        assert torch.equal(tiled, tiled.permute(1, 0, 3, 2) if outputs == "full" else tiled.transpose(0, 1))
        # 16 eps of the largest entry, beside the floor of a kernel that is zero up to rounding.
        assert_close(tiled, whole, 16 * EPS, max(float(whole.abs().max()), 1e-3))
        return
    raise AssertionError("refused with 1 GiB")


@examples(0.1)
@given(case=networks(), outputs=KINDS)
def test_the_number_of_threads_changes_nothing(case, outputs):
    threads = torch.get_num_threads()
    found = {}
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found[count] = fast(case.model, case.x, outputs=outputs)
    finally:
        torch.set_num_threads(threads)
    assert_close(found[2], found[1], 16 * EPS, max(float(found[1].abs().max()), 1e-3))


@examples(0.5)
@given(case=networks(), outputs=KINDS, seed=SEEDS)
def test_additive_over_a_split_of_the_parameters(case, outputs, seed):
    names = [name for name, _ in case.model.named_parameters()]
    mask = torch.rand(len(names), generator=torch.Generator().manual_seed(seed)) < 0.5
    parts = [
        [name for name, first in zip(names, mask.tolist(), strict=True) if first is side] for side in (True, False)
    ]
    total = sum(fast(case.model, case.x, case.y, parameters=part, outputs=outputs) for part in parts if part)
    whole = fast(case.model, case.x, case.y, outputs=outputs)
    assert_close(total, whole, 1e-12, norms(case.model, case.x, case.y))


class Wrapped(nn.Module):
    """The same network, under other names, with its outputs scaled."""

    def __init__(self, inner, factor=None):
        super().__init__()
        # Names that a rule which goes by names would fall for.
        self.weight = nn.ModuleDict({"bias": nn.Sequential(nn.Identity(), inner)})
        self.factor = factor

    def forward(self, x):
        outputs = self.weight["bias"](x)
        return outputs if self.factor is None else outputs * self.factor


@examples(0.5)
@given(case=networks(), outputs=KINDS)
def test_nesting_and_names_change_nothing(case, outputs):
    found = fast(Wrapped(case.model), case.x, outputs=outputs)
    assert_close(found, fast(case.model, case.x, outputs=outputs), 1e-12, norms(case.model, case.x))


@examples(0.5)
@given(case=networks(), outputs=KINDS, factor=st.floats(0.1, 10.0))
def test_scales_with_the_square_of_the_outputs(case, outputs, factor):
    K = fast(case.model, case.x, outputs=outputs)
    found = fast(Wrapped(case.model, factor), case.x, outputs=outputs)
    assert_close(found, factor**2 * K, 1e-12, max(factor**2, 1.0) * norms(case.model, case.x))


@examples(0.5)
@given(case=networks())
def test_kinds_agree_with_one_another(case):
    scale = norms(case.model, case.x, case.y)
    full = fast(case.model, case.x, case.y, outputs="full")
    diagonal = full.diagonal(dim1=2, dim2=3)
    assert_close(fast(case.model, case.x, case.y, outputs="diagonal"), diagonal, 1e-12, scale)
    assert_close(fast(case.model, case.x, case.y, outputs="trace"), diagonal.sum(-1), 1e-12, scale)
    pseudo = full.sum((2, 3)) / full.shape[2]
    assert_close(fast(case.model, case.x, case.y, outputs="pseudo"), pseudo, 1e-12, full.shape[2] * scale)


@examples(0.5)
@given(case=networks(), outputs=KINDS)
def test_repeated_rows_repeat_the_kernel(case, outputs):
    """Equal rows have equal tangents, wherever they stand in the batch."""
    n = len(case.x)
    found = fast(case.model, torch.cat([case.x, case.x]), outputs=outputs)
    K = fast(case.model, case.x, outputs=outputs)
    for i, j in ((0, 0), (0, n), (n, 0), (n, n)):
        assert_close(found[i : i + n, j : j + n], K, 1e-12, norms(case.model, case.x))


@examples(0.5)
@given(case=networks())
def test_nothing_of_the_caller_is_changed(case):
    state = {name: value.clone() for name, value in case.model.state_dict().items()}
    x, training = case.x.clone(), [module.training for module in case.model.modules()]
    ntk(case.model, case.x)
    assert torch.equal(case.x, x)
    assert all(torch.equal(value, state[name]) for name, value in case.model.state_dict().items())
    assert training == [module.training for module in case.model.modules()]
    assert all(p.requires_grad and p.grad is None for p in case.model.parameters())
