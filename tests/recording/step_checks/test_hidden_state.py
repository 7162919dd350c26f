"""kernelmem.recording.step_checks.hidden_state: schedules in Python attributes are refused when they act."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kernelmem.core.errors import InputError
from kernelmem.recording.recorder import Recorder
from kernelmem.recording.run import Run


class Tempered(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net, self.temperature, self.calls = net, 1.0, 0

    def forward(self, x):
        self.calls += 1
        return self.net(x) / self.temperature


class TemperedLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.temperature, self.calls = 1.0, 0

    def forward(self, f, y):
        self.calls += 1
        return F.cross_entropy(f / self.temperature, y, reduction="none")


def train(lab, model, change, *, loss="cross_entropy", steps=4, dtype=torch.float32, forward=None):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, lab.directory / "run", loss=loss, forward=forward) as recorder:
        for t in range(steps):
            change(t)
            index, x, y = lab.batch(t, dtype, size=8)
            optimizer.zero_grad()
            outputs = model(x) if forward is None else forward(model, x)
            losses = F.cross_entropy(outputs, y) if loss == "cross_entropy" else loss(outputs, y).mean()
            losses.backward()
            recorder.step(index, x, y)
    return Run.open(lab.directory / "run")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rate", [0.5, 0.999])
def test_an_annealed_temperature_of_the_model_is_refused(lab, dtype, rate):
    model = Tempered(lab.network(dtype))

    def anneal(t):
        if t >= 2:
            model.temperature *= rate

    with pytest.raises(
        InputError, match=r"a model that has changed between step 0 and step 2.*model.temperature from 1.0 to 0"
    ):
        train(lab, model, anneal, dtype=dtype)
    run = Run.open(lab.directory / "run")
    run.verify()
    assert len(run) == 2


def test_an_annealed_loss_is_refused(lab):
    loss = TemperedLoss()

    def anneal(t):
        loss.temperature = 1.0 + 0.1 * (t >= 3)

    with pytest.raises(InputError, match=r"a loss that has changed .* step 3.*loss.temperature from 1.0 to 1.1"):
        train(lab, lab.network(), anneal, loss=loss)


def test_a_loss_with_a_changing_closure_is_refused(lab):
    factor = 1.0

    def loss(f, y):
        return factor * F.cross_entropy(f, y, reduction="none")

    def anneal(t):
        nonlocal factor
        factor = 1.0 / (1 + t)

    with pytest.raises(InputError, match=r"a loss that has changed .* step 1.*loss.factor from 1.0 to 0.5"):
        train(lab, lab.network(), anneal, loss=loss)


def test_a_dropout_probability_that_changes_is_refused(lab):
    model = lab.network(dropout=0.2)

    def anneal(t):
        model[2].p = 0.2 if t < 2 else 0.6

    with pytest.raises(InputError, match=r"2.p from 0.2 to 0.6"):
        train(lab, model, anneal)


def test_counters_modes_buffers_and_frozen_parameters_are_not_hidden_state(lab):
    model = Tempered(lab.network(norm=True, dropout=0.3))

    def change(t):
        model.net[1].train(t != 2)
        model.net[0].weight.requires_grad_(t != 1)

    run = train(lab, model, change)
    assert len(run) == 4
    assert model.calls > 4


def test_recurrent_networks(lab):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.head = nn.LSTM(4, 5, num_layers=2, dropout=0.3, batch_first=True), nn.Linear(5, 3)

        def forward(self, x):
            return self.head(self.lstm(x.unsqueeze(1))[0][:, -1])

    torch.manual_seed(0)
    assert len(train(lab, Recurrent(), lambda t: None)) == 4


def test_the_model_is_left_as_it_was(lab):
    model = lab.network(norm=True, dropout=0.3)
    plain = lab.network(norm=True, dropout=0.3)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    storages = [p.data_ptr() for p in model.parameters()]
    torch.manual_seed(3)
    train(lab, model, lambda t: None)
    torch.manual_seed(3)
    for t in range(4):
        _, x, y = lab.batch(t, size=8)
        optimizer.zero_grad()
        F.cross_entropy(plain(x), y).backward()
        optimizer.step()
    assert lab.same([model.state_dict()], [plain.state_dict()])
    assert storages == [p.data_ptr() for p in model.parameters()]
    assert all(module.training for module in model.modules())
