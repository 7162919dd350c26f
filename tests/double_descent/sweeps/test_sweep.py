import multiprocessing
import os
import signal
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kernelmem.core.errors import InputError, UnsupportedModelError
from kernelmem.double_descent.sweeps.options import Execution, SweepOptions
from kernelmem.double_descent.sweeps.random_features import FeatureOptions, feature_sweep
from kernelmem.double_descent.sweeps.result import Sweep
from kernelmem.double_descent.sweeps.sweep import ThresholdWarning, sweep
from kernelmem.double_descent.sweeps.threshold_search import SearchOptions, find_threshold
from kernelmem.training.datasets import LabeledData
from kernelmem.training.ensemble.members import EnsembleOptions, Member
from kernelmem.training.ensemble.recipe import Recipe
from kernelmem.training.ensemble.train import train_one
from kernelmem.training.mlp import mlp

RECIPE = Recipe(steps=60, batch_size=16, lr=0.02)
ALL = ("test_error", "test_loss", "train_error", "train_loss", "memorized_flips", "recovered_flips", "noisy_test_error")


def blobs(n: int = 60, m: int = 90, d: int = 6, C: int = 3) -> LabeledData:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(n + m) % C
    x = torch.randn(n + m, d, generator=generator) + 2.0 * torch.eye(C, d)[y]
    return LabeledData("blobs", x[:n], y[:n], x[n:], y[n:])


def make_model(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3))


