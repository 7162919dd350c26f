"""The benchmark of km.ledger: its protocol, its certificate, its counts and its tables, on a network of a few weights."""

import dataclasses
import itertools
import json
from types import SimpleNamespace

import pytest

from experiments.benchmarks.ledger import child, processes, recording, rounds, training
from experiments.benchmarks.ledger import run as command
from experiments.benchmarks.ledger.configs import Options, Row
from experiments.benchmarks.ledger.engines import ENGINES, Entry
from experiments.benchmarks.ledger.figure import draw
from experiments.benchmarks.ledger.floors import carried_numbers, ledger_operations, training_operations
from experiments.benchmarks.ledger.peers import interface, ours
from experiments.benchmarks.ledger.report import report
from experiments.benchmarks.ledger.table import tables
from experiments.benchmarks.ledger.workloads import OPTIMIZERS, Problem, Workload
from kernelmem.core.errors import InputError

TINY = Workload((5, 4, 3), "tanh", "momentum-decay", 4, n=24, batch=8, tests=2)


@pytest.fixture
def in_process(monkeypatch):
    """No processes, no second thread."""

    def measure(task, workload, *, threads, run=None, **options):
        given = {"task": task, "workload": dataclasses.asdict(workload), "threads": threads, "run": str(run), **options}
        return child.main(json.loads(json.dumps(given)))

    monkeypatch.setattr(rounds, "measure", measure)
    monkeypatch.setattr(rounds, "THREADS", (1,))
    monkeypatch.setattr(training, "SHAPES", ((8, 8, 8),))
    monkeypatch.setattr(training, "COPIED", 64)


@pytest.mark.soak
def test_an_engine_in_its_own_process_is_timed_weighed_and_certified(tmp_path):
    Problem.make(TINY, tmp_path / "run")
    result = processes.measure("analyze", TINY, threads=1, run=tmp_path / "run", engine="ours", calls=2)
    assert result["status"] == "ok", result
    assert len(result["ms_per_step"]) == 2
    assert result["residual"] < 1e-12 < result["change"]
    assert result["peak_bytes"] > result["peak_above_bytes"] >= 0


def test_lines_that_do_not_add_up_are_seen(tmp_path, monkeypatch):
    def prepare(problem):
        engine = ours.prepare(problem)

        def analyze():
            own = engine.analyze()
            own.contributions[1, 3, 2] += 1e-6
            return own

        return interface.Engine(analyze, analyze)

    Problem.make(TINY, tmp_path / "run")
    monkeypatch.setattr(ours, "prepare_wrong", prepare, raising=False)
    monkeypatch.setitem(ENGINES, "wrong", Entry("wrong", "wrong", "ours", "prepare_wrong"))
    task = {"task": "analyze", "run": str(tmp_path / "run"), "calls": 1, "threads": 1, "workload": vars(TINY)}
    assert child.main(task | {"engine": "ours"})["residual"] < 1e-12
    assert child.main(task | {"engine": "ours-log"})["residual"] < 1e-12
    assert child.main(task | {"engine": "wrong"})["residual"] == pytest.approx(1e-6)
    assert child.main(task | {"engine": "none"})["status"] == "failed"


