"""kernelmem.tangents.groups.gemm: products in blocks equal products in one piece."""

import pytest
import torch

from kernelmem.tangents.groups.gemm import add_gram, add_scaled_gram, row_blocks
from kernelmem.testing.closeness import assert_close


def rows(*size, seed=1):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("n", [1, 63, 130, 1100])
def test_blocks_cover_the_upper_half_once(n):
    blocks = row_blocks(n, symmetric=True)
    assert [start for start, _, _ in blocks] == [0, *(stop for _, stop, _ in blocks[:-1])]
    assert blocks[-1][1] == n
    assert all(first == start for start, _, first in blocks)
    assert row_blocks(n, symmetric=False) == [(0, n, 0)]


@pytest.mark.parametrize("n", [5, 130, 1100])
def test_products_equal_those_in_one_piece(n):
    left, right, scale = rows(n, 3), rows(n, 3, seed=2), rows(n, n, seed=3)
    for symmetric, other in ((False, right), (True, left)):
        plain, scaled = torch.ones(2, n, n, dtype=torch.float64)
        add_gram(plain, left, other, symmetric=symmetric)
        add_scaled_gram(scaled, left, other, scale, symmetric=symmetric)
        product = left @ other.T
        for out, expected in ((plain, 1 + product), (scaled, 1 + scale * product)):
            out, expected = (out.triu(), expected.triu()) if symmetric else (out, expected)
            assert_close(out, expected, 1e-14, float(expected.abs().max()))
