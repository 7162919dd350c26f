"""``kernelmem text audit`` as a person types it."""

import json
import random
import re
import sys
from functools import partial

import pytest
from markupsafe import Markup

from kernelmem.auditing.text.report import figures
from kernelmem.cli import main
from kernelmem.cli.text import inputs
from kernelmem.text import canaries, demonstration
from tests.auditing.report.pages import plain

FACTORY = """
import torch
from torch import nn
class Characters:
    def encode(self, text):
        return [min(ord(c), 127) for c in text]
    def decode(self, ids):
        return "".join(map(chr, ids))
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(128, 4), nn.Linear(4, 128)
    def forward(self, ids):
        return self.head(self.embedding(ids))
def pair():
    return Model(), Characters()
def model():
    return Model()
def tokenizer():
    return Characters()
def encode():
    return Characters().encode
def smaller():
    return nn.Sequential(nn.Embedding(9, 2), nn.Linear(2, 9))
def text():
    return "net"
def broken():
    raise ValueError("no such architecture")
"""
WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta"]
FILES = ("--train", "train.txt", "--unseen", "unseen.jsonl")
AUDIT = ("text", "audit", "--model", "my_lm:pair", *FILES)


def document(source):
    return " ".join(source.choice(WORDS) for _ in range(12))


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    """Leave out the drawings, which take half of the time of a small audit."""
    monkeypatch.setattr(figures, "wide_and_narrow", lambda *_, **__: Markup("<svg></svg>"))


@pytest.fixture
def place(tmp_path, monkeypatch):
    source = random.Random(0)
    (tmp_path / "train.txt").write_text("\n\n".join(document(source) for _ in range(24)), encoding="utf-8")
    lines = [json.dumps({"text": document(source)}) for _ in range(24)]
    (tmp_path / "unseen.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "my_lm.py").write_text(FACTORY, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("my_lm", None)


def test_own_model_and_files(place, capsys):
    designed = canaries(8, lambda text: [ord(c) for c in text], length=2, tiers=(1,))
    designed.save(place / "canaries.json")
    options = ["--canaries", "canaries.json", "--reference", "my_lm:model", "--out", "o", "--training", "not at all"]
    assert main([*AUDIT, *options]) == 0
    out = capsys.readouterr().out
    assert "audit.html" in out
    assert sorted(path.name for path in (place / "o").iterdir()) == [
        "audit.html", "audit.json", "documents.csv", "spans.csv",
    ]  # fmt: skip
    content = json.loads((place / "o/audit.json").read_text())
    assert content["data"]["n_train"] == content["data"]["n_unseen"] == 24
    assert content["context"]["training"] == "not at all"
    assert content["canaries"]["n_pairs"] == 8
    assert {verdict["status"] for verdict in content["verdicts"]} <= {"nothing-found", "no-claim", "not-run"}
    assert content["reproduce"] == (
        "kernelmem text audit --model my_lm:pair --train train.txt --unseen unseen.jsonl --canaries canaries.json"
        " --reference my_lm:model --seed 0 --training 'not at all'"
    )
    texts = (place / "train.txt").read_text().split("\n\n")
    for path in (place / "o").iterdir():
        written = path.read_text()
        assert not any(text[k : k + 12] in written for text in texts for k in range(len(text) - 11))
    assert main([*AUDIT, "--out", "o"]) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_a_tokenizer_and_a_bos_of_their_own(place, capsys):
    options = ["--model", "my_lm:model", "--tokenizer", "my_lm:encode", *FILES, "--bos", "0", "--out", "o", "--json"]
    assert main(["text", "audit", *options]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["model"]["bos"] == 0
    assert "--bos 0" in content["reproduce"]


REFUSED = {
    "train without model": (("--train", "train.txt"), "--train without --model"),
    "no unseen": (("--model", "my_lm:pair", "--train", "train.txt"), "--model without --unseen"),
    "no tokenizer": (("--model", "my_lm:model", *FILES), "no tokenizer"),
    "a tokenizer that is text": (("--model", "my_lm:model", "--tokenizer", "my_lm:text", *FILES), "a tokenizer of my_lm:text"),
    "a model that is text": (("--model", "my_lm:text", *FILES), "which returned a str"),
    "a broken factory": (("--model", "my_lm:broken", *FILES), "no such architecture"),
    "no factory": (("--model", "my_lm", *FILES), "package.module:factory"),
    "another reference": ((*AUDIT[2:], "--reference", "my_lm:smaller"), "reference"),
    "a reference that is text": ((*AUDIT[2:], "--reference", "my_lm:text"), "--reference my_lm:text"),
    "tokens that are unknown": (("--model", "my_lm:smaller", "--tokenizer", "my_lm:tokenizer", *FILES), "train"),
    "all without reason": ((*AUDIT[2:], "--reveal", "all"), "--reveal all without --reason"),
    "reason without reveal": ((*AUDIT[2:], "--reason", "why"), "--reason without --reveal"),
    "no canaries": ((*AUDIT[2:], "--canaries", "train.txt"), "train.txt"),
    "no device": ((*AUDIT[2:], "--device", "tpu9"), "--device tpu9"),
    "a file in place of the directory": ((*AUDIT[2:], "--out", "train.txt"), "train.txt"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_input_gives_one_clear_error(place, capsys, name):
    options, message = REFUSED[name]
    before = sorted(place.rglob("*"))
    assert main(["text", "audit", *options]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert [line.split(":")[0].strip() for line in captured.err.splitlines()] == [
        "kernelmem",
        "got",
        "expected",
        "hint",
    ]
    assert captured.out == ""
    assert not any(word in captured.err for word in WORDS)
    assert [path for path in sorted(place.rglob("*")) if "__pycache__" not in str(path)] == before


def test_the_built_in_audit_and_what_it_reveals(place, capsys, monkeypatch):
    tiny = partial(demonstration, n_documents=24, epochs=1, hidden=8, n_canaries=5)
    monkeypatch.setattr(inputs, "demonstration", tiny)
    assert main(["text", "audit", "--out", "o", "--reveal", "canaries", "--seed", "3"]) == 0
    assert re.search(r"trained in .* s", capsys.readouterr().err)
    content = json.loads((place / "o/audit.json").read_text())
    assert content["seed"] == 3
    assert content["canaries"]["coverage"]
    assert content["reproduce"] == "kernelmem text audit --reveal canaries --seed 3"
    assert "key of unit" in plain((place / "o/audit.html").read_text())


def test_help_names_the_formats(capsys):
    with pytest.raises(SystemExit):
        main(["text", "--help"])
    out = " ".join(capsys.readouterr().out.split())
    for word in ("blank lines", ".jsonl", "--reveal", "--reference"):
        assert word in out
