"""Tests of compare_kernel_machines: exact for linear networks, nulls at chance, reasons for undefined methods."""

import dataclasses
import math
from itertools import pairwise

import pandas as pd
import pytest
import torch
from torch import nn

import kernelmem as km
from kernelmem.core.errors import FileCorruptError, InputError
from kernelmem.core.models.torch_func import functional_call, jvp
from kernelmem.kernel_machines.equivalence.compare import compare_kernel_machines
from kernelmem.kernel_machines.equivalence.options import ComparisonOptions
from kernelmem.kernel_machines.equivalence.result import METHODS, KernelMachineComparison, score_fit
from kernelmem.kernel_machines.equivalence.trajectory import checkpoint_steps
from kernelmem.tangents.derivatives.jvp import load_dual_rules
from tests.trajectory.recorded import record

FROZEN = ["sgd_initial", "sgd_final"]
QUICK = ["sgd_initial", "sgd_final", "ridge_initial", "ridge_final", "first_order_ledger"]

load_dual_rules()


def setting(n=24, m=9, outputs=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n + m, 5, generator=generator, dtype=torch.float64)
    y = (x @ torch.randn(5, outputs, generator=generator, dtype=torch.float64)).argmax(1)
    return x[:n], y[:n], x[n:]


def linear(seed=0, outputs=3):
    torch.manual_seed(seed)
    return nn.Linear(5, outputs).double()


