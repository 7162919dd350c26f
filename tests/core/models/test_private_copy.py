"""kernelmem.core.models.private_copy: what a copy keeps, converts, replaces and refuses."""

import copy
import threading
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

from kernelmem.core.errors import UnsupportedModelError
from kernelmem.core.models import copy_module, private_copy, replace_complex_parameters
from kernelmem.testing.modules import Apply

CPU = torch.device("cpu")


def network():
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))


class Keeps(nn.Module):
    """Keeps tensors of a forward pass: as an attribute, in containers, in an object."""

    def __init__(self):
        super().__init__()
        self.inner, self.out = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x):
        h = torch.tanh(self.inner(x))
        self.hidden, self.maps, self.record = h, {"last": [h, (h.sum(),)]}, Record(h)
        return self.out(h)


class Record:
    def __init__(self, value):
        self.value = value


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kept_activations_are_copied_without_their_graph(dtype):
    model, x = Keeps(), torch.randn(5, 4)
    outputs = model(x)
    result = private_copy(model, dtype=dtype, device=CPU)
    assert result.hidden.grad_fn is None
    assert result.record.value.grad_fn is None
    assert result.maps["last"][0] is result.record.value  # one object stays one object
    assert model.hidden.grad_fn is not None
    torch.testing.assert_close(result(x.to(dtype)), outputs.to(dtype))


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
        lambda layer: nn.utils.weight_norm(layer),
        lambda layer: nn.utils.spectral_norm(layer).eval(),
        lambda layer: nn.utils.parametrizations.weight_norm(layer),
    ],
    ids=["pruned", "weight_norm", "spectral_norm", "parametrized"],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_weights_that_are_computed_from_parameters(change):
    model, x = network().eval(), torch.randn(5, 4)
    change(model[0])
    expected = model(x)
    result = private_copy(model, dtype=torch.float64, device=CPU)
    torch.testing.assert_close(result(x.double()), expected.double())
    with torch.no_grad():
        for parameter in result.parameters():
            parameter.add_(1.0)
    assert torch.equal(model(x), expected)
    assert not torch.allclose(result(x.double()), expected.double())


@pytest.mark.parametrize(
    ("dtype", "complex_dtype"), [(torch.float32, torch.complex64), (torch.float64, torch.complex128)]
)
def test_every_number_is_converted_and_no_imaginary_part_is_lost(dtype, complex_dtype):
    model = network()
    model.register_buffer("rotation", torch.polar(torch.ones(3), torch.arange(3.0)))
    model.register_buffer("count", torch.arange(3))
    model.weight = nn.Parameter(torch.randn(3, dtype=torch.complex64))
    model.table, model.angles = torch.ones(2), torch.polar(torch.ones(3), torch.arange(3.0))  # neither is registered
    result = private_copy(model, dtype=dtype, device=CPU)
    assert result[0].weight.dtype == result.table.dtype == dtype
    assert result.rotation.dtype == result.weight.dtype == result.angles.dtype == complex_dtype
    assert result.count.dtype == torch.int64
    assert torch.equal(result.rotation.to(torch.complex64), model.rotation)
    assert torch.equal(result.weight.to(torch.complex64), model.weight)


class Borrows(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, dtype=torch.complex128))
        self.tied = self.weight
        self.scale = nn.Parameter(torch.ones(3, dtype=torch.float64))

    def forward(self, x):
        return ((x + 0j) @ self.weight * (self.tied[:1] * self.scale)).abs()


def test_complex_parameters_as_real_and_imaginary_parts():
    model, x = Borrows(), torch.randn(5, 4, dtype=torch.float64)
    result = copy_module(model)
    (name,) = replaced = replace_complex_parameters(result, {"weight"})
    assert (name, replaced["weight"].shape) == ("weight", (4, 3, 2))
    assert torch.equal(result(x), model(x))
    (real,) = torch.autograd.grad(result(x).sum(), [replaced["weight"]])
    (expected,) = torch.autograd.grad(model(x).sum(), [model.weight])
    torch.testing.assert_close(torch.view_as_complex(real), expected)  # ∂/∂re + i ∂/∂im
    assert parametrize.is_parametrized(result)
    assert not parametrize.is_parametrized(model)


