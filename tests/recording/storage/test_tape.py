"""kernelmem.recording.storage.tape: committed rows are read, altered rows are detected."""

import sqlite3
from contextlib import closing
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from kernelmem.core.errors import FileCorruptError, InputError
from kernelmem.recording.storage.inputs import StoredInput, stored_sha256
from kernelmem.recording.storage.npy import array_bytes
from kernelmem.recording.storage.tape import FILE, Step, Tape

META = {"optimizer": "SGD", "loss": "mse", "numbers": [1, 0.1, None, True]}


def made_up_step(index):
    generator = torch.Generator().manual_seed(index)
    return Step(
        index=index,
        examples=torch.tensor([5, 3 * index, 5]),
        versions=torch.tensor([0, 0, 0]),
        sample_weight=torch.rand(3, dtype=torch.float64, generator=generator),
        groups=({"parameters": ["a", "b"], "lr": 0.1 / 3, "betas": [0.9, 0.999], "foreach": None},),
        scale=1 / 3,
        skipped=frozenset({"b"}),
        random=bytes(range(256)) if index % 2 else None,
        after=f"{index:064x}",
        buffers_changed=bool(index % 2),
        evaluating=frozenset({"", "1"}),
    )


def new_inputs(index):
    """Two new inputs, but in step 0 example 5 as well."""
    rows = [(5, 0)] if index == 0 else []
    found = []
    for example, version in [*rows, *([(3 * index, 0)] if index else [(0, 0)]), (100 + index, 0)]:
        x, y = array_bytes(np.full(4, example, np.float32)), array_bytes(np.array(example))
        found.append(StoredInput(example, version, x, y, stored_sha256(x, y)))
    return found


@pytest.fixture
def directory(tmp_path):
    """A tape of four steps with checkpoints after 0, 2 and 4."""
    tape = Tape.create(tmp_path / "run", META, initial_sha256="0" * 64)
    for index in range(4):
        tape.append(made_up_step(index), new_inputs(index), checkpoint_sha256="2" * 64 if index == 1 else None)
    tape.keep("4" * 64)
    tape.close()
    return tmp_path / "run"


def alter(directory, *statements):
    with closing(sqlite3.connect(directory / FILE, isolation_level=None)) as connection:
        for statement in statements:
            assert connection.execute(statement).rowcount != 0, statement


def test_returns_what_was_appended(directory):
    tape = Tape(directory)
    assert len(tape) == 4
    assert tape.meta == {**META, "format": 4}
    for index in range(4):
        read, written = tape.step(index), made_up_step(index)
        for field in fields(Step):
            a, b = getattr(read, field.name), getattr(written, field.name)
            if isinstance(b, torch.Tensor):
                assert a.dtype == b.dtype
                assert torch.equal(a, b)
            else:
                assert a == b, field.name
        x, y = tape.inputs(read)
        assert x.dtype == torch.float32
        assert x[:, 0].tolist() == [5, 3 * index, 5]
        assert y.tolist() == [5, 3 * index, 5]
    assert tape.checkpoints() == {0: "0" * 64, 2: "2" * 64, 4: "4" * 64}
    tape.verify()


def test_a_closed_tape_is_one_file(directory):
    assert [path.name for path in directory.iterdir()] == [FILE]


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("UPDATE steps SET facts = replace(facts, '0.999', '0.998') WHERE step = 2", "step 2"),
        ("UPDATE steps SET facts = '[]' WHERE step = 1", "step 1"),
        ("UPDATE steps SET facts = 'no json' WHERE step = 1", "step 1"),
        ("UPDATE steps SET examples = versions WHERE step = 3", "step 3"),
        ("UPDATE steps SET versions = examples WHERE step = 1", "step 1"),
        ("UPDATE steps SET weights = zeroblob(length(weights)) WHERE step = 0", "step 0"),
        ("UPDATE steps SET random = zeroblob(256) WHERE step = 1", "step 1"),
        ("UPDATE steps SET random = NULL WHERE step = 1", "step 1"),
        ("UPDATE steps SET random = x'' WHERE step = 2", "step 2"),
        ("UPDATE steps SET random = 'text' WHERE step = 2", "step 2"),
        ("UPDATE steps SET chain = lower(hex(zeroblob(32))) WHERE step = 2", "step 2"),
        ("DELETE FROM steps WHERE step = 1", "step 1"),
        ("DELETE FROM steps WHERE step = 3", "after the last"),
        ("UPDATE steps SET step = 7 WHERE step = 3", "step 3"),
        ("UPDATE examples SET x = zeroblob(length(x)) WHERE example = 5", "step 0.*example 5"),
        ("UPDATE examples SET y = CAST(y || x'00' AS BLOB) WHERE example = 9", "step 3.*example 9"),
        ("UPDATE examples SET sha256 = 'a' WHERE example = 6", "step 2.*example 6"),
        ("UPDATE examples SET step = 3 WHERE example = 101", "step 1"),
        ("UPDATE examples SET step = 9 WHERE example = 101", "step 1"),
        ("UPDATE examples SET version = 1 WHERE example = 6", "step 2"),
        ("DELETE FROM examples WHERE example = 102", "step 2"),
        ("INSERT INTO examples SELECT 8, 0, 9, sha256, x, y FROM examples WHERE example = 6", "after the last"),
        ("UPDATE meta SET value = '\"Adam\"' WHERE key = 'optimizer'", "header"),
        ("UPDATE checkpoints SET sha256 = 'a' WHERE step = 2", "checkpoint of step 2"),
        ("UPDATE checkpoints SET step = 3 WHERE step = 2", "checkpoint of step 3"),
        ("UPDATE checkpoints SET seal = 'a' WHERE step = 4", "checkpoint of step 4"),
        ("UPDATE checkpoints SET sha256 = 'a' WHERE step = 0", "checkpoint of step 0"),
        ("DELETE FROM checkpoints WHERE step = 0", "initial"),
        ("DROP TABLE examples", "table examples"),
    ],
)
def test_every_alteration_is_found_and_its_step_named(directory, statement, words):
    alter(directory, statement)
    with pytest.raises(FileCorruptError, match=words):
        Tape(directory).verify()