def small(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()


OPTIMIZERS = {
    "gd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.8, dampening=0.2),
    "nesterov, decay": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.8, nesterov=True, weight_decay=0.1),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_a_linear_network_is_its_frozen_kernels_machine(tmp_path, optimizer, loss):
    """Minibatches, momentum, decay, clipping, cross-entropy: the descent of the kernel is that of the network."""
    x, y, x_test = setting()
    model = linear()
    own = OPTIMIZERS[optimizer](model.parameters())
    run = record(tmp_path / "run", model, own, x, y, loss=loss, batch=7, steps=15, clip=0.5)
    assert any(step.scale < 0.999 for step in run.steps)
    found = compare_kernel_machines(
        run, model, x_test, data=(x, y), methods=QUICK, options=ComparisonOptions(checkpoints=3)
    )
    with torch.no_grad():
        assert float((found.network - model(x_test)).abs().max()) < 1e-14
    for name in (*FROZEN, "first_order_ledger"):
        assert found[name].error < 1e-12, name
        assert found[name].agreement == 1.0
        assert found[name].r2 > 1 - 1e-12
    assert found["ridge_initial"].error < 1e-5
    assert found.kernel_change < 1e-14
    assert max(own.change for own in found.movement) < 1e-14


def test_all_machines_of_plain_descent_on_a_linear_network(tmp_path):
    x, y, x_test = setting()
    model = linear()
    run = record(tmp_path / "run", model, OPTIMIZERS["gd"](model.parameters()), x, y, loss="mse", batch=8, steps=9)
    found = compare_kernel_machines(run, model, x_test, data=(x, y), options=ComparisonOptions(stride=3))
    assert [own.name for own in found.fits] == list(METHODS)
    for own in found.fits:
        assert own.status == "computed"
        exact = not own.name.startswith("ridge") and own.name != "null"
        assert own.error < (1e-12 if exact else 1e-5) or own.name == "null", own
    assert found["domingos"].rows == 4
    assert found["exact_ledger"].rows == 8
    assert found["null"].error > 0.5
    assert abs(found["null"].null_agreement - found["null"].agreement) < 0.5
    for own in found.fits:
        assert own.null_error > 0.3, own


def test_the_table_prints_and_is_drawn(tmp_path):
    x, y, x_test = setting()
    model = small()
    run = record(tmp_path / "run", model, OPTIMIZERS["gd"](model.parameters()), x, y, loss="mse", batch=24, steps=9)
    found = compare_kernel_machines(
        run, model, x_test, data=(x, y), methods=[*QUICK, "exact_ledger"], options=ComparisonOptions(ledger_rows=2)
    )
    frame = found.to_frame()
    assert list(frame.index) == [*QUICK, "exact_ledger"]
    assert frame.loc["exact_ledger", "error"] < 1e-10
    assert frame.loc["exact_ledger", "rows"] == 2
    assert list(found.movement_frame().index) == checkpoint_steps(9, 9)
    assert 0 < found.kernel_change < 1
    text = str(found)
    assert "SGD with the initial kernel" in text
    assert "alignment" in text
    assert "on 2 rows" in text
    assert found.plot().get_axes()
    assert dataclasses.replace(found, movement=()).plot().get_axes()
    path = found.save(tmp_path / "machines.safetensors")
    again = KernelMachineComparison.load(path)
    assert str(again) == text
    assert list(again.predictions) == list(found.predictions)
    assert torch.equal(again.predictions["first_order_ledger"], found.predictions["first_order_ledger"])
    pd.testing.assert_frame_equal(again.to_frame(), frame)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(FileCorruptError, match="KernelMachineComparison"):
        KernelMachineComparison.load(path)


def test_the_movement_of_the_kernel_equals_that_of_alignment(tmp_path):
    x, y, x_test = setting()
    model = small()
    run = record(tmp_path / "run", model, OPTIMIZERS["momentum"](model.parameters()), x, y, batch=8, steps=10)
    found = compare_kernel_machines(
        run,
        model,
        x_test,
        data=(x, y),
        methods=["first_order_ledger"],
        options=ComparisonOptions(checkpoints=3, movement_rows=100),
    )
    kernels = []
    for own in found.movement:
        other = small()
        other.load_state_dict(run.weights(own.step))
        kernels.append(km.ntk(other, x))
    assert [own.step for own in found.movement] == [0, 5, 10]
    for own, kernel in zip(found.movement, kernels, strict=True):
        assert own.distance == pytest.approx(km.kernel_distance(kernel, kernels[0]), abs=1e-14)
        assert own.change == pytest.approx(float((kernel - kernels[0]).norm() / kernels[0].norm()), abs=1e-13)
        one_hot = nn.functional.one_hot(y).double()
        assert own.alignment == pytest.approx(km.centered_alignment(kernel, one_hot @ one_hot.T), abs=1e-12)
        assert own.null_alignment < own.alignment
    assert math.isnan(found.movement[0].velocity)
    assert found.movement[2].velocity == pytest.approx(km.kernel_distance(kernels[1], kernels[2]) / 5, rel=1e-9)
    assert found.movement[2].distance > 1e-5
    assert math.isnan(found.kernel_change)


def test_frozen_descent_beyond_the_limit_diverges_with_its_figure(tmp_path):
    x, y, x_test = setting()
    model = linear()
    K = km.ntk(model, x, outputs="full").transpose(1, 2).reshape(72, 72)
    largest = float(torch.linalg.eigvalsh(K)[-1])
    optimizer = torch.optim.SGD(model.parameters(), lr=2.02 * 24 / largest)
    run = record(tmp_path / "run", model, optimizer, x, y, loss="mse", batch=24, steps=4)
    found = compare_kernel_machines(
        run, model, x_test, data=(x, y), methods=["sgd_initial"], options=ComparisonOptions(checkpoints=0)
    )
    own = found["sgd_initial"]
    assert own.status == "diverges"
    assert own.stability == pytest.approx(2.02, rel=1e-9)
    assert math.isnan(own.error)
    assert "diverges: lr times curvature 2.02, limit 2" in str(found)
    assert "sgd_initial" not in found.predictions
    # with momentum the limit is another, and there it is stable
    again = linear()
    optimizer = torch.optim.SGD(again.parameters(), lr=2.02 * 24 / largest, momentum=0.5)
    run = record(tmp_path / "again", again, optimizer, x, y, loss="mse", batch=24, steps=4)
    stable = compare_kernel_machines(
        run, again, x_test, data=(x, y), methods=["sgd_initial"], options=ComparisonOptions(checkpoints=0)
    )
    assert stable["sgd_initial"].error < 1e-12
    assert stable.limit == 3.0


def test_small_batches_and_weights_count_in_the_figure(tmp_path):
    """The curvature of mse_mean is 2/C; a sum over the batch, in place of a mean, multiplies it by its size."""
    x, y, x_test = setting(outputs=4)
    targets = nn.functional.one_hot(y, 4).double()
    figures = {}
    for reduction in ("mean", "sum"):
        model = linear(outputs=4)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        path = tmp_path / reduction
        with km.Recorder(model, optimizer, path, loss="mse_mean", reduction=reduction) as recorder:
            for _ in range(3):
                optimizer.zero_grad()
                losses = (model(x[:6]) - targets[:6]).square().mean(1)
                (losses.mean() if reduction == "mean" else losses.sum()).backward()
                recorder.step(torch.arange(6), x[:6], targets[:6])
        found = compare_kernel_machines(
            km.Run.open(path),
            model,
            x_test,
            data=(x, y),
            methods=["sgd_initial"],
            options=ComparisonOptions(checkpoints=0),
        )
        assert found["sgd_initial"].error < 1e-11
        figures[reduction] = found["sgd_initial"].stability
    K = km.ntk(linear(outputs=4), x, outputs="full").transpose(1, 2).reshape(96, 96)
    assert figures["mean"] == pytest.approx(1e-3 * 0.5 * float(torch.linalg.eigvalsh(K)[-1]) / 24, rel=1e-9)
    assert figures["sum"] == pytest.approx(6 * figures["mean"], rel=1e-12)


def test_adam_has_no_form_in_function_space_but_ledgers_and_fits(tmp_path):
    x, y, x_test = setting()
    model = small()
    run = record(tmp_path / "run", model, torch.optim.Adam(model.parameters(), lr=0.01), x, y, batch=8, steps=6)
    found = compare_kernel_machines(
        run, model, x_test, data=(x, y), options=ComparisonOptions(stride=2, ledger_rows=3, checkpoints=0)
    )
    status = {own.name: own.status for own in found.fits}
    for name in ("sgd_initial", "sgd_final", "sgd_path", "domingos_constant", "domingos"):
        assert status[name] == "undefined"
        assert found[name].note
    assert "Adam has no form" in str(found)
    assert found["exact_ledger"].error < 1e-10
    assert found["ridge_path"].error < found["null"].error
    assert 0 < found["first_order_ledger"].error < 0.1


def test_reasons_for_no_frozen_descent(tmp_path):
    x, y, x_test = setting()
    cases = {}
    model = small()
    groups = [{"params": model[0].parameters(), "lr": 0.02}, {"params": model[2].parameters()}]
    cases["groups"] = (model, torch.optim.SGD(groups, lr=0.1), {})
    model = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 3)).double()
    cases["random numbers"] = (model, torch.optim.SGD(model.parameters(), lr=0.1), {})
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).double()
    cases["statistics"] = (model, torch.optim.SGD(model.parameters(), lr=0.1), {})
    for reason, (model, optimizer, options) in cases.items():
        run = record(tmp_path / reason, model, optimizer, x, y, batch=8, steps=4, **options)
        wanted = ["sgd_initial", "domingos_constant", "first_order_ledger"]
        found = compare_kernel_machines(
            run, model, x_test, data=(x, y), methods=wanted, options=ComparisonOptions(checkpoints=0)
        )
        assert found["sgd_initial"].status == "undefined"
        assert reason in found["sgd_initial"].note
        assert found["domingos_constant"].status == "undefined"
        assert found["first_order_ledger"].status == "computed"
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.01)
    run = record(tmp_path / "decay", model, optimizer, x, y, batch=8, steps=4)
    found = compare_kernel_machines(
        run, model, x_test, data=(x, y), methods=["sgd_path", "domingos"], options=ComparisonOptions(checkpoints=0)
    )
    assert "weight decay" in found["sgd_path"].note
    assert found["domingos"].status == "undefined"


