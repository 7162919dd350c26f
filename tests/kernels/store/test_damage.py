"""Damaged stores: flipped bits, swapped and foreign tiles, hostile SQL; verification, refusal, repair; kills."""

import os
import random
import re
import signal
import sqlite3
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from kernelmem import FileCorruptError, InputError, KernelStore
from kernelmem.kernels.store.tiles import TileTable
from tests.kernels.store.stores import FACTS, fill, kernel, stored
from tests.profiles import examples

K = kernel(90, 90, torch.float64, symmetric=True)
BAD = (0, 2)
SEEDS = st.integers(0, 2**32)


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "k"
    stored(path, K, tile=40, symmetric=True).close()
    return path.read_bytes()


@pytest.fixture
def path(tmp_path, content):
    (tmp_path / "k").write_bytes(content)
    return tmp_path / "k"


def recompute_into(calls):
    def recompute(i, j):
        calls.append((i, j))
        return K[40 * i : 40 * i + 40, 40 * j : 40 * j + 40]

    return recompute


def sql(path, *statements):
    connection = sqlite3.connect(path)
    with connection:
        for statement in statements:
            connection.execute(*(statement if isinstance(statement, tuple) else (statement,)))
    connection.close()


def check_that_only_these_tiles_are_lost(path, bad, intact=(1, 1)):
    with KernelStore.open(path, FACTS, write=True) as store:
        for index in bad:
            with pytest.raises(FileCorruptError, match=re.escape(f"tile {index}")):
                store.tile(*index)
        with pytest.raises(FileCorruptError, match=re.escape(", ".join(map(str, bad)))):
            store.verify()
        assert store.damaged() == bad
        rows, columns = store.layout.rows_of(intact[0]), store.layout.columns_of(intact[1])
        assert torch.equal(store.tile(*intact), K[rows, columns])
        for read in (lambda: store @ torch.ones(90), lambda: store.rows(0, 90), lambda: np.asarray(store)):
            with pytest.raises(FileCorruptError):
                read()
        calls = []
        assert store.repair(recompute_into(calls)) == bad == calls
        store.verify()
        assert torch.equal(store.rows(0, 90), K)


