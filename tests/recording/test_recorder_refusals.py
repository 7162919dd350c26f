"""kernelmem.recording.recorder: invalid steps are refused before they are taken."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kernelmem.core.errors import InputError, UnsupportedModelError
from kernelmem.recording.recorder import Recorder
from kernelmem.recording.run import Run


def one_step(lab, change=None, *, loss="cross_entropy", dtype=torch.float32, hand_in=None, make=None, **options):
    """One step of SGD on cross-entropy; ``change(model)`` comes after backward."""
    model = make() if make else lab.network(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, lab.directory / "run", loss=loss, **options) as recorder:
        index, x, y = lab.batch(0, dtype)
        F.cross_entropy(model(x), y).backward()
        if change is not None:
            change(model)
        before = copy.deepcopy(model.state_dict())
        try:
            recorder.step(*(hand_in(index, x, y) if hand_in else (index, x, y)))
        except InputError:
            assert lab.same([model.state_dict()], [before])
            raise
    return Run.open(lab.directory / "run")


def multiply(name, factor):
    def change(model):
        dict(model.named_parameters())[name].grad.mul_(factor)

    return change


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "case",
    [
        {"loss": "mse"},
        {"loss": lambda f, y: F.cross_entropy(f, y, reduction="none", label_smoothing=0.1)},
        {"hand_in": lambda index, x, y: (index, x.flip(0), y)},
        {"hand_in": lambda index, x, y: (index, x, (y + 1) % 3)},
        {"hand_in": lambda index, x, y: (index[1:], x[1:], y[1:])},
        {"hand_in": lambda index, x, y: (index, x, y, torch.arange(len(y)))},
        {"change": lambda model: nn.utils.clip_grad_value_(model.parameters(), 0.01)},
        {"change": lambda model: [nn.utils.clip_grad_norm_(p, 0.01) for p in model.parameters()]},
    ],
)
def test_another_loss_batch_or_clipping_is_refused(lab, dtype, case):
    with pytest.raises(InputError, match=r"not a multiple of those of .* step 0: the largest mismatch is in [02]\.\w+"):
        one_step(lab, dtype=dtype, **case)
    assert len(Run.open(lab.directory / "run")) == 0


@pytest.mark.parametrize("name", ["0.weight", "0.bias", "2.weight", "2.bias"])
@pytest.mark.parametrize("factor", [0.0, 1.01, float("nan")])
def test_changing_the_gradient_of_one_parameter_is_refused(lab, name, factor):
    with pytest.raises(InputError, match="largest mismatch is in"):
        one_step(lab, multiply(name, factor))


def test_the_parameter_with_the_mismatch_is_named(lab):
    with pytest.raises(InputError, match=r"mismatch is in 2\.bias .*Hint: check index"):
        one_step(lab, multiply("2.bias", 1.05))


def test_the_user_sets_the_tolerance(lab):
    assert one_step(lab, multiply("2.bias", 1.01), tolerance=0.1).steps[0].scale == pytest.approx(1, abs=0.01)


def test_a_refused_step_can_be_repeated(lab):
    model = lab.network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, lab.directory / "run", loss="cross_entropy") as recorder:
        index, x, y = lab.batch(0)
        F.cross_entropy(model(x), y).backward()
        with pytest.raises(InputError, match="not a multiple"):
            recorder.step(index, x, y.flip(0))
        recorder.step(index, x, y)
    assert len(Run.open(lab.directory / "run")) == 1


@pytest.mark.parametrize("factor", [3.0, -0.25, 0.0])
def test_loss_scaling_is_one_number(lab, factor):
    def change(model):
        for parameter in model.parameters():
            parameter.grad.mul_(factor)

    assert one_step(lab, change).steps[0].scale == factor


def test_a_model_that_writes_over_its_input(lab):
    def make():
        return nn.Sequential(nn.ReLU(inplace=True), lab.network())

    run = one_step(lab, make=make, hand_in=lambda index, x, y: (index, x, y))
    assert torch.equal(run.batch(0)[0], lab.batch(0)[1].relu())


def test_arrays_are_accepted_as_tensors(lab):
    run = one_step(lab, hand_in=lambda index, x, y: (index.tolist(), x.numpy(), y.numpy()))
    assert torch.equal(run.batch(0)[0], lab.batch(0)[1])


def change_weights(lab, model, optimizer, message):
    with Recorder(model, optimizer, lab.directory / "run", loss="cross_entropy") as recorder:
        lab.loop().run(model, optimizer, recorder, steps=2)
        with torch.no_grad():
            model[2].bias.data.mul_(1.5)
        with pytest.raises(InputError, match=message):
            lab.loop().run(model, optimizer, recorder, start=2, steps=3)


def test_weights_changed_between_the_steps_are_refused(lab):
    model = lab.network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    message = r"parameter 2\.bias, which has changed .*\(step 2\)"
    with pytest.raises(InputError, match=message):
        change_weights(lab, model, optimizer, message)
    Run.open(lab.directory / "run").verify()


def test_random_draws_in_an_unseen_forward_pass_are_refused(lab):
    model = lab.network(dropout=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    index, x, y = lab.batch(0)
    with Recorder(model, optimizer, lab.directory / "run", loss="cross_entropy") as recorder:
        F.cross_entropy(model.forward(x), y).backward()
        with pytest.raises(InputError, match=r"not observed.*Hint: call model\(x\)"):
            recorder.step(index, x, y)


class Own(torch.optim.SGD):
    pass


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: torch.optim.NAdam(p), r"optimizer torch\.optim\.nadam\.NAdam; expected torch.optim.SGD, Adam,"),
        (lambda p: Own(p, lr=0.1), "Own; expected.*not a subclass"),
        (lambda p: torch.optim.Adam(p, capturable=True), "capturable=True"),
        (lambda p: torch.optim.SGD(p, lr=0.1, differentiable=True), "differentiable=True"),
        (lambda p: torch.optim.SGD(p, lr=torch.tensor(0.1)), "lr that is a tensor"),
        (lambda p: torch.optim.SGD([*p, nn.Parameter(torch.zeros(7))]), r"1 parameters that are not.*\(7,\)"),
    ],
)
def test_optimizers_that_are_refused(lab, make, words):
    model = lab.network()
    with pytest.raises(InputError, match=words):
        Recorder(model, make(model.parameters()), lab.directory / "run", loss="mse")
    assert not (lab.directory / "run").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loss": "hinge"}, "loss='hinge'"),
        ({"reduction": "none"}, "reduction='none'"),
        ({"keep": 0}, "keep=0"),
        ({"keep": True}, "keep=True"),
        ({"keep": "some"}, "keep='some'"),
        ({"tolerance": -1.0}, "tolerance=-1.0"),
        ({"tolerance": float("nan")}, "tolerance=nan"),
    ],
)
def test_invalid_options_are_refused(lab, options, words):
    model = lab.network()
    options = {"loss": "mse", **options}
    with pytest.raises(InputError, match=words):
        Recorder(model, torch.optim.SGD(model.parameters()), lab.directory / "run", **options)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (nn.Linear(2, 2, dtype=torch.complex64), "weight of dtype complex64 on cpu"),
        (nn.Linear(2, 2, device="meta"), "weight of dtype float32 on meta"),
        (nn.DataParallel(nn.Linear(2, 2)), "DataParallel"),
    ],
)
def test_models_that_are_refused(lab, model, words):
    with pytest.raises(UnsupportedModelError, match=words):
        Recorder(model, torch.optim.SGD(model.parameters()), lab.directory / "run", loss="mse")


def test_sparse_gradients_are_refused(lab):
    model = nn.Sequential(nn.Embedding(5, 3, sparse=True), nn.Flatten())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = torch.tensor([[0], [1]]), torch.tensor([0, 1])
    with Recorder(model, optimizer, lab.directory / "run", loss="cross_entropy") as recorder:
        F.cross_entropy(model(x), y).backward()
        with pytest.raises(InputError, match=r"sparse gradient of 0\.weight"):
            recorder.step(torch.arange(2), x, y)


def test_a_step_outside_the_with_block_is_refused(lab):
    model = lab.network()
    recorder = Recorder(model, torch.optim.SGD(model.parameters()), lab.directory / "run", loss="mse")
    with pytest.raises(InputError, match="outside the recorder"):
        recorder.step(*lab.batch(0))
    with recorder:
        pass
    with pytest.raises(InputError, match="outside the recorder"):
        recorder.restore()


class Shaped(nn.Module):
    """A linear model whose output has another form than (n, C)."""

    def __init__(self, shape):
        super().__init__()
        self.linear, self.shape = nn.Linear(4, 3), shape

    def forward(self, x):
        return self.shape(self.linear(x))


@pytest.mark.parametrize(
    ("shape", "hint", "repair"),
    [
        (lambda f: {"logits": f}, r"model\(x\)\['logits'\]", lambda model, x: model(x)["logits"]),
        (lambda f: {"aux": f, "out": f}, r"model\(x\)\['out'\]", lambda model, x: model(x)["out"]),
        (lambda f: (f, f.mean()), r"model\(x\)\[0\]", lambda model, x: model(x)[0]),
        (lambda f: f[:, :, None], r"model\(x\).flatten\(1\)", lambda model, x: model(x).flatten(1)),
        (lambda f: f[:, 0], r"model\(x\)\[:, None\]", lambda model, x: model(x)[:, None]),
        (lambda f: f.mean(), r"returns a tensor \(n, C\)", None),
        (lambda f: None, r"returns a tensor \(n, C\)", None),
    ],
)
@pytest.mark.parametrize("loss", ["mse_mean", lambda f, y: (f - y).square().mean(1)])
def test_outputs_that_analyses_cannot_use_are_refused_before_the_first_step(lab, shape, hint, repair, loss):
    model = Shaped(shape)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    index, x, _ = lab.batch(0)
    y = torch.zeros(len(x), 1) if hint.endswith(r"None\]") else torch.zeros(len(x), 3)
    before = copy.deepcopy(model.state_dict())
    with Recorder(model, optimizer, lab.directory / "run", loss=loss) as recorder:
        model.linear(x).square().mean().backward()
        with pytest.raises(UnsupportedModelError, match=rf"output on {len(x)} rows is .*Hint: .*{hint}"):
            recorder.step(index, x, y)
    assert lab.same([model.state_dict()], [before])
    if repair is None:
        return
    with Recorder(model, optimizer, lab.directory / "repaired", loss=loss, forward=repair) as recorder:
        optimizer.zero_grad()
        (repair(model, x) - y).square().mean().backward()
        recorder.step(index, x, y)
    assert len(Run.open(lab.directory / "repaired")) == 1