@pytest.mark.soak
def test_every_kind_of_row_becomes_a_table_a_figure_and_a_readme(in_process, tmp_path, monkeypatch):
    monkeypatch.setattr(Entry, "missing", lambda self: "not here" if self.peer else None)
    double = dataclasses.replace(TINY, dtype="float64", flipped=0.2)
    rows = (
        Row("peer", TINY, ("ours", "ours-log", "explaind-2")),
        Row("long", TINY, ("ours", "ours-1e-11"), target=4.0),
        *(Row("training", dataclasses.replace(double, optimizer=name), target=1.0) for name in ("sgd", "adam")),
        Row("training", double, outputs="one", target=1e9),
        Row("groups", double, ("ours-groups",)),
        Row("recorder", TINY),
    )
    monkeypatch.setattr(command, "ROWS", rows)
    results = command.run(Options(rounds=2, calls=1, out=tmp_path))
    assert list(results["rows"]) == [row.name for row in rows]
    by_kind = {row["kind"]: row for row in results["rows"].values()}
    assert by_kind["peer"]["engines"]["explaind-2"] == {"status": "not installed", "reason": "not here"}
    assert "compared" not in by_kind["peer"]
    assert len(by_kind["long"]["engines"]["ours"]["ms_per_step"]["values"]) == 2
    assert by_kind["long"]["engines"]["ours-1e-11"]["contributions_differ"] < 1e-9
    assert by_kind["groups"]["engines"]["ours-groups"]["contributions_differ"] < 1e-10
    assert by_kind["training"]["engines"]["threads-1"]["carried_bytes"] == 8 * (2 * (6 + 4) + 2 * 15)
    text = tables(results)
    assert text.count("###") == 5
    assert "(missed)" in text
    drawn = (tmp_path / "figure.svg").read_bytes()
    (tmp_path / "README.md").write_text("# Title\n\nText.\n\n## Results\n\nold figures\n", encoding="utf-8")
    for _ in range(2):
        report(tmp_path)
        written = (tmp_path / "README.md").read_text(encoding="utf-8")
        assert written.startswith("# Title\n\nText.\n\n## Results\n\n!")
        assert written.endswith(text)
    assert (tmp_path / "figure.svg").read_bytes() == drawn
    assert draw({"rows": {}}) == {}


def test_ratios_are_of_the_peers_over_ours():
    def engine(ms, residual):
        return {"status": "ok", "ms_per_step": {"median": ms}, "residual": residual}

    found = {"ours": engine(2.0, 1e-12), "explaind": engine(400.0, 1e-6), "explaind-2": {"status": "failed"}}
    assert rounds.compare(found)["compared"] == {
        "explaind": {"times_faster": 200.0, "times_closer": pytest.approx(1e6)}
    }
    assert rounds.compare({"explaind": engine(1.0, 1.0)}) == {}


def test_times_are_of_a_step(in_process, tmp_path, monkeypatch):
    """With a clock that goes on by a second at every look."""
    clock = SimpleNamespace(perf_counter=itertools.count().__next__, process_time=itertools.count(0, 2).__next__)
    monkeypatch.setattr(child, "time", clock)
    monkeypatch.setattr(training, "time", clock)
    problem = Problem.make(TINY, tmp_path / "run")
    task = {"run": str(problem.run.path), "calls": 5, "threads": 1, "workload": vars(TINY)}
    found = child.main(task | {"task": "analyze", "engine": "ours"})
    assert found["ms_per_step"] == [1000 / 4] * 3  # then patience is at an end
    assert found["cpu_ms_per_step"] == [2000 / 4] * 3
    found = child.main(task | {"task": "with_training", "outputs": "all"})
    assert found["training_ms"] == 1000
    assert found["ms_per_step"] == [250] * 3
    assert found["per_step"] == [0.25] * 3
    assert found["per_node"] == [0.25 / found["nodes"]] * 3
    assert found["gemm_gflops"] == pytest.approx(2e-9 * 8**3)
    assert found["floor_ms"] == pytest.approx(1000 * found["gflop"] / found["gemm_gflops"])
    assert found["traffic_ms"] == pytest.approx(1000 * (2 * (6 + 3 * 4) + 2 * 3 * 15) / 64)


def test_rounds_are_put_together():
    first = {"status": "ok", "ms_per_step": [3.0, 1.0], "residual": 1e-12, "steps": 4, "peak_bytes": 7}
    merged = rounds._merged(
        rounds._merged(None, first), first | {"ms_per_step": [2.0], "residual": 1e-13, "peak_bytes": 9}
    )
    assert merged["ms_per_step"] == {"median": 2.0, "min": 1.0, "max": 3.0, "values": [3.0, 1.0, 2.0]}
    assert (merged["residual"], merged["peak_bytes"], merged["steps"]) == (1e-12, 9, 4)
    assert rounds._merged(merged, {"status": "failed", "reason": "x"})["status"] == "failed"


