"""kernelmem.tangents.engine.engine in parts: limits of memory, one direction after another, chunks of rows, tiles."""

import pytest
import torch
from torch import nn

from kernelmem.core.errors import InputError
from kernelmem.kernels import reference
from kernelmem.kernels.ntk import ntk, ntk_plan
from kernelmem.tangents.engine import engine, methods, plan
from kernelmem.testing.closeness import assert_close, scale_of
from tests.tangents.engine.zoo_cases import ENTRIES, WARNINGS, every, known

pytestmark = WARNINGS


def least_memory(model, x, outputs):
    """The kernel under the smallest limit, a power of 2, that is not refused, and its exponent."""
    for exponent in range(10, 31):
        try:
            return ntk(model, x, outputs=outputs, memory=2**exponent, verify=False), exponent
        except InputError:
            continue
    raise AssertionError("refused with 1 GiB")


def models_and_kinds():
    """One kind of kernel per model in turn, the other one in `make soak`: slices are the model's, contractions the kind's."""
    for i, name in enumerate(ENTRIES):
        kinds = ("trace", "full") if i % 2 else ("full", "trace")
        yield pytest.param(name, kinds[0])
        yield pytest.param(name, kinds[1], marks=pytest.mark.soak)


@pytest.mark.parametrize(("name", "outputs"), list(models_and_kinds()))
def test_the_memory_limit_changes_nothing(name, outputs):
    case, _, _ = known(name)
    whole = ntk(case.model, case.x, outputs=outputs, verify=False)
    tiled, exponent = least_memory(case.model, case.x, outputs)
    assert_close(tiled, whole, 16 * torch.finfo(whole.dtype).eps, float(whole.abs().max()), f"2**{exponent} bytes")


@every
@pytest.mark.parametrize("streams", [True, False])
def test_one_direction_after_another_equals_the_reference(name, streams, monkeypatch):
    """All rows held in passes of one row each, tangents streamed or their gradients collected."""
    case, left, right = known(name)
    monkeypatch.setattr(plan, "STREAM_BYTES", 1)
    monkeypatch.setattr(methods, "_prefers_streaming", lambda *_: streams)
    symmetric, rectangular = ("trace", "diagonal") if streams else ("diagonal", "trace")
    found = ntk(case.model, case.x, outputs=symmetric, verify=False)
    assert_close(found, reference.kernel_of(left, left, symmetric), 1e-10, scale_of(left), f"{symmetric}, y=None")
    found = ntk(case.model, case.x, case.y, outputs=rectangular, verify=False)
    assert_close(found, reference.kernel_of(left, right, rectangular), 1e-10, scale_of(left, right), rectangular)


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
