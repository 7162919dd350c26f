"""Cards: lengths on digits, labels that come back, controls on random labels, files that are damaged."""

import hashlib
import json
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import kernelmem as km
from kernelmem.compression import Card, CardOptions, card, certificate, open_card
from kernelmem.compression.cards import container
from kernelmem.training import digits
from tests.compression.cards.small_cards import OPTIONS, rows, small_card
from tests.damaged_files import damaged_bytes, damaged_json
from tests.profiles import examples

QUICK = CardOptions(steps=300, batch_size=100, sweeps=0)
# A card of tests/compression/cards/small_cards.py, written by version 0.2
WRITTEN = bytes.fromhex(
    "6b65726e656c6d656d206361726420310ab7784b40a212894b002fb6c1701af59e04177d260293b80ae1e0cab5bb3f05470000011e7b226e"
    "223a3330302c226e5f6665617475726573223a332c22785f736861323536223a223161653433353561313337386630363033363637316633"
    "3763386532363133623237373963386366396439356139643730646534383666656135353032326231222c22795f736861323536223a2265"
    "6631393061366430396266336232613832333266353064306632373631323563656233393064353039313636663933323133383162623861"
    "62663261613030222c226e616d65223a22736d616c6c222c22636c6173735f6e616d6573223a5b2261222c2262222c2263225d2c22657272"
    "6f7273223a35302c22677269645f62697473223a35382c2268656c645f6f7574223a5b352c32305d2c226f6e6c696e65223a5b3136382c33"
    "395d7d802001c0b911f8231b34eabce823fa84d112f79fe3aaeb253657866de1a218e4f718d32b"
)


@pytest.mark.parametrize("options", [QUICK, pytest.param(CardOptions(), marks=pytest.mark.soak)])
def test_digits_take_1400_bits_and_come_back(options, tmp_path, monkeypatch):
    if options is QUICK:
        monkeypatch.setattr("kernelmem.compression.cards.making.ONLINE_ROWS", 0)
    for seed in range(1 if options is QUICK else 5):
        data = digits(n_train=1400, seed=seed)
        made = card((data.x_train, data.y_train), (data.x_test, data.y_test), seed=seed, options=options)
        assert made.bits <= (1400 if options is QUICK else 1150)
        opened = open_card(made.save(tmp_path / "card.km"), data.x_train)
        assert opened.labels is not None
        assert torch.equal(opened.labels, data.y_train)
        assert (made.online is None) == (options is QUICK)
        assert made.online is None or made.online < made.bits / 2
        assert made.record.held_out is not None
        assert made.record.held_out[0] < 0.2 * len(data.y_test)


@pytest.mark.parametrize("n", [40, 400])
def test_random_labels_are_never_shorter_than_uniform(n):
    rng = np.random.default_rng(n)
    for _ in range(3):
        x, y = rng.normal(size=(n, 5)), rng.integers(0, 3, n)
        made = card((x, y), n_classes=3, options=OPTIONS)
        assert made.uniform == pytest.approx(n * math.log2(3))
        assert made.uniform <= made.bits <= made.uniform + 16 + 48
        assert [item.kind for item in made.certificates()] == ["online"]
        assert "no network in the file" in str(made)


def test_parts_add_up_and_are_paid():
    made = small_card()
    assert sum(made.parts.values()) == pytest.approx(made.bits)
    assert made.bits == 8 * len(made.code) < made.uniform
    assert made.record.errors is not None
    weights = made.certificates()[-1]
    paid = made.header_bits + made.network_bits + made.record.grid_bits
    assert weights.bound == certificate(made.record.errors, 300, bits=paid).bound
    frame = made.to_frame()
    assert frame["bits"].sum() == pytest.approx(made.bits)
    assert frame["share"].sum() == pytest.approx(1)
    text = str(made)
    assert f"{len(made.code)} bytes of code" in text
    assert "decoded; their hash matches" in text
    assert max(map(len, text.splitlines())) < 250
    assert text.index("held-out certificate") < text.index("online certificate") < text.index("weights certificate")


def test_equal_calls_give_equal_cards_and_held_out_rows_do_not_matter():
    x, y = rows()
    first = small_card()
    again = card((torch.from_numpy(x.copy()), y.tolist()), n_classes=3, options=OPTIONS)
    assert torch.equal(first.code, again.code)
    assert again.record.held_out is None
    other = card((x, y), seed=300, options=OPTIONS)
    assert other.seed == 300
    assert other.header_bits == first.header_bits + 16


def test_opened_with_and_without_rows(tmp_path):
    x, y = rows()
    made = small_card()
    path = made.save(tmp_path / "card.km")
    assert path.stat().st_size == len(made.code) + made.container_bytes
    closed, opened = open_card(path), Card.load(path, torch.from_numpy(x.copy()))
    assert closed.labels is None
    assert "not decoded" in str(closed)
    assert opened.labels is not None
    assert opened.labels.tolist() == y.tolist()
    assert opened.record == closed.record == made.record
    assert closed.parts == opened.parts == made.parts
    for other in (x[::-1], x[:, :2], x[:-1], x + 1e-9):
        with pytest.raises(km.InputError, match="differs from the rows"):
            open_card(path, other.copy())


