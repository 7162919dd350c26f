"""Laws of influence: closed forms, sums, invariances, nulls; baselines compared with their definitions."""

import pytest
import torch
from torch import nn

from kernelmem.recording.recorder import Recorder
from kernelmem.recording.run import Run
from kernelmem.trajectory.influence.influence import InfluenceOptions, influence, self_influence
from tests.trajectory.recorded import digits, record
from tests.trajectory.retrained import ADAMW, SGD, UPDATES, N, retrained, run_of, small


def linear_run(path, steps=7, rate=0.05):
    x, y = digits(30)
    torch.manual_seed(0)
    model = nn.Linear(64, 10).double()
    run = record(path, model, SGD(model.parameters(), lr=rate), x[:20], y[:20], loss="mse", batch=20, steps=steps)
    return run, model, x, y


def test_a_linear_model_has_the_closed_form(tmp_path):
    """dw_T/dε_i = −(h/n) Σ_t (I − (h/n) XᵀX)^(T−1−t) x_i (x_i·w_t − y_i), x with a 1 for the bias."""
    run, model, x, y = linear_run(tmp_path / "run")
    found = influence(run, model, x[20:25]).influence
    rows = torch.cat([x, torch.ones(30, 1, dtype=x.dtype)], 1)
    one_hot = nn.functional.one_hot(y[:20], 10).double()
    X, rate = rows[:20], 0.05 / 20
    shrink = torch.eye(65, dtype=x.dtype) - rate * X.T @ X
    expected = torch.zeros_like(found)
    for t in range(7):
        state = run.weights(t)
        slope = X @ torch.cat([state["weight"].T, state["bias"][None]]) - one_hot
        power = torch.linalg.matrix_power(shrink, 6 - t)
        expected -= rate * torch.einsum("mp,pq,nq,nc->mnc", rows[20:25], power, X, slope)
    assert float((found - expected).abs().max()) < 1e-14
    assert float(expected.abs().max()) > 1e-3


@pytest.mark.parametrize("method", ["unrolled", "tracin", "last"])
def test_one_step_of_gradient_descent_is_a_product_of_tangents(tmp_path, method):
    """T = 1: −h/B ⟨J(x; w_1), ∇ℓ_i(w_0)⟩; TracIn takes both at w_0, the last checkpoint both at w_1 and no rate."""
    run, model, x, y = run_of(tmp_path / "run", SGD, {"lr": 0.3}, steps=1, batch=N)
    found = influence(run, model, x[30:33], target=("logit", 2), method=method).influence[:, :, 0]
    test, train = {"unrolled": (1, 0), "tracin": (0, 0), "last": (1, 1)}[method]
    parameters = list(model.parameters())

    def flat(value):
        return torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters)])

    model.load_state_dict(run.weights(test))
    left = torch.stack([flat(model(x[i : i + 1])[0, 2]) for i in range(30, 33)])
    model.load_state_dict(run.weights(train))
    right = torch.stack([flat(nn.functional.cross_entropy(model(x[i : i + 1]), y[i : i + 1])) for i in range(N)])
    expected = -(1.0 if method == "last" else 0.3 / N) * left @ right.T
    assert float((found - expected).abs().max()) < 1e-14 * float(expected.abs().max()) * 100


@pytest.mark.parametrize("sign", [-1, 1])
def test_tracin_is_the_sum_over_steps_with_the_rates_and_factors_of_each(tmp_path, sign):
    x, y = digits(40)
    model = small()
    groups = [{"params": list(model[0].parameters()), "lr": 0.05}, {"params": list(model[2].parameters())}]
    optimizer = SGD(groups, lr=0.3, momentum=0.5, weight_decay=0.1, maximize=sign > 0)
    run = record(tmp_path / "run", model, optimizer, x[:N], y[:N], steps=6, batch=5, clip=1.0)
    found = influence(run, model, x[30:32], target=("logit", 2), method="tracin").influence[:, :, 0]
    expected = torch.zeros(2, N, dtype=torch.float64)
    parameters = list(model.parameters())
    rates = [p.new_full((p.numel(),), rate) for p, rate in zip(parameters, (0.05, 0.05, 0.3, 0.3), strict=True)]
    rates = torch.cat(rates)

    def flat(value):
        return torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters)])

    for t, step in enumerate(run.steps):
        model.load_state_dict(run.weights(t))
        left = torch.stack([flat(model(x[i : i + 1])[0, 2]) for i in (30, 31)])
        for i in step.examples.tolist():
            own = flat(nn.functional.cross_entropy(model(x[i : i + 1]), y[i : i + 1]))
            expected[:, i] += sign * step.scale / len(step.examples) * left @ (rates * own)
    assert float((found - expected).abs().max()) < 1e-13


def scaled(run, model, function, factor):
    return function(retrained(run, model, torch.full((N,), factor, dtype=torch.float64)))


def test_sum_over_examples_is_the_derivative_wrt_the_scale_of_the_loss(tmp_path):
    run, model, x, _ = run_of(tmp_path / "run", *UPDATES["nesterov"])
    found = influence(run, model, x[30:33]).influence.sum(1)

    def outputs(trained):
        with torch.no_grad():
            return trained(x[30:33])

    h = 1e-4
    wide, narrow = (
        (scaled(run, model, outputs, 1 + width) - scaled(run, model, outputs, 1 - width)) / (2 * width)
        for width in (h, h / 2)
    )
    assert float((found - (4 * narrow - wide) / 3).abs().max()) < 1e-9
    assert float(found.abs().max()) > 1e-2


