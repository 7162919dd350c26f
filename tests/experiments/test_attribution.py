"""experiments/attribution: a small run of it."""

import json
from dataclasses import replace

import pytest

from experiments.attribution.configs import SETTINGS, Options
from experiments.attribution.run import run


@pytest.mark.soak
def test_a_small_run_writes_its_files(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(SETTINGS, "wine, Adam .01", replace(SETTINGS["wine, Adam .01"], n_train=40, epochs=2))
    run(Options(settings=("wine, Adam .01",), n_test=3, n_subsets=10, pairs=2, out=tmp_path))
    assert "linear datamodeling score" in capsys.readouterr().out
    record = json.loads((tmp_path / "results.json").read_text())["settings"]["wine, Adam .01"]
    assert -1 <= record["influence"]["lds"] <= 1
    assert "qld" in record["ledger"]
    assert (tmp_path / "figure.svg").stat().st_size > 1000
