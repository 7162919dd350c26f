"""experiments/flip_detection: a small run of it."""

import json

import pytest

from experiments.flip_detection.configs import CELLS, SCORES, Options, claim
from experiments.flip_detection.run import run
from kernelmem.core import InputError

SMALL = {"n_train": 100, "steps": 15, "networks": 1, "seeds": 2}


def test_a_small_run_writes_its_files(tmp_path, capsys):
    run(Options(**SMALL, cells=("symmetric-0.10",), out=tmp_path))
    assert "posterior under estimated noise" in capsys.readouterr().out
    cells = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["cells"]
    assert cells["symmetric-0.10"]["scores"]["margin"]["auroc"]["min"] > 0.9
    for cell in cells.values():
        assert set(cell["scores"]) == set(SCORES)
        for metrics in cell["scores"].values():
            assert abs(metrics["permuted"]["mean"] - 0.5) < 0.05
    assert (tmp_path / "figure.svg").stat().st_size > 1000


def test_claims_are_stated_for_the_cells_of_the_table():
    claimed = {(score, cell.name) for cell in CELLS for score in SCORES if claim(score, cell) is not None}
    assert ("suspicion", "pair-0.40") in claimed
    assert ("margin", "instance-0.20") in claimed
    assert ("margin", "pair-0.40") not in claimed


def test_unknown_cells_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"symmetric-0\.10"):
        run(Options(cells=("none",), out=tmp_path))
