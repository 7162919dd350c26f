"""kernelmem.double_descent.variance.run_smoother: the law f_T = offset + S y, the closed form of a linear model, refusals."""

import pytest
import torch
from torch import nn

from kernelmem.core.errors import FileCorruptError, InputError, UnsupportedModelError
from kernelmem.double_descent.variance.run_smoother import RunSmoother, run_smoother
from kernelmem.recording.recorder import Recorder
from kernelmem.recording.run import Run

N, M, C = 11, 4, 3
OPTIMIZERS = {
    "gd": lambda p: torch.optim.SGD(p, lr=0.3),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, dampening=0.2),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.03, momentum=0.9, nesterov=True, weight_decay=0.05),
    "decay": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.5, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, lr=3e-2, weight_decay=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, lr=3e-2, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-2, momentum=0.5),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "maximize": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.5, maximize=True),
}


def rows(n=N + M, seed=0):
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(activation=nn.Tanh, seed=0, bias=True):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), activation(), nn.Linear(6, C, bias=bias)).double()


def record(path, model, optimizer, x, y, *, steps=9, batch=4, loss="mse", clip=None, seed=1, weight=None, **options):
    generator, queue = torch.Generator().manual_seed(seed), []
    with Recorder(model, optimizer, path, loss=loss, **options) as recorder:
        for _ in range(steps):
            queue = queue or list(torch.randperm(len(x), generator=generator).split(batch))
            index = queue.pop(0)
            target = y[index] if y.ndim == 2 else nn.functional.one_hot(y[index], C).double()
            optimizer.zero_grad()
            losses = (model(x[index]) - target).square()
            losses = 0.5 * losses.sum(1) if loss == "mse" else losses.mean(1)
            weights = None if weight is None else weight[index]
            (losses if weights is None else losses * weights).mean().backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            recorder.step(index, x[index], y[index], weights)
    return Run.open(path)


def trained(path, kind="momentum", *, model=None, y=None, **options):
    model = network() if model is None else model
    x = rows()
    y = torch.arange(N) % C if y is None else y
    run = record(path, model, OPTIMIZERS[kind](model.parameters()), x[:N], y, **options)
    return run, model, x, y


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_offset_and_smoother_times_labels_equal_the_network(tmp_path, kind):
    run, model, x, y = trained(tmp_path / "run", kind)
    result = run_smoother(run, model, x[N:], data=(x[:N], y))
    assert result.S_train.shape == (N, C, N, C)
    assert result.S.shape == (M, C, N, C)
    assert torch.allclose(result.outputs, model(x).detach(), atol=1e-12)
    assert float(result.residual.abs().max()) < 1e-10
    assert torch.equal(result.targets, nn.functional.one_hot(y, C).double())
    assert float(result.S.abs().max()) > 1e-3


@pytest.mark.parametrize("case", ["relu", "mse_mean", "clip", "weights", "real", "float32", "sum"])
def test_also_with_kinks_other_conventions_clipping_weights_and_real_targets(tmp_path, case):
    options = {
        "mse_mean": {"loss": "mse_mean"},
        "clip": {"clip": 0.3},
        "weights": {"weight": torch.rand(N, generator=torch.Generator().manual_seed(3), dtype=torch.float64)},
        "real": {"y": rows(seed=9)[:N, :C]},
        "relu": {"model": network(nn.ReLU)},
    }.get(case, {})
    run, model, x, y = trained(tmp_path / "run", "decay", **options)
    if case == "float32":
        model, x, y = network().float(), rows().float(), torch.arange(N) % C
        generator = torch.Generator().manual_seed(1)
        optimizer = OPTIMIZERS["decay"](model.parameters())
        with Recorder(model, optimizer, tmp_path / "single", loss="mse") as recorder:
            for _ in range(9):
                index = torch.randperm(N, generator=generator)[:4]
                optimizer.zero_grad()
                (0.5 * (model(x[index]) - nn.functional.one_hot(y[index], C)).square().sum(1).mean()).backward()
                recorder.step(index, x[index], y[index])
        run = Run.open(tmp_path / "single")
    if case == "sum":
        model, x, y = network(), rows(), torch.arange(N) % C
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
        with Recorder(model, optimizer, tmp_path / "sum", loss="mse", reduction="sum") as recorder:
            for _ in range(5):
                index = torch.tensor([0, 3, 3, 7])  # a row may come twice
                optimizer.zero_grad()
                (0.5 * (model(x[index]) - nn.functional.one_hot(y[index], C)).square().sum()).backward()
                recorder.step(index, x[index], y[index])
        run = Run.open(tmp_path / "sum")
    result = run_smoother(run, model, x[N:], data=(x[:N], y))
    assert float(result.residual.abs().max()) < 1e-10
    assert float(result.S.abs().max()) > 1e-3


