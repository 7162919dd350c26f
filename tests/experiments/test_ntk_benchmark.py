"""The benchmark of km.ntk: its protocol, its reference and its refusals, on a network of a few weights."""

import dataclasses

import numpy as np
import pytest
import torch

from experiments.benchmarks.ntk import gauges, materials
from experiments.benchmarks.ntk.configs import Options, Row
from experiments.benchmarks.ntk.floors import gflop
from experiments.benchmarks.ntk.peers.interface import TooLarge, Unsupported
from experiments.benchmarks.ntk.peers.torch_func import prepare_classes, prepare_recipe
from experiments.benchmarks.ntk.peers.torch_problem import assemble
from experiments.benchmarks.ntk.processes import measure
from experiments.benchmarks.ntk.rounds import compare


@pytest.fixture(scope="module")
def tiny():
    row = Row("mlp:12-8-3", 9)
    materials.write(row.workload, row.n, row.outputs)
    return row


@pytest.mark.soak
@pytest.mark.parametrize("engine", ["ours", pytest.param("torch_func_one", marks=pytest.mark.soak)])
def test_an_engine_in_its_own_process_is_timed_weighed_and_compared(tiny, engine):
    result = measure(tiny, engine, Options(calls=2, threads=1))
    assert result["status"] == "ok", result
    assert len(result["seconds"]) == 2
    assert max(result["error_rows"], result["error_all"]) < 1e-5


@pytest.mark.parametrize("outputs", ["trace", "full"])
def test_reference_sees_one_wrong_entry_and_agrees_with_the_jacobian(outputs):
    materials.write("mlp:12-8-3", 9, outputs)
    problem = materials.load("mlp:12-8-3", 9, outputs)
    model, x = assemble(problem)
    model.double()
    names = dict(model.named_parameters())
    jacobian = torch.func.vmap(
        torch.func.jacrev(lambda p, e: torch.func.functional_call(model, p, (e[None],))[0]), (None, 0)
    )(names, x.double())
    flat = torch.cat([part.flatten(2) for part in jacobian.values()], 2).detach()
    kernel = torch.einsum("nap,map->nm" if outputs == "trace" else "nap,mbp->nmab", flat, flat).numpy()
    assert max(gauges.errors(kernel, problem.reference).values()) < 1e-12
    wrong = kernel.copy()
    wrong[3, 5] *= 1.1
    assert max(gauges.errors(wrong, problem.reference).values()) > 1e-3
    assert gauges.errors(kernel[:5], problem.reference)["error_all"] == np.inf


def test_floor_is_the_count_of_the_notes():
    assert gflop("W1", 2000, "trace") == pytest.approx(43, rel=0.01)
    assert gflop("W3", 64, "trace") == pytest.approx(120, rel=0.01)


def test_a_wrong_peer_is_never_the_best():
    ours = {"median": 1.0, "correct": True, "peak_bytes": 1}
    found = {"ours": ours, "nngeometry": ours | {"median": 0.1, "correct": False}, "backpack": ours | {"median": 2.0}}
    assert compare(found, None)["best_peer"] == "backpack"
    assert compare(found, None)["times_faster"] == 2.0


def test_what_an_engine_cannot_do_is_refused_before_it_starts(tiny):
    problem = materials.load(tiny.workload, tiny.n, tiny.outputs)
    with pytest.raises(Unsupported, match="only"):
        prepare_classes(dataclasses.replace(problem, outputs="full"))
    with pytest.raises(TooLarge, match="GB"):
        prepare_recipe(dataclasses.replace(problem, n_parameters=10**11))
