"""``kernelmem descent`` as a person types it."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from kernelmem.cli import main
from kernelmem.descent import presets
from kernelmem.runs.ensemble import Recipe


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    held = {
        "model": replace(
            presets.preset("model"), values=(4.0, 8.0), n=60, seeds=4, recipe=Recipe(steps=20), search=False
        ),
        "features": replace(presets.preset("features"), values=(30.0, 60.0, 90.0), n=60, seeds=4),
    }
    monkeypatch.setattr(presets, "_QUICK", held)
    monkeypatch.setattr(presets, "KINDS", tuple(held))
    axes = {"widths": (3, 6), "samples": (30, 60), "steps": (5, 10), "noise": (0.0, 0.2), "seeds": 2}
    monkeypatch.setattr(presets, "_ATLAS", {"quick": axes})


def test_all_kinds_leave_their_files(small: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["descent", "--kind", "all", "--workers", "1", "--out", str(tmp_path), "--seed", "3"]) == 0
    for kind in ("model", "features", "atlas"):
        names = {path.name for path in (tmp_path / kind).iterdir()}
        assert {"summary.json", "results.csv", "figure.svg", "figure.png"} <= names
        assert json.loads((tmp_path / kind / "summary.json").read_text())["config"]["seed"] == 3
    printed = capsys.readouterr().out
    assert "model-wise sweep" in printed
    assert "peak of test_error" in printed
    assert "atlas" in printed


def test_refused(small: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["descent", "--workers", "0", "--out", str(tmp_path)]) == 2
    assert "--workers 0" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["descent", "--out", str(tmp_path / "file")]) == 2


def test_the_command_line_starts_without_the_sweeps() -> None:
    import subprocess

    code = "import sys, kernelmem.cli; print([m for m in sys.modules if m.startswith('kernelmem.descent')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