def test_a_linear_model_has_the_closed_form_and_predicts_other_labels(tmp_path):
    """S = x (I − (I − hΣ)ᵀ) Σ⁻¹ Xᵀ / n; the same S gives what training on other labels gives."""
    T, h = 30, 0.2
    x = rows()
    outcomes = {}
    for name, y in (("a", torch.arange(N) % C), ("b", (torch.arange(N) * 5 + 1) % C)):
        torch.manual_seed(0)
        model = nn.Linear(4, C, bias=False).double()
        start = model.weight.detach().clone()
        run = record(tmp_path / name, model, torch.optim.SGD(model.parameters(), lr=h), x[:N], y, steps=T, batch=N)
        outcomes[name] = run_smoother(run, model, x[N:], data=(x[:N], y))
    X = x[:N]
    sigma = X.T @ X / N
    powers = torch.linalg.matrix_power(torch.eye(4, dtype=X.dtype) - h * sigma, T)
    want = x @ (torch.eye(4, dtype=X.dtype) - powers) @ torch.linalg.solve(sigma, X.T) / N
    result = outcomes["a"]
    eye = torch.eye(C, dtype=X.dtype)
    assert torch.allclose(result.S_train, torch.einsum("mn,cd->mcnd", want[:N], eye), atol=1e-12)
    assert torch.allclose(result.S, torch.einsum("mn,cd->mcnd", want[N:], eye), atol=1e-12)
    assert torch.allclose(result.offsets, x @ powers @ start.T, atol=1e-12)
    assert torch.allclose(result.S, outcomes["b"].S, atol=1e-12)
    other = result.offsets + torch.einsum("rcnd,nd->rc", torch.cat([result.S_train, result.S]), outcomes["b"].targets)
    assert torch.allclose(other, outcomes["b"].outputs, atol=1e-12)
    assert result.p_eff_train.value == pytest.approx(N / N * float(want[:N].square().sum()), rel=1e-10)
    assert result.p_eff.value == pytest.approx(N / M * float(want[N:].square().sum()), rel=1e-10)


def test_a_network_in_the_lazy_regime_has_the_smoother_of_its_tangent_kernel(tmp_path):
    """Very short training: S = h/n K(x, X) + O(h²), K the tangent kernel before training."""
    h, x, y, fresh = 1e-6, rows(), torch.arange(N) % C, network()
    run = record(tmp_path / "run", fresh, torch.optim.SGD(fresh.parameters(), lr=h), x[:N], y, steps=1, batch=N)
    result = run_smoother(run, fresh, x[N:], data=(x[:N], y))
    start = network()
    jacobian = []
    for row in x:
        parts = [torch.autograd.grad(start(row[None])[0, c], list(start.parameters())) for c in range(C)]
        jacobian.append(torch.stack([torch.cat([g.flatten() for g in gradients]) for gradients in parts]))
    J = torch.stack(jacobian)
    want = h / N * torch.einsum("mcp,ndp->mcnd", J, J[:N])
    got = torch.cat([result.S_train, result.S])
    assert float((got - want).abs().max()) < 1e-4 * float(want.abs().max())


def test_more_training_uses_more_of_the_labels(tmp_path):
    values = []
    for steps in (2, 12, 60):
        run, model, x, y = trained(tmp_path / str(steps), "decay", steps=steps, batch=N)
        values.append(run_smoother(run, model, data=(x[:N], y)).p_eff_train.value)
    assert values == sorted(values)


def test_an_example_in_no_batch_has_no_effect(tmp_path):
    x, y = rows(), torch.arange(N) % C
    model = network()
    run = record(tmp_path / "run", model, torch.optim.SGD(model.parameters(), lr=0.1), x[: N - 2], y[: N - 2])
    result = run_smoother(run, model, data=(x[:N], y))
    assert float(result.S_train[:, :, N - 2 :].abs().max()) == 0
    assert float(result.S_train[N - 2 :, :, : N - 2].abs().max()) > 0
    assert float(result.residual.abs().max()) < 1e-10
    with pytest.raises(InputError):
        result.p_eff  # there are no other rows


