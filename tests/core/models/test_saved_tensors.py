"""kernelmem.core.models.saved_tensors: bytes that autograd keeps, with and without torch.func inside."""

import gc
import weakref
from functools import partial

import pytest
import torch
from torch import nn

from kernelmem.core.models import saved_storages


def size(run):
    return sum(size for size, _ in saved_storages(run)[1].values())


def test_a_storage_is_counted_once():
    x = torch.randn(50, 3, dtype=torch.float64, requires_grad=True)
    assert size(lambda: x.exp()) == 50 * 3 * 8  # its result
    assert size(lambda: (x * x) * x.view(3, 50).view(50, 3)) == 2 * 50 * 3 * 8  # x and the product
    assert size(lambda: x + 1) == 0
    (entry,) = saved_storages(x.exp)[1].values()
    assert entry == (1200, 8)


@pytest.mark.parametrize("function", [torch.exp, torch.relu, lambda x: torch.tanh(x @ x.T).softmax(1)])
def test_a_graph_whose_nodes_save_their_outputs_is_freed(function):
    x = torch.randn(5, 3, requires_grad=True)
    output, _ = saved_storages(partial(function, x))
    alive = [weakref.ref(x), weakref.ref(output)]
    del x, output
    gc.collect()
    assert [reference() for reference in alive] == [None, None]


def test_derivatives_of_the_result_are_those_without_the_measurement():
    def derivatives(run):
        x = torch.linspace(-1, 1, 6, dtype=torch.float64).view(2, 3).requires_grad_()
        output = run(lambda: (torch.tanh(x) * x.exp()).sum() ** 2)
        (gradient,) = torch.autograd.grad(output, x, create_graph=True)
        return gradient, torch.autograd.grad(gradient.square().sum(), x)[0]

    measured = derivatives(lambda function: saved_storages(function)[0])
    for found, expected in zip(measured, derivatives(lambda function: function()), strict=True):
        assert torch.equal(found, expected)


NETWORK = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)).double()


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.func.vmap(torch.func.grad(lambda row: NETWORK(row)[0]))(x),
        lambda x: torch.func.vmap(torch.func.hessian(lambda row: NETWORK(row)[0]))(x),
        lambda x: torch.func.jvp(NETWORK, (x,), (torch.ones_like(x),))[1],
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own rules of dual numbers
def test_with_derivatives_by_torch_func_inside(function):
    sizes = [size(lambda n=n: function(torch.randn(n, 4).double())) for n in (2, 6, 10)]
    assert sizes[0] > 2 * 4 * 8
    assert sizes[2] - sizes[1] == sizes[1] - sizes[0] > 0  # a fixed part, and one per row