def train(model: nn.Module, x: Tensor, y: Tensor, seed: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(30):
        batch = torch.randperm(len(x))[:16]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()


def same(a: Sweep, b: Sweep) -> None:
    for one, other in ((a.curves, b.curves), (a.control, b.control)):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            for name in ALL:
                assert torch.equal(
                    torch.nan_to_num(getattr(one, name), -1), torch.nan_to_num(getattr(other, name), -1)
                ), name


def test_metrics_are_those_of_the_plain_loop() -> None:
    data = blobs()
    found = sweep(
        data, "width", [3, 9], recipe=RECIPE, n_seeds=2, options=SweepOptions(n=50, control=1),
        execution=Execution(dtype=torch.float64),
    )  # fmt: skip
    from kernelmem.core.checks import seed_sequence
    from kernelmem.double_descent.sweeps.training_sets import draw_for_seed

    for s in range(2):
        drawn = draw_for_seed(data.y_train, seed_sequence(0, ["0", "1"])[str(s)])
        for a, width in enumerate((3, 9)):
            for curves, rate in ((found.curves, 0.2), *([(found.control, 0.0)] if s == 0 else [])):
                rows = drawn.training_set(50, rate)
                member = Member(width, rows.indices, rows.labels, drawn.init_seed, drawn.order_seed)
                model = mlp(6, (width,), 3, "relu", seed=drawn.init_seed)
                options = EnsembleOptions(dtype=torch.float64)
                test = (data.x_test, data.y_test)
                own = train_one(model, member, data.x_train, test=test, recipe=RECIPE, options=options)
                last = own.metrics[-1]
                for name in ALL[:4]:
                    assert float(getattr(curves, name)[s, a]) == pytest.approx(float(getattr(last, name)[0]), abs=1e-9)
                said = last.train_predictions[0]
                flips = rows.flipped
                if rate:
                    assert float(curves.memorized_flips[s, a]) == float(
                        (said[flips] == rows.labels[flips]).double().mean()
                    )
                    assert float(curves.recovered_flips[s, a]) == float(
                        (said[flips] == rows.true_labels[flips]).double().mean()
                    )
                else:
                    assert bool(curves.memorized_flips[s, a].isnan())
                    assert bool(curves.noisy_test_error[s, a] == curves.test_error[s, a])


@pytest.mark.parametrize(
    ("over", "values"),
    [
        ("width", [2, 5, 9]),
        ("samples", [15, 40, 60]),
        ("steps", [0, 20, 60]),
        ("noise", [0, 0.3]),
        ("ridge", [0, 0.1]),
        ("depth", [1, 2]),
    ],
)
def test_every_axis(over: str, values: list[float], tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    found = sweep(
        blobs(),
        over,
        values,
        recipe=RECIPE,
        n_seeds=2,
        options=SweepOptions(width=5, control=1),
        execution=Execution(out=tmp_path),
        progress=lambda a, b: seen.append((a, b)),
    )
    assert found.curves.shape == (2, len(values))
    assert (found.control is None) == (over == "noise")
    networks = (2 + (over != "noise")) * (1 if over == "steps" else len(values))
    assert seen[0] == (0, networks)
    assert seen[-1] == (networks, networks)
    for name in ALL[:4]:
        assert bool(torch.isfinite(getattr(found.curves, name)).all())
    # all of it is kept: the same call trains nothing
    again: list[tuple[int, int]] = []
    same(
        found,
        sweep(
            blobs(),
            over,
            values,
            recipe=RECIPE,
            n_seeds=2,
            options=SweepOptions(width=5, control=1),
            execution=Execution(out=tmp_path),
            progress=lambda a, b: again.append((a, b)),
        ),
    )
    assert again == [(networks, networks)]


def test_axes_meet() -> None:
    data, common = blobs(), {"recipe": RECIPE, "n_seeds": 2, "execution": Execution(dtype=torch.float64)}
    by_width = sweep(data, "width", [4, 5], options=SweepOptions(n=40, control=1), **common)
    by_samples = sweep(data, "samples", [20, 40], options=SweepOptions(width=5, control=1), **common)
    by_steps = sweep(data, "steps", [30, 60], options=SweepOptions(width=5, n=40, control=1), **common)
    for other in (by_samples, by_steps):
        for name in ALL[:4]:
            torch.testing.assert_close(
                getattr(other.curves, name)[:, 1], getattr(by_width.curves, name)[:, 1], rtol=0, atol=1e-9
            )


def test_chunks_do_not_matter_and_a_damaged_one_is_done_again(tmp_path: Path) -> None:
    options = {"recipe": RECIPE, "n_seeds": 2, "options": SweepOptions(control=1)}
    execution = Execution(out=tmp_path, chunk=3, dtype=torch.float64)
    whole = sweep(blobs(), "width", [3, 6, 12], execution=execution, **options)
    files = sorted((tmp_path / "chunks").iterdir())
    assert len(files) == 3
    files[0].write_bytes(files[0].read_bytes()[:-7])
    files[1].write_bytes(files[2].read_bytes())  # another chunk under this name
    again: list[int] = []
    same(
        whole,
        sweep(blobs(), "width", [3, 6, 12], execution=execution, progress=lambda a, _: again.append(a), **options),
    )
    assert again == [3, 6, 9]
    one = sweep(blobs(), "width", [3, 6, 12], execution=Execution(chunk=1, dtype=torch.float64), **options)
    for name in ALL[:4]:
        torch.testing.assert_close(getattr(one.curves, name), getattr(whole.curves, name), rtol=0, atol=1e-9)
    # another recipe does not find these files
    other = sweep(blobs(), "width", [3, 6, 12], execution=execution, **options | {"recipe": replace(RECIPE, lr=0.01)})
    assert not torch.equal(other.curves.train_loss, whole.curves.train_loss)


SCRIPT = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_sweep as own
from kernelmem.double_descent.sweeps.options import Execution, SweepOptions
from kernelmem.double_descent.sweeps.sweep import sweep

def wait(done, total):
    if done:
        time.sleep(0.3)

options, execution = SweepOptions(control=2), Execution(out=sys.argv[1], chunk=3)
sweep(
    own.blobs(), "width", [3, 6, 12], recipe=own.RECIPE, n_seeds=4, options=options, execution=execution, progress=wait
)
"""


def test_a_killed_run_resumes_to_the_same_result(tmp_path: Path) -> None:
    script = SCRIPT.format(tests=str(Path(__file__).parent))
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    started = time.monotonic()
    while not list(tmp_path.glob("chunks/*.safetensors")):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() - started < 60
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = len(list(tmp_path.glob("chunks/*.safetensors")))
    assert 1 <= kept < 6
    options, execution = {"recipe": RECIPE, "n_seeds": 4, "options": SweepOptions(control=2)}, Execution(chunk=3)
    seen: list[int] = []
    resumed = sweep(
        blobs(), "width", [3, 6, 12], execution=replace(execution, out=tmp_path),
        progress=lambda a, _: seen.append(a), **options,
    )  # fmt: skip
    assert seen[0] == 3 * kept
    same(resumed, sweep(blobs(), "width", [3, 6, 12], execution=execution, **options))


def test_a_sweep_in_a_process_of_the_user_leaves_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: object())
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        sweep(blobs(), "width", [3, 6], recipe=Recipe(steps=2), n_seeds=1, options=SweepOptions(control=0))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_own_models_and_own_training() -> None:
    data, execution = blobs(), Execution(chunk=2)
    options = SweepOptions(control=1, make_model=make_model)
    vmapped = sweep(data, "width", [3, 6], recipe=RECIPE, n_seeds=2, options=options, execution=execution)
    assert bool(torch.isfinite(vmapped.curves.test_loss).all())
    state = torch.get_rng_state()
    options = replace(options, train=train)
    own = sweep(data, "width", [3, 60], n_seeds=2, options=options, execution=execution)
    assert torch.equal(state, torch.get_rng_state())
    with ThreadPoolExecutor(2) as threads:
        execution = replace(execution, executor=threads)
        same(own, sweep(data, "width", [3, 60], n_seeds=2, options=options, execution=execution))
    drawn_error = own.curves.train_error
    assert bool((drawn_error[:, 1] < drawn_error[:, 0] + 0.3).all())
    assert own.control is not None
    assert float(own.control.train_error[0, 1]) < 0.2
    two = SweepOptions(make_model=lambda w: nn.Linear(6, 2), train=lambda *_: None, control=0)
    with pytest.raises(UnsupportedModelError, match="one column per class"):
        sweep(data, "width", [3], n_seeds=1, options=two)


def test_noise_free_is_the_control() -> None:
    options = {"recipe": RECIPE, "n_seeds": 2, "execution": Execution(dtype=torch.float64)}
    plain = sweep(blobs(), "width", [4], noise=0.0, options=SweepOptions(control=0), **options)
    noisy = sweep(blobs(), "width", [4], noise=0.3, options=SweepOptions(control=2), **options)
    assert noisy.control is not None
    torch.testing.assert_close(plain.curves.test_loss, noisy.control.test_loss, rtol=0, atol=1e-9)
    assert plain.control is None


def test_threshold_before_the_sweep() -> None:
    data = blobs(n=60, d=6)
    options = {"recipe": Recipe(steps=300, lr=0.02), "noise": 0.3}
    grid = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32]
    before = find_threshold(data, "width", grid, search=SearchOptions(5, sweep_seeds=9), **options)
    own = sweep(data, "width", grid, n_seeds=5, options=SweepOptions(threshold=before), **options)
    found = own.interpolation()
    places = [next(i for i, v in enumerate(grid) if v >= value) for value in (before.value, found.value)]
    assert abs(places[0] - places[1]) <= 1
    assert before.cost <= 0.25
    assert own.summary()["threshold"]["source"] == "before the sweep"
    with pytest.warns(ThresholdWarning, match="above the largest width"):
        outside = find_threshold(data, "width", [1, 2], search=SearchOptions(2, sweep_seeds=20), **options)
    with pytest.warns(ThresholdWarning, match="cannot show the interpolation peak"):
        sweep(data, "width", [1, 2], n_seeds=1, options=SweepOptions(control=0, threshold=outside), **options)
    rows = find_threshold(
        data, "samples", [5, 10, 20, 40, 60], search=SearchOptions(3, sweep_seeds=9), options=SweepOptions(width=4),
        **options,
    )  # fmt: skip
    assert rows.direction == "rising"
    assert 5 <= rows.value <= 60
    # a smaller budget takes fewer seeds, whatever way the bisection goes
    for noise in (0.05, 0.3, 0.5):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ThresholdWarning)
            small = find_threshold(
                data, "width", grid[:6], search=SearchOptions(5, 9, budget=0.2), noise=noise, recipe=RECIPE
            )
        assert 0 < small.cost <= 0.2
    with pytest.raises(InputError, match="two seeds"):
        find_threshold(data, "width", grid, search=SearchOptions(budget=0.01), **options)


@pytest.mark.parametrize(
    ("over", "values", "more"),
    [
        ("width", [3, 3], {}), ("width", [], {}), ("width", [0, 2], {}), ("width", [2.5], {}), ("samples", [10, 61], {}),
        ("noise", [0.2, 1.2], {}), ("rows", [1], {}), ("width", [3], {"train": train}),
        ("steps", [3], {"train": train, "make_model": make_model}), ("depth", [1], {"make_model": make_model}),
    ],
)  # fmt: skip
def test_refused(over: str, values: list[float], more: dict) -> None:
    with pytest.raises(InputError):
        sweep(blobs(), over, values, options=SweepOptions(**more))


@pytest.mark.parametrize(
    "call",
    [
        lambda data: sweep(data, "width", [2, 4], n_seeds=2, recipe=RECIPE).curves.test_error,
        lambda data: feature_sweep(data, "width", [20, 40], n_seeds=2, options=FeatureOptions(n=40)).curves.test_error,
        lambda data: (
            find_threshold(data, "width", [2, 8, 40], recipe=RECIPE, search=SearchOptions(n_seeds=2, budget=9)).value
        ),
    ],
)
def test_own_data_as_two_pairs(call):
    data = blobs()
    pairs = ((data.x_train.numpy(), data.y_train.numpy()), (data.x_test.tolist(), data.y_test.tolist()))
    data = replace(data, x_test=torch.tensor(data.x_test.tolist()))
    assert torch.equal(torch.as_tensor(call(pairs)), torch.as_tensor(call(data)))
    for junk in (pairs[0], None, (data.x_train, data.x_test)):
        with pytest.raises(InputError, match="x_train"):
            call(junk)
