"""The benchmark of the coder on few symbols."""

import json

from experiments.benchmarks.coder.run import Options, run


def test_times_and_lengths_are_written(tmp_path):
    run(Options(symbols=200, rounds=1, out=tmp_path))
    results = json.loads((tmp_path / "results.json").read_text())
    for values in results["classes"].values():
        assert set(values["cpu_seconds"]) == {"encode", "decode"}
        assert 23 < values["stream_minus_ideal_bits"] < 33
