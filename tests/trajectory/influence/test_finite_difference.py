"""Influences are compared with a finite difference of the training: right ones agree, planted faults are refused."""

import pytest
import torch
from torch import nn

from kernelmem.core.errors import VerificationError
from kernelmem.trajectory.influence.batch_gradient import BatchGradient
from kernelmem.trajectory.influence.influence import InfluenceOptions, influence, self_influence
from tests.trajectory.recorded import OPTIMIZERS, digits, record


def network():
    """Batch statistics, dropout, kinks."""
    torch.manual_seed(0)
    layers = [nn.Linear(64, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.2), nn.Linear(6, 10)]
    return nn.Sequential(*layers).double()


def run_of(path, optimizer, **options):
    model, (x, y) = network(), digits(24)
    return record(path, model, OPTIMIZERS[optimizer](model.parameters()), x, y, steps=5, batch=8, **options), model, x


@pytest.mark.parametrize("clip", [None, 0.3])
@pytest.mark.parametrize("optimizer", ["gd", "nesterov", "adam", "adamw", "rmsprop", "adagrad"])
def test_exact_influences_agree(tmp_path, optimizer, clip):
    run, model, x = run_of(tmp_path / "run", optimizer, clip=clip)
    result = influence(run, model, x[:3])
    assert result.derivative_error is not None
    assert result.derivative_error < 1e-5
    assert "finite difference" in str(result)
    if clip is None:
        return
    chunked = influence(run, model, x[:3], options=InfluenceOptions(chunk=1))
    assert chunked.derivative_error is not None
    assert chunked.derivative_error < 1e-5


def test_baselines_are_not_compared(tmp_path):
    run, model, x = run_of(tmp_path / "run", "gd")
    assert influence(run, model, x[:3], method="tracin").derivative_error is None


@pytest.mark.parametrize("fault", ["hessian", "shares", "examples"])
@pytest.mark.parametrize("function", [influence, self_influence])
def test_planted_faults_are_refused(tmp_path, monkeypatch, fault, function):
    run, model, x = run_of(tmp_path / "run", "nesterov")
    pull_back = BatchGradient.pull_back

    def wrong(self, alpha, statistics):
        shares, hessian, statistics = pull_back(self, alpha, statistics)
        if fault == "hessian":
            hessian = {name: 1.05 * product for name, product in hessian.items()}
        shares = {"shares": 1.01 * shares, "examples": shares.roll(1, 1), "hessian": shares}[fault]
        return shares, hessian, statistics

    monkeypatch.setattr(BatchGradient, "pull_back", wrong)
    with pytest.raises(VerificationError, match="differ"):
        function(run, model, x[: 3 if function is influence else 24])
