"""``kernelmem compress`` as a person types it: make a card, open it, and what is refused."""

import errno
from dataclasses import replace

import numpy as np
import pytest

from kernelmem.cli import main
from kernelmem.compression.cards import training

SIZE = ["--width", "6", "--dimensions", "8"]
Y = np.arange(120) * 7 % 3
X = np.stack([Y + np.arange(120) % 5 / 10, -Y + np.arange(120) % 7 / 10, np.arange(120) % 11 / 10], 1)


def write(path, y, **arrays):
    np.savez(path, x_train=X[:100], y_train=y[:100], x_test=X[100:], y_test=y[100:], **arrays)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A directory with data files; training is short."""

    def short(architecture, z, labels, options, report):
        return training.train(architecture, z, labels, replace(options, steps=80, sweeps=0), report)

    monkeypatch.setattr("kernelmem.compression.cards.making.train_numbers", short)
    monkeypatch.chdir(tmp_path)
    write("data.npz", Y)
    return tmp_path


@pytest.mark.parametrize(
    ("y", "n_classes"),
    [
        (Y, 3),
        (Y + 1, 3),  # counted from 1
        (Y * 2, 5),  # classes 1 and 3 have no rows
        (np.array(["ant", "bee", "cat\N{SNOWMAN}"])[Y], 3),
        (np.minimum(Y, 1), 2),
        (np.minimum(Y, 1) * 2 - 1, 2),
    ],
)
def test_labels_of_any_kind_come_back(place, capsys, y, n_classes):
    write("any.npz", y)
    assert main(["compress", "--data", "any.npz", *SIZE, "--seed", "3"]) == 0
    printed = capsys.readouterr().out
    for text in (f"{n_classes} classes (any.npz)", "online code of a kernel", "held-out certificate", "of container"):
        assert text in printed
    np.savez("rows.npz", x_train=X[:100])  # the receiver has no labels
    assert main(["compress", "open", "card.km", "--data", "rows.npz", "--labels", "labels.txt"]) == 0
    assert "decoded; their hash matches" in capsys.readouterr().out
    assert (place / "labels.txt").read_text().splitlines() == [str(label) for label in y[:100]]
    assert sorted(path.name for path in place.iterdir()) == ["any.npz", "card.km", "data.npz", "labels.txt", "rows.npz"]


def test_the_digits_are_the_default(capsys, monkeypatch):
    monkeypatch.setattr("kernelmem.compression.cards.making.ONLINE_ROWS", 0)
    assert main(["compress", "--out", "digits.km", "--seed", "2", *SIZE]) == 0
    assert main(["compress", "open", "digits.km"]) == 0
    printed = capsys.readouterr().out
    assert "card of 1,400 labels, 10 classes (scikit-learn digits, seed 2)" in printed
    assert "decoded; their hash matches" in printed.splitlines()[-1]


def test_without_its_rows_a_card_is_described(capsys):
    assert main(["compress", "--data", "data.npz", *SIZE]) == 0
    assert main(["compress", "open", "card.km"]) == 0
    assert "pass --data FILE.npz" in capsys.readouterr().out
    assert main(["compress", "open", "card.km", "--labels", "labels.txt"]) == 2
    assert "without the rows of the card" in capsys.readouterr().err


def test_files_are_replaced_only_on_request(place, capsys):
    command = ["compress", "--data", "data.npz", *SIZE]
    assert main(command) == 0
    first = (place / "card.km").read_bytes()
    assert main(command) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0
    assert (place / "card.km").read_bytes() == first
    opening = ["compress", "open", "card.km", "--data", "data.npz", "--labels", "data.npz"]
    assert main(opening) == 2
    assert "a file that exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "absent.npz"], "absent.npz"),
        (["--data", "card.txt"], "an .npz archive"),
        (["--data", "few.npz"], "without y_train"),
        (["--data", "data.npz", "--out", "folder"], "a directory"),
        (["--data", "data.npz", "--out", "card.txt/x.km"], "not a directory"),
        (["--data", "data.npz", "--dimensions", "0"], "dimensions=0"),
        (["--data", "data.npz", "--width", "5000"], "width=5000"),
        (["--data", "data.npz", "--seed", "-1"], "seed=-1"),
        (["--data", "data.npz", "--labels", "a.txt"], "without open"),
        (["make", "card.km", "--data", "data.npz"], "without open"),
        (["open"], "open without a card"),
        (["open", "absent.km"], "absent.km"),
        (["open", "card.txt"], "not a card"),
        (["open", "data.npz"], "not a card"),
        (["open", "folder"], "Is a directory"),
        (["open", "good.km", "--data", "few.npz"], "differs from the rows of card"),
        (["open", "good.km", "--data", "other.npz"], "without x_train"),
    ],
)
def test_refused(place, capsys, arguments, message):
    (place / "card.txt").write_text("text")
    (place / "folder").mkdir()
    np.savez("few.npz", x_train=X[:7])
    np.savez("other.npz", x=X)
    if "good.km" in arguments:
        assert main(["compress", "--data", "data.npz", "--out", "good.km", *SIZE]) == 0
    before = sorted(place.iterdir())
    assert main(["compress", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "hint:" in error
    assert sorted(place.iterdir()) == before


def test_a_full_disk_and_ctrl_c_leave_no_file(place, capsys, monkeypatch):
    before = sorted(place.iterdir())

    def interrupt(*_):
        raise KeyboardInterrupt

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("kernelmem.compression.cards.making.train_numbers", interrupt)
        assert main(["compress", "--data", "data.npz", *SIZE]) == 130
        assert "unfinished files were not written" in capsys.readouterr().err
    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        assert main(["compress", "--data", "data.npz", *SIZE]) == 1
        assert "No space left" in capsys.readouterr().err
    assert sorted(place.iterdir()) == before
