"""``kernelmem store`` on a whole, an incomplete and a damaged store."""

import sqlite3

import numpy as np
import pytest
import torch

from kernelmem import KernelStore
from kernelmem.cli import main


@pytest.fixture
def path(tmp_path):
    with KernelStore.create(tmp_path / "k.sqlite", {"model": "a\u202e"}, 4, tile=2, notes={"torch": "2"}) as store:
        for i, j in store.missing():
            store.put(i, j, torch.full((2, 2), float(i + j)))
    return tmp_path / "k.sqlite"


def damage(path):
    connection = sqlite3.connect(path)
    connection.execute("UPDATE tiles SET data = zeroblob(16) WHERE tile = 1")
    connection.commit()
    connection.close()


def test_info(path, capsys):
    assert main(["store", "info", str(path)]) == 0
    text = capsys.readouterr().out
    assert "kernel of shape 4 x 4, float32, symmetric" in text
    assert "3 of 3, of up to 2 rows and columns (complete)" in text
    assert 'model: "a\\u202e"' in text  # escaped
    assert 'torch: "2"' in text


def test_verify_and_repair(path, capsys):
    assert main(["store", "verify", str(path)]) == 0
    assert "3 tiles, all hashes match; 0 missing" in capsys.readouterr().out
    damage(path)
    assert main(["store", "verify", str(path)]) == 2
    assert "1 damaged tile: (0, 1)" in capsys.readouterr().err
    assert main(["store", "repair", str(path)]) == 0
    assert "damaged tiles dropped: 1 ((0, 1)); missing: 1" in capsys.readouterr().out
    assert main(["store", "verify", str(path)]) == 0
    assert "2 tiles, all hashes match; 1 missing" in capsys.readouterr().out


def test_export(path, tmp_path, capsys):
    assert main(["store", "export", str(path), "--out", str(tmp_path / "k.npy")]) == 0
    assert np.load(tmp_path / "k.npy").tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 2, 2], [1, 1, 2, 2]]
    assert main(["store", "export", str(path)]) == 2
    assert "export without --out" in capsys.readouterr().err


def test_other_files_are_refused(tmp_path, capsys):
    (tmp_path / "text").write_text("text")
    for name in ("text", "none"):
        assert main(["store", "info", str(tmp_path / name)]) == 2
    assert "kernelmem: FileCorruptError" in capsys.readouterr().err
