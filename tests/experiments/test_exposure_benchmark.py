"""The benchmark of exposure on a tiny model."""

import json

from experiments.benchmarks.exposure.run import Options, run


def test_the_benchmark_finds_equal_ranks_with_and_without_states(tmp_path, capsys):
    run(Options(canaries=5, documents=20, epochs=1, hidden=8, samples=7, max_nodes=50, rounds=1, out=tmp_path))
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["auto"]["equal_ranks"]
    assert results["sampled"]["equal_ranks"]
    assert "exposure of 5 pairs" in capsys.readouterr().out
