"""experiments/feldman_zhang_agreement: a small run of it."""

import json

import pytest

from experiments.feldman_zhang_agreement.configs import Options
from experiments.feldman_zhang_agreement.run import run
from kernelmem.core import InputError


@pytest.mark.soak
def test_a_small_run_writes_its_files(tmp_path, capsys):
    cells = ("clean", "symmetric 20 %")
    run(Options(cells=cells, seeds=2, n_train=50, models=20, width=12, steps=40, out=tmp_path))
    assert "kernel memorization, all rows" in capsys.readouterr().out
    results = json.loads((tmp_path / "results.json").read_text())["cells"]
    noisy = results["symmetric 20 %"]
    assert noisy["auroc"]["mean"] > 0.7
    assert noisy["spearman"]["mean"] > 0.3
    assert noisy["spearman"]["mean"] < noisy["ceiling"]["mean"] <= 1
    assert results["clean"]["auroc"] is None
    assert (tmp_path / "runs.csv").stat().st_size > 300
    with pytest.raises(InputError, match="cells"):
        run(Options(cells=("noisy",), out=tmp_path))