def test_augmented_examples_have_no_frozen_kernel(tmp_path):
    x, y, x_test = setting()
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with km.Recorder(model, optimizer, tmp_path / "run", loss="cross_entropy") as recorder:
        for t in range(3):
            optimizer.zero_grad()
            rows = x + 0.1 * t
            nn.functional.cross_entropy(model(rows), y).backward()
            recorder.step(torch.arange(24), rows, y)
    run = km.Run.open(tmp_path / "run")
    found = compare_kernel_machines(
        run, model, x_test, data=(x, y), methods=["sgd_initial"], options=ComparisonOptions(checkpoints=0)
    )
    assert "augmented" in found["sgd_initial"].note


def test_trace_kernels_are_exact_where_outputs_share_one_kernel(tmp_path):
    """Of a linear network the kernel of every output is the same and none mixes two, so that the mean loses nothing."""
    x, y, x_test = setting()
    model = linear()
    run = record(tmp_path / "run", model, OPTIMIZERS["momentum"](model.parameters()), x, y, batch=8, steps=9)
    wanted = ["sgd_initial", "sgd_path", "ridge_path"]
    found = {
        kind: compare_kernel_machines(
            run,
            model,
            x_test,
            data=(x, y),
            methods=wanted,
            outputs=kind,
            options=ComparisonOptions(stride=3, checkpoints=0, ridge=1e-4),
        )
        for kind in ("full", "trace")
    }
    for name in wanted:
        gap = found["full"].predictions[name] - found["trace"].predictions[name]
        assert float(gap.abs().max()) < 1e-12, name
    assert found["trace"]["sgd_initial"].error < 1e-12


