"""kernelmem.recording.trainers.fit: train and record in one call; the same seed gives the same bytes, also after a crash."""

import copy
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kernelmem.core.errors import InputError, NumericalError, UnsupportedModelError
from kernelmem.recording.replay import replay
from kernelmem.recording.run import Run
from kernelmem.recording.trainers.fit import FitOptions, fit
from kernelmem.training.batching import batch_sizes, shuffled
from kernelmem.trajectory.ledger.ledger import ledger as compute_ledger

N = 23


def data(dtype=torch.float32, n=N):
    generator = torch.Generator().manual_seed(3)
    x, y = torch.randn(n, 4, generator=generator), torch.randint(3, (n,), generator=generator)
    return x.to(dtype), y


def warmup(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: min(1.0, (t + 1) / 5))


OPTIONS = {
    "plain": {},
    "sgd": {"optimizer": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), "clip": 0.3, "keep": 4},
    "scheduled": {"schedule": warmup, "keep": "sqrt", "batch_size": 5},
    "cycle": {"schedule": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.01, total_steps=20), "keep": 100},
    "weighted": {"sample_weight": 0.5 + torch.arange(N) % 2, "loss": "mse"},
    "mean": {"loss": "mse_mean", "sample_weight": torch.ones(N)},
}


def trained(lab, name="run", *, seed=1, dtype=torch.float32, model=None, **options):
    model = lab.network(dtype, dropout=0.3, norm=True) if model is None else model
    options = {"epochs": 3, "batch_size": 6, **options}
    arguments = {key: options.pop(key) for key in ("epochs", "sample_weight") if key in options}
    return fit(
        model, *data(dtype), out=lab.directory / name, seed=seed, options=FitOptions(**options), **arguments
    ), model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", OPTIONS)
def test_fit_equals_the_plain_loop_and_replays(lab, name, dtype):
    options = OPTIONS[name]
    run, model = trained(lab, dtype=dtype, **options)
    run.verify()
    assert not model.training
    plain = lab.network(dtype, dropout=0.3, norm=True)
    made = options.get("optimizer", lambda p: torch.optim.AdamW(p, lr=1e-3))(plain.parameters())
    schedule = options["schedule"](made) if "schedule" in options else None
    x, y = data(dtype)
    with torch.random.fork_rng():
        torch.set_rng_state(torch.frombuffer(bytearray(run.steps[0].random), dtype=torch.uint8))
        for step in run.steps:
            index = step.examples
            made.zero_grad()
            f = plain(x[index])
            hot = F.one_hot(y[index], 3).to(dtype)
            value = {
                "mse": lambda f=f, hot=hot: 0.5 * (f - hot).square().sum(1),
                "mse_mean": lambda f=f, hot=hot: F.mse_loss(f, hot),
                "cross_entropy": lambda f=f, index=index: F.cross_entropy(f, y[index], reduction="none"),
            }[run.loss]()
            weight = options.get("sample_weight", torch.ones(N))[index]
            (value.mean() if bool((weight == 1).all()) else (value * weight.to(dtype)).mean()).backward()
            if "clip" in options:
                nn.utils.clip_grad_norm_(plain.parameters(), options["clip"])
            made.step()
            if schedule is not None:
                schedule.step()
    assert lab.same([model.state_dict()], [plain.state_dict()])
    *_, (last, weights) = replay(run, lab.network(dtype, dropout=0.3, norm=True))
    assert last == 3 * len(batch_sizes(N, options.get("batch_size", 6)))
    assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())
    assert {step.scale == 1.0 for step in run.steps} == {"clip" not in options}


def test_every_row_appears_once_per_epoch_and_a_single_row_joins_the_batch_before_it(lab):
    run, _ = trained(lab, batch_size=11)
    assert [len(step.examples) for step in run.steps] == [11, 12] * 3
    epochs = [torch.cat([step.examples for step in run.steps[2 * i : 2 * i + 2]]) for i in range(3)]
    assert all(epoch.sort().values.tolist() == list(range(N)) for epoch in epochs)
    assert not torch.equal(epochs[0], epochs[1])
    assert [len(batch) for epoch in shuffled(5, 2, epochs=2, seed=0) for batch in epoch] == [2, 3, 2, 3]
    assert batch_sizes(1, 4) == [1]


def test_the_seed_determines_everything(lab):
    torch.manual_seed(1)
    first, model = trained(lab, "first")
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second, again = trained(lab, "second")
    assert torch.equal(torch.get_rng_state(), before)
    assert first.tape.head == second.tape.head
    assert lab.same([model.state_dict()], [again.state_dict()])
    third, _ = trained(lab, "third", seed=2)
    assert not torch.equal(third.steps[0].examples, first.steps[0].examples)
    assert third.steps[0].random != first.steps[0].random


