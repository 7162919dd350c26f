"""kernelmem.tangents.engine.plan: a frozen value that prints, its methods, and memory limits."""

import dataclasses

import pytest
import torch
from torch import nn

import kernelmem as km
from kernelmem.core.errors import InputError
from kernelmem.kernels import reference
from kernelmem.kernels.ntk import ntk_plan
from kernelmem.tangents.groups.outer import VectorGroup
from kernelmem.tangents.groups.readout import ReadoutGroup


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 8), nn.Tanh(), nn.Linear(8, C)
    ).double()


@pytest.fixture
def x():
    return torch.randn(N, 1, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


N, C = 6, 4


def relative(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


def test_head_compression_takes_as_many_sweeps_as_hidden_units():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, 7), nn.Tanh(), nn.Linear(7, 40)).double()
    x = torch.randn(5, 5, dtype=torch.float64)
    assert km.ntk_plan(model, x).sweeps == 7
    assert km.ntk_plan(model, x, outputs="diagonal").sweeps == 40
    assert relative(km.ntk(model, x), reference.ntk(model, x)) < 1e-12


def test_the_plan_is_a_value_that_prints_and_runs_nothing_large(model, x):
    plan = km.ntk_plan(model, x.repeat(10_000, 1, 1, 1), memory="60GiB")
    assert plan.n == plan.m == 60_000
    text = str(plan)
    assert all(word in text for word in ("60,000 x 60,000", "symmetric", "0.weight", "explicit", "readout", "GFLOP"))
    assert max(len(line) for line in text.splitlines()[:-1]) < 140
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.tile = 3
    kinds = [type(group) for group in plan.groups]
    assert kinds[-1] is ReadoutGroup
    assert kinds[1] is VectorGroup
    assert plan.groups[1].factored


def test_a_smaller_memory_makes_smaller_tiles(model, x):
    rows = x.repeat(100, 1, 1, 1)
    plans = [km.ntk_plan(model, rows, outputs="full", memory=m) for m in ("1GiB", 49_000_000)]
    assert plans[0].tile > plans[1].tile
    assert plans[1].expected_bytes < 49_000_000
    found = [km.ntk(model, rows[:60], memory=memory) for memory in ("1GiB", "1MiB")]
    assert relative(found[1], found[0]) < 1e-13


def test_all_rows_are_held_only_with_room_for_temporaries():
    convolutions = [nn.Conv1d(1, 64, 9, padding=4), nn.ReLU(), nn.Conv1d(64, 64, 9, padding=4), nn.ReLU()]
    network = nn.Sequential(*convolutions, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(64, 10))
    rows = torch.zeros(300, 1, 100)
    plan = km.ntk_plan(network, rows, memory="1GiB")
    streamed = [km.ntk_plan(network, rows, memory=int(plan.expected_bytes * share)).streamed for share in (1.2, 1.5)]
    assert streamed == [False, True]


def test_the_plan_is_a_table(model, x):
    result = ntk_plan(model, x, outputs="full")
    frame = result.to_frame()
    assert list(frame.columns) == ["parameters", "method", "operations", "numbers_per_row", "alternative"]
    assert list(frame["method"]) == ["explicit", "vector", "readout"]
    assert ", ".join(name for name, _ in model.named_parameters()) == ", ".join(frame["parameters"])
    assert repr(result) == str(result)
    assert result._repr_html_().startswith("<pre>kernel (full) of 6 x 6 rows")


def test_a_plan_of_many_groups_fits_one_screen():
    model = nn.Sequential(*(nn.Sequential(nn.Linear(3, 3), nn.Tanh()) for _ in range(60)), nn.Linear(3, 2))
    lines = str(ntk_plan(model, torch.zeros(5, 3))).splitlines()
    assert len(lines) <= 40
    assert lines[-2].startswith("... 26 more groups")


class Doubled(torch.autograd.Function):
    """An operation that torch functions do not see."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return 2 * x * w

    @staticmethod
    def backward(ctx, gradient):
        x, w = ctx.saved_tensors
        return 2 * gradient * w, 2 * (gradient * x).sum(0)


class Uncovered(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.table = nn.Linear(3, 3), nn.Embedding(4, 3, scale_grad_by_freq=True)
        self.matrix, self.gain = nn.Parameter(torch.eye(3)), nn.Parameter(torch.ones(3))

    def forward(self, x):
        h = torch.linalg.solve(self.matrix, torch.tanh(self.first(x)).T).T
        return Doubled.apply(h + self.table((x[:, 0] > 0).long()), self.gain)


def test_the_plan_says_why_a_parameter_is_dense():
    result = ntk_plan(Uncovered(), torch.randn(5, 3, generator=torch.Generator().manual_seed(0)))
    reasons = {cost.parameters: cost.alternative for cost in result.costs if cost.method == "dense"}
    assert reasons == {
        ("matrix",): "no rule for torch.linalg.solve",
        ("gain",): "used in a way that no rule covers",
        ("table.weight",): "this form of torch.nn.functional.embedding has no rule",
    }
    assert all(reason in str(result) for reason in reasons.values())
    assert set(result.dense) == {"matrix", "gain", "table.weight"}


def test_the_operations_of_a_linear_model():
    """Symmetric readout: 2 · (n²/2) · (in + 1) operations."""
    (cost,) = ntk_plan(nn.Linear(10, 3), torch.zeros(100, 10)).costs
    assert (cost.method, cost.operations, cost.numbers_per_row) == ("readout", 100**2 * 11, 11)


def test_too_little_memory_is_refused(model, x):
    with pytest.raises(InputError, match="memory of"):
        ntk_plan(model, x, memory=1000)
