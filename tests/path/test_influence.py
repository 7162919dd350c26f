"""kernelmem.path.influence: equal to training again with another weight; closed forms; the laws of a derivative."""

import pytest
import torch
from torch import nn

from kernelmem.ground.errors import FileCorruptError, InputError, VerificationError
from kernelmem.path.influence import Influence, influence, self_influence
from kernelmem.runs.recorder import Recorder
from kernelmem.runs.run import Run
from tests.path.recorded import digits, record
from tests.path.retrained import finite_difference, retrained

N = 23
SGD, ADAM, ADAMW = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW
RMSPROP, ADAGRAD = torch.optim.RMSprop, torch.optim.Adagrad
UPDATES = {
    "plain": (SGD, {"lr": 0.3}),
    "decay": (SGD, {"lr": 0.3, "weight_decay": 0.02}),
    "momentum": (SGD, {"lr": 0.1, "momentum": 0.8}),
    "dampening": (SGD, {"lr": 0.2, "momentum": 0.8, "dampening": 0.3, "weight_decay": 0.02}),
    "nesterov": (SGD, {"lr": 0.1, "momentum": 0.8, "nesterov": True, "weight_decay": 0.02}),
    "maximize": (SGD, {"lr": 0.02, "momentum": 0.5, "maximize": True, "weight_decay": 0.01}),
    "adam": (ADAM, {"lr": 0.02, "eps": 1e-3, "betas": (0.8, 0.95)}),
    "adam_coupled": (ADAM, {"lr": 0.02, "eps": 1e-3, "weight_decay": 0.02}),
    "amsgrad": (ADAM, {"lr": 0.02, "eps": 1e-3, "betas": (0.8, 0.6), "amsgrad": True}),
    "adamw": (ADAMW, {"lr": 0.02, "eps": 1e-3, "weight_decay": 0.5}),
    "rmsprop": (RMSPROP, {"lr": 0.01, "eps": 1e-3}),
    "rmsprop_centered": (RMSPROP, {"lr": 0.01, "eps": 1e-2, "momentum": 0.6, "centered": True, "weight_decay": 0.02}),
    "adagrad": (ADAGRAD, {"lr": 0.05, "eps": 1e-3, "lr_decay": 0.1, "weight_decay": 0.02}),
}


def small(seed=0, activation=nn.Tanh):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 6), activation(), nn.Linear(6, 10)).double()


def run_of(path, kind, options, *, model=None, steps=9, batch=5, **recorded):
    """Batches of five of 23 examples: the fifth of an epoch is ragged."""
    x, y = digits(40)
    model = model or small()
    own = record(path, model, kind(model.parameters(), **options), x[:N], y[:N], steps=steps, batch=batch, **recorded)
    return own, model, x, y


def agrees(run, model, x, found, *, h=2e-3, tolerance=1e-6, examples=(0, 7, 22), **options):
    """Influence on all outputs of some rows against finite differences of training again."""

    def outputs(trained):
        trained.eval()
        with torch.no_grad():
            return trained(x[30:33].double())

    size = float(found.influence.abs().max())
    assert size > 1e-4
    for example in examples:
        expected = finite_difference(run, model, N, example, outputs, h=h, **options)
        gap = float((found.influence[:, example] - expected).abs().max())
        assert gap <= tolerance * max(size, float(expected.abs().max())), (example, gap, size)
        assert float(expected.abs().max()) > 1e-3 * size


@pytest.mark.parametrize("update", UPDATES)
def test_influence_is_the_derivative_of_training_again(tmp_path, update):
    run, model, x, _ = run_of(tmp_path / "run", *UPDATES[update])
    found = influence(run, model, x=x[30:33])
    h = 2e-3 if UPDATES[update][0] is SGD else 2e-4
    agrees(run, model, x, found, h=h, tolerance=1e-7)


def test_adam_with_its_own_small_epsilon(tmp_path):
    """Where a gradient is near zero, the step turns within ε of it: there finite differences need small ones."""
    run, model, x, _ = run_of(tmp_path / "run", ADAM, {"lr": 3e-3})
    agrees(run, model, x, influence(run, model, x=x[30:33]), h=1e-6, tolerance=1e-4)


@pytest.mark.parametrize("update", ["nesterov", "adamw"])
def test_a_clipping_factor_moves_with_the_gradient(tmp_path, update):
    run, model, x, _ = run_of(tmp_path / "run", *UPDATES[update], clip=1.0)
    assert 2 <= sum(step.scale < 1 for step in run.steps) < len(run)
    found = influence(run, model, x=x[30:33])
    agrees(run, model, x, found, h=2e-4, clip=1.0)
    assert torch.equal(found.influence, influence(run, model, x=x[30:33], clip="norm").influence)
    fixed = influence(run, model, x=x[30:33], clip="fixed").influence
    assert float((fixed - found.influence).abs().max()) > 1e-2 * float(found.influence.abs().max())


@pytest.mark.parametrize("mode", ["train", "frozen_later"])
def test_batch_norm_moves_with_its_statistics(tmp_path, mode):
    """The rows of a batch are coupled, and the running statistics that act at the end are those of the other training."""
    x, y = digits(40)
    torch.manual_seed(0)
    layers = [nn.Linear(64, 6), nn.BatchNorm1d(6, momentum=0.3), nn.Tanh(), nn.Linear(6, 10), nn.BatchNorm1d(10, affine=False)]
    model = nn.Sequential(*layers).double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, eps=1e-3)
    with Recorder(model, optimizer, tmp_path / "run", loss="cross_entropy") as recorder:
        for t in range(8):
            if mode == "frozen_later" and t >= 4:
                model[1].eval()
            index = torch.arange(N)[t % 3 :: 3]
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[index]), y[index]).backward()
            recorder.step(index, x[index], y[index])
    run = Run.open(tmp_path / "run")
    agrees(run, model, x, influence(run, model, x=x[30:33]), h=2e-4, tolerance=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_dropout_keeps_its_masks(tmp_path, dtype):
    x, y = digits(40, dtype)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 6), nn.Tanh(), nn.Dropout(0.4), nn.Linear(6, 10)).to(dtype)
    run = record(tmp_path / "run", model, ADAM(model.parameters(), lr=0.02, eps=1e-3), x[:N], y[:N], steps=7, batch=5)
    found = influence(run, model, x=x[30:33])
    agrees(run, model, x, found, h=2e-4, tolerance=1e-7 if dtype == torch.float64 else 1e-4)
