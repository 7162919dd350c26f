"""Every analysis of a run takes forward=, for models called on dicts of tensors."""

import torch
from torch import nn

import kernelmem as km
from tests.trajectory.recorded import digits


class Keywords(nn.Module):
    """Called with keywords, gives a dict."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(64, 8), nn.Linear(8, 10)

    def forward(self, *, pixels, scale):
        return {"scores": self.last(torch.tanh(self.first(pixels * scale)))}


def scores(model, batch):
    return model(**batch)["scores"]


def test_runs_of_dicts_are_analyzed(tmp_path):
    x, y = digits(48)
    rows = {"pixels": x, "scale": torch.linspace(0.5, 1.5, 48, dtype=torch.float64)[:, None]}
    torch.manual_seed(0)
    model = Keywords().double()
    run = km.fit(
        model, rows, y, out=tmp_path / "run", epochs=2, seed=0, forward=scores, options=km.FitOptions(batch_size=16)
    )
    few = {name: value[:3] for name, value in rows.items()}
    own = km.ledger(run, model, few, forward=scores)
    assert own.largest_residual <= 1e-12
    groups = km.ledger(run, model, few, forward=scores, by=y)
    assert float((groups.contributions - own.by_group(y)).abs().max()) <= 1e-12
    machine = km.exact_kernel_machine(run, model, few, forward=scores)
    assert float((machine.contributions(48) - own.contributions).abs().max()) <= 1e-12
    kernel = km.path_kernel(run, model, few, forward=scores)
    assert kernel.values.shape == (3, 3)
    assert km.influence(run, model, few, forward=scores).influence.shape == (3, 48, 10)
