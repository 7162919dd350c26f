"""kernelmem.kernels.large: whatever the tiles, passes and places of the tangents, the kernel is the same."""

import tempfile
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernelmem.core.errors import InputError
from kernelmem.kernels import ntk
from kernelmem.kernels.large import plan as plans
from kernelmem.kernels.large.tangent_files import TangentFiles
from kernelmem.kernels.large.worker import Schedule
from tests.kernels.large.networks import Network, kernel_of, rows, stored_kernel, worker
from tests.profiles import examples

DTYPES = torch.float64, torch.float32
N, M = 7, 4


@cache
def known(dtype, symmetric, outputs):
    model, x, y = Network(dtype), rows(N, dtype), None if symmetric else rows(M, dtype, seed=2)
    kernel = stored_kernel(model, x, y, outputs, verify=False)
    return kernel, kernel.engine(()), ntk(model, x, y, outputs=outputs, verify=False)


@st.composite
def schedules(draw):
    return Schedule(draw(st.integers(3, N + 1)), draw(st.integers(1, 3)), draw(st.integers(2, N)))


def check_plan(schedule, dtype, symmetric, outputs, kept):
    kernel, engine, expected = known(dtype, symmetric, outputs)
    with tempfile.TemporaryDirectory() as folder:
        files = TangentFiles(Path(folder)) if kept == "disk" else None
        keep = 99 if kept == "memory" else 2
        K = kernel_of(worker(kernel.inputs, engine, schedule, files, keep))
    assert float((K - expected).abs().max()) <= 16 * torch.finfo(dtype).eps * float(expected.abs().max())
    assert not symmetric or torch.equal(K, K.T)


@examples(2 / 3)
@given(
    schedules(),
    st.sampled_from(DTYPES),
    st.booleans(),
    st.sampled_from(["trace", "pseudo"]),
    st.sampled_from(plans.KEPT),
)
def test_the_plan_changes_rounding_only(schedule, dtype, symmetric, outputs, kept):
    check_plan(schedule, dtype, symmetric, outputs, kept)


@pytest.mark.soak
def test_ten_thousand_plans():
    random = torch.Generator().manual_seed(0)

    def draw(n):
        return int(torch.randint(n, (1,), generator=random))

    for _ in range(10_000):
        schedule = Schedule(2 + draw(N), 1 + draw(3), 1 + draw(N))
        check_plan(schedule, DTYPES[draw(2)], bool(draw(2)), ("trace", "pseudo")[draw(2)], plans.KEPT[draw(3)])


def plan_for(memory, *, n=5000, tile=None, workers=1, shared=True, free_disk=2**40):
    _, engine, _ = known(torch.float64, True, "trace")
    limits = plans.Limits(memory, free_disk, workers, shared)
    return plans.make_store_plan(engine, n, n, limits, symmetric=True, tile=tile)


@pytest.mark.parametrize("kilobytes", [30, 100, 500, 3000, 50_000, 10**6])
def test_a_plan_fits_in_its_memory(kilobytes):
    plan = plan_for(1024 * kilobytes)
    assert plan.expected_bytes <= plan.memory
    assert plan.schedule.tile <= plans.LARGEST_TILE
    assert 1 <= plan.schedule.chunk <= plan.schedule.tile
    assert "5,000 x 5,000" in str(plan)


def test_tangents_stay_in_memory_if_they_fit_and_in_files_for_processes():
    assert plan_for(2**30).kept == "memory"
    assert plan_for(2**30, shared=False, workers=2).kept == "disk"
    assert plan_for(2**20).kept == "disk"
    assert plan_for(2**20, free_disk=2**20).kept == "nothing"
    assert plan_for(2**30).disk_bytes == plan_for(2**30).store_bytes
    assert plan_for(2**20).disk_bytes == plan_for(2**20).store_bytes + plan_for(2**20).tangent_bytes


def test_more_memory_gives_larger_tiles():
    found = [plan_for(2**exponent) for exponent in range(15, 31)]
    tiles = [plan.schedule.tile for plan in found]
    assert tiles == sorted(tiles)
    assert found[-1].kept == "memory"


def test_what_does_not_fit_is_refused_with_what_would():
    with pytest.raises(InputError, match=r"tiles of 1 rows, which need about .* Hint: pass memory=") as caught:
        plan_for(2000)
    needed = caught.value.hint.split('"')[1]
    assert plan_for(int(needed[:-3]) * 2**20).expected_bytes
    with pytest.raises(InputError, match="tiles of 2000 rows"):
        plan_for(2**20, tile=2000)


def test_a_begun_store_keeps_its_sizes():
    _, engine, _ = known(torch.float64, True, "trace")
    schedule = Schedule(700, 2, 50)
    for memory in (2**30, 2**28):
        limits = plans.Limits(memory, 2**40)
        plan = plans.plan_of_schedule(engine, 5000, 5000, limits, symmetric=True, schedule=schedule)
        assert plan.schedule == schedule
    with pytest.raises(InputError, match="tiles of 700 rows"):
        plans.plan_of_schedule(engine, 5000, 5000, plans.Limits(2**20, 2**40), symmetric=True, schedule=schedule)


def test_memory_and_disk_that_are_not_there_are_refused(tmp_path, monkeypatch):
    plan = plan_for(2**30)
    plan.check(tmp_path / "store")
    monkeypatch.setattr(plans.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 2**20}))
    with pytest.raises(InputError, match=r"whose disk has 1 MiB free"):
        plan.check(tmp_path / "store")
    monkeypatch.setattr("kernelmem.core.memory.available_memory", lambda: 2**16)
    with pytest.raises(InputError, match=r"needs about \d+ MiB, where 0 MiB are available"):
        plan.check(tmp_path / "store")
