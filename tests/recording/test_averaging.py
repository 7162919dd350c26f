"""kernelmem.recording.averaging: averaged weights equal the recorded combination of the weights of all steps."""

import copy
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim.swa_utils import (
    AveragedModel,
    get_ema_avg_fn,
    get_ema_multi_avg_fn,
    get_swa_multi_avg_fn,
    update_bn,
)

from kernelmem.core.errors import FileCorruptError, InputError
from kernelmem.recording.averaging import average_coefficients, combine_coefficients, fit_coefficient
from kernelmem.recording.recorder import Recorder
from kernelmem.recording.run import Run
from kernelmem.recording.storage.average_log import Average
from tests.tolerances import EPS

KINDS = {
    "swa": lambda model: AveragedModel(model),
    "swa multi": lambda model: AveragedModel(model, multi_avg_fn=get_swa_multi_avg_fn()),
    "ema 0.9": lambda model: AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9)),
    "ema 0.999": lambda model: AveragedModel(model, avg_fn=get_ema_avg_fn(0.999)),
    "ema buffers": lambda model: AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99), use_buffers=True),
}


def expected(kind, count):
    """The coefficient of update ``count``."""
    if count == 0:
        return 1.0
    return 1 / (count + 1) if kind.startswith("swa") else 1 - {"9": 0.9, "999": 0.999}.get(kind[6:], 0.99)


