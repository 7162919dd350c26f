"""Replays of a recorded training without examples: torch's own training is the reference; influences are compared with them."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

import kernelmem as km
from kernelmem.core.batches import as_rows
from kernelmem.trajectory import InfluenceOptions, ReplayCheck, influence
from kernelmem.trajectory.influence.replayed import Replay
from kernelmem.trajectory.influence.training_program import load_program
from kernelmem.trajectory.targets import as_target_functions
from tests.trajectory.recorded import digits, mlp, record
from tests.trajectory.retrained import SGD, UPDATES, N, retrained, run_of


def batch_normalized():
    torch.manual_seed(0)
    layers = [nn.Linear(64, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.2), nn.Linear(6, 10)]
    return nn.Sequential(*layers).double()


def replayed(run, model, x, weights, **options):
    rows = as_rows(x, "x").to(dtype=torch.float64, device=torch.device("cpu"))
    program = load_program(run, model, rows)
    replay = Replay(program, rows, as_target_functions(None, None, rows.n, 10), **options)
    return replay.values(weights, lambda steps: None)


@pytest.mark.parametrize(
    ("update", "clip"), [*((update, None) for update in UPDATES), ("momentum", 0.5), ("adam", 0.5)]
)
def test_a_replay_is_the_training_with_other_weights(tmp_path, update, clip):
    run, model, x, _ = run_of(tmp_path / "run", *UPDATES[update], clip=clip)
    weights = torch.rand(N, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights[:3] = 0.0
    found = replayed(run, model, x[30:33], weights)
    expected = retrained(run, copy.deepcopy(model), weights, clip=clip)(x[30:33]).detach()
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)


def test_a_replay_moves_running_statistics_and_repeats_dropout(tmp_path):
    run, model, x, _ = run_of(tmp_path / "run", *UPDATES["momentum"], model=batch_normalized())
    weights = torch.rand(N, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = retrained(run, copy.deepcopy(model), weights).eval()(x[30:33]).detach()
    torch.testing.assert_close(replayed(run, model, x[30:33], weights), expected, rtol=1e-9, atol=1e-9)


def test_one_step_of_a_linear_model_is_predicted_exactly(tmp_path):
    """Outputs are then linear in the weights of the examples."""
    x, y = digits(20)
    model = nn.Linear(64, 10).double()
    run = record(tmp_path / "run", model, SGD(model.parameters(), lr=0.1), x, y, loss="mse", steps=1, batch=20)
    check = influence(run, model, x[:3] + 0.1).replays
    assert check is not None
    for predicted, changed in (
        (check.predicted_one, check.replayed_one),
        (check.predicted_half, check.replayed_half),
    ):
        torch.testing.assert_close(predicted, changed, rtol=1e-9, atol=1e-12)
    assert check.trusted
    assert check.size_ratio == {"one": pytest.approx(1), "half": pytest.approx(1)}
    assert check.rank_agreement == {"one": pytest.approx(1), "half": pytest.approx(1)}


@pytest.fixture(scope="module")
def smooth(tmp_path_factory):
    """A smooth network, small steps: 30 of gradient descent."""
    x, y = digits(40)
    model = mlp()
    run = record(tmp_path_factory.mktemp("smooth") / "run", model, SGD(model.parameters(), lr=0.1), x, y, steps=30)
    arguments = {"target": "margin", "labels": y[:4]}
    return run, model, x[:4] + 0.1, arguments, influence(run, model, x[:4] + 0.1, **arguments)


def test_smooth_training_is_trusted(smooth):
    found = smooth[-1]
    assert found.trusted
    assert found.replays.rounding < 1e-6
    text = str(found)
    assert "the derivative predicts the replays" in text
    assert "NOT TRUSTED" not in text


def test_influences_of_other_examples_are_not_trusted(smooth):
    """The control: a check that ignores which example was left out would pass them."""
    run, model, x, arguments, found = smooth
    wrong = replace(found, influence=found.influence.roll(7, 1))
    check = wrong.check(run, model, x, options=InfluenceOptions(replays=12), **arguments)
    assert not check.trusted
    assert max(check.rank_agreement.values()) < 0.4
    assert found.check(run, model, x, options=InfluenceOptions(replays=12), **arguments).trusted


def test_wrong_sizes_are_not_trusted(smooth):
    run, model, x, arguments, found = smooth
    check = replace(found, influence=10 * found.influence).check(
        run, model, x, options=InfluenceOptions(replays=6), **arguments
    )
    assert min(check.rank_agreement.values()) > 0.5
    assert not check.trusted


def test_training_that_is_not_smooth_is_not_trusted(tmp_path):
    """Adam with a large learning rate: the derivative is exact, and predicts nothing."""
    x, y = digits(60)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 10)).double()
    run = record(tmp_path / "run", model, torch.optim.Adam(model.parameters(), lr=0.05), x, y, steps=40, batch=20)
    found = influence(run, model, x[:5] + 0.1, target="margin", labels=y[:5])
    assert found.derivative_error < 1e-3
    assert found.trusted is False
    assert "NOT TRUSTED" in str(found)


def test_replays_can_be_left_out_and_baselines_checked(smooth, tmp_path):
    run, model, x, arguments, _ = smooth
    found = influence(run, model, x, options=InfluenceOptions(replays=0), **arguments)
    assert found.replays is None
    assert found.trusted is None
    baseline = influence(run, model, x, method="tracin", **arguments)
    assert baseline.replays is None
    check = baseline.check(run, model, x, options=InfluenceOptions(replays=5), **arguments)
    assert check.replayed_half.shape == (5, 4, 1)
    assert len(check.to_frame()) == 40
    assert str(ReplayCheck.load(check.save(tmp_path / "check.safetensors"))) == str(check)


def test_arguments_of_another_call_are_refused(smooth):
    run, model, x, arguments, found = smooth
    with pytest.raises(km.InputError, match="run, rows and target"):
        found.check(run, model, x[:3], target="margin", labels=arguments["labels"][:3])
    with pytest.raises(km.InputError, match="run, rows and target"):
        found.check(run, model, x)
    with pytest.raises(km.InputError, match="replays"):
        found.check(run, model, x, options=InfluenceOptions(replays=0), **arguments)
    with pytest.raises(km.InputError, match="at least 3"):
        InfluenceOptions(replays=2)
