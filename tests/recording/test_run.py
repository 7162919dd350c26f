"""kernelmem.recording.run: data are read as written, or refused."""

import sqlite3
from contextlib import closing

import pytest
import torch

from kernelmem.core.errors import FileCorruptError, InputError
from kernelmem.recording.run import Run
from kernelmem.recording.storage.checkpoints import state_sha256
from kernelmem.recording.storage.tape import FILE


def test_kept_weights_are_those_of_the_training(lab):
    directory, _, states = lab.record(model=lab.network(norm=True))
    run = Run.open(directory)
    assert run.kept == tuple(range(8))
    for t, state in enumerate(states, start=1):
        weights = run.weights(t)
        assert weights.keys() == state.keys()
        assert all(weights[name].dtype == state[name].dtype for name in state)
        assert all(torch.equal(weights[name], state[name]) for name in state)
    initial = lab.network(norm=True).state_dict()
    assert all(torch.equal(run.weights(0)[name], initial[name]) for name in initial)
    run.verify()


def test_steps_are_a_sequence(lab):
    run = Run.open(lab.record()[0])
    assert len(run) == len(run.steps) == 7
    assert run.steps[-1].index == 6
    assert [step.index for step in run.steps[2:5]] == [2, 3, 4]
    assert [step.index for step in reversed(run.steps)] == [6, 5, 4, 3, 2, 1, 0]
    with pytest.raises(IndexError):
        run.steps[7]
    with pytest.raises(InputError, match="t=-8"):
        run.batch(-8)


def test_weights_that_were_not_kept_need_replay(lab):
    run = Run.open(lab.record(keep=3)[0])
    for t in (1, 5, 8, -1):
        with pytest.raises(InputError, match=f"weights after {t} steps of 7.*Hint: .*replay"):
            run.weights(t)


def test_a_directory_without_a_run_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none", str(tmp_path)):
        with pytest.raises(InputError, match=r"Got directory .*expected a run.*Hint: check the path"):
            Run.open(path)


def test_opening_changes_nothing(lab):
    directory = lab.record(keep=3)[0]
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    run = Run.open(directory)
    run.verify()
    run.batch(0)
    assert {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("place", [0, 8, 60, -1])
def test_an_altered_byte_of_a_checkpoint_is_found(lab, place):
    directory = lab.record(keep=3)[0]
    path = directory / "weights" / "00000003.safetensors"
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    run = Run.open(directory)
    run.weights(6)
    for read in (run.verify, lambda: run.weights(3)):
        with pytest.raises(FileCorruptError, match=r"step 3.*sha256"):
            read()


def test_a_missing_or_truncated_checkpoint_is_found(lab):
    directory = lab.record(keep=3)[0]
    (directory / "weights" / "00000003.safetensors").unlink()
    path = directory / "weights" / "00000006.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    run = Run.open(directory)
    for t in (3, 6):
        with pytest.raises(FileCorruptError, match=f"step {t}"):
            run.weights(t)
    with pytest.raises(FileCorruptError, match="step 3"):
        run.verify()


def test_a_checkpoint_of_another_step_is_found(lab):
    directory = lab.record(keep=3)[0]
    (directory / "weights" / "00000003.safetensors").write_bytes(
        (directory / "weights" / "00000006.safetensors").read_bytes()
    )
    with pytest.raises(FileCorruptError, match="step 3"):
        Run.open(directory).verify()


def test_an_altered_tape_is_found(lab):
    directory = lab.record(keep=3)[0]
    with closing(sqlite3.connect(directory / FILE, isolation_level=None)) as connection:
        connection.execute("UPDATE steps SET facts = replace(facts, '\"lr\": 0.1', '\"lr\": 0.2') WHERE step = 4")
    run = Run.open(directory)
    assert run.steps[4].groups[0]["lr"] == 0.2
    with pytest.raises(FileCorruptError, match="step 4"):
        run.verify()


def test_a_header_without_its_entries_is_refused(lab):
    directory = lab.record(keep=3)[0]
    with closing(sqlite3.connect(directory / FILE, isolation_level=None)) as connection:
        connection.execute("DELETE FROM meta WHERE key = 'parameters'")
    with pytest.raises(FileCorruptError, match="header"):
        Run.open(directory)


def test_the_hash_of_a_state_is_that_of_its_names_and_values():
    a, b = torch.zeros(2), torch.ones(2)
    assert state_sha256({"a": a, "b": b}) == state_sha256({"b": b, "a": a})
    others = [{"a": b, "b": a}, {"a": a}, {"a": a, "b": b.double()}, {"a": a, "b": b[None]}]
    assert len({state_sha256(state) for state in [{"a": a, "b": b}, *others]}) == 5


def test_several_runs_can_be_read_at_once(lab):
    runs = [Run.open(lab.record(directory=lab.directory / name)[0]) for name in ("a", "b")]
    again = Run.open(lab.directory / "a")
    assert runs[0].steps[6].after == runs[1].steps[6].after == again.steps[6].after


def test_a_run_prints_and_tabulates_its_steps(lab):
    directory, _, _ = lab.record(keep=3, steps=7, loop=lab.loop(schedule=True))
    run = Run.open(directory)
    text = str(run)
    assert text == repr(run)
    assert text.splitlines()[0] == f"Run of 7 steps in {directory}"
    assert "SGD, mean of cross_entropy" in text
    assert "51 parameters in 4 tensors (float32), 0 buffers" in text
    assert "weights kept: 4 of 8" in text
    frame = run.to_frame()
    assert frame["step"].tolist() == list(range(7))
    assert frame["kept"].tolist() == [False, False, True, False, False, True, True]
    assert frame["batch_size"].tolist() == [len(step.examples) for step in run.steps]
    assert frame["lr"].tolist() == [step.groups[0]["lr"] for step in run.steps]
    assert repr(run.steps) == f"Steps(7 steps of {directory})"
    assert repr(run.steps[0]) == "Step(0: 6 examples, lr 0.1, gradient scale 1)"
    assert repr(run.checkpoint(3)) == "Checkpoint(4 tensors, optimizer state of 4 parameters)"