def test_the_smoother_follows_the_order_of_the_examples(tmp_path):
    run, model, x, y = trained(tmp_path / "a", "momentum", batch=N, steps=4)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(4))
    same = network()
    x2, y2 = torch.cat([x[:N][order], x[N:]]), y[order]
    run2 = record(tmp_path / "b", same, OPTIMIZERS["momentum"](same.parameters()), x2[:N], y2, batch=N, steps=4)
    one, two = run_smoother(run, model, x[N:], data=(x[:N], y)), run_smoother(run2, same, x[N:], data=(x2[:N], y2))
    assert torch.allclose(one.S[:, :, order], two.S, atol=1e-12)
    assert torch.allclose(one.S_train[order][:, :, order], two.S_train, atol=1e-12)


def test_it_is_saved_and_loaded(tmp_path):
    run, model, x, y = trained(tmp_path / "run", steps=2)
    seen = []
    result = run_smoother(run, model, x[N:], data=(x[:N], y), progress=lambda *done: seen.append(done))
    assert seen == [(1, 2), (2, 2)]
    again = RunSmoother.load(result.save(tmp_path / "s.safetensors"))
    assert torch.equal(again.S, result.S)
    assert torch.equal(again.offsets, result.offsets)
    assert "largest residual" in str(again)
    (tmp_path / "s.safetensors").write_bytes(b"x")
    with pytest.raises(FileCorruptError):
        RunSmoother.load(tmp_path / "s.safetensors")


def test_other_losses_are_refused(tmp_path):
    x, y, model = rows(), torch.arange(N) % C, network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, tmp_path / "run", loss="cross_entropy") as recorder:
        nn.functional.cross_entropy(model(x[:N]), y).backward()
        recorder.step(torch.arange(N), x[:N], y)
    with pytest.raises(InputError, match="squared loss"):
        run_smoother(Run.open(tmp_path / "run"), model, data=(x[:N], y))


def test_invalid_arguments_are_refused(tmp_path):
    run, model, x, y = trained(tmp_path / "run", steps=3)
    with pytest.raises(InputError, match="other inputs"):
        run_smoother(run, model, data=(x[:N].flip(0), y))
    with pytest.raises(InputError, match="MiB"):
        run_smoother(run, model, data=(x[:N], y), memory=1000)
    with pytest.raises(InputError):
        run_smoother(run, model, data=(x[:5], y[:5]))
    with pytest.raises(InputError):
        run_smoother(run, model, data=(x[: N + 1], y))
    with pytest.raises(InputError):
        run_smoother(run, model, x[:, :3], data=(x[:N], y))
    with pytest.raises(InputError):
        run_smoother(run, model, data=x)
    with pytest.raises(InputError):
        run_smoother(run, model, data=(x[:N], y), tolerance=-1)
    with pytest.raises(InputError):
        run_smoother("run", model, data=(x[:N], y))


def test_targets_that_change_and_dropout_are_refused(tmp_path):
    x, y, model = rows(), torch.arange(N) % C, network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, tmp_path / "run", loss="mse") as recorder:
        for labels in (y, (y + 1) % C):
            optimizer.zero_grad()
            (0.5 * (model(x[:N]) - nn.functional.one_hot(labels, C)).square().sum(1).mean()).backward()
            recorder.step(torch.arange(N), x[:N], labels)
    with pytest.raises(InputError, match="other targets"):
        run_smoother(Run.open(tmp_path / "run"), model, data=(x[:N], y))
    dropping = nn.Sequential(nn.Linear(4, C), nn.Dropout(0.5)).double()
    optimizer = torch.optim.SGD(dropping.parameters(), lr=0.1)
    run = None
    with Recorder(dropping, optimizer, tmp_path / "drop", loss="mse") as recorder:
        (0.5 * (dropping(x[:N]) - nn.functional.one_hot(y, C)).square().sum(1).mean()).backward()
        recorder.step(torch.arange(N), x[:N], y)
    run = Run.open(tmp_path / "drop")
    with pytest.raises(UnsupportedModelError):
        run_smoother(run, dropping, data=(x[:N], y))