def test_progress_dicts_of_arrays_and_an_existing_optimizer(lab):
    seen = []
    model = lab.network(torch.float32)
    x, y = data(torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = fit(
        model,
        {"x": x.numpy()},
        y.numpy(),
        out=lab.directory / "run",
        epochs=2,
        seed=0,
        options=FitOptions(optimizer=optimizer),
        forward=lambda model, batch: model(batch["x"]),
        progress=lambda *told: seen.append(told),
    )
    assert seen == [(1, 2), (2, 2)]
    assert run.batch(0)[0]["x"].dtype == torch.float32


def test_a_loss_that_is_not_finite_ends_the_run_before_its_step(lab):
    with pytest.raises(NumericalError, match=r"a loss of (nan|inf) in step \d+, epoch \d+.*lower the learning rate"):
        trained(lab, optimizer=lambda p: torch.optim.SGD(p, lr=1e30), loss="mse", epochs=9)
    run = Run.open(lab.directory / "run")
    run.verify()
    assert 0 < len(run) < 36


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epochs": 0}, "epochs=0"),
        ({"epochs": 2.5}, r"epochs=2\.5"),
        ({"batch_size": True}, "batch_size=True"),
        ({"clip": 0.0}, r"clip=0\.0"),
        ({"clip": float("nan")}, "clip=nan"),
        ({"seed": -1}, "seed=-1"),
        ({"sample_weight": torch.ones(5)}, r"sample_weight of shape \(5,\) for 23 rows"),
        ({"sample_weight": torch.ones(N, 1)}, r"sample_weight of shape \(23, 1\)"),
        ({"loss": "hinge"}, "loss='hinge'"),
        ({"schedule": torch.optim.lr_scheduler.ReduceLROnPlateau}, "ReduceLROnPlateau"),
        ({"optimizer": lambda p: torch.optim.Adamax(p)}, "Adamax"),
        ({"optimizer": torch.optim.SGD(nn.Linear(2, 2).parameters())}, "not the model's"),
    ],
)
def test_invalid_arguments_are_refused_before_anything_is_written(lab, options, words):
    with pytest.raises(InputError, match=words):
        trained(lab, **options)
    assert not (lab.directory / "run").exists()


def test_wrong_targets_and_a_directory_with_a_run_are_refused(lab):
    x, y = data()
    with pytest.raises(InputError, match=r"y of shape \(22,\) for 23 rows"):
        fit(lab.network(), x, y[1:], out=lab.directory / "run", epochs=1, seed=0)
    with pytest.raises(InputError, match="range of the model's dtype"):
        fit(lab.network(), x.double() * 1e300, y, out=lab.directory / "run", epochs=1, seed=0)
    trained(lab)
    with pytest.raises(InputError, match="already holds a run"):
        trained(lab)


SCRIPT = textwrap.dedent(
    """
    import importlib.util, os, sys, torch
    from pathlib import Path
    for name, folder in (("conftest", Path(sys.argv[1]).parent), ("test_fit", Path(sys.argv[1]))):
        spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    import test_fit, conftest
    torch.set_num_threads(1)
    lab = conftest.Lab(Path(sys.argv[2]))
    steps = []
    def killed(parameters):
        optimizer = torch.optim.AdamW(parameters, lr=0.01)
        step = optimizer.step
        def counted():
            steps.append(1)
            return os._exit(9) if len(steps) == 8 else step()
        optimizer.step = counted
        return optimizer
    test_fit.trained(lab, optimizer=killed, keep=3, clip=0.5)
    """
)


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=0.01)


def test_a_killed_fit_resumes_to_the_same_bits(lab):
    arguments = [str(Path(__file__).parent), str(lab.directory)]
    ended = subprocess.run([sys.executable, "-c", SCRIPT, *arguments], check=False, capture_output=True, text=True)
    assert ended.returncode == 9, ended.stderr
    killed = Run.open(lab.directory / "run")
    assert (len(killed), killed.kept) == (7, (0, 3, 6))
    killed.tape.close()
    options = {"optimizer": adamw, "keep": 3, "clip": 0.5}
    resumed, model = trained(lab, resume=True, model=lab.network(dropout=0.3, norm=True, seed=77), **options)
    whole, plain = trained(lab, "whole", resume=True, **options)  # of nothing: from the start
    assert lab.same([model.state_dict()], [plain.state_dict()])
    assert resumed.tape.head == whole.tape.head
    assert resumed.kept == whole.kept
    resumed.verify()
    assert not list((lab.directory / "run").glob("*-wal"))


