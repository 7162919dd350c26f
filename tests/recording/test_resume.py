"""kernelmem.recording.recorder: an interrupted run is complete up to its last step, and resumes to the same weights."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

from kernelmem.core.errors import InputError
from kernelmem.recording import recorder as recorder_module
from kernelmem.recording.recorder import Recorder
from kernelmem.recording.run import Run


def test_a_directory_with_a_run_is_refused_and_resuming_requires_one(lab):
    directory, model, _ = lab.record()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with pytest.raises(InputError, match=r"already holds a run.*resume=True"):
        Recorder(model, optimizer, directory, loss="cross_entropy")
    Run.open(directory).verify()
    recorder = Recorder(model, optimizer, lab.directory / "none", loss="cross_entropy", resume=True)
    with pytest.raises(InputError, match=r"without a tape.sqlite.*resume=False"), recorder:
        pass


def test_an_error_in_the_loop_leaves_a_run_that_ends_there(lab):
    model = lab.network(norm=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    states = []

    def train_and_fail():
        with Recorder(model, optimizer, lab.directory / "run", loss="cross_entropy", keep=4) as recorder:
            states.extend(lab.loop().run(model, optimizer, recorder, steps=3))
            model(lab.batch(3)[1])  # BatchNorm: the buffers are no longer those after the last step
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train_and_fail()
    run = Run.open(lab.directory / "run")
    run.verify()
    assert run.kept == (0, 3)
    assert lab.same([run.weights(3)], states[-1:])


def test_a_full_disk_ends_the_run_at_the_last_step_and_restore_resumes(lab, monkeypatch):
    model = lab.network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with Recorder(model, optimizer, lab.directory / "run", loss="cross_entropy", keep=2) as recorder:
        states = lab.loop().run(model, optimizer, recorder, steps=3)
        with monkeypatch.context() as patched:
            patched.setattr(recorder_module.checkpoints, "write_checkpoint", full_disk)
            with pytest.raises(
                InputError, match=r"to which the run cannot be written \(no space .* MiB free on its disk"
            ):
                lab.loop().run(model, optimizer, recorder, start=3, steps=4)
        with pytest.raises(InputError, match=r"differs from the last recorded step \(step 3\).*restore"):
            lab.loop().run(model, optimizer, recorder, start=4, steps=5)
        assert len(Run.open(lab.directory / "run")) == 3
        assert recorder.restore() == 2
        states[2:] = lab.loop().run(model, optimizer, recorder, start=2, steps=6)
    run = Run.open(lab.directory / "run")
    run.verify()
    assert len(run) == 6
    reference = lab.network()
    plain = lab.loop().run(reference, torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9), steps=6)
    assert lab.same(states, plain)


def full_disk(*_):
    raise OSError("no space left on device")


def test_resuming_requires_the_state_after_the_last_step(lab):
    directory, model, _ = lab.record(steps=4)
    options = {"loss": "cross_entropy", "resume": True}
    # weights alone are not the state: momentum is missing
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with Recorder(model, optimizer, directory, **options) as recorder:
        with pytest.raises(InputError, match=r"step 4.*restore\(\)"):
            lab.loop().run(model, optimizer, recorder, start=4, steps=5)
        assert recorder.restore() == 4
        lab.loop().run(model, optimizer, recorder, start=4, steps=5)
        with torch.no_grad():
            model[0].bias.add_(1)
        assert recorder.restore() == 5
    # what restore would put back may be there already
    with Recorder(model, optimizer, directory, **options) as recorder:
        lab.loop().run(model, optimizer, recorder, start=5, steps=6)
    run = Run.open(directory)
    run.verify()
    assert len(run) == 6


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"loss": "mse"}, "loss mse.*cross_entropy, as recorded"),
        ({"reduction": "sum"}, "reduction sum"),
        ({"keep": 2}, "keep 2"),
        ({"optimizer": torch.optim.Adam}, "optimizer Adam"),
        ({"model": lambda: nn.Linear(4, 3)}, "parameters"),
        ({"dtype": torch.float64}, "parameters"),
    ],
)
def test_resuming_another_run_is_refused(lab, change, words):
    directory, _, _ = lab.record(steps=2)
    change = dict(change)
    model = change.pop("model", lambda: lab.network(change.pop("dtype", torch.float32)))()
    optimizer = change.pop("optimizer", torch.optim.SGD)(model.parameters())
    options = {"loss": "cross_entropy", **change}
    with pytest.raises(InputError, match=words), Recorder(model, optimizer, directory, resume=True, **options):
        pass
    Run.open(directory).verify()


ENDS = ("between steps", "before the commit", "after the checkpoint")


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Directories of three runs whose processes end in the middle: forks of one process, which imports torch once."""
    script = textwrap.dedent(
        """
        import importlib.util, os, sys, torch
        spec = importlib.util.spec_from_file_location("helpers", sys.argv[1])
        helpers = importlib.util.module_from_spec(spec)
        sys.modules["helpers"] = helpers
        spec.loader.exec_module(helpers)
        from kernelmem.recording.recorder import Recorder
        from kernelmem.recording.storage.tape import Tape
        torch.set_num_threads(1)
        torch.optim.Adam([torch.nn.Parameter(torch.ones(1))])  # imports torch._dynamo, which takes seconds
        def train(directory, where):
            torch.manual_seed(3)
            model = helpers.network(dropout=0.5, norm=True)
            optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
            recorder = Recorder(model, optimizer, directory, loss="cross_entropy", keep=2)
            with recorder:
                helpers.Loop().run(model, optimizer, recorder, steps=5)
                if where == "before the commit":
                    optimizer.step = lambda: os._exit(9)
                elif where == "after the checkpoint":
                    Tape.append = lambda *_, **__: os._exit(9)
                else:
                    os._exit(9)
                helpers.Loop().run(model, optimizer, recorder, start=5, steps=6)
        for where in sys.argv[3:]:
            child = os.fork()
            if not child:
                try:
                    train(os.path.join(sys.argv[2], where), where)
                finally:
                    os._exit(1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9, where
        """
    )
    directory = tmp_path_factory.mktemp("killed")
    arguments = [str(Path(__file__).with_name("conftest.py")), str(directory), *ENDS]
    ended = subprocess.run([sys.executable, "-c", script, *arguments], check=False, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return directory


@pytest.mark.parametrize("where", ENDS)
def test_a_killed_process_leaves_its_run_and_resumes_to_the_same_weights(lab, killed, where):
    directory = killed / where
    run = Run.open(directory)
    run.verify()
    assert len(run) == 5
    assert run.kept == (0, 2, 4)
    model = lab.network(dropout=0.5, norm=True, seed=99)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with Recorder(model, optimizer, directory, loss="cross_entropy", keep=2, resume=True) as recorder:
        start = recorder.restore()
        assert start == 4
        resumed = lab.loop().run(model, optimizer, recorder, start=start, steps=8)
    reference = lab.network(dropout=0.5, norm=True)
    torch.manual_seed(3)
    plain = lab.loop().run(reference, torch.optim.Adam(reference.parameters(), lr=0.01), steps=8)
    assert lab.same(resumed, plain[4:])
    run = Run.open(directory)
    run.verify()
    assert run.kept == (0, 2, 4, 6, 8)
