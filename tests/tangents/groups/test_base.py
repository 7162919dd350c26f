"""kernelmem.tangents.groups.base: contraction of formed tangents for every way of combining directions."""

import pytest
import torch

from kernelmem.tangents.groups.base import add_explicit


def rows(*size, seed=1):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("contiguous", [True, False])
def test_explicit_contraction_by_its_definition(contiguous):
    left, right = rows(4, 2, 6), rows(5, 2, 6, seed=2)
    full = torch.einsum("nkp,mlp->nkml", left, right)
    for combine, expected in (
        ("sum", torch.einsum("nkmk->nm", full)),
        ("diagonal", torch.einsum("nkmk->knm", full)),
        ("full", full),
    ):
        out = torch.ones(*expected.shape[:-1], 2 * expected.shape[-1], dtype=torch.float64)[
            ..., :: 1 if contiguous else 2
        ]
        out = out[..., : expected.shape[-1]].contiguous() if contiguous else out
        add_explicit(out, left, right, combine, symmetric=False)
        torch.testing.assert_close(out, 1 + expected)


def test_symmetric_contraction_fills_the_upper_half():
    left = rows(150, 2, 3)
    out = torch.zeros(150, 150, dtype=torch.float64)
    add_explicit(out, left, left, "sum", symmetric=True)
    torch.testing.assert_close(out.triu(), (left.flatten(1) @ left.flatten(1).T).triu())