def test_swapped_rows_are_found(directory):
    alter(directory, *(f"UPDATE steps SET step = {b} WHERE step = {a}" for a, b in [(1, 9), (2, 1), (9, 2)]))
    with pytest.raises(FileCorruptError, match="step 1"):
        Tape(directory).verify()


def test_bytes_altered_in_the_file_itself_are_found(directory):
    content = bytearray((directory / FILE).read_bytes())
    place = content.index(array_bytes(np.full(4, 9, np.float32)))
    content[place + 130] ^= 1
    (directory / FILE).write_bytes(content)
    with pytest.raises(FileCorruptError, match=r"step 3.*example 9"):
        Tape(directory).verify()


def test_unreadable_rows_are_named(directory):
    alter(directory, "UPDATE steps SET weights = x'00' WHERE step = 2", "DELETE FROM examples WHERE example = 9")
    tape = Tape(directory)
    with pytest.raises(FileCorruptError, match="step 2"):
        tape.step(2)
    with pytest.raises(FileCorruptError, match=r"inputs of step 3.*missing"):
        tape.inputs(tape.step(3))
    with pytest.raises(FileCorruptError, match="step 4"):
        tape.step(4)


def test_only_the_next_step_can_be_appended(directory):
    tape = Tape(directory, write=True)
    for index in (3, 5):
        with pytest.raises(InputError, match=f"step {index} for a tape of 4"):
            tape.append(made_up_step(index))
    tape.append(made_up_step(4))
    tape.close()
    assert len(Tape(directory)) == 5
    Tape(directory).verify()


def test_a_step_is_committed_atomically(directory):
    tape = Tape(directory, write=True)
    new = new_inputs(4)
    with pytest.raises(InputError, match="another process"):
        tape.append(made_up_step(4), [*new, new[0]], checkpoint_sha256="5" * 64)
    assert len(tape) == len(Tape(directory)) == 4
    assert (12, 0) not in [row[:2] for row in tape.known_inputs()]
    tape.append(made_up_step(4), new)
    tape.verify()
    tape.close()


def test_a_second_writer_is_refused(directory):
    first, second = (Tape(directory, write=True) for _ in range(2))
    first.append(made_up_step(4), new_inputs(4))
    with pytest.raises(InputError, match="another process"):
        second.append(made_up_step(4), new_inputs(4))
    second.close()
    first.append(made_up_step(5), new_inputs(5))
    first.verify()
    first.close()


def test_a_reader_sees_the_run_as_it_was_opened(directory):
    writer = Tape(directory, write=True)
    reader = Tape(directory)
    writer.append(made_up_step(4), new_inputs(4), checkpoint_sha256="5" * 64)
    assert len(reader) == 4
    assert max(reader.checkpoints()) == 4
    reader.verify()
    assert len(Tape(directory)) == 5
    writer.close()


def test_truncation_drops_steps_with_their_inputs_and_checkpoints(directory):
    tape = Tape(directory, write=True)
    tape.truncate(2)
    assert len(tape) == 2
    assert list(tape.checkpoints()) == [0, 2]
    assert {row[0] for row in tape.known_inputs()} == {0, 3, 5, 100, 101}
    tape.verify()
    changed = replace(made_up_step(2), scale=0.5)
    tape.append(changed, new_inputs(2))
    tape.close()
    Tape(directory).verify()
    assert Tape(directory).step(2).scale == 0.5


def test_an_empty_tape_is_valid(tmp_path):
    Tape.create(tmp_path, META, initial_sha256="a").close()
    tape = Tape(tmp_path)
    tape.verify()
    assert len(tape) == 0
    assert tape.checkpoints() == {0: "a"}


def test_a_directory_with_a_run_is_not_overwritten(directory):
    with pytest.raises(InputError, match=r"Got directory .* holds a run.*Hint: pass resume=True"):
        Tape.create(directory, META, initial_sha256="a")
    Tape(directory).verify()


def test_files_that_are_not_tapes_are_refused(tmp_path, directory):
    with pytest.raises(InputError, match=r"Got directory .* without a tape.sqlite.*expected.*Hint: check the path"):
        Tape(tmp_path)
    (tmp_path / FILE).write_text("no database, but long enough to be read as the header of one" * 3)
    with pytest.raises(FileCorruptError, match="header"):
        Tape(tmp_path)
    (tmp_path / FILE).write_bytes(b"")
    with pytest.raises(FileCorruptError, match="not the tables of a tape"):
        Tape(tmp_path)
    (tmp_path / FILE).write_bytes((directory / FILE).read_bytes()[:5000])
    with pytest.raises(FileCorruptError):
        Tape(tmp_path).verify()


def test_a_later_format_is_refused(directory):
    alter(directory, "UPDATE meta SET value = '5' WHERE key = 'format'")
    with pytest.raises(InputError, match=r"Got .*tape.sqlite in format 5; expected format 4 .*. Hint: upgrade"):
        Tape(directory)
