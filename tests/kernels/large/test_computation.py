"""kernelmem.kernels.large: stored kernels equal those in memory, resume to the bit, and are refused for other inputs."""

import copy
import pickle
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import kernelmem as km
from kernelmem.core.errors import InputError, NumericalError
from kernelmem.kernels.large import run as runs
from kernelmem.kernels.large import worker as workers
from kernelmem.kernels.large.inputs import InputsReference
from kernelmem.tangents.engine.engine import Engine
from tests.kernels.large.networks import Network, rows, stored_kernel

MODEL, X, Y = Network(), rows(10), rows(6, seed=2)
TILES = km.StoreOptions(tile=3)
K = km.ntk(MODEL, X)


class StopError(Exception):
    pass


def stop_after(n, done, total):
    if done == n:
        raise StopError


def read(store):
    with store:
        return store.rows(0, store.shape[0])


def close(found, expected):
    eps = torch.finfo(expected.dtype).eps
    return float((found - expected).abs().max()) <= 16 * eps * float(expected.abs().max())


@pytest.fixture
def calls(monkeypatch):
    """Blocks that are swept and tiles that are computed."""
    counts = {"sweeps": [], "tiles": []}
    tangents, tile = Engine.tangents, workers.Worker.tile

    def counted_tangents(self, side, rows, plan, block):
        counts["sweeps"].append((len(side.rows), rows.start))
        return tangents(self, side, rows, plan, block)

    def counted_tile(self, i, j):
        counts["tiles"].append((i, j))
        return tile(self, i, j)

    monkeypatch.setattr(Engine, "tangents", counted_tangents)
    monkeypatch.setattr(workers.Worker, "tile", counted_tile)
    return counts


@pytest.mark.parametrize("memory", ["1GiB", "8KiB"])
def test_the_store_equals_the_kernel_and_every_row_is_swept_once(memory, tmp_path, calls):
    assert km.ntk_store_plan(MODEL, X, memory=memory, options=TILES).kept == {"1GiB": "memory", "8KiB": "disk"}[memory]
    options = replace(TILES, verify=False)
    assert close(read(km.ntk_store(MODEL, X, path=tmp_path / "a", memory=memory, options=options)), K)
    assert sorted(calls["sweeps"]) == [(10, 0), (10, 3), (10, 6), (10, 9)]
    assert len(calls["tiles"]) == 10
    calls["sweeps"].clear()
    found = read(km.ntk_store(MODEL, X, Y, path=tmp_path / "b", memory=memory, options=options))
    assert close(found, km.ntk(MODEL, X, Y, verify=False))
    assert sorted(calls["sweeps"])[:6] == [(6, 0), (6, 3), (10, 0), (10, 3), (10, 6), (10, 9)]
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


def test_kinds_dtypes_targets_and_parameters(tmp_path):
    labels = torch.arange(10) % 3
    cases = [
        ({"outputs": "pseudo"}, {}),
        ({}, {"dtype": torch.float32}),
        ({}, {"target": "margin", "labels": labels}),
        ({}, {"parameters": ["gain", "hidden.weight"]}),
    ]
    for number, (arguments, options) in enumerate(cases):
        store = km.ntk_store(MODEL, X, path=tmp_path / str(number), options=replace(TILES, **options), **arguments)
        assert store.dtype == options.get("dtype", torch.float64)
        assert close(read(store), km.ntk(MODEL, X, **arguments, **options, verify=False))


def test_threads_give_the_same_bits(tmp_path):
    alone = read(km.ntk_store(MODEL, X, path=tmp_path / "a", options=TILES))
    with ThreadPoolExecutor(3) as executor:
        found = read(km.ntk_store(MODEL, X, path=tmp_path / "b", options=TILES, executor=executor))
    assert torch.equal(found, alone)


@pytest.mark.parametrize("memory", ["1GiB", "8KiB"])
def test_a_stopped_computation_resumes_to_the_bit(memory, tmp_path, calls):
    whole = read(km.ntk_store(MODEL, X, path=tmp_path / "whole", memory=memory, options=TILES))
    for n in (1, 4, 9):
        path = tmp_path / str(n)
        with pytest.raises(StopError):
            km.ntk_store(MODEL, X, path=path, memory=memory, options=TILES, progress=partial(stop_after, n))
        with km.KernelStore.open(path) as store:
            n_missing = len(store.missing())
        assert 0 < n_missing <= 10 - n
        if n == 4 and memory == "8KiB":  # a file of tangents is lost
            next((tmp_path / "4.tangents").iterdir()).unlink()
        calls["tiles"].clear()
        assert torch.equal(read(km.ntk_store(MODEL, X, path=path, memory="2GiB", options=TILES)), whole)
        assert len(calls["tiles"]) == n_missing
        assert not (tmp_path / f"{n}.tangents").exists()


def test_a_complete_store_is_opened_and_nothing_is_computed(tmp_path, calls):
    km.ntk_store(MODEL, X, path=tmp_path / "a", options=TILES).close()
    calls["tiles"].clear()
    assert close(read(km.ntk_store(MODEL, X, path=tmp_path / "a")), K)
    assert calls["tiles"] == []


def test_the_same_inputs_are_never_refused(tmp_path):
    km.ntk_store(MODEL, X, path=tmp_path / "a", options=TILES).close()
    loader = DataLoader(TensorDataset(X, torch.zeros(10)), batch_size=4)
    equal = copy.deepcopy(MODEL)
    equal.zero_grad()
    for model, x in ((MODEL, X.numpy()), (equal, loader), (equal.eval(), X.clone()), (MODEL, X.mT.contiguous().mT)):
        for options in (km.StoreOptions(), km.StoreOptions(tile=5, verify=False, dtype=torch.float64)):
            resumed = km.ntk_store(model, x, path=tmp_path / "a", memory="3GiB", options=options)
            assert close(read(resumed), K)


