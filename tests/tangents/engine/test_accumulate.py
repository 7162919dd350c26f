"""kernelmem.tangents.engine.accumulate: tiles added in place, buffers without copies, symmetric halves."""

import pytest
import torch

from kernelmem.tangents.engine.accumulate import KernelAccumulator, TangentAssembler, mirror
from kernelmem.tangents.groups.base import add_explicit


def rows(*size, seed=1):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_chunks_are_put_together_in_order():
    x = rows(7, 3)
    assembler = TangentAssembler(7)
    for start, stop in ((0, 3), (3, 6), (6, 7)):
        assembler.add({"tangents": x[start:stop], "activations": 2 * x[start:stop, :1]})
    assert torch.equal(assembler.buffers["tangents"], x)
    assert torch.equal(assembler.buffers["activations"], 2 * x[:, :1])


def test_what_was_written_into_the_buffer_is_not_copied():
    buffer = torch.empty(6, 4)
    assembler = TangentAssembler(6, buffer)
    for start in (0, 3):
        part = buffer[start : start + 3]
        part.copy_(rows(3, 4, seed=start))
        assembler.add({"tangents": part.view(3, 2, 2)})
    assert assembler.buffers["tangents"].data_ptr() == buffer.data_ptr()
    assert assembler.buffers["tangents"].shape == (6, 2, 2)
    one_chunk = TangentAssembler(3)
    one_chunk.add({"tangents": buffer[:3]})
    assert one_chunk.buffers["tangents"].data_ptr() == buffer.data_ptr()


@pytest.mark.parametrize(("combine", "shape"), [("sum", (4, 5)), ("diagonal", (2, 4, 5)), ("full", (4, 2, 5, 2))])
def test_tiles_and_blocks_add_up_to_the_kernel(combine, shape):
    x, y = {"tangents": rows(4, 2, 6)}, {"tangents": rows(5, 2, 6, seed=2)}
    results = KernelAccumulator(combine, {"": torch.zeros(shape, dtype=torch.float64)}, [""], symmetric=False)

    def add(out, left, right, combine, *, symmetric):
        add_explicit(out, left["tangents"], right["tangents"], combine, symmetric=symmetric)

    blocks = [range(2)] if combine == "full" else [range(1), range(1, 2)]
    for block in blocks:
        for rows_, columns in ((slice(0, 3), slice(0, 5)), (slice(3, 4), slice(0, 2)), (slice(3, 4), slice(2, 5))):
            left, right = ({"tangents": side["tangents"][part][:, block]} for side, part in ((x, rows_), (y, columns)))
            results.add(0, add, left, right, block, (rows_, columns), symmetric=False)
    full = torch.einsum("nkp,mlp->nkml", x["tangents"], y["tangents"])
    expected = {
        "full": full,
        "diagonal": torch.einsum("nkmk->knm", full),
        "sum": torch.einsum("nkmk->nm", full),
    }[combine]
    torch.testing.assert_close(results.tensors[""], expected)


@pytest.mark.parametrize("n", [1, 5, 600])
def test_the_mirrored_half_is_equal_to_the_bit(n):
    for combine, shape in (("sum", (n, n)), ("diagonal", (2, n, n)), ("full", (n, 2, n, 2))):
        kernel = rows(*shape)
        upper = kernel.clone()
        mirror(kernel, combine)
        matrices = (
            kernel if combine == "diagonal" else [kernel.reshape(kernel.shape[0] * (2 if combine == "full" else 1), -1)]
        )
        before = upper if combine == "diagonal" else [upper.reshape(matrices[0].shape)]
        for matrix, original in zip(matrices, before, strict=True):
            assert torch.equal(matrix, matrix.T)
            assert torch.equal(matrix.triu(), original.triu())