@pytest.mark.parametrize("case", ["adam", "clipped"])
def test_null_influences_sum_to_zero_if_the_scale_of_the_loss_is_irrelevant(tmp_path, case):
    """Adam without an epsilon, and gradients that are always clipped: the same training whatever all examples weigh."""
    options = (ADAMW, {"lr": 0.02, "eps": 1e-14}) if case == "adam" else (SGD, {"lr": 0.1, "momentum": 0.9})
    run, model, x, _ = run_of(tmp_path / "run", *options, clip=0.3 if case == "clipped" else None, model=small())
    found = influence(run, model, x[30:33]).influence
    assert float(found.sum(1).abs().max()) < 1e-5 * float(found.abs().max())
    assert float(found.abs().max()) > 1e-2


def test_without_a_learning_rate_nothing_has_influence(tmp_path):
    run, model, x, _ = run_of(tmp_path / "run", SGD, {"lr": 0.0, "momentum": 0.9})
    assert float(influence(run, model, x[30:33]).influence.abs().max()) == 0.0


def test_unused_examples_have_no_influence(tmp_path):
    run, model, x, y = run_of(tmp_path / "run", *UPDATES["adam"], steps=2)
    met = {i for step in run.steps for i in step.examples.tolist()}
    for method in ("unrolled", "tracin", "last"):
        found = influence(run, model, x[30:33], method=method, options=InfluenceOptions(data=(x, y))).influence
        assert found.shape == (3, 40, 10)
        assert {i for i in range(40) if float(found[:, i].abs().max()) > 0} == met


def test_targets_follow_the_chain_rule(tmp_path):
    run, model, x, y = run_of(tmp_path / "run", *UPDATES["momentum"])
    whole = influence(run, model, x[30:33]).influence
    one = influence(run, model, x[30:33], target=("logit", 3))
    assert one.names == ("logit_3",)
    assert torch.allclose(one.influence[..., 0], whole[..., 3], rtol=1e-12, atol=1e-15)
    with torch.no_grad():
        slope = torch.softmax(model(x[30:33]), 1) - nn.functional.one_hot(y[30:33], 10)
    loss = influence(run, model, x[30:33], labels=y[30:33], target="loss").influence[..., 0]
    assert torch.allclose(loss, (whole * slope[:, None]).sum(2), rtol=1e-12, atol=1e-14)


def test_chunks_of_rows_and_directions_do_not_matter(tmp_path, monkeypatch):
    from kernelmem.trajectory.influence import batch_gradient

    run, model, x, _ = run_of(tmp_path / "run", *UPDATES["adamw"], clip=1.0)
    for method in ("unrolled", "tracin", "last"):
        whole = influence(run, model, x[30:35], method=method).influence
        monkeypatch.setattr(batch_gradient, "DIRECTIONS_TOGETHER", 7)
        pieces = influence(run, model, x[30:35], method=method, options=InfluenceOptions(chunk=2)).influence
        monkeypatch.setattr(batch_gradient.BatchGradient, "can_batch", lambda self: False)
        single = influence(run, model, x[30:35], method=method, options=InfluenceOptions(chunk=3)).influence
        monkeypatch.undo()
        for other in (pieces, single):
            assert float((other - whole).abs().max()) < 1e-13 * float(whole.abs().max())


@pytest.mark.parametrize("method", ["unrolled", "tracin", "last"])
def test_self_influence_is_the_diagonal(tmp_path, method):
    run, model, x, y = run_of(tmp_path / "run", *UPDATES["adamw"], steps=5)
    data = (x[:N], y[:N])
    whole = influence(run, model, x[:N], labels=y[:N], target="loss", method=method).influence[..., 0]
    for chunk in (None, 9):
        own = self_influence(
            run, model, data[0], labels=data[1], target="loss", method=method, options=InfluenceOptions(chunk=chunk)
        )
        assert own.shape == (N, 1)
        assert float((own[:, 0] - whole.diagonal()).abs().max()) < 1e-13


def test_order_of_a_batch_and_names_of_parameters_do_not_matter(tmp_path):
    class Renamed(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.z, self.a = inner[0], inner[2]  # registered in another order of names

        def forward(self, x):
            return self.a(torch.tanh(self.z(x)))

    x, y = digits(40)
    found = []
    for name, order in (("a", slice(None)), ("b", torch.arange(N - 1, -1, -1))):
        model = small() if name == "a" else Renamed(small())
        optimizer = ADAMW(model.parameters(), lr=0.02, eps=1e-3)
        with Recorder(model, optimizer, tmp_path / name, loss="cross_entropy") as recorder:
            index = torch.arange(N)[order]
            for _ in range(5):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x[index]), y[index]).backward()
                recorder.step(index, x[index], y[index])
        found.append(influence(Run.open(tmp_path / name), model, x[30:33]).influence)
    assert float((found[0] - found[1]).abs().max()) < 1e-12 * float(found[0].abs().max())


def test_training_in_float32_gives_what_training_in_float64_gives(tmp_path):
    found = []
    for dtype in (torch.float64, torch.float32):
        x, y = digits(40, dtype)
        model = small().to(dtype)
        run = record(
            tmp_path / str(dtype), model, SGD(model.parameters(), lr=0.1, momentum=0.8), x[:N], y[:N], clip=0.6
        )
        found.append(influence(run, model, x[30:33]).influence)
        assert found[-1].dtype == torch.float64
    assert 0 < float((found[0] - found[1]).abs().max()) < 1e-4 * float(found[0].abs().max())


def test_checkpoints_and_forward_do_not_matter(tmp_path):
    found = []
    for name, keep in (("a", "all"), ("b", 4)):
        run, model, x, _ = run_of(tmp_path / name, *UPDATES["adamw"], keep=keep)
        forward = None if name == "a" else (lambda module, rows: module(2 * rows - rows))
        found.append(influence(run, model, x[30:33], forward=forward).influence)
    assert float((found[0] - found[1]).abs().max()) < 1e-13
