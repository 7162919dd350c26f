"""kernelmem.tangents.engine.engine: every kind of kernel of every model of the zoo equals the definition, whole and in parts."""

from functools import cache

import pytest
import torch
from torch import nn

from kernelmem.core.errors import InputError, UnsupportedModelError
from kernelmem.kernels import reference
from kernelmem.kernels.ntk import ntk, ntk_plan
from kernelmem.tangents.engine import engine, methods, plan
from kernelmem.testing.closeness import assert_close, scale_of
from kernelmem.testing.zoo import zoo_entries

KINDS = ("trace", "diagonal", "full", "pseudo")


ENTRIES = {entry.name: entry for entry in zoo_entries()}


pytestmark = [
    # Torch says once a process that such convolutions copy their input, and such LSTMs do without oneDNN.
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel"),
    pytest.mark.filterwarnings("ignore:LSTM with projections"),
]


every = pytest.mark.parametrize("name", ENTRIES)


@cache
def known(name):
    """The float64 case and its Jacobians by the definition."""
    case = ENTRIES[name].case()
    return case, reference.jacobian(case.model, case.x), reference.jacobian(case.model, case.y)


@every
@pytest.mark.parametrize("outputs", KINDS)
def test_equals_the_reference(name, outputs):
    case, left, right = known(name)
    found = ntk(case.model, case.x, outputs=outputs, verify=False)
    assert_close(found, reference.kernel_of(left, left, outputs), 1e-10, scale_of(left), "y=None")
    found = ntk(case.model, case.x, case.y, outputs=outputs, verify=False)
    assert_close(found, reference.kernel_of(left, right, outputs), 1e-10, scale_of(left, right), "y given")


@every
def test_equals_the_reference_in_float32(name):
    _, left, right = known(name)
    case = ENTRIES[name].case(dtype=torch.float32)
    for outputs in KINDS:
        for y, other in ((None, left), (case.y, right)):
            found = ntk(case.model, case.x, y, outputs=outputs, verify=False)
            assert found.dtype == torch.float32
            expected = reference.kernel_of(left, other, outputs)
            assert_close(found, expected, 1e-4, scale_of(left, other), f"{outputs}, y={'x' if y is None else 'y'}")


@every
def test_is_verified(name):
    case, left, right = known(name)
    assert_close(ntk(case.model, case.x), reference.kernel_of(left, left), 1e-10, scale_of(left), "y=None")
    assert_close(ntk(case.model, case.x, case.y), reference.kernel_of(left, right), 1e-10, scale_of(left, right), "y")


@every
def test_each_parameter_alone(name):
    """Frozen neighbors change what is tracked, and in transformer layers which path torch takes."""
    case, left, right = known(name)
    start, total = 0, torch.zeros(len(case.x), len(case.y), dtype=torch.float64)
    for parameter, value in case.model.named_parameters():
        a, b = (J[..., start : start + value.numel()] for J in (left, right))
        start += value.numel()
        try:
            found = ntk(case.model, case.x, case.y, parameters=[parameter], verify=False)
        except UnsupportedModelError:  # the outputs do not depend on it
            assert not bool(a.any())
            continue
        assert_close(found, reference.kernel_of(a, b), 1e-10, scale_of(a, b), parameter)
        total += found
    assert_close(total, reference.kernel_of(left, right), 1e-10, scale_of(left, right), "sum over parameters")


@every
@pytest.mark.parametrize("outputs", ["trace", "full"])
def test_the_memory_limit_changes_nothing(name, outputs):
    case, _, _ = known(name)
    whole = ntk(case.model, case.x, outputs=outputs, verify=False)
    for exponent in range(10, 31):
        try:
            tiled = ntk(case.model, case.x, outputs=outputs, memory=2**exponent, verify=False)
        except InputError:
            continue
        break
    else:
        raise AssertionError("refused with 1 GiB")
    assert_close(tiled, whole, 16 * torch.finfo(whole.dtype).eps, float(whole.abs().max()), f"2**{exponent} bytes")


@every
@pytest.mark.parametrize("streams", [True, False])
def test_one_direction_after_another_equals_the_reference(name, streams, monkeypatch):
    """All rows held in passes of one row each, tangents streamed or their gradients collected."""
    case, left, right = known(name)
    monkeypatch.setattr(plan, "STREAM_BYTES", 1)
    monkeypatch.setattr(methods, "_prefers_streaming", lambda *_: streams)
    for outputs in ("trace", "diagonal"):
        found = ntk(case.model, case.x, outputs=outputs, verify=False)
        assert_close(found, reference.kernel_of(left, left, outputs), 1e-10, scale_of(left), f"{outputs}, y=None")
        found = ntk(case.model, case.x, case.y, outputs=outputs, verify=False)
        assert_close(found, reference.kernel_of(left, right, outputs), 1e-10, scale_of(left, right), outputs)


@pytest.mark.soak
@every
def test_chunks_of_rows_change_nothing(name):
    case, left, right = known(name)
    whole = ntk(case.model, case.x, case.y, verify=False)
    for rows in (1, 3):
        parts = [ntk(case.model, part, case.y, verify=False) for part in case.x.split(rows)]
        assert_close(torch.cat(parts), whole, 1e-12, scale_of(left, right), f"{rows} rows")


@pytest.mark.parametrize("symmetric", [True, False])
def test_every_row_is_swept_once_if_all_tangents_fit(symmetric, monkeypatch):
    """However small the tiles are, which the temporaries of a tile limit."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    x = torch.randn(600, 3, dtype=torch.float64)
    y = None if symmetric else torch.randn(500, 3, dtype=torch.float64)
    starts, tangents = [], engine.Engine.tangents

    def counted(self, side, tile, plan, block):
        starts.append((len(side.rows), tile.start, block.start))
        return tangents(self, side, tile, plan, block)

    monkeypatch.setattr(engine.Engine, "tangents", counted)
    memory = 5_000_000
    plan = ntk_plan(model, x, y, memory=memory)
    assert plan.cached
    assert plan.tile < 600
    found = ntk(model, x, y, memory=memory, verify=False)
    assert len(starts) == len(set(starts)) == sum(-(-n // plan.tile) for n in ([600] if symmetric else [600, 500]))
    whole = ntk(model, x, y, verify=False)
    assert_close(found, whole, 16 * torch.finfo(whole.dtype).eps, float(whole.abs().max()), "tiles")
