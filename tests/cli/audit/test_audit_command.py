"""``kernelmem audit`` as a person types it."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from markupsafe import Markup
from torch import nn

from kernelmem.cli import main

FACTORY = """
from torch import nn
def make(n_classes=3):
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, n_classes))
def seven():
    return nn.Linear(6, 7)
def broken():
    raise ValueError("no such architecture")
def text():
    return "net"
def exits():
    raise SystemExit(7)
class Broken(nn.Linear):
    def forward(self, x):
        return self.nowhere(x)
def broken_forward():
    return Broken(6, 3)
"""


AUDIT = ("audit", "--budget", "0")  # without retraining


DRAWN = ("test_own_data_default_network", "test_noise_and_json", "test_two_processes_give_the_same_bytes")


@pytest.fixture(autouse=True)
def few_drawings(request, monkeypatch):
    """Leave out the drawings, which take half of the time of a small audit, in tests of other things."""
    if request.node.name not in DRAWN:
        monkeypatch.setattr("kernelmem.auditing.report.figures.wide_and_narrow", lambda *_, **__: Markup(""))


@pytest.fixture
def place(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(3, 6)) * 2
    y = rng.integers(0, 3, 160)
    x = (centers[y] + rng.normal(size=(160, 6))).astype(np.float32)
    np.savez(tmp_path / "data.npz", x_train=x[:80], y_train=y[:80], x_test=x[80:], y_test=y[80:])
    np.savez(tmp_path / "from_one.npz", x_train=x[:80], y_train=y[:80] + 1, x_test=x[80:], y_test=y[80:] + 1)
    np.savez(tmp_path / "gap.npz", x_train=x[:80], y_train=y[:80] * 2 % 5, x_test=x[80:], y_test=y[80:] * 2 % 5)
    np.savez(tmp_path / "codes.npz", x_train=x[:80], y_train=y[:80] * 100, x_test=x[80:], y_test=y[80:] * 100)
    np.savez(tmp_path / "known.npz", x_train=x[:80], y_train=y[:80], x_test=x[80:], y_test=y[80:], flipped=y[:80] < 0)
    (tmp_path / "my_nets.py").write_text(FACTORY)
    (tmp_path / "no_python.py").write_text("def make(:")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("my_nets", None)


def test_own_data_default_network(place, capsys):
    assert main([*AUDIT, "--data", "data.npz", "--out", "o", "--epochs", "30"]) == 0
    content = json.loads((place / "o/audit.json").read_text())
    assert content["data"]["n_train"] == 80
    assert content["flips"] == {**content["flips"], "auroc": None, "n": None}
    assert sorted(p.name for p in (place / "o").iterdir()) == [
        "audit.html",
        "audit.json",
        "rows.csv",
        "rows.npz",
        "weights.safetensors",
    ]
    assert "report" in capsys.readouterr().out


def test_noise_and_json(place, capsys):
    assert (
        main(
            [
                *AUDIT,
                "--data",
                "data.npz",
                "--noise",
                "0.2",
                "--noise-kind",
                "pair",
                "--json",
                "--epochs",
                "5",
            ]
        )
        == 0
    )
    content = json.loads(capsys.readouterr().out)
    assert content["flips"]["n"] == 16
    assert "--noise-kind pair" in content["reproduce"]
    labels = np.load(place / "out/audit/labels.npz")
    assert int(labels["flipped"].sum()) == 16


def test_own_network_and_weights(place, capsys):
    assert main([*AUDIT, "--data", "data.npz", "--model", "my_nets:make", "--out", "a", "--epochs", "20"]) == 0
    first = json.loads((place / "a/audit.json").read_text())
    again = [
        *AUDIT,
        "--data",
        "data.npz",
        "--model",
        "my_nets:make",
        "--weights",
        "a/weights.safetensors",
        "--out",
        "b",
    ]
    assert main(again) == 0
    second = json.loads((place / "b/audit.json").read_text())
    assert first["model"]["sha256"] == second["model"]["sha256"]
    assert first["how_much"] == second["how_much"]
    assert (place / "a/rows.npz").read_bytes() == (place / "b/rows.npz").read_bytes()
    assert not (place / "b/weights.safetensors").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--data", "absent.npz"], "absent.npz"),
        (["--data", "my_nets.py"], "npz"),
        (["--noise", "1.5"], "share"),
        (["--model", "my_nets"], "package.module:factory"),
        (["--model", "my_nets:absent"], "absent"),
        (["--model", "nowhere:make"], "nowhere"),
        (["--model", "my_nets:broken"], "no such architecture"),
        (["--model", "my_nets:text"], "torch.nn.Module"),
        (["--model", "my_nets:exits"], "SystemExit"),
        (["--model", "my_nets:broken_forward"], "nowhere"),
        (["--model", "no_python:make"], "SyntaxError"),
        (["--model", "my_nets:seven"], "7 outputs"),
        (["--model", "my_nets:make", "--weights", "absent.pt"], "absent.pt"),
        (["--model", "my_nets:make", "--weights", "wrong.safetensors"], "2 missing"),
        (["--model", "my_nets:make", "--weights", "wrong.safetensors", "--noise", "0.1"], "--noise"),
        (["--device", "nonsense"], "device"),
        (["--device", "meta"], "device"),
        (["--data", "codes.npz"], "none labeled 1"),
        (["--data", "gap.npz", "--model", "my_nets:make", "--noise", "0.1"], "none labeled 1"),
        (["--model", "my_nets:make", "--weights", "wrong.safetensors", "--budget", "2"], "AuditOptions(retrain"),
        (["--weights-key", "model"], "--weights FILE"),
        (["--redact", "--show-rows"], "omit one"),
        (["--budget", "-1"], "budget"),
        (["--model", "my_nets:make", "--weights", "nested.pt"], "--weights-key ema"),
        (["--model", "my_nets:make", "--weights", "nested.pt", "--weights-key", "absent"], "absent"),
        (["--data", "known.npz", "--noise", "0.1"], "flipped"),
        (["--epochs", "0"], "epochs"),
        (["--seed", "-3"], "seed"),
        (["--out", "data.npz"], "directory"),
    ],
)
def test_bad_input_exits_2_and_writes_nothing(place, capsys, options, words):
    safetensors.torch.save_file(
        {"0.weight": torch.zeros(16, 6), "0.bias": torch.zeros(16)}, place / "wrong.safetensors"
    )
    torch.save({"ema": {"0.weight": torch.zeros(16, 6)}, "epoch": 3}, place / "nested.pt")
    if "--data" not in options:
        options = ["--data", "data.npz", *options]
    if "--out" not in options:
        options += ["--out", "o"]
    before = sorted(p.name for p in place.iterdir() if p.name != "__pycache__")
    assert main([*AUDIT, "--epochs", "1", *options]) == 2
    message = capsys.readouterr().err
    assert " steps in " not in message  # nothing was trained before it was refused
    assert all(part in message for part in ("got:", "expected:", "hint:", words))
    assert sorted(p.name for p in place.iterdir() if p.name != "__pycache__") == before


@pytest.mark.parametrize(
    "kind", [np.float64, np.uint8, *(pytest.param(k, marks=pytest.mark.soak) for k in (np.float16, np.int64))]
)
def test_number_types(place, kind):
    arrays = dict(np.load("data.npz"))
    for name in ("x_train", "x_test"):
        arrays[name] = (10 * (arrays[name] - arrays[name].min())).astype(kind)
    np.savez("typed.npz", **arrays)
    assert main([*AUDIT, "--data", "typed.npz", "--epochs", "2", "--out", "o"]) == 0


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda y: y + 1, ["1", "2", "3"]),
        (lambda y: np.array(["ant", "bee", "cat"])[y], ["ant", "bee", "cat"]),
        (lambda y: y[:, None].astype(float), ["0", "1", "2"]),
        (lambda y: y * 2 % 5, ["0", "1", "2", "3", "4"]),
    ],
)
def test_labels_as_people_have_them(place, change, names):
    arrays = dict(np.load("data.npz"))
    reference = [*AUDIT, "--epochs", "2", "--out"]
    np.savez("labels.npz", **arrays | {name: change(arrays[name]) for name in ("y_train", "y_test")})
    assert main([*reference, "o", "--data", "labels.npz"]) == 0
    content = json.loads((place / "o/audit.json").read_text())
    assert content["data"]["class_names"] == names
    if names[0] == "ant":  # the audit does not depend on the names of the classes
        assert main([*reference, "p", "--data", "data.npz"]) == 0
        assert (place / "o/rows.npz").read_bytes() == (place / "p/rows.npz").read_bytes()


def test_names_and_groups_of_the_data_file(place):
    arrays = dict(np.load("data.npz"))
    np.savez(
        "named.npz",
        **arrays,
        class_names=["ant", "bee", "cat"],
        feature_names=list("abcdef"),
        groups=np.where(np.arange(80) % 2, "odd", "even"),
    )
    command = [*AUDIT, "--data", "named.npz", "--epochs", "2"]
    assert main([*command, "--out", "o", "--auditor", "Jane Doe", "--purpose", "a test", "--show-rows"]) == 0
    content = json.loads((place / "o/audit.json").read_text())
    assert content["data"]["class_names"] == ["ant", "bee", "cat"]
    assert content["data"]["feature_names"] == list("abcdef")
    assert {row["name"] for row in content["slices"] if row["kind"] == "group"} == {"odd", "even"}
    assert content["context"]["auditor"] == "Jane Doe"
    assert content["context"]["purpose"] == "a test"
    assert content["features"]
    assert "--auditor 'Jane Doe'" in content["reproduce"]
    for name, wrong in {"class_names": ["ant"], "groups": np.arange(3)}.items():
        np.savez("wrong.npz", **dict(np.load("named.npz")) | {name: wrong})
        assert main([*command, "--out", "q", "--data", "wrong.npz"]) == 2


def test_no_row_of_the_user_is_in_the_report_by_default(place):
    arrays = dict(np.load("data.npz"))
    for name, options in {"o": ["--noise", "0.2"], "r": ["--noise", "0.2", "--redact"]}.items():
        assert main([*AUDIT, "--data", "data.npz", "--epochs", "20", "--out", name, *options]) == 0
        texts = [path.read_text() for path in (place / name).iterdir() if path.suffix in (".json", ".html", ".csv")]
        assert len(texts) == 3
        numbers = {f"{value:.{digits}g}" for value in arrays["x_train"].ravel()[:200] for digits in (6, 8, 9)}
        assert [number for number in numbers for text in texts if number in text] == []
    assert (place / "o/labels.npz").exists()
    assert not (place / "r/labels.npz").exists()
    content = json.loads((place / "r/audit.json").read_text())
    assert {row["label"] for row in content["rows"]} | {row["label"] for row in content["suspected"]["rows"]} == {None}
    assert set(np.load(place / "r/rows.npz")["label"]) == {-1}


def test_weights_of_a_nested_checkpoint_and_behind_a_prefix(place):
    command = [*AUDIT, "--data", "data.npz", "--model", "my_nets:make", "--out"]
    assert main([*command, "a", "--epochs", "3"]) == 0
    state = safetensors.torch.load_file(place / "a/weights.safetensors")
    torch.save({"state": {"model": {f"module.{name}": value for name, value in state.items()}}, "epoch": 3}, "c.pt")
    assert main([*command, "b", "--weights", "c.pt", "--weights-key", "state.model"]) == 0
    first, second = (json.loads((place / name / "audit.json").read_text()) for name in "ab")
    assert first["model"]["sha256"] == second["model"]["sha256"]
    assert "--weights-key state.model" in second["reproduce"]


def test_a_trained_model_may_have_classes_without_rows(place):
    torch.save(nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 5)).state_dict(), place / "five.pt")
    (place / "my_nets.py").write_text(FACTORY + "def five():\n    return make(5)\n")
    for data in ("data.npz", "from_one.npz"):
        command = [*AUDIT, "--data", data, "--model", "my_nets:five", "--weights", "five.pt", "--out", data[:-4]]
        assert main(command) == 0
        content = json.loads((place / data[:-4] / "audit.json").read_text())
        assert content["data"]["class_names"] == list("01234")


@pytest.mark.parametrize("network", [[], ["--model", "my_nets:make"]])
def test_the_training_of_the_command_is_repeated_on_parts_of_the_rows(place, capsys, network):
    assert main(["audit", "--data", "data.npz", "--epochs", "2", "--out", "o", *network]) == 0
    content = json.loads((place / "o/audit.json").read_text())
    assert content["how_much"]["method"] == "retraining"
    assert content["how_much"]["n_models"] == 48
    assert any(attack["level"] == "algorithm" for attack in content["leak"]["attacks"])
    assert "--budget" not in content["reproduce"]


def test_an_older_report_is_kept_unless_overwrite_is_given(place, capsys):
    command = [*AUDIT, "--data", "data.npz", "--epochs", "1", "--out", "o"]
    assert main(command) == 0
    before = (place / "o/audit.json").read_bytes()
    assert main([*command, "--seed", "1"]) == 2
    message = capsys.readouterr().err
    assert "pass --overwrite" in message
    assert (place / "o/audit.json").read_bytes() == before
    assert main([*command, "--seed", "1", "--overwrite"]) == 0
    assert (place / "o/audit.json").read_bytes() != before


def test_other_files_in_the_directory_are_left_alone(place):
    (place / "o").mkdir()
    (place / "o/mine.txt").write_text("mine")
    assert main([*AUDIT, "--data", "data.npz", "--epochs", "1", "--out", "o"]) == 0
    assert (place / "o/mine.txt").read_text() == "mine"


@pytest.mark.parametrize(("error", "code"), [(OSError(28, "No space left"), 1), (KeyboardInterrupt(), 130)])
def test_what_stops_it_leaves_nothing(place, capsys, monkeypatch, error, code):
    def stop(*_):
        raise error

    monkeypatch.setattr("kernelmem.core.files.atomic_files.os.fsync", stop)
    assert main([*AUDIT, "--data", "data.npz", "--epochs", "1", "--out", "o"]) == code
    assert not (place / "o").exists()
    assert "Traceback" not in capsys.readouterr().err


def test_two_processes_give_the_same_bytes(place):
    options = ["--data", "data.npz", "--noise", "0.2", "--epochs", "3", "--seed", "4"]
    assert main([*AUDIT, *options, "--out", "a"]) == 0
    command = [sys.executable, "-m", "kernelmem", *AUDIT, *options, "--out", "b"]
    subprocess.run(command, capture_output=True, check=True)
    first, second = ((place / name / "audit.json").read_bytes() for name in "ab")
    changing = re.compile(rb'"seconds": [0-9.]+|"kernelmem_sha256": "[0-9a-f]+"')
    assert len(changing.findall(first)) == 2
    assert changing.sub(b"", first) == changing.sub(b"", second)
    for name in ("labels.npz", "weights.safetensors"):
        assert (place / "a" / name).read_bytes() == (place / "b" / name).read_bytes()


def test_importing_kernelmem_leaves_the_slow_packages_alone():
    code = (
        "import sys, kernelmem; print({'matplotlib', 'pandas', 'sklearn', 'scipy.stats', 'jinja2'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_as_a_process(place):
    command = [sys.executable, "-m", "kernelmem", "audit"]
    done = subprocess.run([*command, "--data", "absent.npz"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "absent.npz" in done.stderr
    assert "Traceback" not in done.stderr
    shown = subprocess.run([*command, "--help"], capture_output=True, text=True, check=False)
    assert shown.returncode == 0
    for option in ("--data", "--model", "--weights", "--noise", "--seed", "--out", "--device", "--json"):
        assert option in shown.stdout


def test_module_is_a_module(place):
    from kernelmem.cli.model_factory import build_model

    assert isinstance(build_model("my_nets:make", n_classes=4, input_shape=(6,)), nn.Module)


NAMES = [b"not-utf8-\xff\xfe.npz", "\u202egnp.npz".encode(), b"it's $HOME.npz", b"a \\x41.npz"]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_of_a_file_and_of_a_directory(place, capfd, name):
    data = os.fsdecode(name)
    (place / "secret").mkdir()
    (place / "data.npz").rename(place / "secret" / data)
    out = "out-" + name.decode(errors="replace")
    assert main([*AUDIT, "--data", f"secret/{data}", "--epochs", "1", "--out", out, "--seed", "3"]) == 0
    printed = capfd.readouterr().out
    content = (place / out / "audit.json").read_text(encoding="utf-8")
    page = (place / out / "audit.html").read_text(encoding="utf-8")
    for text in (printed, content, page):
        assert "\u202e" not in text
        assert "secret/" not in text.split("  report  ")[0]
    # The command of the report is that of the file, whatever its name
    command = json.loads(content)["reproduce"]
    words = subprocess.run(["bash", "-c", f"printf '%s\\0' {command}"], capture_output=True, check=True).stdout.split(
        b"\0"
    )
    assert words[words.index(b"--data") + 1] == name
    assert main([*AUDIT, "--data", f"{data}.absent", "--out", out]) == 2
    assert "\u202e" not in capfd.readouterr().err


def test_the_working_directory_hides_no_module(place, monkeypatch):
    (place / "colorsys.py").write_text("raise RuntimeError('hidden')")
    sys.modules.pop("colorsys", None)
    path = list(sys.path)
    assert main([*AUDIT, "--data", "data.npz", "--model", "my_nets:make", "--epochs", "1", "--out", "o"]) == 0
    import colorsys

    assert "hidden" not in (colorsys.__doc__ or "")
    assert sys.path[: len(path)] == path


def test_a_module_that_is_another_one_is_named(place, capsys):
    (place / "colorsys.py").write_text(FACTORY)
    assert main([*AUDIT, "--data", "data.npz", "--model", "colorsys:make", "--epochs", "1", "--out", "o"]) == 2
    assert "lib" in capsys.readouterr().err  # the path of the installed one


def test_one_logit_of_two_classes_is_trained_and_audited(place):
    arrays = dict(np.load("data.npz"))
    np.savez("two.npz", **arrays | {name: np.minimum(arrays[name], 1)[:, None] for name in ("y_train", "y_test")})
    (place / "my_nets.py").write_text(
        FACTORY + "def logit():\n    return nn.Sequential(nn.Linear(6, 1), nn.Flatten(0))\n"
    )
    for factory in ("my_nets:logit", "my_nets:make"):
        assert main([*AUDIT, "--data", "two.npz", "--model", factory, "--epochs", "400", "--out", factory[8:]]) == 0
        content = json.loads((place / factory[8:] / "audit.json").read_text())
        assert content["data"]["n_classes"] == 2
        assert content["model"]["train_accuracy"] > 0.6


def test_an_older_report_leaves_no_labels_and_no_weights(place):
    assert (
        main([*AUDIT, "--data", "data.npz", "--model", "my_nets:make", "--noise", "0.2", "--epochs", "2", "--out", "o"])
        == 0
    )
    assert (place / "o/labels.npz").exists()
    weights = (place / "o/weights.safetensors").read_bytes()
    again = [
        *AUDIT,
        "--data",
        "data.npz",
        "--model",
        "my_nets:make",
        "--weights",
        "o/weights.safetensors",
        "--out",
        "o",
    ]
    assert main(again) == 2  # an older report is there
    assert (place / "o/labels.npz").exists()
    assert main([*again, "--overwrite"]) == 0
    assert sorted(path.name for path in (place / "o").iterdir()) == [
        "audit.html",
        "audit.json",
        "rows.csv",
        "rows.npz",
        "weights.safetensors",
    ]
    assert (place / "o/weights.safetensors").read_bytes() == weights
    assert main([*AUDIT, "--data", "data.npz", "--epochs", "1", "--out", "o", "--overwrite"]) == 0
    assert (place / "o/weights.safetensors").read_bytes() != weights
