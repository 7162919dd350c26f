"""Residual and rounding of a ledger: within what the tolerance and the types of numbers allow, or named in every print."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from kernelmem.cli.files import LedgerCommand
from kernelmem.core.errors import VerificationError
from kernelmem.trajectory.ledger.backward_sweep import BackwardSweep
from kernelmem.trajectory.ledger.grouped_sweep import GroupedSweep
from kernelmem.trajectory.ledger.ledger import LedgerOptions, ledger
from kernelmem.trajectory.network.tangent_factors import DenseTangents, to_dense
from tests.trajectory.recorded import OPTIMIZERS, digits, mlp, record


class Float32Norm(nn.Module):
    """Root mean square normalization in float32, whatever the type of the input."""

    def __init__(self, d):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d))

    def forward(self, x):
        y = x.to(torch.float32)
        return self.weight * (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


class Float32Head(nn.Module):
    """A last layer in float32."""

    def __init__(self):
        super().__init__()
        self.inner, self.out = nn.Linear(64, 8), nn.Linear(8, 10)

    def forward(self, x):
        h = torch.tanh(self.inner(x))
        return nn.functional.linear(h.float(), self.out.weight.float(), self.out.bias.float()).to(x.dtype)


@pytest.fixture(scope="module")
def closed(tmp_path_factory):
    """A run, its model, rows and ledger."""
    x, y = digits(24)
    model = mlp()
    run = record(
        tmp_path_factory.mktemp("closure") / "run", model, OPTIMIZERS["adam"](model.parameters()), x, y, steps=5
    )
    return run, model, x[:3], ledger(run, model, x[:3])


@pytest.mark.parametrize("by", ["example", "layer"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["norm", "head"])
def test_models_that_compute_in_float32_inside(tmp_path, kind, dtype, by):
    torch.manual_seed(0)
    model = (
        Float32Head()
        if kind == "head"
        else nn.Sequential(nn.Linear(64, 8), Float32Norm(8), nn.SiLU(), nn.Linear(8, 10))
    )
    model, (x, y) = model.to(dtype), digits(24, dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    run = record(tmp_path / "run", model, optimizer, x, y, steps=3, batch=12, tolerance=1e-4)
    result = ledger(run, model, x[:3], by=by)
    assert result.inner_dtype == "float32"
    assert 1e-9 < result.tolerance < 1e-4
    assert result.largest_residual <= result.tolerance
    assert result.closed
    assert "computes in float32 inside" in str(result)


def test_a_larger_tolerance_is_kept(tmp_path):
    torch.manual_seed(0)
    model, (x, y) = Float32Head(), digits(24, torch.float32)
    run = record(tmp_path / "run", model, torch.optim.SGD(model.parameters(), lr=0.1), x, y, steps=2)
    assert ledger(run, model, x[:2], options=LedgerOptions(tolerance=0.1)).tolerance == 0.1


def test_float64_models_keep_their_tolerance(closed):
    result = closed[-1]
    assert (result.inner_dtype, result.training_dtype, result.tolerance) == ("float64", "float64", 1e-12)
    assert result.closed
    assert "CLOSED" not in str(result)


def test_type_of_training(tmp_path):
    model, (x, y) = mlp(dtype=torch.float32), digits(24, torch.float32)
    run = record(tmp_path / "run", model, OPTIMIZERS["momentum"](model.parameters()), x, y, steps=5)
    result = ledger(run, model, x[:3])
    assert (result.inner_dtype, result.training_dtype) == ("float64", "float32")
    assert result.closed


@pytest.mark.parametrize("term", ["residual", "rounding"])
@pytest.mark.parametrize("factor", [1e-3, float("nan")])
def test_open_ledgers_say_so_in_every_print(closed, tmp_path, term, factor):
    run, _, _, result = closed
    wrong = torch.zeros_like(result.residual)
    wrong[1, 2] = factor
    opened = replace(result, **{term: getattr(result, term) + wrong})
    if term == "rounding":
        opened = replace(opened, residual=opened.residual - wrong)
        opened = replace(opened, final=opened.final + wrong, residual=result.residual)
    else:
        opened = replace(opened, final=opened.final + wrong)
    assert not opened.closed
    assert f"NOT CLOSED: {term}" in str(opened)
    assert f"NOT CLOSED: {term}" in opened._repr_html_()
    if factor == factor:
        path = opened.save(tmp_path / "open.safetensors")
        with pytest.raises(VerificationError, match="NOT CLOSED"):
            LedgerCommand("verify", run.path, (path,)).run()
        LedgerCommand("verify", run.path, (path,), tolerance=1.0).run()


def test_closed_ledgers_pass_the_command(closed, tmp_path, capsys):
    run, _, _, result = closed
    LedgerCommand("verify", run.path, (result.save(tmp_path / "closed.safetensors"),)).run()
    assert "1 of 1 files pass" in capsys.readouterr().out


@pytest.mark.parametrize("by", ["example", "step", "layer"])
def test_gradients_that_do_not_add_up_are_refused(closed, monkeypatch, by):
    run, model, x, _ = closed
    examples, groups = BackwardSweep._gradients, GroupedSweep._gradients

    def scaled(self, *arguments):
        tangents = examples(self, *arguments)
        network = self.setup.train_network
        return DenseTangents(1.01 * to_dense(tangents, list(network.sizes)), network.slices)

    monkeypatch.setattr(BackwardSweep, "_gradients", scaled)
    monkeypatch.setattr(
        GroupedSweep, "_gradients", lambda self, step: {k: 1.01 * g for k, g in groups(self, step).items()}
    )
    with pytest.raises(VerificationError, match="do not add up"):
        ledger(run, model, x, by=by)


class Jump(nn.Module):
    """Outputs that jump where a unit changes its sign, which no derivative explains."""

    def __init__(self):
        super().__init__()
        self.inner, self.out = nn.Linear(64, 8), nn.Linear(8, 10)

    def forward(self, x):
        h = self.inner(x)
        return self.out(torch.where(h > 0, h + 0.5, h))


def test_jumps_are_named(tmp_path):
    torch.manual_seed(1)
    model, (x, y) = Jump().double(), digits(24)
    run = record(tmp_path / "run", model, torch.optim.SGD(model.parameters(), lr=0.1), x, y, steps=3)
    result = ledger(run, model, x[:8])
    assert not result.closed
    assert "NOT CLOSED: residual" in str(result)