@pytest.mark.parametrize(("ms", "residual", "missed"), [(3.9, 1e-12, False), (4.1, 1e-12, True), (3.9, 2e-11, True)])
def test_what_is_asked_for_and_missed_is_told(ms, residual, missed):
    times = {"median": ms, "min": ms, "max": ms}
    own = {"status": "ok", "ms_per_step": times, "residual": residual, "rounding": 0.0, "evaluations": 3.0}
    own |= {"peak_bytes": 2e6, "peak_above_bytes": 1e6, "training_ms": times, "nodes": 3.0, "per_step": times}
    own |= {"per_node": times, "gflop": 1.0, "gemm_gflops": 1.0, "floor_ms": 1.0, "carried_bytes": 8, "traffic_ms": 1.0}
    row = {"kind": "long", "network": "a", "optimizer": "b", "steps": 4, "dtype": "float32", "target": 4.0, "batch": 1}
    facts = {"machine": {"cpu": "", "cores": 1, "python": "", "torch": ""}, "rounds": 1, "calls": 1}
    text = tables(facts | {"rows": {"a": row | {"engines": {"ours": own}}}})
    assert ("(missed)" in text) == missed
    row |= {"kind": "training", "outputs": "all", "classes": 10, "tests": 1, "engines": {"threads-1": own}}
    assert ("(missed)" in tables(facts | {"rows": {"a": row}})) == (ms > 4)


def test_operations_are_counted_layer_by_layer():
    """Layers 5 -> 4 -> 3; forward 20 + 12, back 12; 39 parameters; m = 2, k = 3, q = 2, B = 8."""
    plain = dataclasses.replace(TINY, optimizer="sgd")
    common = 2 * 32 + 4 * (32 + 3 * 12) + 8 * (32 + 12)
    assert ledger_operations(plain, outputs=3, nodes=2) == 2 * (common + 32 * (6 + 12) + 32 * (5 + 9))
    adam = dataclasses.replace(TINY, optimizer="adam")
    assert ledger_operations(adam, outputs=3, nodes=2) == 2 * (common + 6 * 10 * 39)
    factored = 2 * 8 * (6 + 12) + 2 * (6 + 3) * 4  # the first layer: products with 8 examples of a batch, and decay
    dense = 6 * 10 * 15  # the second, where the factors of 2 nodes in half of 5 steps would take more
    assert dense < 2 * 5 * 8 * (5 + 9)
    assert ledger_operations(TINY, outputs=3, nodes=2) == 2 * (common + factored + dense)
    assert carried_numbers(plain, outputs=3, nodes=2) == 0
    assert carried_numbers(adam, outputs=3, nodes=2) == 6 * 39
    assert carried_numbers(TINY, outputs=3, nodes=2) == 2 * (6 + 12) + 6 * 15
    assert training_operations(TINY) == 2 * 8 * (64 + 12)


def test_the_recorder_is_timed_against_the_plain_loop():
    found = recording.measure(TINY, {"calls": 2})
    assert {name: len(values) for name, values in found.items() if name != "bytes_per_step"} == {
        "plain_ms": 2,
        "all_ms": 2,
        "sqrt_ms": 2,
    }
    assert found["bytes_per_step"] > 4 * 39


def test_unknown_rows_are_refused_and_every_named_engine_is_there():
    with pytest.raises(InputError, match="some of groups, long, peer, recorder, training"):
        command.select(Options(only=("none",)))
    for row in command.ROWS:
        assert set(row.engines) <= set(ENGINES)
        assert row.workload.optimizer in OPTIMIZERS
        assert row.quick().workload.steps == 3
    assert len({row.name for row in command.ROWS}) == len(command.ROWS)
