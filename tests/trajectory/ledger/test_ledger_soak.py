"""Training runs of 150 steps and more: the largest residual of the ledger, printed next to its bound."""

import pytest
import torch
from torch import nn

from kernelmem.trajectory.ledger.ledger import ledger
from tests.trajectory.recorded import digits, mlp, record

pytestmark = pytest.mark.soak

STEPS = 150


def clipped(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, nesterov=True)


RUNS = {
    "gd": (lambda p: torch.optim.SGD(p, lr=0.3), 128, None),
    "sgd": (lambda p: torch.optim.SGD(p, lr=0.1), 16, None),
    "momentum, decay": (lambda p: torch.optim.SGD(p, lr=0.03, momentum=0.9, weight_decay=1e-3), 16, None),
    "nesterov, clip, cosine": (clipped, 16, 1.0),
    "adam": (lambda p: torch.optim.Adam(p, lr=3e-3), 16, None),
    "adamw": (lambda p: torch.optim.AdamW(p, lr=3e-3, weight_decay=0.05), 16, None),
}


def accounted(
    path, model, optimizer, *, bound, name, batch=16, clip=None, steps=STEPS, dtype=torch.float64, n=128, **options
):
    x, y = digits(n, dtype)
    made = optimizer(model.parameters())
    schedule = None
    if clip is not None:
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(made, T_max=steps)
    run = record(path, model, made, x, y, batch=batch, steps=steps, clip=clip, schedule=schedule, **options)
    own = ledger(run, model, x[:6])
    nodes = float(own.evaluations.mean())
    moved = float((own.final - own.initial).abs().max())
    print(
        f"\n{name:<44} {own.largest_residual:9.1e}  (must {bound:.0e}; change {moved:.2f}, {nodes:.1f} nodes)", end=""
    )
    assert moved > 0.3
    assert own.largest_residual <= bound
    return own


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@pytest.mark.parametrize("activation", [nn.Tanh, nn.GELU])
@pytest.mark.parametrize("optimizer", RUNS)
def test_smooth_networks(tmp_path, optimizer, activation, loss):
    make, batch, clip = RUNS[optimizer]
    name = f"{activation.__name__}, {loss}, {optimizer}"
    accounted(tmp_path / "run", mlp(activation), make, bound=1e-12, name=name, batch=batch, clip=clip, loss=loss)


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@pytest.mark.parametrize("optimizer", RUNS)
def test_relu_networks(tmp_path, optimizer, loss):
    make, batch, clip = RUNS[optimizer]
    name = f"ReLU, {loss}, {optimizer}"
    accounted(tmp_path / "run", mlp(nn.ReLU), make, bound=1e-10, name=name, batch=batch, clip=clip, loss=loss)


def small_cnn(activation=nn.ReLU):
    torch.manual_seed(0)
    layers = [nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 4, 3), activation(), nn.Conv2d(4, 4, 3, stride=2), activation()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, 10)).double()


@pytest.mark.parametrize("optimizer", RUNS)
def test_small_relu_convolutional_networks(tmp_path, optimizer):
    make, batch, clip = RUNS[optimizer]
    accounted(tmp_path / "run", small_cnn(), make, bound=1e-10, name=f"ReLU CNN, {optimizer}", batch=batch, clip=clip)


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
@pytest.mark.parametrize("optimizer", ["momentum, decay", "adamw"])
def test_training_in_float32(tmp_path, optimizer, activation):
    make, batch, clip = RUNS[optimizer]
    model = mlp(activation, torch.float32)
    name = f"float32, {activation.__name__}, {optimizer}"
    accounted(tmp_path / "run", model, make, bound=1e-10, name=name, batch=batch, clip=clip, dtype=torch.float32)


@pytest.mark.parametrize("optimizer", ["momentum, decay", "adamw"])
def test_normalization_dropout_ragged_batches_and_groups(tmp_path, optimizer):
    make, _, _ = RUNS[optimizer]
    torch.manual_seed(0)
    # Without biases before normalization, which it undoes: their gradient is rounding, which Adam divides by its own size,
    # so that examples would be held to account for 1e5 logits each, of which nothing is left in the sum.
    normed = nn.Sequential(
        *(nn.Linear(64, 32, bias=False), nn.BatchNorm1d(32), nn.Tanh()),
        *(nn.Linear(32, 32, bias=False), nn.BatchNorm1d(32), nn.Tanh()),
        nn.Linear(32, 10),
    ).double()
    accounted(tmp_path / "norm", normed, make, bound=1e-10, name=f"BatchNorm, {optimizer}")
    dropped = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Dropout(0.2), nn.Linear(32, 10)).double()
    accounted(tmp_path / "drop", dropped, make, bound=1e-10, name=f"dropout, {optimizer}")
    accounted(tmp_path / "ragged", mlp(), make, bound=1e-10, name=f"ragged last batch, {optimizer}", n=100, batch=32)

    def two(parameters):
        first, *others = list(parameters)
        return torch.optim.AdamW([{"params": [first], "lr": 1e-3}, {"params": others, "weight_decay": 0.1}], lr=3e-3)

    accounted(tmp_path / "groups", mlp(), two, bound=1e-10, name="two groups, adamw")


class Transformer(nn.Module):
    """Two pre-norm blocks, GELU, over a short sequence of tokens; the readout sees the last position."""

    def __init__(self, tokens=12, length=5, width=16, heads=2):
        super().__init__()
        self.token, self.place = nn.Embedding(tokens, width), nn.Parameter(0.1 * torch.randn(length, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(2)
        )
        self.norm, self.readout = nn.LayerNorm(width), nn.Linear(width, tokens)

    def forward(self, x):
        h = self.token(x) + self.place
        for block in self.blocks:
            h = block(h)
        return self.readout(self.norm(h[:, -1]))


def test_a_transformer_on_sequences(tmp_path):
    from kernelmem.recording.recorder import Recorder
    from kernelmem.recording.run import Run

    torch.manual_seed(0)
    model = Transformer().double()
    x = torch.randint(0, 12, (96, 5))
    y = (x[:, 0] + x[:, 3]) % 12
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
    generator = torch.Generator().manual_seed(1)
    with Recorder(model, optimizer, tmp_path / "run", loss="cross_entropy", keep="sqrt") as recorder:
        for _ in range(300):
            index = torch.randperm(96, generator=generator)[:16]
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[index]), y[index]).backward()
            recorder.step(index, x[index], y[index])
    own = ledger(Run.open(tmp_path / "run"), model, x[:4])
    moved = float((own.final - own.initial).abs().max())
    print(f"\ntransformer, AdamW, 300 steps: {own.largest_residual:.1e} (must 1e-09; change {moved:.2f})", end="")
    assert moved > 1.0
    assert own.largest_residual <= 1e-9