def record(lab, kind="ema 0.9", *, dtype=torch.float64, steps=9, every=1, first=0, keep=4, register=True, **options):
    """A run whose weights are averaged every ``every`` steps from step ``first`` on, and the averaged model."""
    model = lab.network(dtype, norm=True)
    averaged = KINDS[kind](model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    registered = {"averaged": averaged} if register else {}
    with Recorder(
        model, optimizer, lab.directory / "run", loss="cross_entropy", keep=keep, **registered, **options
    ) as recorder:
        train(lab, model, optimizer, recorder, averaged, steps=steps, every=every, first=first, dtype=dtype)
    return Run.open(lab.directory / "run"), model, averaged


def train(lab, model, optimizer, recorder, averaged, *, start=0, steps=9, every=1, first=0, dtype=torch.float64):
    for t in range(start, steps):
        lab.loop(dtype).run(model, optimizer, recorder, start=t, steps=t + 1)
        if t >= first and (t - first) % every == 0:
            recorder.average(averaged)


def combination(run, lab, dtype=torch.float64):
    from kernelmem.recording.replay import replay

    a = average_coefficients(run)
    states = [state for _, state in replay(run, lab.network(dtype, norm=True))]
    return {name: sum(a[t] * states[t][name].double() for t in range(len(states))) for name in run.parameters}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_the_averaged_weights_are_the_recorded_combination(lab, kind, dtype):
    run, _, averaged = record(lab, kind, dtype=dtype, steps=12)
    run.verify()
    assert [average.after_steps for average in run.averages] == list(range(1, 13))
    kappas = [expected(kind, count) for count in range(12)]
    assert [average.coefficient for average in run.averages] == pytest.approx(kappas, rel=6e-8, abs=0)
    if dtype == torch.float64 and kind != "swa multi":  # which computes 1/(n + 1) in float32
        assert [average.coefficient for average in run.averages] == pytest.approx(kappas, rel=3e-16, abs=0)
    a = average_coefficients(run)
    assert a.dtype == torch.float64
    assert tuple(a.shape) == (13,)
    assert float(a.sum()) == pytest.approx(1.0, abs=1e-15)
    assert float(a[0]) == 0.0
    eps = torch.finfo(dtype).eps
    found = run.averaged()
    for name, value in combination(run, lab, dtype).items():
        assert torch.equal(found[name], averaged.module.get_parameter(name))
        assert (found[name].double() - value).abs().max() <= 20 * eps * value.abs().max()
    assert list(found) == [*run.parameters, *run.buffers]
    assert all(torch.equal(found[name], averaged.module.get_buffer(name)) for name in run.buffers)


def test_control_other_coefficients_do_not_give_the_averaged_weights(lab):
    run, _, _ = record(lab)
    found = run.averaged()["0.weight"]
    a = average_coefficients(run).roll(1)
    weights = sum(a[t] * run_weights for t, run_weights in enumerate(weights_of(run, lab)))
    assert (found - weights).abs().max() > 1e-5


def weights_of(run, lab):
    from kernelmem.recording.replay import replay

    return [state["0.weight"] for _, state in replay(run, lab.network(torch.float64, norm=True))]


def test_recording_changes_neither_the_training_nor_the_average(lab):
    run, model, averaged = record(lab, "swa", dtype=torch.float32)
    plain = lab.network(norm=True)
    other = KINDS["swa"](plain)
    optimizer = torch.optim.Adam(plain.parameters(), lr=0.01)
    for t in range(9):
        lab.loop().run(plain, optimizer, start=t, steps=t + 1)
        other.update_parameters(plain)
    assert lab.same([model.state_dict(), averaged.state_dict()], [plain.state_dict(), other.state_dict()])
    assert len(run.averages) == 9


@given(
    st.lists(st.floats(0, 1), max_size=12),
    st.lists(st.integers(0, 4), min_size=13, max_size=13),
)
def test_combined_coefficients_equal_the_recursion(kappas, gaps):
    steps, places = 0, []
    for gap in gaps[: len(kappas) + 1]:
        steps += gap
        places.append(steps)
    averages = [Average(place, kappa, "") for place, kappa in zip(places, [1.0, *kappas], strict=True)]
    slow = torch.zeros(steps + 2, dtype=torch.float64)
    for average in averages:
        slow *= 1 - average.coefficient
        slow[average.after_steps] += average.coefficient
    fast = combine_coefficients(averages, steps + 1)
    assert (fast - slow).abs().max() <= 1e-14
    assert abs(float(fast.sum()) - 1) <= 1e-14
    assert float(fast[steps + 1]) == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@given(
    st.floats(-0.5, 1.5),
    st.integers(0, 2**31),
    st.sampled_from([1e-3, 1.0]),
)
def test_the_coefficient_is_found_within_rounding(dtype, kappa, seed, size):
    size = 1.0 if dtype == torch.bfloat16 else size  # smaller steps are lost in its rounding
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a": (40, 3), "b": (5,)}
    old = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
    now = {
        name: (value + size * torch.randn(value.shape, generator=generator).to(dtype)) for name, value in old.items()
    }
    new = {name: (old[name].double() + kappa * (now[name].double() - old[name].double())).to(dtype) for name in old}
    found = fit_coefficient(old, new, now)
    n = sum(value.numel() for value in old.values())  # terms of the two inner products of least squares, in float64
    assert abs(found - kappa) <= 4 * torch.finfo(dtype).eps / size + n * EPS * abs(kappa)
    # a wrong entry is found, and its parameter named: one that does not determine kappa all by itself
    unit = torch.finfo(dtype).eps * (old["b"].abs() + now["b"].abs())
    entry = ((now["b"] - old["b"]).abs() / unit).argmin()
    new["b"][entry] += 64 * unit[entry]
    with pytest.raises(InputError, match=r"one number kappa: .* b is off"):
        fit_coefficient(old, new, now)


def test_a_coefficient_near_a_likely_one_is_distinguished_from_it():
    generator = torch.Generator().manual_seed(0)
    old = {"w": torch.randn(1000, generator=generator)}
    now = {"w": old["w"] + torch.randn(1000, generator=generator)}
    for kappa in (0.1, 0.1 + 1e-6, 1 / 7, 0.001):
        new = {"w": torch.lerp(old["w"], now["w"], kappa)}
        assert abs(fit_coefficient(old, new, now, (0.1, 1 / 7)) - kappa) <= 1.2e-8
    assert fit_coefficient(old, {"w": torch.lerp(old["w"], now["w"], 1 - 0.999)}, now) == 1 - 0.999
    assert fit_coefficient(old, old, old) == 0.0
    assert fit_coefficient({"w": torch.zeros(3)}, {"w": torch.zeros(3)}, {"w": torch.zeros(3)}) == 0.0
    with pytest.raises(InputError, match="w is off by"):
        fit_coefficient({"w": torch.zeros(3)}, {"w": torch.ones(3)}, {"w": torch.zeros(3)})
    with pytest.raises(InputError, match=r"best kappa, 3,.*\|kappa\| <= 2"):
        fit_coefficient(old, {"w": old["w"] + 3 * (now["w"] - old["w"])}, now)
    with pytest.raises(InputError, match="w is off by nan"):
        fit_coefficient(old, {"w": old["w"] * torch.nan}, now)


def test_averages_at_some_steps_only_and_before_the_first(lab):
    model = lab.network(torch.float64, norm=True)
    averaged = KINDS["swa"](model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with Recorder(model, optimizer, lab.directory / "run", loss="cross_entropy", averaged=averaged) as recorder:
        recorder.average(averaged)
        train(lab, model, optimizer, recorder, averaged, steps=8, every=3, first=2)
        recorder.average()
    run = Run.open(lab.directory / "run")
    run.verify()
    assert [average.after_steps for average in run.averages] == [0, 3, 6, 8]
    assert average_coefficients(run).tolist() == pytest.approx([1 / 4, 0, 0, 1 / 4, 0, 0, 1 / 4, 0, 1 / 4], abs=1e-15)
    for name, value in combination(run, lab).items():
        assert (run.averaged()[name] - value).abs().max() <= 1e-14


def test_two_averages_of_the_same_weights(lab):
    model = lab.network(torch.float64)
    averaged = KINDS["ema 0.9"](model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, lab.directory / "run", loss="cross_entropy") as recorder:
        recorder.average(averaged)
        recorder.average(averaged)
        train(lab, model, optimizer, recorder, averaged, steps=2)
    run = Run.open(lab.directory / "run")
    assert [average.coefficient for average in run.averages][:2] == [1.0, 0.0]
    assert average_coefficients(run).tolist() == pytest.approx([0.81, 0.09, 0.1], abs=1e-15)


def test_update_bn_inside_the_block_is_kept(lab):
    model = lab.network(torch.float64, norm=True)
    averaged = KINDS["swa"](model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with Recorder(model, optimizer, lab.directory / "run", loss="cross_entropy", averaged=averaged) as recorder:
        train(lab, model, optimizer, recorder, averaged)
        before = averaged.module[1].running_mean.clone()
        update_bn([lab.batch(t, torch.float64)[1] for t in range(5)], averaged)
    run = Run.open(lab.directory / "run")
    run.verify()
    found = run.averaged()
    assert not torch.equal(found["1.running_mean"], before)
    assert torch.equal(found["1.running_mean"], averaged.module[1].running_mean)
    assert run.kept[-1] == 9
    assert torch.equal(run.checkpoint(9).averaged["1.running_mean"], before)


def test_averaged_parameters_that_change_elsewhere_are_refused(lab):
    model = lab.network(torch.float64)
    averaged = KINDS["swa"](model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = Recorder(model, optimizer, lab.directory / "run", loss="cross_entropy")
    words = r"averaged parameter 2\.bias, which has changed"
    with pytest.raises(InputError, match=words), recorder:  # noqa: PT012
        train(lab, model, optimizer, recorder, averaged, steps=3)
        with torch.no_grad():
            averaged.module[2].bias.add_(1)
        with pytest.raises(InputError, match=words):
            recorder.average(averaged)
    run = Run.open(lab.directory / "run")
    assert len(run.averages) == 3
    with pytest.raises(InputError, match="ended before its averaged weights were written"):
        run.averaged()


def test_updates_that_are_not_averages_are_refused(lab):
    model = lab.network(torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def uneven(old, new, count):
        return old + (new - old) * (0.1 if old.ndim == 2 else 0.2)

    def another(averaged, recorder):
        recorder.average(averaged)
        return AveragedModel(model)

    def unseen(averaged, _):
        averaged.update_parameters(model)
        return averaged

    cases = [
        (lambda: AveragedModel(model, avg_fn=uneven), None, r"one number kappa.* \d\.(weight|bias) is off by"),
        (lambda: AveragedModel(model), another, "another averaged model"),
        (lambda: AveragedModel(model), unseen, "after 1 updates, 0 of them recorded"),
        (lambda: AveragedModel(nn.Linear(4, 3)), None, "2 parameters, which differ from those"),
        (lambda: copy.deepcopy(model), None, "averaged of type Sequential"),
        (lambda: None, None, "no averaged model"),
    ]
    for i, (make, change, words) in enumerate(cases):
        averaged = make()
        with Recorder(model, optimizer, lab.directory / str(i), loss="cross_entropy") as recorder:
            lab.loop(torch.float64).run(model, optimizer, recorder, steps=1)
            if "kappa" in words:
                recorder.average(averaged)
                lab.loop(torch.float64).run(model, optimizer, recorder, steps=1)
                before = copy.deepcopy(averaged.state_dict())
            given = averaged if change is None else change(averaged, recorder)
            with pytest.raises(InputError, match=words):
                recorder.average(given)
            if "kappa" in words:
                assert lab.same([averaged.state_dict()], [before])
    with pytest.raises(InputError, match="averaged of type Sequential"):
        Recorder(model, optimizer, lab.directory / "x", loss="cross_entropy", averaged=model)
    recorder = Recorder(model, optimizer, lab.directory / "x", loss="cross_entropy")
    with pytest.raises(InputError, match="outside the recorder"):
        recorder.average(AveragedModel(model))


def test_a_run_without_averages_raises(lab):
    run = Run.open(lab.record()[0])
    assert run.averages == ()
    for read in (run.averaged, lambda: average_coefficients(run)):
        with pytest.raises(InputError, match="no averaged weights"):
            read()
    run.verify()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE averages SET coefficient = 0.25 WHERE position = 3",
        "UPDATE averages SET step = 5 WHERE position = 3",
        "UPDATE averages SET sha256 = 'f' WHERE position = 8",
        "DELETE FROM averages WHERE position = 0",
        "DELETE FROM averages WHERE position = 4",
        "UPDATE averages SET position = 20 WHERE position = 8",
        "DELETE FROM averages WHERE position >= 5",
        "UPDATE averaged SET sha256 = 'f'",
        "UPDATE averaged SET seal = 'f'",
    ],
)
def test_altered_averages_are_found(lab, statement):
    run, _, _ = record(lab)
    import sqlite3

    connection = sqlite3.connect(run.tape.file)
    with connection:
        assert connection.execute(statement).rowcount > 0
    connection.close()
    with pytest.raises(FileCorruptError):
        Run.open(run.path).verify()


def test_an_altered_or_missing_averaged_file_is_found_and_the_run_still_opens(lab):
    run, _, _ = record(lab)
    (file,) = (run.path / "weights").glob("averaged-*")
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    for read in (Run.open(run.path).averaged, Run.open(run.path).verify):
        with pytest.raises(FileCorruptError, match="averaged weights"):
            read()
    file.unlink()
    again = Run.open(run.path)
    assert len(again.averages) == 9
    assert float(average_coefficients(again).sum()) == pytest.approx(1)
    with pytest.raises(FileCorruptError, match="averaged weights"):
        again.averaged()


def test_a_checkpoint_is_tied_to_its_averages(lab, monkeypatch):
    from kernelmem.recording import averaging as module

    monkeypatch.setattr(module.AverageTracker, "sha256", lambda *_: "0" * 64)
    run, _, _ = record(lab)
    with pytest.raises(FileCorruptError, match=r"checkpoint of step 4 .* averaged weights"):
        run.verify()


WHERE = ("after a step", "after an average", "between")


@pytest.mark.parametrize("register", [True, False])
@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("keep", ["all", 2])
def test_a_loop_that_ends_anywhere_resumes_to_the_same_average(lab, where, register, keep):
    """The disk as it is after four steps and three averages, after four of each, or in the fifth step, before its commit."""
    model = lab.network(torch.float64, norm=True)
    averaged = KINDS["ema 0.9"](model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    registered = {"averaged": averaged} if register else {}
    directory = lab.directory / "copy"

    def copied():
        shutil.copytree(lab.directory / "made", directory)

    def in_the_step(self, *_, **__):
        copied()
        raise ZeroDivisionError

    with Recorder(model, optimizer, lab.directory / "made", loss="cross_entropy", keep=keep, **registered) as recorder:
        for t in range(4):
            lab.loop(torch.float64).run(model, optimizer, recorder, start=t, steps=t + 1)
            if t == 3 and where == "after a step":
                copied()
            recorder.average(averaged)
        if where == "after an average":
            copied()
        elif where == "between":
            optimizer.step = in_the_step.__get__(optimizer)
            with pytest.raises(ZeroDivisionError):
                lab.loop(torch.float64).run(model, optimizer, recorder, start=4, steps=5)
    check_resumed(lab, directory, where, keep)


def test_a_killed_process_resumes_to_the_same_average(lab):
    where, register, keep = "between", True, 2
    script = textwrap.dedent(
        """
        import importlib.util, os, sys, torch
        spec = importlib.util.spec_from_file_location("helpers", sys.argv[1])
        helpers = importlib.util.module_from_spec(spec)
        sys.modules["helpers"] = helpers
        spec.loader.exec_module(helpers)
        from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
        from kernelmem.recording.recorder import Recorder
        torch.set_num_threads(1)
        model = helpers.network(torch.float64, norm=True)
        averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        registered = {"averaged": averaged} if sys.argv[4] == "True" else {}
        keep = sys.argv[5] if sys.argv[5] == "all" else int(sys.argv[5])
        with Recorder(model, optimizer, sys.argv[2], loss="cross_entropy", keep=keep, **registered) as recorder:
            for t in range(4):
                helpers.Loop(torch.float64).run(model, optimizer, recorder, start=t, steps=t + 1)
                recorder.average(averaged)
                if t == 3 and sys.argv[3] == "after an average":
                    os._exit(9)
            optimizer.step = lambda: os._exit(9)
            helpers.Loop(torch.float64).run(model, optimizer, recorder, start=4, steps=5)
        """
    )
    directory = lab.directory / "run"
    arguments = [str(Path(__file__).with_name("conftest.py")), str(directory), where, str(register), str(keep)]
    ended = subprocess.run([sys.executable, "-c", script, *arguments], check=False, capture_output=True, text=True)
    assert ended.returncode == 9, ended.stderr
    check_resumed(lab, directory, where, keep)


def check_resumed(lab, directory, where, keep):
    """A run that ended in its fourth step is whole, and goes on to what a run of nine steps gives."""
    run = Run.open(directory)
    run.verify()
    assert len(run) == 4
    assert [average.after_steps for average in run.averages] == list(range(1, 4 if where == "after a step" else 5))
    with pytest.raises(InputError, match="ended before"):
        run.averaged()
    model = lab.network(torch.float64, norm=True, seed=9)
    averaged = KINDS["ema 0.9"](model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    options = {"loss": "cross_entropy", "keep": keep, "resume": True}
    with (
        pytest.raises(InputError, match="no averaged model for the run"),
        Recorder(model, optimizer, directory, **options),
    ):
        pass
    with Recorder(model, optimizer, directory, **options, averaged=averaged) as recorder:
        with pytest.raises(InputError, match="restore"):
            recorder.average(averaged)
        start = recorder.restore()
        # a checkpoint counts once what followed its step is known
        whole = {"all": {"after a step": 3, "after an average": 3, "between": 4}}
        assert start == whole.get(keep, {"after a step": 2, "after an average": 2, "between": 4})[where]
        train(lab, model, optimizer, recorder, averaged, start=start)
    resumed = Run.open(directory)
    resumed.verify()
    lab.directory = lab.directory / "other"
    other, plain, reference = record(lab)
    assert lab.same([averaged.state_dict(), model.state_dict()], [reference.state_dict(), plain.state_dict()])
    assert resumed.averages == other.averages
    assert lab.same([resumed.averaged()], [other.averaged()])


def test_resuming_from_the_last_state_and_dropping_later_averages(lab):
    run, model, averaged = record(lab)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    other = KINDS["ema 0.9"](model)
    options = {"loss": "cross_entropy", "keep": 4, "resume": True}
    with Recorder(model, optimizer, run.path, averaged=other, **options) as recorder:
        assert recorder.restore() == 9
        assert lab.same([other.state_dict()], [averaged.state_dict()])
    # what restore would put back is there already
    with Recorder(model, optimizer, run.path, averaged=other, **options) as recorder:
        train(lab, model, optimizer, recorder, other, start=9, steps=11)
    again = Run.open(run.path)
    again.verify()
    assert again.averages[:9] == run.averages
    assert len(again.averages) == 11
    assert len(list((run.path / "weights").glob("averaged-*"))) == 1
    # an averaged model in another state has to be restored, be it only in the number of its updates
    fewer = copy.deepcopy(other)
    fewer.n_averaged.fill_(3)
    for strange in (fewer, averaged):
        with Recorder(model, optimizer, run.path, averaged=strange, **options) as recorder:
            with pytest.raises(InputError, match="restore"):
                recorder.average(strange)
            with pytest.raises(InputError, match="restore"):
                lab.loop(torch.float64).run(model, optimizer, recorder, start=11, steps=12)
    assert Run.open(run.path).averages == again.averages
    assert lab.same([Run.open(run.path).averaged()], [again.averaged()])


def test_a_full_disk_leaves_the_average_as_it_was(lab, monkeypatch):
    model = lab.network(torch.float64)
    averaged = KINDS["swa"](model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def full(*_):
        raise OSError("no space left on device")

    with Recorder(model, optimizer, lab.directory / "run", loss="cross_entropy", averaged=averaged) as recorder:
        train(lab, model, optimizer, recorder, averaged, steps=2)
        before = copy.deepcopy(averaged.state_dict())
        with monkeypatch.context() as patched:
            patched.setattr(recorder._tape, "append_average", full)
            with pytest.raises(OSError, match="no space"):
                train(lab, model, optimizer, recorder, averaged, start=2, steps=3)
        assert lab.same([averaged.state_dict()], [before])
        recorder.average(averaged)
    run = Run.open(lab.directory / "run")
    run.verify()
    assert average_coefficients(run).tolist() == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3])
