"""kernelmem.core.models.execution: checkpointing, autocast and compiled code are off inside, and as before outside."""

import functools
import threading

import pytest
import torch
import torch.utils.checkpoint
from torch import nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from kernelmem.core.errors import UnsupportedModelError
from kernelmem.core.models import (
    PassObserver,
    ignored_autocast,
    plain_execution,
    refuse_detached_segments,
    without_checkpointing,
)

CPU = torch.device("cpu")
GLOBALS = torch.utils.checkpoint.CheckpointFunction, torch.utils.checkpoint._checkpoint_without_reentrant_generator


def current_globals():
    module = torch.utils.checkpoint
    return module.CheckpointFunction, module._checkpoint_without_reentrant_generator


@pytest.fixture(autouse=True)
def _everything_is_restored():
    yield
    assert current_globals() == GLOBALS


class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.runs = nn.Linear(4, 4), 0

    def forward(self, h, scale=1.0):
        self.runs += 1
        return torch.dropout(torch.tanh(self.inner(h)), 0.5, True) * scale


@pytest.mark.parametrize(
    "segment",
    [
        lambda module, h: checkpoint(module, h, use_reentrant=True),
        lambda module, h: checkpoint(module, h, use_reentrant=False),
        lambda module, h: functools.partial(checkpoint, use_reentrant=False)(module, h, scale=1.0),
        lambda module, h: checkpoint_sequential([module], 1, h, use_reentrant=True),
        lambda module, h: checkpoint_sequential([module], 1, h, use_reentrant=False),
    ],
)
def test_a_segment_runs_once_with_the_same_outputs_and_gradients(segment):
    module, h = Counter(), torch.randn(3, 4, requires_grad=True)
    torch.manual_seed(0)
    segment(module, h).square().sum().backward()
    expected = [h.grad, *(p.grad for p in module.parameters())]
    module.runs = 0
    torch.manual_seed(0)
    with without_checkpointing():
        outputs = segment(module, h)
    gradients = torch.autograd.grad(outputs.square().sum(), [h, *module.parameters()])
    assert module.runs == 1
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected, strict=True))


def test_errors_inside_restore_what_was_replaced():
    with pytest.raises(ZeroDivisionError), plain_execution(CPU), without_checkpointing():
        checkpoint(lambda h: 1 / 0, torch.ones(2), use_reentrant=False)
    assert current_globals() == GLOBALS


def test_other_threads_keep_checkpointing():
    module, h = Counter(), torch.randn(3, 4, requires_grad=True)

    def other():
        for reentrant in (True, False):
            checkpoint(module, h, use_reentrant=reentrant).sum().backward()

    with plain_execution(CPU):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert module.runs == 4


def test_contexts_of_two_threads_may_overlap_in_any_order():
    entered, leave = threading.Event(), threading.Event()

    def other():
        with plain_execution(CPU):
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with plain_execution(CPU):
        thread.start()
        assert entered.wait(10)
    module = Counter()
    checkpoint(module, torch.randn(3, 4, requires_grad=True), use_reentrant=False).sum().backward()
    assert module.runs == 2  # this thread has left
    leave.set()
    thread.join()


@pytest.mark.parametrize("outer", [True, False])
def test_autocast_of_the_model_is_ignored_inside_and_as_it_was_outside(outer):
    layer, x = nn.Linear(4, 4), torch.randn(3, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=outer):
        with plain_execution(CPU):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                inside = layer(x)
            after = layer(x)
        assert torch.is_autocast_enabled("cpu") == outer
    assert torch.equal(inside, layer(x))
    assert torch.equal(after, layer(x))


def test_compiled_functions_run_as_written():
    calls = []

    def function(x):
        calls.append(type(x))
        return x + 1

    compiled = torch.compile(function, backend=lambda graph, inputs: pytest.fail("compiled"))
    with plain_execution(CPU):
        assert torch.equal(compiled(torch.ones(2)), torch.full((2,), 2.0))
    assert calls == [torch.Tensor]


@pytest.mark.parametrize(
    ("function", "found"),
    [
        (lambda x: x.square(), False),
        (lambda x: torch.autograd.grad(x.square().sum(), x, create_graph=True)[0], True),
        (lambda x: torch.autograd.functional.jvp(torch.square, x, x, create_graph=True)[1], True),
        (lambda x: torch.func.vmap(torch.func.grad(lambda r: r.square().sum()))(x), False),
        (lambda x: torch.func.jvp(torch.square, (x,), (x,))[1], False),
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own rules of dual numbers
def test_detects_derivatives_inside_a_forward_pass(function, found):
    with PassObserver() as observer:
        function(torch.ones(2, 2, requires_grad=True))
    assert observer.differentiates == found


@pytest.mark.parametrize(
    ("function", "precision"),
    [
        (lambda w: w.square().sum(), torch.float64),
        (lambda w: torch.fft.fft(w).abs(), torch.float64),
        (lambda w: w * torch.ones(2, dtype=torch.float32).exp(), torch.float64),  # a constant
        (lambda w: (w.float() * 2).double(), torch.float32),
        (lambda w: torch.view_as_real(torch.complex(w.float(), w.float()).square()).double(), torch.float32),
        (lambda w: (w.float().bfloat16() * 2).double(), torch.bfloat16),
        (lambda w: w.detach().float() * 2, None),
    ],
)
def test_precision_of_what_depends_on_parameters(function, precision):
    w = torch.ones(2, dtype=torch.float64, requires_grad=True)
    with PassObserver() as observer:
        function(w)
    assert observer.precision == precision


def test_a_reentrant_segment_without_gradients_is_refused_only_on_demand():
    """torch gives the parameters of such a segment no gradients, and warns."""
    module, x = Counter(), torch.randn(3, 4)
    with without_checkpointing():
        assert checkpoint(module, x, use_reentrant=True).requires_grad
        with refuse_detached_segments():
            checkpoint(module, x.clone().requires_grad_(), use_reentrant=True)
            checkpoint(module, x, use_reentrant=False)
            with pytest.raises(UnsupportedModelError, match="use_reentrant=False"):
                checkpoint(module, x, use_reentrant=True)
        checkpoint(module, x, use_reentrant=True)


def test_ignored_autocast_is_reported_once():
    ignored_autocast()
    with torch.autocast("cpu", dtype=torch.bfloat16), plain_execution(CPU):  # that of the caller is not the model's
        torch.ones(2).sum()
        assert not ignored_autocast()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.ones(2).sum()
    assert ignored_autocast()
    assert not ignored_autocast()