def test_more_test_rows_than_training_rows(tmp_path):
    """Kernels are then computed with the training rows alone; nothing else changes."""
    x, y, x_test = setting(m=30)
    model = small()
    run = record(tmp_path / "run", model, OPTIMIZERS["gd"](model.parameters()), x, y, loss="mse", batch=8, steps=6)
    wanted = ["sgd_final", "sgd_path", "ridge_path", "domingos_constant"]
    own = {"methods": wanted, "options": ComparisonOptions(stride=2, checkpoints=0)}
    found = compare_kernel_machines(run, model, x_test, data=(x, y), **own)
    fewer = compare_kernel_machines(run, model, x_test[:9], data=(x, y), **own)
    for name in wanted:
        assert float((found.predictions[name][:9] - fewer.predictions[name]).abs().max()) < 1e-7, name


def test_a_ridge_chosen_by_leave_one_out(tmp_path):
    x, y, x_test = setting()
    model = small()
    run = record(tmp_path / "run", model, OPTIMIZERS["gd"](model.parameters()), x, y, batch=24, steps=9)
    found = compare_kernel_machines(
        run,
        model,
        x_test,
        data=(x, y),
        methods=["ridge_initial"],
        options=ComparisonOptions(ridge="loo", checkpoints=0),
    )
    own = found["ridge_initial"]
    assert own.ridge > 0
    assert own.residual < 1e-8
    assert own.condition > 1
    fixed = compare_kernel_machines(
        run, model, x_test, data=(x, y), methods=["ridge_initial"], options=ComparisonOptions(ridge=1e-2, checkpoints=0)
    )
    with torch.no_grad():
        start = small()
        start.load_state_dict(run.weights(0))
        change, at_test = model(x) - start(x), start(x_test)
    K = km.ntk(start, torch.cat([x, x_test]), outputs="full").transpose(1, 2).reshape(99, 99)
    ridge = 1e-2 * torch.linalg.eigvalsh(K[:72, :72])[-1]
    expected = K[72:, :72] @ torch.linalg.solve(K[:72, :72] + ridge * torch.eye(72).double(), change.flatten())
    assert float((fixed.predictions["ridge_initial"] - at_test - expected.view(9, 3)).abs().max()) < 1e-12


