"""Tests of fidelity and margin."""

import pytest
import torch

from kernelmem.core.errors import InputError
from kernelmem.kernel_machines.equivalence.fidelity import fidelity, margin


def test_the_network_itself_has_error_zero():
    outputs = torch.randn(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    same = fidelity(outputs + torch.randn(50, 1, dtype=torch.float64), outputs)  # a constant on all logits is nothing
    assert same.agreement == 1.0
    assert same.relative_error < 1e-14
    assert 0 < same.agreement_se < 0.05


def test_by_hand():
    network = torch.tensor([[1.0, -1.0], [1.0, -1.0]])
    found = fidelity(torch.tensor([[2.0, -2.0], [-1.0, 1.0]]), network)
    assert found.agreement == 0.5
    assert found.relative_error == pytest.approx((2 + 8) ** 0.5 / 2)


@pytest.mark.parametrize("shape", [(3, 2), (2, 3), (0, 2)])
def test_shapes_must_agree(shape):
    with pytest.raises(InputError, match="shape"):
        fidelity(torch.zeros(shape), torch.zeros(2, 2))


def test_margin_by_hand():
    outputs = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 5.0]])
    assert margin(outputs, torch.tensor([0, 1])).tolist() == [1.0, 0.0]