def flipped(content, place, rng):
    """Return the content with one bit of a slice of it flipped."""
    damaged = bytearray(content)
    position = rng.randrange(8 * place.start, 8 * place.stop)
    damaged[position // 8] ^= 1 << (position % 8)
    return bytes(damaged)


def find(content, data):
    assert content.count(data) == 1
    start = content.index(data)
    return slice(start, start + len(data))


@dataclass(repr=False)
class Whole:
    """A store that is not damaged: its file, where things are in it, and the file and log of one half in the log."""

    content: bytes
    places: dict
    log: tuple


@pytest.fixture(scope="module")
def whole(content, tmp_path_factory):
    path = tmp_path_factory.mktemp("log") / "k"
    path.write_bytes(content)
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT first_row / 40, first_column / 40, sha256, data FROM tiles").fetchall()
        pairs = connection.execute("SELECT * FROM facts UNION SELECT * FROM header").fetchall()
    tiles = {(i, j): (find(content, sha256), find(content, data)) for i, j, sha256, data in rows}
    places = {
        "values": [(index, place) for index, (_, place) in tiles.items()],
        "hash": [(index, place) for index, (place, _) in tiles.items()],
        "place": [(index, slice(place.start - 20, place.start)) for index, (place, _) in tiles.items()],
        "facts": [(None, find(content, f"{key}{value}".encode())) for key, value in pairs],
    }
    path.unlink()
    with KernelStore.create(path, FACTS, 90, tile=40, dtype=torch.float64) as store:
        for i, j in store.missing()[:3]:
            store.put(i, j, K[store.layout.rows_of(i), store.layout.columns_of(j)])
    with KernelStore.open(path, FACTS, write=True) as store:
        fill(store, K)
        return Whole(content, places, (path.read_bytes(), path.with_name("k-wal").read_bytes()))


def check_flipped_tile(path, whole, seed):
    rng = random.Random(seed)
    index, place = rng.choice(whole.places["values"] + whole.places["hash"])
    path.write_bytes(flipped(whole.content, place, rng))
    check_that_only_these_tiles_are_lost(path, [index], intact=(1, 1) if index == (0, 0) else (0, 0))


@examples(0.3)
@given(SEEDS)
def test_a_flipped_bit_of_a_tile_or_its_hash_is_found_and_only_its_tile_computed_again(tmp_path_factory, whole, seed):
    check_flipped_tile(tmp_path_factory.mktemp("flips") / "k", whole, seed)


def test_without_the_comparison_of_hashes_this_test_fails(tmp_path, whole, monkeypatch):
    class Anything:
        def __ne__(self, other):
            return False

    monkeypatch.setattr(TileTable, "_hash", lambda *_: Anything())
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        check_flipped_tile(tmp_path / "k", whole, 0)


def test_swapped_tiles_are_found(path):
    sql(path, "CREATE TABLE old AS SELECT * FROM tiles")
    for one, other in ((0, 4), (4, 0)):
        values = "(SELECT data, sha256 FROM old WHERE tile = ?)"
        sql(path, (f"UPDATE tiles SET (data, sha256) = {values} WHERE tile = ?", (one, other)))
    sql(path, "DROP TABLE old")
    check_that_only_these_tiles_are_lost(path, [(0, 0), (1, 1)], intact=(0, 1))


def test_a_tile_of_another_store_is_found(path, tmp_path):
    stored(tmp_path / "other", K, tile=40, symmetric=True, facts={"model": "another"}).close()
    connection = sqlite3.connect(path)
    connection.execute("ATTACH ? AS other", (str(tmp_path / "other"),))
    connection.execute("REPLACE INTO tiles SELECT * FROM other.tiles WHERE tile = 2")
    connection.commit()
    connection.close()
    check_that_only_these_tiles_are_lost(path, [BAD])


@pytest.mark.parametrize(
    "change",
    [
        "data = zeroblob(5)",
        "data = 'text'",
        "data = 1",
        "data = zeroblob(20000000)",
        "sha256 = 'x'",
        "dtype = '<f4'",
        "first_row = 1",
        "stop_column = -1",
        "first_column = 'a'",
    ],
)
def test_hostile_values_of_a_tile_are_refused(path, change):
    sql(path, f"UPDATE tiles SET {change} WHERE tile = 2")
    with KernelStore.open(path, FACTS) as store:
        with pytest.raises(FileCorruptError, match=r"tile \(0, 2\)"):
            store.tile(*BAD)
        assert store.damaged() == [BAD]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE header SET value = '99' WHERE key = 'layout'",
        "UPDATE header SET value = '[]' WHERE key = 'layout'",
        """UPDATE header SET value = '{"n": 1000000000, "m": 1000000000, "tile": 1, "dtype": "float32", "symmetric": true}'"""
        " WHERE key = 'layout'",
        "UPDATE header SET value = replace(value, '40', '41') WHERE key = 'layout'",
        "UPDATE header SET value = 'x' WHERE key = 'sha256'",
        "DELETE FROM header",
        "UPDATE facts SET value = '\"altered\"' WHERE key = 'model'",
        "INSERT INTO notes VALUES ('another', '1')",
        "INSERT INTO facts VALUES ('deep', '" + "[" * 5000 + "]" * 5000 + "')",
        "UPDATE facts SET value = zeroblob(20000000)",
        "DROP TABLE facts",
        "CREATE TRIGGER t AFTER INSERT ON tiles BEGIN DELETE FROM tiles; END",
        "CREATE VIEW v AS SELECT randomblob(1000000000)",
        "ALTER TABLE tiles ADD COLUMN extra",
    ],
)
def test_hostile_headers_and_schemas_are_refused_when_the_store_is_opened(path, statement):
    sql(path, statement)
    for write in (False, True):
        with pytest.raises(FileCorruptError, match="its header"):
            KernelStore.open(path, write=write)


def test_a_view_instead_of_the_table_of_tiles_is_refused(path):
    sql(path, "ALTER TABLE tiles RENAME TO real_tiles", "CREATE VIEW tiles AS SELECT * FROM real_tiles")
    with pytest.raises(FileCorruptError, match="not the tables of a store"):
        KernelStore.open(path)


