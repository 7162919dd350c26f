"""Tests of the levers experiment: shifted copies, masks, a small run."""

import json

import pytest
import torch

from experiments.memorization_levers.levers import BASE, FIELDS, LEVERS, Options, Setting
from experiments.memorization_levers.run import balanced_masks, ensemble, run, shifted


def test_every_lever_has_its_base():
    for lever, settings in LEVERS.items():
        assert BASE in settings
        assert len({getattr(setting, FIELDS[lever]) for setting in settings}) == len(settings)


def test_shifts_move_by_one_pixel():
    image = torch.zeros(8, 8)
    image[3, 4] = 1.0
    for shift in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        moved = shifted(image.reshape(1, 64), shift).reshape(8, 8)
        assert moved[3 + shift[0], 4 + shift[1]] == 1.0
        assert float(moved.sum()) == 1.0
    corner = torch.zeros(8, 8)
    corner[0, 0] = 1.0
    assert float(shifted(corner.reshape(1, 64), (-1, 0)).sum()) == 0.0


def test_masks_are_balanced_and_copies_belong_to_their_row():
    masks = balanced_masks(6, 20, seed=0)
    assert masks.sum(0).tolist() == [3] * 20
    options = Options(seeds=1, models=4)
    shadows, flipped = ensemble(Setting(n_train=60, width=8, steps=2, copies=2), 0, options)
    assert shadows.logits.shape == (4, 60, 10)
    assert int(flipped.sum()) == 9


@pytest.mark.soak
def test_a_small_run_writes_its_files(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(LEVERS, "training rows", (Setting(n_train=50, steps=3), Setting(n_train=1000, steps=3)))
    run(Options(seeds=2, models=8, levers=("training rows",), out=tmp_path))
    assert "training rows" in capsys.readouterr().out
    rows = json.loads((tmp_path / "results.json").read_text())["levers"]["training rows"]
    assert [row["value"] for row in rows] == [50, 1000]
    assert rows[1]["clean less base"]["mean"] == 0.0
    for name in ("figure.svg", "figure.png", "runs.csv"):
        assert (tmp_path / name).stat().st_size > 1000 or name == "runs.csv"