def test_other_inputs_are_refused_with_what_differs(tmp_path):
    path = tmp_path / "a"
    km.ntk_store(MODEL, X, path=path, options=TILES).close()
    other = copy.deepcopy(MODEL)
    other.readout.bias.data[0] += 1e-12
    cases = [
        (MODEL, X.flip(0), {}, r"other inputs: x\.order"),
        (MODEL, X[:9], {}, r"x\.n .*x\.order"),
        (MODEL, X + 1e-15, {}, r"x\.rows"),
        (MODEL, X.float(), {"options": km.StoreOptions(dtype=torch.float32)}, "dtype"),
        (other, X, {}, r"model\.values"),
        (MODEL, X, {"outputs": "pseudo"}, r"outputs \(\"trace\" in the store, \"pseudo\" now\)"),
        (MODEL, X, {"options": km.StoreOptions(parameters=["gain"])}, "parameters"),
        (MODEL, X, {"y": X}, "y "),
    ]
    for model, x, arguments, message in cases:
        with pytest.raises(InputError, match=message):
            km.ntk_store(model, x, path=path, **arguments)
    first, second = (
        nn.Sequential(nn.Linear(12, 4), activation, nn.Linear(4, 2)) for activation in (nn.ReLU(), nn.Tanh())
    )
    second.load_state_dict(first.state_dict())
    flat = X.flatten(1).float()
    km.ntk_store(first, flat, path=tmp_path / "b").close()
    with pytest.raises(InputError, match=r"model\.structure"):
        km.ntk_store(second, flat, path=tmp_path / "b")


def test_functions_of_the_same_name_are_told_apart_by_values(tmp_path):
    def forward(model, batch):
        return model(batch)

    first, path = forward, tmp_path / "a"
    with pytest.raises(StopError):
        km.ntk_store(MODEL, X, path=path, options=TILES, forward=first, progress=partial(stop_after, 2))

    def forward(model, batch):
        return 2 * model(batch)

    with pytest.raises(InputError, match="whose values differ from those of this model"):
        km.ntk_store(MODEL, X, path=path, options=TILES, forward=forward)
    assert close(read(km.ntk_store(MODEL, X, path=path, forward=first)), K)


def test_values_beyond_the_dtype_are_refused_by_row_and_the_rest_is_kept(tmp_path):
    model = nn.Linear(2, 1)
    x = torch.ones(9, 2)
    x[7] = 1e30
    with pytest.raises(NumericalError, match=r"row.* 7\b"):
        km.ntk_store(model, x, path=tmp_path / "a", options=TILES)
    with km.KernelStore.open(tmp_path / "a") as store:
        assert (1, 2) not in store.missing() or (0, 0) not in store.missing()
        assert (2, 2) in store.missing()


def test_arguments_are_checked_before_anything_is_computed(tmp_path):
    for arguments, message in [
        ({"outputs": "full"}, "outputs"),
        ({"path": tmp_path / "none" / "a"}, "directory that does not exist"),
        ({"memory": 1000}, "memory"),
        ({"executor": 3}, "executor"),
        ({"options": {"tile": 3}}, "options"),
    ]:
        with pytest.raises(InputError, match=message):
            km.ntk_store(MODEL, X, **{"path": tmp_path / "a", **arguments})
    assert list(tmp_path.iterdir()) == []


def test_a_worker_that_has_never_seen_the_inputs_loads_them_once(tmp_path, monkeypatch):
    """What a worker process does, in this process: from the file, or if it is not there from the task itself."""
    kernel = stored_kernel(MODEL, X)
    content = kernel.inputs.pickled(pickle.dumps)
    sha256 = runs.hashlib.sha256(content).hexdigest()
    (tmp_path / "inputs").write_bytes(content)
    loads = []
    load = InputsReference.load
    monkeypatch.setattr(InputsReference, "load", lambda self: loads.append(1) or load(self))

    def task(reference, i, j, key):
        return pickle.loads(pickle.dumps(workers.Task(reference, key, workers.Schedule(4, 3, 4), None, 2, i, j)))

    seen, unseen = InputsReference(sha256, tmp_path / "inputs"), InputsReference(sha256, tmp_path / "elsewhere")
    tile = workers.run_task(task(seen, 0, 1, "a" * 64))
    assert close(torch.from_numpy(tile), K[:4, 4:8])
    assert close(torch.from_numpy(workers.run_task(task(seen, 2, 2, "a" * 64))), K[8:, 8:])
    assert len(loads) == 1
    assert workers.run_task(task(unseen, 0, 1, "b" * 64)) is None
    assert close(torch.from_numpy(workers.run_task(task(replace(unseen, content=content), 0, 1, "b" * 64))), K[:4, 4:8])
    with pytest.raises(km.FileCorruptError, match="SHA-256 differs"):
        workers.run_task(task(replace(unseen, content=content[:-1] + b"x"), 0, 1, "c" * 64))
    workers._workers.clear()


@pytest.mark.soak
def test_processes_and_dask_give_the_same_values(tmp_path):
    from distributed import Client, LocalCluster

    alone = read(km.ntk_store(MODEL, X, path=tmp_path / "a", options=TILES))
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as executor:
        found = read(km.ntk_store(MODEL, X, path=tmp_path / "b", options=TILES, executor=executor))
    assert close(found, alone)
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        found = read(km.ntk_store(MODEL, X, path=tmp_path / "c", options=TILES, executor=client.get_executor()))
    assert close(found, alone)
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "c"}