def compiled(model):
    return torch.compile(model, backend="eager")


def compiled_in_place(model):
    model.compile(backend="eager")
    return model


def compiled_forward(model):
    model[0].forward = torch.compile(model[0].forward, backend="eager")
    return model


def compiled_inside(model):
    return nn.Sequential(compiled(model[0]), nn.DataParallel(model[1]), compiled(nn.Sequential(compiled(model[2]))))


@pytest.mark.parametrize("wrap", [compiled, compiled_in_place, compiled_forward, compiled_inside, nn.DataParallel])
def test_compiled_and_parallel_modules_run_as_written(wrap):
    plain, x = network(), torch.randn(5, 4)
    model = wrap(copy.deepcopy(plain))
    result = private_copy(model, dtype=torch.float64, device=CPU)
    assert [name for name, _ in result.named_parameters()] == [name for name, _ in model.named_parameters()]
    torch.testing.assert_close(result(x.double()), plain(x).double())
    kinds = {type(module).__name__ for module in result.modules()}
    assert not kinds & {"OptimizedModule", "DataParallel"}
    with torch.no_grad():
        for parameter in result.parameters():
            parameter.zero_()
    assert not result(x.double()).any()  # nothing of the original is read
    with torch.no_grad():
        torch.testing.assert_close(model(x), plain(x))


def test_attributes_of_a_wrapped_module_are_found():
    inner = network()
    inner.depth = 2
    result = private_copy(nn.DataParallel(inner.eval()).eval(), dtype=torch.float64, device=CPU)
    assert result.depth == 2
    assert result.module[0].weight.dtype == torch.float64
    assert not result.training
    with pytest.raises(AttributeError):
        _ = result.width


def with_lock(model):
    model[1].guard = threading.Lock()
    return model


def with_file(model):
    model.log = Path(__file__).open()  # noqa: SIM115
    return model


def quantized(model):
    model.table = nn.Parameter(torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), requires_grad=False)
    return model


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (with_lock, "attribute '1.guard' of type lock"),
        (with_file, "attribute 'log' of type TextIOWrapper"),
        (
            lambda model: nn.Sequential(model, nn.LazyLinear(3)),
            "'1.weight' of a lazy module.*run the model on one batch",
        ),
        (lambda model: model.to("meta"), "'0.weight' on device \"meta\""),
        (quantized, "quantized parameter 'table'"),
        (
            lambda model: nn.Sequential(model, nn.ParameterList([torch.eye(2).to_sparse()])),
            "'1.0' with layout torch.sparse_coo",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules", "ignore:.*[Qq]uant", "ignore:unclosed file:ResourceWarning")
def test_refusals_name_the_tensor_or_attribute(change, words):
    with pytest.raises(UnsupportedModelError, match=words):
        private_copy(change(network()), dtype=torch.float64, device=CPU)


def test_functions_and_generators_are_no_obstacle():
    model = nn.Sequential(nn.Linear(4, 3), Apply(lambda x: x.square()))
    model.generator = torch.Generator().manual_seed(3)
    state = model.generator.get_state()
    result = private_copy(model, dtype=torch.float64, device=CPU)
    torch.rand(2, generator=result.generator)
    assert torch.equal(model.generator.get_state(), state)


@pytest.mark.parametrize("convert", [torch.jit.script, lambda model: torch.jit.trace(model, torch.ones(2, 4))])
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torchscript(convert):
    plain, x = network(), torch.randn(5, 4)
    plain[0].bias.requires_grad_(False)
    result = private_copy(convert(plain), dtype=torch.float64, device=CPU)
    torch.testing.assert_close(result(x.double()), plain(x).double())
    assert [p.requires_grad for p in result.parameters()] == [True, False, True, True]
    for parameter in result.parameters():
        assert parameter.is_leaf
    gradients = torch.autograd.grad(result(x.double()).sum(), [p for p in result.parameters() if p.requires_grad])
    assert all(gradient.any() for gradient in gradients)
