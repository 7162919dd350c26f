"""kernelmem.tangents.groups.table: sums over pairs of positions with the same token equal the definition."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kernelmem.kernels import reference
from kernelmem.kernels.ntk import ntk, ntk_plan
from kernelmem.tangents.groups import table
from kernelmem.tangents.groups.mixed import MixedGroup
from kernelmem.tangents.groups.table import TableGroup
from kernelmem.testing.cases import with_random_weights
from kernelmem.testing.closeness import assert_close, assert_exact, scale_of
from tests.profiles import examples
from tests.tolerances import summing

OUTPUTS = ("trace", "diagonal", "full", "pseudo")


def tokens(n, S, V, *, skew=1.0, seed=0):
    """Tokens with frequencies 1 / rank ** skew: a few are in all rows, many in one."""
    shares = torch.arange(1, V + 1).double() ** -skew
    generator = torch.Generator().manual_seed(seed)
    return torch.multinomial(shares.expand(n, -1), S, replacement=True, generator=generator)


def classifier(V, d, S, C=3, **options):
    body = [nn.Embedding(V, d, **options), nn.Tanh(), nn.Flatten(), nn.Linear(S * d, C)]
    return with_random_weights(nn.Sequential(*body))


@examples(1)
@given(
    sizes=st.tuples(*(st.integers(1, 9) for _ in range(4))),
    skew=st.sampled_from([0.0, 1.0, 3.0]),
    outputs=st.sampled_from(OUTPUTS),
    padding=st.booleans(),
    block=st.sampled_from([1, 64, 2**22]),
    seed=st.integers(0, 99),
)
def test_equals_the_products_of_the_tables(sizes, skew, outputs, padding, block, seed):
    """All kinds of contraction, batches of any frequency and size, and blocks of tokens, against T Tᵀ."""
    (n, m, S, k), V, d = sizes, 12, 2
    combine = outputs if outputs in ("diagonal", "full") else "sum"
    group = TableGroup(("0.weight",), (), "0", S, V, d)
    sides, tables = [], []
    for size in (n, m):
        generator = torch.Generator().manual_seed(seed + size)
        indices = tokens(size, S, V, skew=skew, seed=seed + size)
        indices = torch.where(indices == 1, -1, indices) if padding else indices
        gradients = torch.randn(size, S, k, d, generator=generator, dtype=torch.float64)
        one_hot = (indices[..., None] == torch.arange(V)).double()
        sides.append({"tokens": indices, "gradients": gradients})
        tables.append(torch.einsum("nsv,nskd->nkvd", one_hot, gradients).flatten(2))
    expected = torch.einsum("nkp,mlp->nkml", *tables)
    if combine != "full":
        diagonal = expected.diagonal(dim1=1, dim2=3)  # (n, m, k)
        expected = diagonal.sum(-1) if combine == "sum" else diagonal.movedim(2, 0)
    before = table.BLOCK_NUMBERS
    try:
        table.BLOCK_NUMBERS = block
        found = torch.ones_like(expected)
        group.add(found, *sides, combine, symmetric=False)
    finally:
        table.BLOCK_NUMBERS = before
    scale = S * d * float(torch.stack([side["gradients"].abs().max() for side in sides]).prod()) * S
    assert_close(found - 1, expected, summing(S * S * d * k), max(scale, 1.0))


@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize("padding", [None, 0])
def test_each_form_equals_the_definition(outputs, padding, blocks_of):
    model, x = classifier(20, 3, 4, padding_idx=padding), tokens(6, 4, 20)
    J = reference.jacobian(model, x, parameters=["0.weight"])
    expected = reference.kernel_of(J, J, outputs)
    of_table = [block for group, block, _ in blocks_of(model, x, outputs) if type(group) is TableGroup]
    assert len(of_table) == 2
    for block in of_table:  # both triangles are filled in, also if the kernel is symmetric
        assert_close(block, expected, 1e-12, scale_of(J))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("memory", [2**30, 2**13])
def test_kernels_of_two_sets_of_rows_in_tiles(dtype, memory):
    x, y = tokens(7, 4, 20), tokens(5, 4, 20, seed=1)
    assert_exact(classifier(20, 3, 4).to(dtype), x, y, dtype=dtype, memory=memory, verify=False)


class TwoLookups(nn.Module):
    """One table that is used twice (as it is, or also as the readout), with other parameters in between."""

    def __init__(self, V, d, *, tied):
        super().__init__()
        self.table, self.inner, self.tied = nn.Embedding(V, d), nn.Linear(d, d), tied
        self.out = nn.Linear(d, 3)

    def forward(self, x):
        h = torch.tanh(self.table(x[:, :2]).sum(1)) * self.inner(self.table(x[:, 1:]).mean(1))
        return torch.tanh(h) @ self.table.weight.T if self.tied else self.out(torch.tanh(h))


@pytest.mark.parametrize("tied", [False, True])
def test_a_table_that_is_used_twice(tied, assert_covered, engine_of):
    model, x = with_random_weights(TwoLookups(20, 3, tied=tied)), tokens(5, 4, 20)
    assert_covered(model, x)
    group = next(group for group in engine_of(model, x).survey.groups if "table.weight" in group.names)
    assert type(group) is (MixedGroup if tied else TableGroup)
    assert tied or group.positions == 5


def test_small_tables_are_summed(engine_of):
    """With as many positions as table rows, the table of tangents is smaller than the list of output gradients."""
    groups = {V: engine_of(classifier(V, 3, 4), tokens(5, 4, 3)).survey.groups[0] for V in (3, 4, 5)}
    assert [type(group) for group in groups.values()] == [MixedGroup, MixedGroup, TableGroup]


def test_tangents_and_tiles_do_not_grow_with_the_vocabulary():
    x = tokens(6, 4, 20)
    plans = [ntk_plan(classifier(V, 3, 4), x, parameters=["0.weight"]) for V in (20, 20_000)]
    assert plans[0].costs[0].method == "lookup"
    assert plans[0].costs[0].numbers_per_row == plans[1].costs[0].numbers_per_row
    assert (plans[0].tile, plans[0].chunk) == (plans[1].tile, plans[1].chunk)
    assert plans[1].expected_bytes <= 8 * 28 * plans[1].n_parameters  # the Jacobian of three rows, compared


def test_by_hand():
    """f = mean_s E[x_s]: K = C Σ_v share_v(x) share_v(x')."""
    x = tokens(6, 4, 50)
    model = with_random_weights(nn.Sequential(nn.Embedding(50, 5), nn.AdaptiveAvgPool2d((1, None)), nn.Flatten()))
    share = nn.functional.one_hot(x, 50).double().mean(1)
    assert_close(ntk(model, x), 5 * share @ share.T, 1e-13, 5.0)
