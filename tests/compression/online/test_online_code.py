"""Online codes of labels, against literal refits, and their streams."""

import numpy as np
import pytest
import torch

from kernelmem.compression import OnlineCode, online_code


def data(n, C, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    y = (x @ torch.randn(3, C, generator=generator, dtype=torch.float64)).argmax(1)
    return torch.exp(-torch.cdist(x, x).square() / 4).to(dtype), y


@pytest.mark.parametrize("C", [2, 3, 10])
def test_labels_decode_from_the_bytes_and_the_kernel(C):
    kernel, y = data(60, C)
    code = online_code(kernel, y, order_seed=C)
    assert torch.equal(OnlineCode.decode(code.encode(), kernel), y)
    assert 0 <= code.bits - code.ideal <= 48
    assert float(code.per_example.sum()) == pytest.approx(code.ideal)
    assert code.uniform == pytest.approx(60 * np.log2(C))