def test_a_file_of_an_earlier_version_decodes(tmp_path):
    """The same bytes on every machine: a change of the format must change the version in its first line."""
    x, y = rows()
    (tmp_path / "card.km").write_bytes(WRITTEN)
    opened = open_card(tmp_path / "card.km", x)
    assert opened.labels is not None
    assert opened.labels.tolist() == y.tolist()
    assert opened.dimensions == 12


@examples(3)
@given(st.data())
def test_damaged_files_are_refused(tmp_path_factory, data):
    content = container.pack(small_card().record, small_card().code.numpy().tobytes())
    damaged = data.draw(damaged_bytes(content))
    path = tmp_path_factory.mktemp("damaged") / "card.km"
    path.write_bytes(damaged)
    if damaged != content:
        with pytest.raises(km.FileCorruptError):
            open_card(path, rows()[0])


@examples(3)
@given(st.data())
def test_files_with_a_valid_hash_and_other_content_are_refused_or_give_the_labels(tmp_path_factory, data):
    """A file made to do harm: its hash is right, its record or code is not."""
    made = small_card()
    record = json.loads(json.dumps(container.asdict(made.record)))
    code = made.code.numpy().tobytes()
    if data.draw(st.booleans()):
        record = data.draw(damaged_json(record))
    else:
        code = data.draw(damaged_bytes(code))
    try:
        text = json.dumps(record).encode()
    except (ValueError, UnicodeEncodeError):
        return
    body = len(text).to_bytes(4, "big") + text + code
    path = tmp_path_factory.mktemp("harmful") / "card.km"
    path.write_bytes(container.MAGIC + hashlib.sha256(body).digest() + body)
    try:
        opened = open_card(path, rows()[0])
    except (km.FileCorruptError, km.InputError):
        return
    assert opened.labels is not None
    assert opened.labels.tolist() == rows()[1].tolist()
    str(opened)


@pytest.mark.parametrize(
    "content", [b"", b"kernelmem card 1\n", b"kernelmem card 2\n" + bytes(80), b"PK\3\4" + bytes(99)]
)
def test_alien_files_are_refused(content, tmp_path):
    (tmp_path / "a.km").write_bytes(content)
    for path in (tmp_path / "a.km", tmp_path / "absent.km", tmp_path):
        hint = "check the path" if path.name == "absent.km" else "write the card again"
        with pytest.raises(km.FileCorruptError, match=rf"card\.save.*{hint}"):
            open_card(path)


def test_refused():
    x, y = rows()
    calls = {
        "at least one|1 to 1,000,000 rows": lambda: card((x[:, 0], y)),
        "NaN": lambda: card((np.where(x > 0.9, np.nan, x), y)),
        "300 labels": lambda: card((x, y[:-1])),
        "class indices": lambda: card((x, np.array(["a", "b", "c"])[y])),
        "2 to 2,048 classes": lambda: card((x, y * 0)),
        "n_classes=1": lambda: card((x, y * 0), n_classes=1),
        "outside 0..1": lambda: card((x, y), n_classes=2),
        "rows of the same shape": lambda: card((x, y), (x[:, :2], y)),
        "one name per class": lambda: card((x, y), class_names=["a", "b"]),
        "steps": lambda: card((x, y), options=CardOptions(steps=-1)),
        "options": lambda: card((x, y), options={"steps": 3}),  # type: ignore[arg-type]
        "a pair": lambda: card(x),  # type: ignore[arg-type]
    }
    for message, call in calls.items():
        with pytest.raises(km.InputError, match=message):
            call()


def test_a_record_that_does_not_fit_is_refused(tmp_path):
    made, x = small_card(), rows()[0]
    for change in ({"errors": 0}, {"errors": None}, {"y_sha256": "0" * 64}, {"class_names": ("a",)}, {"grid_bits": 1}):
        path = tmp_path / "a.km"
        path.write_bytes(container.pack(replace(made.record, **change), made.code.numpy().tobytes()))
        with pytest.raises(km.FileCorruptError):
            open_card(path, x)


@pytest.mark.soak
def test_labels_decode_in_another_process_with_another_number_of_threads(tmp_path):
    made = small_card()
    path = made.save(tmp_path / "card.km")
    program = (
        "import sys, torch; torch.set_num_threads(3)\n"
        "from kernelmem.compression import open_card\n"
        "from tests.compression.cards.small_cards import rows\n"
        "print(open_card(sys.argv[1], rows()[0]).labels.tolist())"
    )
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(rows()[1].tolist())


@pytest.mark.parametrize("sweeps", [0, 3])
def test_progress_includes_the_sweeps_and_ends(sweeps):
    calls = []
    options = CardOptions(width=4, dimensions=5, steps=7, sweeps=sweeps)
    card(rows(), n_classes=3, options=options, progress=lambda *counts: calls.append(counts))
    done, totals = zip(*calls, strict=True)
    assert set(totals) == {7 + 5 * sweeps}
    assert list(done) == sorted(done)
    assert done[-1] == totals[-1]
