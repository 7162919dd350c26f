"""kernelmem.recording.step_checks.random_state: states of the CPU's generator alone, and of another device."""

import json
import sqlite3

import pytest
import torch

from kernelmem.core.errors import InputError, VerificationError
from kernelmem.recording.recorder import Recorder
from kernelmem.recording.replay import replay
from kernelmem.recording.run import Run
from kernelmem.recording.step_checks.random_state import get_random_state, random_state, set_random_state

CPU = torch.device("cpu")


def test_on_the_cpu_it_is_the_state_of_torch():
    state = get_random_state(CPU)
    assert torch.equal(state, torch.get_rng_state())
    first = torch.rand(3)
    set_random_state(state, CPU)
    assert torch.equal(torch.rand(3), first)


def test_the_state_of_another_device_is_refused_and_nothing_changes():
    before = torch.get_rng_state()
    with (
        pytest.raises(InputError, match=r"recorded on an accelerator, to be drawn again on the CPU"),
        random_state(torch.cat([before, torch.zeros(16, dtype=torch.uint8)])),
    ):
        pass
    assert torch.equal(torch.get_rng_state(), before)


def alter_header(directory, **values):
    """Write ``values`` into the header of a tape; None removes the entry, as in an older format."""
    with sqlite3.connect(directory / "tape.sqlite") as connection:
        for key, value in values.items():
            if value is None:
                connection.execute("DELETE FROM meta WHERE key = ?", (key,))
            else:
                connection.execute("UPDATE meta SET value = ? WHERE key = ?", (json.dumps(value), key))
    connection.close()


def test_a_run_of_another_device_is_not_resumed_and_replay_says_where_it_was_recorded(lab):
    directory, model, _ = lab.record(keep=100)
    assert (Run.open(directory).meta["device"], Run.open(directory).meta["device_name"]) == ("cpu", "")
    alter_header(directory, device="cuda", device_name="a card")
    assert "recorded on cuda (a card)" in str(Run.open(directory))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with pytest.raises(InputError, match=r"device cpu, which differs .*expected device cuda, as recorded"):
        Recorder(model, optimizer, directory, loss="cross_entropy", resume=True).__enter__()
    with sqlite3.connect(directory / "tape.sqlite") as connection:
        facts = json.loads(connection.execute("SELECT facts FROM steps WHERE step = 0").fetchone()[0])
        connection.execute("UPDATE steps SET facts = ? WHERE step = 0", (json.dumps(facts | {"after": "0" * 64}),))
    connection.close()
    with pytest.raises(VerificationError, match=r"with the model on cuda \(a card\)"):
        list(replay(Run.open(directory), model))


def test_a_run_of_format_3_is_one_of_the_cpu(lab):
    directory, model, _ = lab.record(keep=1)
    alter_header(directory, device=None, device_name=None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with Recorder(model, optimizer, directory, loss="cross_entropy", resume=True, keep=1) as recorder:
        assert recorder.restore() == 7
    assert len(list(replay(Run.open(directory), model))) == 8
