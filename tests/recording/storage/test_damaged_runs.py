"""Law of Run.open: a damaged or hostile run is refused by name, or verified and equal to what was recorded."""

import json
import os
import shutil
import sqlite3

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kernelmem.core.errors import FileCorruptError, KernelmemError
from kernelmem.recording.recorder import Recorder
from kernelmem.recording.run import Run
from tests.damaged_files import damaged_bytes, damaged_json
from tests.profiles import examples

COLUMNS = [
    ("meta", "value"),
    ("checkpoints", "sha256"),
    *(("steps", column) for column in ("facts", "random", "examples", "weights", "chain")),
    *(("examples", column) for column in ("x", "y", "sha256")),
]
ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A run of two steps with dict inputs, and the directory for damaged copies of it."""
    torch.manual_seed(0)
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    folder = tmp_path_factory.mktemp("runs")
    x, y = torch.randn(4, 2), torch.tensor([0, 1, 0, 1])
    forward = lambda model, batch: model(batch["x"])  # noqa: E731
    with Recorder(model, optimizer, folder / "run", loss="cross_entropy", forward=forward) as recorder:
        for rows in ([0, 1], [2, 3]):
            optimizer.zero_grad()
            nn.functional.cross_entropy(forward(model, {"x": x[rows]}), y[rows]).backward()
            recorder.step(torch.tensor(rows), {"x": x[rows]}, y[rows])
    return folder / "run"


@pytest.fixture
def copied(recorded, tmp_path):
    shutil.copytree(recorded, tmp_path / "run")
    return tmp_path / "run"


def content(run):
    """Everything that a run can be asked, as comparable values."""
    batches = [run.batch(t) for t in range(len(run))]
    checkpoints = [run.checkpoint(t) for t in run.kept]
    steps = [
        (step.examples.tolist(), step.sample_weight.tolist(), step.groups, step.scale, step.after) for step in run.steps
    ]
    return (
        [(x["x"].tolist(), y.tolist()) for x, y in batches],
        [{name: value.tolist() for name, value in checkpoint.model.items()} for checkpoint in checkpoints],
        steps,
        run.averages,
        run.to_frame().to_dict(),
        dict(run.meta),
    )


def read(path, original=None):
    """Read a run that may be damaged: our error, or, once it is verified, what was recorded."""
    try:
        run = Run.open(path)
        try:
            assert str(run)
            found = content(run)  # without verification too, errors are ours
            run.verify()
        finally:
            run.tape.close()
    except KernelmemError as caught:
        error = caught
    else:
        assert original is None or found == original
        return
    assert path.name in str(error)
    assert len(str(error)) < 1500


@pytest.fixture(scope="module")
def original(recorded):
    run = Run.open(recorded)
    yield content(run)
    run.tape.close()


@examples(2.0)
@given(st.data())
def test_damaged_bytes(recorded, original, data):
    files = sorted(file.relative_to(recorded) for file in recorded.rglob("*") if file.is_file())
    name = data.draw(st.sampled_from(files))
    path = recorded.parent / "damaged"
    shutil.copytree(recorded, path, dirs_exist_ok=True)
    whole = (recorded / name).read_bytes()
    if data.draw(st.booleans()):
        damaged = bytearray(whole)
        used = [place for place, byte in enumerate(whole) if byte]
        for place in data.draw(st.lists(st.sampled_from(used), min_size=1, max_size=3)):
            damaged[place] ^= data.draw(st.integers(1, 255))
    else:
        damaged = data.draw(damaged_bytes(whole))
    (path / name).write_bytes(damaged)
    try:
        read(path, original)
    finally:
        shutil.rmtree(path)


@examples(2.0)
@given(st.data())
def test_other_values_in_the_columns(recorded, data):
    path = recorded.parent / "altered"
    shutil.copytree(recorded, path, dirs_exist_ok=True)
    connection = sqlite3.connect(path / "tape.sqlite")
    table, column = data.draw(st.sampled_from(COLUMNS))
    rows = connection.execute(f"SELECT rowid, {column} FROM {table}").fetchall()
    row, value = data.draw(st.sampled_from(rows))
    if column in ("value", "facts"):
        value = json.dumps(data.draw(damaged_json(json.loads(value))))
    elif isinstance(value, bytes) and data.draw(st.booleans()):
        value = data.draw(damaged_bytes(value))
    else:
        value = data.draw(st.sampled_from([0, -1, 0.5, "", "junk", "../../x", b"", b"\x93NUMPY", b"KMTREE1\n", "\x00"]))
    connection.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (value, row))
    connection.commit()
    connection.close()
    try:
        read(path)
    finally:
        shutil.rmtree(path)


@pytest.mark.parametrize(
    "statements",
    [
        f"DROP TABLE meta; CREATE VIEW meta AS {ENDLESS} 'a' || i AS key, '1' AS value FROM n",
        f"DROP TABLE steps; CREATE VIEW steps AS {ENDLESS} i AS step, '' AS chain FROM n",
        f"ALTER TABLE checkpoints RENAME TO c; CREATE VIEW checkpoints AS {ENDLESS} i AS step, 'a' AS sha256 FROM n",
        "CREATE TRIGGER t AFTER INSERT ON steps BEGIN DELETE FROM steps; END",
        "CREATE TABLE more (a)",
        "DROP INDEX examples_of_step; CREATE INDEX examples_of_step ON examples (step, abs(step))",
        "CREATE VIRTUAL TABLE v USING fts5(a)",
    ],
)
def test_a_view_or_anything_else_that_is_no_table_of_a_tape_is_refused(copied, statements):
    connection = sqlite3.connect(copied / "tape.sqlite")
    connection.executescript(statements)
    connection.close()
    with pytest.raises(FileCorruptError, match="tables of a tape"):
        Run.open(copied)


def test_a_table_without_end_is_refused(copied):
    """Interior pages whose children are one page, nineteen times: a scan would visit 100 to the power of 19 rows."""
    path = copied / "tape.sqlite"
    connection = sqlite3.connect(path)
    size = connection.execute("PRAGMA page_size").fetchone()[0]
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    (root,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'steps'").fetchone()
    connection.close()
    damaged = bytearray(path.read_bytes())
    leaf = bytes(damaged[(root - 1) * size : root * size])
    for depth in range(18):
        child = pages + depth + 1
        cells = 100
        page = bytearray(size)
        page[0] = 5  # interior page of a table
        page[3:5] = cells.to_bytes(2, "big")
        page[5:7] = (size - 5 * cells).to_bytes(2, "big")
        page[8:12] = child.to_bytes(4, "big")
        for cell in range(cells):
            start = size - 5 * (cell + 1)
            page[12 + 2 * cell : 14 + 2 * cell] = start.to_bytes(2, "big")
            page[start : start + 5] = child.to_bytes(4, "big") + b"\x01"
        place = root if depth == 0 else pages + depth
        damaged[(place - 1) * size : place * size] = page
    damaged[(pages + 17) * size :] = leaf
    damaged[28:32] = (len(damaged) // size).to_bytes(4, "big")
    path.write_bytes(damaged)
    with pytest.raises(FileCorruptError, match="interrupted"):
        Run.open(copied)


def test_pipes_and_directories_instead_of_files(copied):
    checkpoint = copied / "weights" / "00000000.safetensors"
    checkpoint.unlink()
    os.mkfifo(checkpoint)
    run = Run.open(copied)
    with pytest.raises(FileCorruptError, match="regular"):
        run.weights(0)
    (copied / "tape.sqlite").unlink()
    os.mkfifo(copied / "tape.sqlite")
    with pytest.raises(KernelmemError, match="without a tape"):
        Run.open(copied)
