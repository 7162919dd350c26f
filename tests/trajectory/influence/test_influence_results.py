"""Influence: refused inputs, results, and what is not changed."""

import pytest
import torch
from torch import nn

from kernelmem.core.errors import FileCorruptError, InputError, UnsupportedModelError, VerificationError
from kernelmem.recording.recorder import Recorder
from kernelmem.recording.run import Run
from kernelmem.trajectory.influence.influence import Influence, InfluenceOptions, influence
from tests.trajectory.recorded import digits
from tests.trajectory.retrained import SGD, UPDATES, N, run_of, small


def test_model_and_random_state_are_unchanged(tmp_path):
    run, model, x, _ = run_of(tmp_path / "run", *UPDATES["adam"], steps=3)
    model.train()
    before, random = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    reports = []
    influence(
        run,
        model,
        x[30:33],
        progress=lambda done, total: reports.append((done, total)),
        options=InfluenceOptions(chunk=2),
    )
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.training
    assert torch.equal(random, torch.get_rng_state())
    assert all(p.grad is None or float(p.grad.abs().max()) >= 0 for p in model.parameters())
    assert reports == [(i, 63) for i in range(1, 64)]  # 2 sweeps, 2 chunks, 17 replays, each of 3 steps


def test_unclassified_gradient_factors_are_refused(tmp_path):
    x, y = digits(40)
    model = small()
    optimizer = SGD(model.parameters(), lr=0.2)
    with Recorder(model, optimizer, tmp_path / "run", loss="cross_entropy") as recorder:
        for t in range(3):
            optimizer.zero_grad()
            ((0.5 + t / 10) * nn.functional.cross_entropy(model(x[:N]), y[:N])).backward()
            recorder.step(torch.arange(N), x[:N], y[:N])
    run = Run.open(tmp_path / "run")
    with pytest.raises(InputError, match=r'clip="fixed"'):
        influence(run, model, x[30:33])
    found = [
        influence(run, model, x[30:33], options=InfluenceOptions(clip=clip)).influence for clip in ("fixed", "norm")
    ]
    assert float((found[0] - found[1]).abs().max()) > 1e-3


def test_wrong_arguments_are_refused(tmp_path):
    run, model, x, y = run_of(tmp_path / "run", *UPDATES["plain"], steps=5)
    for options, match in (
        ({"method": "tracincp"}, 'expected "unrolled"'),
        ({"options": InfluenceOptions(data=(x[: N - 1], y[: N - 1]))}, "data of 22 examples"),
        ({"target": "margin"}, "without labels"),
    ):
        with pytest.raises(InputError, match=match):
            influence(run, model, x[30:33], **options)
    for options, match in (({"clip": "value"}, '"norm"'), ({"chunk": 0}, "chunk=0")):
        with pytest.raises(InputError, match=match):
            InfluenceOptions(**options)
    with pytest.raises(InputError, match="rows of shape"):
        influence(run, model, x[30:33, :9])


class Surrogate(torch.autograd.Function):
    """x² whose backward pass can be differentiated by its cotangent, but takes x for a constant."""

    @staticmethod
    def forward(ctx, x):
        ctx.kept = x.detach()
        return x.square()

    @staticmethod
    def backward(ctx, gradient):
        return 2 * ctx.kept * gradient


class OnceOnly(torch.autograd.Function):
    """x² whose backward pass leaves the graph."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return torch.from_numpy(2 * x.detach().numpy() * gradient.detach().numpy())


class Marked(torch.autograd.Function):
    """x², marked as a function that is differentiated once."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 2 * x * gradient


@pytest.mark.parametrize(
    ("function", "method"),
    [(OnceOnly, "unrolled"), (Surrogate, "unrolled"), (Marked, "unrolled"), (OnceOnly, "tracin"), (OnceOnly, "last")],
)
def test_an_operation_without_a_second_derivative_is_refused(tmp_path, function, method):
    class Custom(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(64, 6), nn.Linear(6, 10)

        def forward(self, x):
            return self.b(function.apply(self.a(x)))

    torch.manual_seed(0)
    run, model, x, _ = run_of(tmp_path / "run", SGD, {"lr": 0.05}, model=Custom().double(), steps=3)
    with pytest.raises((VerificationError, UnsupportedModelError), match="second derivative"):
        influence(run, model, x[30:33], method=method)


def test_a_model_that_mixes_rows_is_refused(tmp_path):
    torch.manual_seed(0)
    layers = [nn.Linear(64, 6), nn.Unflatten(1, (2, 3)), nn.BatchNorm1d(2, track_running_stats=False), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(6, 10)).double()
    run, model, x, _ = run_of(tmp_path / "run", SGD, {"lr": 0.05}, model=model, steps=3)
    with pytest.raises(UnsupportedModelError, match="alone and among others"):
        influence(run, model, x[30:33])


def test_results_are_ranked_saved_and_tabulated(tmp_path):
    run, model, x, _ = run_of(tmp_path / "run", *UPDATES["plain"], steps=5)
    own = influence(run, model, x[30:33])
    assert "weighed more" in own.question
    assert "km.ledger" in str(own)
    assert "baseline" in str(influence(run, model, x[30:33], method="last"))
    assert torch.equal(own.leave_one_out, -own.influence)
    assert own.tape == run.tape.head
    first = own.top(1, 3, output=4)
    assert len(first) == 3
    best = own.influence[1, :, 4].abs().argmax()
    assert first[0] == (int(best), float(own.influence[1, best, 4]))
    frame = own.to_frame()
    assert list(frame.columns) == ["row", "example", "output", "influence"]
    line = frame[(frame.row == 2) & (frame.example == 5) & (frame.output == "7")]
    assert line.influence.item() == float(own.influence[2, 5, 7])
    path = own.save(tmp_path / "influence.safetensors")
    again = Influence.load(path)
    assert torch.equal(again.influence, own.influence)
    assert (again.names, again.method, again.tape) == (own.names, own.method, own.tape)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(FileCorruptError, match=r"a file written by \.save"):
        Influence.load(path)
