"""``kernelmem ntk`` as a person types it."""

import sys

import numpy as np
import pytest
import torch

from kernelmem.cli import main
from kernelmem.kernels import reference

FACTORY = """
import torch
from torch import nn
def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(7, 6)).astype(np.float32)
    np.savez(tmp_path / "one.npz", x=x)
    np.savez(tmp_path / "two.npz", x=x[:4], y=x[4:])
    np.savez(tmp_path / "other.npz", z=x)
    (tmp_path / "nets_for_ntk.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield tmp_path
    sys.modules.pop("nets_for_ntk", None)


def test_kernel_from_files_to_a_file(place, capsys):
    import nets_for_ntk

    command = ["ntk", "--data", "one.npz", "--model", "nets_for_ntk:make", "--dtype", "float64", "--outputs", "full"]
    assert main([*command, "--out", "k.npy"]) == 0
    found = np.load(place / "k.npy")
    x = torch.from_numpy(np.load(place / "one.npz")["x"])
    expected = reference.ntk(nets_for_ntk.make().eval(), x, outputs="full", dtype=torch.float64)
    assert found.shape == (7, 7, 3, 3)
    assert np.abs(found - expected.numpy()).max() < 1e-12 * float(expected.abs().max())
    assert "k.npy" in capsys.readouterr().out


def test_two_sets_and_the_plan(place, capsys):
    command = ["ntk", "--data", "two.npz", "--model", "nets_for_ntk:make"]
    assert main([*command, "--plan"]) == 0
    assert "4 x 3 rows" in capsys.readouterr().out
    assert not (place / "kernel.npy").exists()
    assert main(command) == 0
    assert np.load(place / "kernel.npy").shape == (4, 3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--data", "other.npz"], "without x"),
        (["--data", "absent.npz"], "absent.npz"),
        (["--data", "one.npz", "--out", "k.txt"], ".npy"),
        (["--data", "one.npz", "--memory", "9"], "memory"),
        (["--data", "one.npz", "--weights", "absent.pt"], "absent.pt"),
    ],
)
def test_bad_input_exits_2(place, capsys, options, words):
    before = sorted(p.name for p in place.iterdir() if p.name != "__pycache__")
    assert main(["ntk", "--model", "nets_for_ntk:make", *options]) == 2
    assert words in capsys.readouterr().err
    assert sorted(p.name for p in place.iterdir() if p.name != "__pycache__") == before
