"""km.ntk beyond the kinds of outputs: targets, summands by layer, the plan, verification."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import kernelmem as km
from kernelmem.kernels import reference, verification

N, C = 6, 4


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 8), nn.Tanh(), nn.Linear(8, C)
    ).double()


@pytest.fixture
def x():
    return torch.randn(N, 1, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def labels():
    return torch.tensor([0, 1, 2, 3, 1, 1])


def relative(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


def by_definition(model, x, scalar):
    """Kernel of a scalar of each row, by plain autograd."""
    rows = []
    for i in range(len(x)):
        value = scalar(model(x[i : i + 1]), i)
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(value, list(model.parameters()))]))
    J = torch.stack(rows)
    return J @ J.T


def hard_margin(f, y):
    others = torch.cat([f[:y], f[y + 1 :]])
    return f[y] - others.max()


def test_targets_have_their_definition(model, x, labels):
    cases = {
        "loss": lambda f, i: F.cross_entropy(f, labels[i : i + 1]),
        "margin": lambda f, i: hard_margin(f[0], int(labels[i])),
        ("logit", 2): lambda f, i: f[0, 2],
    }
    for target, scalar in cases.items():
        found = km.ntk(model, x, target=target, labels=labels)
        assert found.shape == (N, N)
        assert relative(found, by_definition(model, x, scalar)) < 1e-12, target
    found = km.ntk(model, x, target=lambda outputs, y: outputs.square().sum(1))
    assert relative(found, by_definition(model, x, lambda f, i: f.square().sum())) < 1e-12


def test_target_between_two_sets_with_two_sets_of_labels(model, x, labels):
    whole = km.ntk(model, x, target="loss", labels=labels)
    part = km.ntk(model, x[:4], x[4:], target="loss", labels=(labels[:4], labels[4:]))
    assert relative(part, whole[:4, 4:]) < 1e-12


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": "loss"}, "needs labels"),
        ({"target": "entropy"}, "target"),
        ({"target": lambda outputs, labels: outputs}, "one number per row"),
        ({"target": "loss", "labels": [0, 1, 2, 3, 1, C]}, "outside"),
        ({"target": "loss", "labels": [0, 1]}, "6 labels"),
        ({"by": "class"}, "by="),
    ],
)
def test_bad_options(model, x, options, words):
    with pytest.raises(km.InputError, match=words):
        km.ntk(model, x, **options)


def test_a_wide_output_takes_one_sweep_through_a_target():
    """A vocabulary of 5,000: a kernel over all outputs would take 5,000 sweeps, the target takes one."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 5000)).double()
    x = torch.randn(3, 6, dtype=torch.float64)
    labels = torch.tensor([7, 4999, 0])
    plan = km.ntk_plan(model, x, target="loss", labels=labels)
    assert plan.sweeps == 1
    found = km.ntk(model, x, target="loss", labels=labels)
    expected = by_definition(model, x, lambda f, i: F.cross_entropy(f, labels[i : i + 1]))
    assert relative(found, expected) < 1e-11


def test_layers_are_summands(model, x):
    for outputs in ("trace", "diagonal", "full", "pseudo"):
        parts = km.ntk(model, x, outputs=outputs, by="layer")
        assert list(parts) == ["0", "3", "5"]
        assert relative(sum(parts.values()), km.ntk(model, x, outputs=outputs)) < 1e-13
        own = reference.ntk(model, x, outputs=outputs, parameters=["3.weight", "3.bias"])
        assert relative(parts["3"], own) < 1e-12


def test_verification_is_done_once_for_each_model_and_kind(model, x, monkeypatch):
    calls = []
    true = verification.batch_jacobian
    monkeypatch.setattr(verification, "batch_jacobian", lambda *a: calls.append(1) or true(*a))
    km.ntk(model, x)
    first = len(calls)
    km.ntk(model, x[:4])
    assert first > 0
    assert len(calls) == first
    km.ntk(model, x, outputs="full")
    assert len(calls) > first


def test_parameters_of_a_wrong_rule_are_differentiated_by_autograd(model, x, monkeypatch):
    from kernelmem.tangents.rules.convolution import ConvolutionRule

    true = ConvolutionRule.output_gradients
    monkeypatch.setattr(ConvolutionRule, "output_gradients", lambda self, use, stacked: 1.01 * true(self, use, stacked))
    assert relative(km.ntk(model, x), reference.ntk(model, x)) < 1e-12


def test_a_wrong_contraction_is_caught_and_its_layer_is_named(model, x, monkeypatch):
    from kernelmem.tangents.groups.readout import ReadoutGroup

    true = ReadoutGroup.add
    monkeypatch.setattr(ReadoutGroup, "add", lambda self, out, *a, **k: true(self, out, *a, **k) or out.mul_(1.01))
    with pytest.raises(km.VerificationError, match="largest difference is in layer"):
        km.ntk(model, x)


def test_verification_of_many_outputs_holds_few_tangents_at_a_time(monkeypatch):
    """With 300 outputs: blocks of outputs for the trace, a choice of them for the full kernel."""
    torch.manual_seed(0)
    model = nn.Linear(64, 300).double()
    x = torch.randn(4, 64, dtype=torch.float64)
    numbers, true = [], verification.batch_jacobian
    monkeypatch.setattr(verification, "batch_jacobian", lambda *a: numbers.append((t := true(*a)).numel()) or t)
    monkeypatch.setattr(verification, "TANGENT_BYTES", 2**23)
    assert relative(km.ntk(model, x), 300 * (x @ x.T + 1)) < 1e-13
    assert max(numbers) * 8 <= 2**23
    assert sum(numbers) == 3 * 300 * model.weight.shape[0] * 65  # 3 rows, every output
    numbers.clear()
    km.ntk(model, x, outputs="full")
    assert sum(numbers) == 3 * verification.MAX_FULL_OUTPUTS * model.weight.shape[0] * 65


@pytest.mark.parametrize("outputs", ["trace", "diagonal", "full", "pseudo"])
def test_a_wrong_readout_among_many_outputs_is_differentiated_by_autograd(outputs, monkeypatch):
    from kernelmem.tangents.rules.linear import LinearRule

    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 40)), torch.randn(5, 3)
    true = LinearRule.activations
    monkeypatch.setattr(LinearRule, "activations", lambda self, use, n, ones: 1.01 * true(self, use, n, ones=ones))
    expected = reference.ntk(model, x, outputs=outputs)
    assert relative(km.ntk(model, x, outputs=outputs), expected) < 1e-5


@pytest.mark.parametrize("outputs", ["trace", "diagonal", "full"])
def test_some_outputs_stand_for_very_many(outputs, monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 50)).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    monkeypatch.setattr(verification, "MAX_TANGENT_NUMBERS", 3 * 266 * 7)
    assert relative(km.ntk(model, x, outputs=outputs), reference.ntk(model, x, outputs=outputs)) < 1e-12
    mixing = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 50)).double()
    mixed = lambda module, batch: module(batch - batch.mean(0))  # noqa: E731
    with pytest.raises(km.VerificationError, match="depend on the other rows"):
        km.ntk(mixing, x, outputs=outputs, forward=mixed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_outputs_that_sum_to_one_have_a_pseudo_kernel_of_zero(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Softmax(1)).to(dtype)
    x = torch.randn(3, 3, dtype=dtype)
    assert float(km.ntk(model, x, outputs="pseudo").abs().max()) < 1e-12