@pytest.mark.parametrize("name", ["scheduled", "cycle", "sgd"])
def test_more_epochs_continue_with_schedule_and_optimizer_state(lab, name):
    options = OPTIONS[name]
    trained(lab, epochs=2, **options)
    longer, model = trained(lab, epochs=4, resume=True, model=lab.network(dropout=0.3, norm=True, seed=5), **options)
    whole, plain = trained(lab, "whole", epochs=4, **options)
    assert longer.tape.head == whole.tape.head
    assert lab.same([model.state_dict()], [plain.state_dict()])
    same, again = trained(lab, epochs=4, resume=True, model=lab.network(dropout=0.3, norm=True, seed=6), **options)
    assert same.tape.head == whole.tape.head
    assert lab.same([again.state_dict()], [plain.state_dict()])
    assert not again.training


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 2}, "step 0 of the run in .* another batch"),
        ({"batch_size": 5}, "step 0 .* another batch"),
        ({"epochs": 1}, "step 4 .* another batch"),
        ({"schedule": warmup}, "step 0 .* another hyper-parameters"),
        ({"optimizer": lambda p: torch.optim.AdamW(p, lr=0.1)}, "step 0 .* another hyper-parameters"),
        ({"optimizer": torch.optim.SGD}, "optimizer SGD"),
        ({"loss": "mse"}, "loss mse"),
    ],
)
def test_resuming_with_other_arguments_is_refused(lab, change, words):
    trained(lab)
    with pytest.raises(InputError, match=words):
        trained(lab, resume=True, **change)


@pytest.mark.parametrize("part", ["x", "y"])
def test_resuming_with_other_data_is_refused(lab, part):
    trained(lab)
    x, y = data()
    x, y = (x + 1, y) if part == "x" else (x, (y + 1) % 3)
    with pytest.raises(InputError, match=f"{part} that differs"):
        fit(
            copy.deepcopy(lab.network(dropout=0.3, norm=True)),
            x,
            y,
            out=lab.directory / "run",
            epochs=4,
            seed=1,
            options=FitOptions(batch_size=6, resume=True),
        )


def test_a_model_that_writes_over_its_input(lab):
    class Doubling(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = lab.network()

        def forward(self, x):
            x *= 2.0
            return self.inner(x)

    x, y = data()
    before = x.clone()
    run = fit(Doubling(), x, y, out=lab.directory / "run", epochs=2, seed=0, options=FitOptions(batch_size=6))
    assert torch.equal(x, before)
    assert all(torch.equal(run.batch(t)[0], x[run.steps[t].examples]) for t in range(len(run)))


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5]), label_smoothing=0.1, ignore_index=2),
        nn.CrossEntropyLoss(reduction="sum"),
        nn.MSELoss(),
    ],
)
def test_a_loss_module_trains_as_in_torch_and_its_run_explains_itself(tmp_path, loss):
    torch.manual_seed(0)
    x, labels = torch.randn(18, 4), torch.arange(18) % 3
    y = nn.functional.one_hot(labels, 3).float() if isinstance(loss, nn.MSELoss) else labels
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3))
    plain = copy.deepcopy(model)
    options = FitOptions(loss=loss, optimizer=lambda p: torch.optim.SGD(p, lr=0.05), batch_size=6, keep=2)
    run = fit(model, x, y, out=tmp_path / "run", epochs=2, seed=0, options=options)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.05)
    for t in range(len(run)):
        optimizer.zero_grad()
        index = run.steps[t].examples
        loss(plain(x[index]), y[index]).backward()
        optimizer.step()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    for arguments in ({}, {"loss": loss}):  # the options of the module are stored with the run
        ledger = compute_ledger(run, model, x[:2], **arguments)
        change = float((ledger.final - ledger.initial).abs().max())
        assert float(ledger.rounding.abs().max()) <= 1e-4 * change
        assert float(ledger.residual.abs().max()) <= 1e-4 * change
    with pytest.raises(InputError, match="as recorded"):
        compute_ledger(run, model, x[:2], loss=nn.L1Loss())


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 3, batch_first=True)

    def forward(self, x):
        return self.lstm(x)


def test_outputs_that_are_not_a_matrix_are_refused_before_training(tmp_path):
    torch.manual_seed(0)
    x, y = torch.randn(6, 5, 4), torch.arange(6) % 3
    with pytest.raises(
        UnsupportedModelError, match=r"tuple of \(6, 5, 3\).*Hint: pass forward=.*model\(x\)\[0\]\[:, -1\]"
    ):
        fit(Recurrent(), x, y, out=tmp_path / "a", epochs=1, seed=0)
    run = fit(Recurrent(), x, y, out=tmp_path / "b", epochs=1, seed=0, forward=lambda model, x: model(x)[0][:, -1])
    assert len(run) == 1


def test_fits_in_threads_neither_disturb_each_other_nor_the_global_random_state(tmp_path):
    x, y = torch.randn(16, 4), torch.arange(16) % 3
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    copies = {name: copy.deepcopy(model) for name in ("alone", "a", "b", "c")}
    before = torch.get_rng_state()

    def train(name):
        fit(copies[name], x, y, out=tmp_path / name, epochs=3, seed=1, options=FitOptions(batch_size=4))
        return copies[name].state_dict()

    expected = train("alone")
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(train, ["a", "b", "c"]))
    assert torch.equal(torch.get_rng_state(), before)
    for result in results:
        assert all(torch.equal(result[name], value) for name, value in expected.items())
