"""Exact kernel machine and Domingos kernel machine of a trained network, compared with the ledger."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kernelmem.core.errors import InputError, UnsupportedModelError
from kernelmem.kernels.ntk import ntk
from kernelmem.recording.recorder import Recorder
from kernelmem.recording.run import Run
from kernelmem.training.losses import per_example_loss
from kernelmem.trajectory.ledger.ledger import LedgerOptions, ledger
from kernelmem.trajectory.path_kernel.domingos_kernel_machine import domingos_kernel_machine
from kernelmem.trajectory.path_kernel.exact_kernel_machine import exact_kernel_machine
from tests.profiles import examples
from tests.trajectory.path_kernel.test_path_kernel import data, small, train
from tests.trajectory.recorded import OPTIMIZERS, digits, mlp, record


def gap(a, b):
    return float((a - b).abs().max())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_sums_of_the_exact_kernel_machine_over_steps_are_the_ledger(tmp_path, optimizer):
    model = small()
    run = train(tmp_path / "run", model, optimizer=OPTIMIZERS[optimizer](model.parameters()), steps=8)
    x = data(4, seed=1)[0]
    machine, own = exact_kernel_machine(run, model, x), ledger(run, model, x)
    assert gap(machine.contributions(own.contributions.shape[1]), own.contributions) < 1e-12
    assert gap(machine.decay, own.decay) < 1e-12
    assert gap(machine.rounding, own.rounding) < 1e-12
    assert gap(machine.initial, own.initial) < 1e-14
    assert gap(machine.predictions, own.final) < 1e-11
    assert float((own.final - own.initial).abs().max()) > 1e-2
    assert f"{len(machine.steps)} atoms" in str(machine)


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize("clip", [None, 0.3])
def test_coefficients_are_derivatives_of_the_loss_and_do_not_depend_on_x(tmp_path, loss, clip):
    model = small()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    run = train(tmp_path / "run", model, optimizer=optimizer, loss=loss, clip=clip, keep="all")
    here, there = (exact_kernel_machine(run, model, data(n, seed=n)[0]) for n in (2, 5))
    assert torch.equal(here.coefficients, there.coefficients)
    assert torch.equal(here.steps, there.steps)
    assert torch.equal(here.examples, there.examples)
    function, fresh = per_example_loss(loss), small()
    for t, step in enumerate(run.steps):
        fresh.load_state_dict(run.weights(t))
        inputs, targets = run.batch(t)
        outputs = fresh(inputs).detach().requires_grad_()
        (slope,) = torch.autograd.grad(function(outputs, targets).sum(), outputs)
        atoms = here.steps == t
        assert torch.equal(here.examples[atoms], step.examples)
        assert gap(here.coefficients[atoms], -step.scale / len(inputs) * slope) < 1e-15
    assert (clip is None) == all(step.scale == 1.0 for step in run.steps)


def test_the_kernel_of_plain_descent_on_a_linear_model_by_hand(tmp_path):
    """K(x, (i, s)) = h (x·x_i + 1) I for every step."""
    model = nn.Linear(4, 3).double()
    run = train(tmp_path / "run", model, optimizer=torch.optim.SGD(model.parameters(), lr=0.25))
    x = data(5, seed=1)[0]
    machine = exact_kernel_machine(run, model, x)
    met = torch.cat([run.batch(t)[0] for t in range(len(run))])
    expected = 0.25 * (x @ met.T + 1)[:, :, None, None] * torch.eye(3)
    assert gap(machine.kernel, expected) < 1e-13


def test_targets_of_the_exact_kernel_machine(tmp_path):
    model = small()
    run = train(tmp_path / "run", model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    x, y = data(4, seed=1)
    whole = exact_kernel_machine(run, model, x)
    one = exact_kernel_machine(run, model, x, target=("logit", 2))
    assert one.kernel.shape == (4, len(one.steps), 1, 3)
    assert gap(one.kernel[:, :, 0], whole.kernel[:, :, 2]) < 1e-12
    margin = exact_kernel_machine(run, model, x, target="margin", labels=y)
    assert float(margin.residual.abs().max()) < 1e-11
    assert margin.names == ("margin",)


def test_runs_in_float32_have_their_rounding(tmp_path):
    model = small(dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    run = train(tmp_path / "run", model, optimizer=optimizer, dtype=torch.float32)
    machine = exact_kernel_machine(run, model, data(4, seed=1)[0])
    assert float(machine.residual.abs().max()) < 1e-11
    assert 1e-10 < float(machine.rounding.abs().max()) < 1e-3
    assert machine.kernel.dtype == torch.float64


def test_a_machine_too_large_is_refused_with_its_size(tmp_path):
    x, y = digits()
    model = mlp()
    run = record(tmp_path / "run", model, torch.optim.SGD(model.parameters(), lr=0.1), x, y, steps=9, batch=16)
    with pytest.raises(InputError, match="which takes") as refused:
        exact_kernel_machine(run, model, x[:20], memory="5MiB")
    figure = int(re.search(r"takes (\d+) MiB", str(refused.value)).group(1))
    assert figure > 20 * (8 * 16 + 16) * 10 * 10 * 8 / 2**20
    with pytest.raises(InputError, match="which takes"):
        exact_kernel_machine(run, model, x[:20], memory=f"{figure - 1}MiB")
    assert exact_kernel_machine(run, model, x[:20], memory=f"{figure + 1}MiB").kernel.shape == (
        20,
        8 * 16 + 16,
        10,
        10,
    )
    with pytest.raises(InputError, match="n=3"):
        exact_kernel_machine(run, model, x[:2]).contributions(3)
    with pytest.raises(InputError, match="no recorded steps"):
        exact_kernel_machine(train(tmp_path / "none", small(), steps=0), small(), data(3)[0])


@pytest.mark.parametrize("layer", [nn.Dropout(0.4), nn.BatchNorm1d(6), nn.BatchNorm1d(6, track_running_stats=False)])
def test_steps_that_mix_examples_are_refused(tmp_path, layer):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), layer, nn.Tanh(), nn.Linear(6, 3)).double()
    run = train(tmp_path / "run", model)
    for call in (
        lambda: exact_kernel_machine(run, model, data(3)[0]),
        lambda: domingos_kernel_machine(run, model, data(3)[0], data=data()),
    ):
        with pytest.raises(UnsupportedModelError, match="step 0 "):
            call()


class Moody(nn.Module):
    """Doubles its input in training; may count its calls in a buffer."""

    def __init__(self, *, counts):
        super().__init__()
        self.counts = counts
        self.register_buffer("calls", torch.zeros((), dtype=torch.float64))

    def forward(self, x):
        if self.training and self.counts:
            self.calls += 1
        return 2 * x if self.training else x


def test_runs_that_change_buffers_are_refused(tmp_path):
    model = nn.Sequential(nn.Linear(4, 5), Moody(counts=True), nn.Tanh(), nn.Linear(5, 3)).double()
    run = train(tmp_path / "run", model)
    with pytest.raises(UnsupportedModelError, match="step 0 used"):
        exact_kernel_machine(run, model, data(3)[0])


def test_examples_are_seen_in_the_mode_of_their_step(tmp_path):
    model = nn.Sequential(nn.Linear(4, 5), Moody(counts=False), nn.Tanh(), nn.Linear(5, 3)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    x, y = data()
    with Recorder(model, optimizer, tmp_path / "run", loss="cross_entropy") as recorder:
        for training in (True, False, False, True):
            model.train(training)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            recorder.step(torch.arange(12), x, y)
    machine = exact_kernel_machine(Run.open(tmp_path / "run"), model, x[:4])
    assert float(machine.rounding.abs().max()) < 1e-12
    assert float(machine.residual.abs().max()) < 1e-12


def test_buffers_of_the_model_are_irrelevant(tmp_path):
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)).double().eval()
    run = train(tmp_path / "run", model)
    x = data(4, seed=1)[0]
    expected = exact_kernel_machine(run, model, x)
    model[1].running_var.fill_(9.0)
    assert torch.equal(exact_kernel_machine(run, model, x).kernel, expected.kernel)
    form = domingos_kernel_machine(run, model, x, data=data(), n_nodes=6)
    assert gap(-form.weighted, expected.contributions(12)) < 1e-9


def test_parameters_without_a_gradient_are_skipped(tmp_path):
    model = small()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)
    x, y = data()
    with Recorder(model, optimizer, tmp_path / "run", loss="cross_entropy") as recorder:
        for t in range(5):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            if t in (1, 3):
                model[2].weight.grad = None
            recorder.step(torch.arange(12), x, y)
    run = Run.open(tmp_path / "run")
    machine = exact_kernel_machine(run, model, x[:4])
    assert float(machine.rounding.abs().max()) < 1e-12
    assert gap(machine.contributions(), ledger(run, model, x[:4]).contributions) < 1e-12


def test_progress_is_reported(tmp_path):
    done, model = [], small()
    run = train(tmp_path / "run", model, steps=3)
    exact_kernel_machine(run, model, data(2)[0], progress=lambda i, n: done.append((i, n)))
    assert done == [(i, 6) for i in range(1, 7)]


@given(st.sampled_from(["cross_entropy", "mse"]), st.integers(1, 12), st.integers(0, 10**6))
@examples(0.125)
def test_the_weighted_path_kernel_is_the_ledger_of_plain_descent(tmp_path_factory, loss, batch, seed):
    model = small(seed=seed)
    x, y = data()
    path = tmp_path_factory.mktemp("domingos") / "run"
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    run = record(path, model, optimizer, x, y, steps=5, batch=batch, loss=loss, seed=seed)
    test = data(4, seed=1)[0]
    form, own = (
        domingos_kernel_machine(run, model, test, data=(x, y), n_nodes=6),
        ledger(run, model, test, options=LedgerOptions(data=(x, y))),
    )
    assert gap(-form.weighted, own.contributions) < 1e-10
    assert gap(form.predictions, own.final) < 1e-10
    assert gap(form.initial, own.initial) < 1e-14
    assert gap(form.final, own.final) < 1e-14
    assert form.kernel.shape == (4, 12, 3, 3)
    # coefficients that depend on x, where K can be inverted
    again = form.initial + torch.einsum("mncd,mnd->mc", form.kernel, form.coefficients)
    assert gap(again, own.final) < 1e-7
    assert form.total_time == pytest.approx(1.0)


def test_a_linear_model_needs_no_coefficients_that_depend_on_x(tmp_path):
    model = nn.Linear(4, 3).double()
    run = train(tmp_path / "run", model, batch=12)
    test = data(5, seed=1)[0]
    form = domingos_kernel_machine(run, model, test, data=data())
    assert gap(form.constant_predictions, form.final) < 1e-12
    assert gap(form.coefficients, form.coefficients[:1].expand(5, -1, -1)) < 1e-11
    assert gap(form.coefficients[0], -form.summed_derivatives / 3.0) < 1e-11
    assert gap(form.kernel, 3.0 * ntk(model, test, data()[0], outputs="full")) < 1e-11


def test_a_network_needs_coefficients_that_depend_on_x(tmp_path):
    model = small()
    run = train(tmp_path / "run", model, batch=12, steps=30)
    form = domingos_kernel_machine(run, model, data(5, seed=1)[0], data=data())
    change = (form.final - form.initial).norm()
    assert float(form.residual.norm() / change) < 1e-5
    assert float((form.constant_predictions - form.final).norm() / change) > 0.05
    assert "of the change" in str(form)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.5),
        lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=1e-3),
        lambda p: torch.optim.SGD(p, lr=0.1, maximize=True),
        lambda p: torch.optim.Adam(p, lr=0.01),
    ],
)
def test_domingos_kernel_machine_refuses_other_optimizers(tmp_path, make):
    model = small()
    run = train(tmp_path / "run", model, optimizer=make(model.parameters()), steps=2)
    with pytest.raises(InputError, match="plain gradient descent"):
        domingos_kernel_machine(run, model, data(3)[0], data=data())


def test_data_must_hold_every_example(tmp_path):
    model = small()
    run = train(tmp_path / "run", model)
    with pytest.raises(InputError, match="data of 5 rows"):
        domingos_kernel_machine(run, model, data(3)[0], data=data(5))
    with pytest.raises(InputError, match="no recorded steps"):
        domingos_kernel_machine(train(tmp_path / "none", small(), steps=0), small(), data(3)[0], data=data())
