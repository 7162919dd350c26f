"""``kernelmem descent`` as typed on the command line."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from kernelmem.cli import main
from kernelmem.core.errors import InputError
from kernelmem.double_descent.presets import digits as presets
from kernelmem.double_descent.sweeps.phase_diagram import Grid
from kernelmem.training.ensemble.recipe import Recipe


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    held = {
        "model": replace(
            presets.preset("model"), values=(4.0, 8.0), n=60, n_seeds=4, recipe=Recipe(steps=20), search=False
        ),
        "features": replace(presets.preset("features"), values=(30.0, 60.0, 90.0), n=60, n_seeds=4),
    }
    monkeypatch.setattr(presets, "_QUICK", held)
    monkeypatch.setattr(presets, "KINDS", tuple(held))
    lazy = Recipe("sgd", lr=0.004, momentum=0.9, steps=20, loss="mse")
    predicted = {"samples": (20, 40, 60), "recipe": lazy, "n_seeds": 2, "width": 8}
    monkeypatch.setattr(presets, "_PREDICTION", {"quick": predicted})
    grid = Grid(widths=(3, 6), samples=(30, 60), steps=(5, 10), noise=(0.0, 0.2))
    monkeypatch.setattr(presets, "_PHASE_DIAGRAM", {"quick": (grid, 2)})


def test_all_kinds_leave_their_files(small: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["descent", "--kind", "all", "--workers", "1", "--out", str(tmp_path), "--seed", "3"]) == 0
    for kind in ("model", "features", "prediction", "phase_diagram"):
        names = {path.name for path in (tmp_path / kind).iterdir()}
        assert {"summary.json", "results.csv", "figure.svg", "figure.png"} <= names
        assert json.loads((tmp_path / kind / "summary.json").read_text())["config"]["seed"] == 3
    printed = capsys.readouterr().out
    assert "model-wise sweep" in printed
    assert "peak of test_error" in printed
    assert "phase diagram" in printed


def test_one_kind_writes_into_the_directory_itself(small: None, tmp_path: Path) -> None:
    assert main(["descent", "--kind", "features", "--workers", "1", "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "summary.json").read_text())["kind"] == "features"


def test_sizes_that_are_not_there_are_refused() -> None:
    for call in (presets.run_phase_diagram, presets.run_prediction):
        with pytest.raises(InputError, match="huge"):
            call("huge")  # type: ignore[arg-type]


def test_refused(small: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["descent", "--workers", "0", "--out", str(tmp_path)]) == 2
    assert "--workers 0" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["descent", "--out", str(tmp_path / "file")]) == 2


def test_the_command_line_starts_without_the_sweeps() -> None:
    import subprocess

    code = "import sys, kernelmem.cli; print([m for m in sys.modules if m.startswith('kernelmem.double_descent')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
