"""experiments.device: the script runs with tiny sizes on the CPU, without an error in any part."""

import json

from experiments.device.__main__ import PARTS, main


def values(table):
    """All numbers, truth values and texts in nested dicts."""
    for value in table.values():
        if isinstance(value, dict):
            yield from values(value)
        else:
            yield value


def test_every_part_runs_and_the_cpu_equals_itself(tmp_path, capsys):
    results = main(["--device", "cpu", "--quick", "--out", str(tmp_path / "results.json")])
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert set(PARTS) <= set(results)
    assert not [value for value in values(results) if isinstance(value, str) and "Error" in value]
    assert all(row["float64"] == 0 and row["float32"] < 1e-4 for row in results["equality"].values())
    recorder = results["recorder"]
    assert recorder["AdamW fused float64"]["weights"] == 0
    assert recorder["SGD fused float16"]["same as without a recorder"]
    assert recorder["SGD fused float16"]["skipped"] == 1
    assert "== double descent" in capsys.readouterr().out
