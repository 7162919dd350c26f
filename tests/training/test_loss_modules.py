"""kernelmem.training.loss_modules: torch's loss modules as per-example losses, by name and back."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kernelmem.core.errors import InputError
from kernelmem.training.loss_modules import CLASSES, module_from_name, module_name
from kernelmem.training.losses import as_loss, batch_loss, loss_name, loss_reduction, mean_factor, per_example_loss
from tests.profiles import examples
from tests.tolerances import summing

C = 3
weights = st.none() | st.lists(st.floats(0.1, 10), min_size=C, max_size=C).map(torch.tensor)


@st.composite
def modules(draw):
    """A loss module and a function that makes targets (n,) or (n, C) for it."""
    reduction = draw(st.sampled_from(["mean", "sum"]))
    kind = draw(st.sampled_from(list(CLASSES)))
    options = {}
    if kind in ("CrossEntropyLoss", "NLLLoss", "MultiMarginLoss", "BCEWithLogitsLoss"):
        options["weight"] = draw(weights)
    if kind in ("CrossEntropyLoss", "NLLLoss"):
        options["ignore_index"] = draw(st.sampled_from([-100, 1, 7]))
    if kind == "CrossEntropyLoss":
        options["label_smoothing"] = draw(st.sampled_from([0.0, 0.2]))
    if kind == "BCEWithLogitsLoss":
        options["pos_weight"] = draw(weights)
    if kind == "HuberLoss":
        options["delta"] = draw(st.floats(0.1, 2))
    if kind == "MultiMarginLoss":
        options["margin"] = draw(st.floats(0.1, 2))
    return CLASSES[kind](**options, reduction=reduction)


def targets_for(module, n, generator):
    if isinstance(module, nn.CrossEntropyLoss | nn.NLLLoss):
        labels = torch.randint(C, (n,), generator=generator)
        return labels.where(torch.rand(n, generator=generator) < 0.8, module.ignore_index)
    if isinstance(module, nn.MultiMarginLoss):
        return torch.randint(C, (n,), generator=generator)
    if isinstance(module, nn.SoftMarginLoss):
        return torch.randint(2, (n, C), generator=generator) * 2.0 - 1
    return torch.rand(n, C, generator=generator).round(decimals=2)


@given(modules(), st.integers(1, 9), st.integers(0, 99), st.sampled_from([torch.float64, torch.float32]))
@examples(3)
def test_a_module_equals_its_per_example_losses(module, n, seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(n, C, generator=generator, dtype=torch.float64).to(dtype)
    outputs = outputs.sigmoid() if isinstance(module, nn.BCELoss) else outputs
    targets = targets_for(module, n, generator)
    in_dtype = copy.deepcopy(module).to(dtype)  # a copy: torch does not mix dtypes
    expected = in_dtype(outputs, targets.to(dtype) if targets.is_floating_point() else targets).double()
    total = batch_loss(module, outputs, targets, None, reduction=module.reduction) * mean_factor(module, targets)
    if expected.isnan():  # all labels are ignored
        assert total.isnan()
        return
    losses = per_example_loss(module)(outputs, targets)
    assert losses.shape == (n,)
    bound = summing(n * C, dtype=dtype) * float(1 + losses.abs().sum() * mean_factor(module, targets))
    assert abs(float(total) - float(expected)) <= bound


@given(modules())
@examples(2)
def test_a_module_is_rebuilt_from_its_name(module):
    name = as_loss(module)
    assert isinstance(name, str)
    assert as_loss(name) == name == loss_name(module)
    assert loss_reduction(module) in (module.reduction, None if name in ("cross_entropy", "mse_mean") else "")
    rebuilt = module_from_name(name)
    if rebuilt is None:
        assert name in ("cross_entropy", "mse_mean")
        return
    assert module_name(type(module)(**vars_of(rebuilt.module), reduction=module.reduction)) == name


def vars_of(module):
    options = {key: value for key, value in vars(module).items() if not key.startswith("_")}
    options |= {key: value for key, value in module._buffers.items() if value is not None}
    return {key: value for key, value in options.items() if key not in ("reduction", "training")}


@pytest.mark.parametrize(
    "name",
    [
        "CrossEntropyLoss(",
        "CrossEntropyLoss()",
        "CrossEntropyLoss([])",
        'CrossEntropyLoss({"reduction": 3})',
        'CrossEntropyLoss({"reduction": "mean", "weight": "x"})',
        'CrossEntropyLoss({"reduction": "mean", "size_average": true})',
        'Linear({"reduction": "mean"})',
        "CrossEntropyLoss(" + "[" * 100_000 + ")",
    ],
)
def test_a_text_that_is_no_loss_is_refused(name):
    with pytest.raises(InputError, match="one of cross_entropy, mse"):
        per_example_loss(name)


def test_subclasses_and_unreduced_modules_are_callables():
    class Own(nn.CrossEntropyLoss):
        pass

    assert module_name(Own()) is None
    unreduced = nn.CrossEntropyLoss(reduction="none")
    assert as_loss(unreduced) is unreduced


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5]), reduction="none"),
        lambda f, y: (f.softmax(1) @ (1 - torch.eye(3, dtype=torch.float32)))[torch.arange(len(f)), y],
        lambda f, y: nn.functional.nll_loss(f.log_softmax(1), y, torch.ones(3, dtype=torch.float32), reduction="none"),
    ],
)
def test_narrow_tensors_in_a_loss_are_converted(loss):
    outputs, labels = torch.randn(5, 3, dtype=torch.float64, requires_grad=True), torch.arange(5) % 3
    losses = per_example_loss(loss)(outputs, labels)
    assert losses.dtype == torch.float64
    gradient = torch.autograd.grad(losses.sum(), outputs)[0]
    expected = torch.autograd.grad(loss(outputs.float(), labels).sum(), outputs)[0]
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6)


def test_a_loss_for_one_dtype_is_refused():
    def half(f, y):
        raise RuntimeError("expected scalar type Half but found Double")

    with pytest.raises(
        InputError, match=r"a loss that fails on outputs of dtype float64 .*Half.*weight.to\(outputs.dtype\)"
    ):
        per_example_loss(half)(torch.zeros(2, 3).double(), torch.zeros(2))