def test_tiles_outside_of_the_kernel_are_refused(path):
    sql(path, "UPDATE tiles SET tile = 3 WHERE tile = 2")  # (1, 0), below the diagonal
    with KernelStore.open(path) as store:
        for read in (store.missing, store.verify, lambda: store.complete):
            with pytest.raises(FileCorruptError, match="outside of the kernel"):
                read()


def test_a_later_format_asks_for_an_upgrade(path):
    sql(path, "UPDATE header SET value = '2' WHERE key = 'format'")
    with pytest.raises(InputError, match="format 2"):
        KernelStore.open(path)


def check_flipped_anywhere(path, kind):
    """A flipped bit is harmless, refused or repaired; what is read is what was written."""
    try:
        store = KernelStore.open(path, FACTS, write=True)
    except (FileCorruptError, InputError):  # the header: it cannot be opened, so nothing is read from it
        return
    assert kind != "facts"
    with store:
        calls = []
        try:
            store.verify()
        except FileCorruptError:
            assert sorted(store.repair(recompute_into(calls))) == sorted(calls)
        store.verify()
        fill(store, K)  # what a damaged tree of pages or a damaged log has lost
        assert torch.equal(store.rows(0, 90), K)
        assert len(calls) <= 1 or calls == list(store.layout.stored())


def flip_anywhere(path, whole, kind, seed):
    rng = random.Random(seed)
    if kind == "log":
        path.write_bytes(whole.log[0])
        path.with_name("k-wal").write_bytes(flipped(whole.log[1], slice(0, len(whole.log[1])), rng))
    elif kind == "anywhere":
        path.write_bytes(flipped(whole.content, slice(0, len(whole.content)), rng))
    else:
        path.write_bytes(flipped(whole.content, rng.choice(whole.places[kind])[1], rng))


@examples(0.5)
@given(st.sampled_from(["place", "facts", "log", "anywhere"]), SEEDS)
@example("place", 19)  # where SQLite, to delete one tile, would have overwritten another
def test_any_flipped_bit_is_harmless_refused_or_repaired(tmp_path_factory, whole, kind, seed):
    path = tmp_path_factory.mktemp("flips") / "k"
    flip_anywhere(path, whole, kind, seed)
    check_flipped_anywhere(path, kind)


def test_a_store_without_its_tree_of_pages_is_rebuilt_from_what_is_readable(path, content):
    damaged = bytearray(content)
    pages = [i for i in range(0, len(content), 65536) if content[i] == 13 and i]  # leaves of tables
    tiles = max(pages, key=lambda i: int.from_bytes(content[i + 3 : i + 5], "big"))
    damaged[tiles + 3 : tiles + 5] = b"\xff\xff"  # number of cells
    path.write_bytes(damaged)
    with KernelStore.open(path, FACTS, write=True) as store:
        with pytest.raises(FileCorruptError):
            store.verify()
        with pytest.raises(FileCorruptError):
            store.missing()
        store.repair()
        fill(store, K)
        store.verify()
        assert torch.equal(store.rows(0, 90), K)
    assert [p.name for p in path.parent.iterdir()] == ["k"]


@pytest.mark.parametrize("n_statements", range(4))
def test_a_kill_inside_of_put_leaves_whole_tiles(tmp_path, n_statements):
    """The child is killed before one of the statements of the second tile's transaction."""
    path = tmp_path / "k"
    child = os.fork()
    if child == 0:
        store = KernelStore.create(path, FACTS, 90, tile=40, dtype=torch.float64)
        store.put(0, 0, K[:40, :40])
        statements = []

        def trace(statement):
            statements.append(statement)
            if len(statements) > n_statements:
                os.kill(os.getpid(), signal.SIGKILL)

        store._connection.set_trace_callback(trace)
        store.put(0, 1, K[:40, 40:80])
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    with KernelStore.open(path, FACTS, write=True) as store:
        store.verify()
        assert store.missing()[0] == (0, 1)
        assert torch.equal(store.tile(0, 0), K[:40, :40])
        assert torch.equal(fill(store, K).rows(0, 90), K)