def test_the_left_ledger_takes_tangents_at_the_start_of_each_step(tmp_path):
    x, y, x_test = setting()
    model = small()
    run = record(tmp_path / "run", model, OPTIMIZERS["momentum"](model.parameters()), x, y, batch=8, steps=5)
    found = compare_kernel_machines(
        run, model, x_test, data=(x, y), methods=["first_order_ledger"], options=ComparisonOptions(checkpoints=0)
    )
    states = [run.weights(t) for t in range(6)]
    expected = functional_call(model, states[0], (x_test,)).detach()
    for now, after in pairwise(states):
        step = {name: after[name] - now[name] for name in now}
        expected += jvp(lambda w: functional_call(model, w, (x_test,)), (now,), (step,))[1].detach()
    assert float((found.predictions["first_order_ledger"] - expected).abs().max()) < 1e-13
    assert found["first_order_ledger"].error > 1e-4


def test_float32_networks_and_arrays(tmp_path):
    x, y, x_test = (value.float() if value.is_floating_point() else value for value in setting())
    model = small().float()
    run = record(tmp_path / "run", model, OPTIMIZERS["gd"](model.parameters()), x, y, batch=24, steps=4)
    found = compare_kernel_machines(
        run, model, x_test.numpy(), data=(x.numpy(), y.numpy()), methods=QUICK, options=ComparisonOptions(checkpoints=2)
    )
    assert found.network.dtype == torch.float64
    assert found["sgd_initial"].error < 0.2
    assert found["first_order_ledger"].error < 0.1


def test_one_output_agrees_by_sign_and_without_a_change_the_error_is_infinite():
    network = torch.tensor([[1.0], [-1.0], [2.0], [-3.0]]).double()
    found = score_fit("null", torch.tensor([[0.1], [-0.1], [-0.1], [-1.0]]).double(), network, 0 * network, seed=0)
    assert found.agreement == 0.75
    assert found.error == pytest.approx(math.sqrt(0.81 + 0.81 + 4.41 + 4) / math.sqrt(15))
    assert found.r2 == pytest.approx(1 - 10.03 / (15 - 4 * 0.25**2))
    assert score_fit("null", network, network, network, seed=0).error == math.inf
    perfect = score_fit("null", network, network, 0 * network, seed=0)
    assert (perfect.error, perfect.agreement, perfect.r2) == (0.0, 1.0, 1.0)
    assert 0 < perfect.agreement_se < 0.5
    assert perfect.null_agreement < 0.9
    wide = torch.randn(200, 4, generator=torch.Generator().manual_seed(0)).double()
    by_chance = score_fit("null", wide, wide, 0 * wide, seed=1)
    assert by_chance.null_agreement == pytest.approx(0.25, abs=0.05)
    assert by_chance.null_error == pytest.approx(math.sqrt(2), abs=0.05)


def test_invalid_arguments_are_refused(tmp_path):
    x, y, x_test = setting()
    model = small()
    run = record(tmp_path / "run", model, OPTIMIZERS["gd"](model.parameters()), x, y, batch=24, steps=3)
    for options, message in (
        ({"methods": ["nothing"]}, "methods="),
        ({"methods": []}, "methods="),
        ({"methods": "null"}, "methods="),
        ({"outputs": "pseudo"}, "outputs="),
        ({"options": ComparisonOptions(memory="30KiB")}, "kernels of 33 by 33 rows"),
    ):
        with pytest.raises(InputError, match=message):
            compare_kernel_machines(run, model, x_test, data=(x, y), **options)
    for option in ({"ridge": 0.0}, {"ridge": "gcv"}, {"stride": 0}, {"checkpoints": -1}):
        with pytest.raises(InputError, match=f"{next(iter(option))}="):
            ComparisonOptions(**option)
    with pytest.raises(InputError, match="data of 20 rows"):
        compare_kernel_machines(run, model, x_test, data=(x[:20], y[:20]))
    with pytest.raises(InputError, match="23 targets"):
        compare_kernel_machines(run, model, x_test, data=(x, y[:23]))
