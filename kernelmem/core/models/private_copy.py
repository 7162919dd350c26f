"""Private copy of a model in another dtype, without what a copy cannot or must not share with the original."""

import copy
import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.overrides import TorchFunctionMode

from kernelmem.core.errors import UnsupportedModelError

COMPLEX_DTYPES = {torch.float32: torch.complex64, torch.float64: torch.complex128}
# Attribute of a wrapper that holds the wrapped module.
WRAPPED_ATTRIBUTES = {"OptimizedModule": "_orig_mod", "DataParallel": "module", "DistributedDataParallel": "module"}


def private_copy(
    model: nn.Module, *, dtype: torch.dtype | None = None, device: torch.device | None = None
) -> nn.Module:
    """Return a copy of ``model``, whose floating-point tensors have ``dtype``, complex ones its complex counterpart.

    Modules that only change how a model is run (compiled, DataParallel, DistributedDataParallel) are replaced by the
    modules they wrap, under the same parameter names. Tensors that the model keeps from an earlier forward pass are
    copied without their graph.

    Raises:
        UnsupportedModelError: uninitialized, quantized or sparse parameters, tensors without values (device "meta"),
            or an attribute that ``copy.deepcopy`` cannot copy.
    """
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        _check_tensor(name, tensor)
    memo: dict[int, Any] = {}
    for module in reversed(list(model.modules())):  # the innermost first
        attribute = WRAPPED_ATTRIBUTES.get(type(module).__name__)
        if attribute is not None and type(module).__module__.startswith("torch."):
            memo[id(module)] = _PassThrough(
                attribute, copy_module(getattr(module, attribute), memo), training=module.training
            )
    result = copy_module(model, memo)
    for module in list(result.modules()):
        for attribute, value in list(vars(module).items()):
            if hasattr(value, "_torchdynamo_orig_callable"):  # module.forward = torch.compile(module.forward)
                setattr(module, attribute, _deepcopy(inspect.unwrap(value), memo))

    def convert(tensor: Tensor) -> Tensor:
        if tensor.is_complex():
            return tensor.to(device=device, dtype=None if dtype is None else COMPLEX_DTYPES[dtype])
        return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)

    if dtype is None and device is None:
        return result

    for module in result.modules():
        for attribute, value in list(vars(module).items()):
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):  # neither parameter nor buffer
                setattr(module, attribute, convert(value))
    return result._apply(convert)


def copy_module(module: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """Return ``copy.deepcopy(module, memo)``, in which tensors on a graph, kept from a forward pass, have no graph.

    Raises:
        UnsupportedModelError: an attribute cannot be copied; the message names it.
    """
    try:
        result = _deepcopy(module, {} if memo is None else memo)
    except Exception as error:  # __deepcopy__ and __reduce__ of user classes raise any type
        raise UnsupportedModelError(
            f"a {type(module).__name__} that cannot be copied because of {_describe_uncopyable(module)}"
            f" ({type(error).__name__}: {error})",
            expected="a module that copy.deepcopy can copy",
            hint="keep that object outside the module, or define __deepcopy__ for its class",
        ) from error
    originals = dict(module.named_parameters())
    for name, parameter in result.named_parameters():  # copies of TorchScript modules require no gradients
        if name in originals and parameter.is_leaf:
            parameter.requires_grad_(originals[name].requires_grad)
    return result


def _deepcopy(value: Any, memo: dict[int, Any]) -> Any:
    with torch.no_grad(), _DetachedCopies():  # torch would connect copies of TorchScript modules with the originals
        return copy.deepcopy(value, memo)


def replace_complex_parameters(module: nn.Module, names: set[str]) -> dict[str, nn.Parameter]:
    """Replace complex parameters by real ones of shape (..., 2), their real and imaginary parts.

    ``names`` are names of ``named_parameters()``. Returns the real parameters under these names. The module still reads
    complex tensors, so that its outputs do not change.
    """
    selected = {id(module.get_parameter(name)): name for name in names}
    places = [
        (owner, attribute, id(parameter))
        for owner in module.modules()
        for attribute, parameter in list(owner._parameters.items())
        if id(parameter) in selected
    ]
    real_parameters: dict[str, nn.Parameter] = {}
    for owner, attribute, key in places:
        name = selected[key]
        nn.utils.parametrize.register_parametrization(owner, attribute, _ComplexFromReal(), unsafe=True)
        parametrization = owner.get_submodule(f"parametrizations.{attribute}")
        # A parameter that is registered in several places stays one parameter.
        parametrization.original0 = real_parameters.setdefault(name, parametrization.get_parameter("original0"))
    return real_parameters


class _ComplexFromReal(nn.Module):
    """Parametrization of a complex tensor by its real and imaginary parts."""

    def forward(self, parts: Tensor) -> Tensor:
        """Return the complex tensor with the real and imaginary parts ``parts`` (..., 2)."""
        return torch.view_as_complex(parts)

    def right_inverse(self, value: Tensor) -> tuple[Tensor]:
        """Return the real and imaginary parts (..., 2) of a complex tensor; in a tuple torch accepts another dtype."""
        return (torch.view_as_real(value.detach()).clone(),)


class _PassThrough(nn.Module):
    """Module that runs the module it holds under ``attribute``, and has the same attributes."""

    def __init__(self, attribute: str, module: nn.Module, *, training: bool) -> None:
        super().__init__()
        self.training = training
        self._modules[attribute] = module

    @property
    def _wrapped(self) -> nn.Module:
        return next(iter(self._modules.values()))  # pyright: ignore[reportReturnType]

    def forward(self, *args: Any, **kwargs: Any) -> object:
        """Return the result of the wrapped module."""
        return self._wrapped(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of this module or of the wrapped one."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._wrapped, name)


class _DetachedCopies(TorchFunctionMode):
    """Lets ``copy.deepcopy`` copy tensors that are on a graph: without the graph."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            return memo.setdefault(id(tensor), tensor.detach().clone())
        return func(*args, **(kwargs or {}))


def _describe_uncopyable(module: nn.Module) -> str:
    """Return the name and type of the first attribute in a module or its submodules that cannot be copied."""
    for prefix, submodule in reversed(list(module.named_modules())):
        for name, value in vars(submodule).items():
            if name in ("_parameters", "_buffers", "_modules") or isinstance(value, nn.Module):
                continue
            try:
                _deepcopy(value, {id(submodule): submodule})
            except Exception:
                return f"its attribute {f'{prefix}.{name}'.lstrip('.')!r} of type {type(value).__name__}"
    return "one of its attributes"


def _check_tensor(name: str, tensor: Tensor) -> None:
    """Check that a parameter or buffer has values that can be copied and converted.

    Raises:
        UnsupportedModelError: an uninitialized, quantized or nested tensor, a sparse parameter, or device "meta".
    """
    kind = "parameter" if isinstance(tensor, nn.Parameter) else "buffer"
    if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
        _refuse(f"{kind} {name!r} of a lazy module without a shape", "run the model on one batch first: model(x)")
    if tensor.is_meta:
        _refuse(f'{kind} {name!r} on device "meta", which has no values', "load the weights before the analysis")
    if tensor.is_quantized:
        _refuse(f"quantized {kind} {name!r}", "analyze the model before quantization")
    if tensor.is_nested:
        _refuse(f"{kind} {name!r}, a nested tensor", "store it as a padded tensor")
    if kind == "parameter" and tensor.layout is not torch.strided:
        _refuse(f"parameter {name!r} with layout {tensor.layout}", "store it dense: nn.Parameter(w.to_dense())")


def _refuse(description: str, hint: str) -> None:
    raise UnsupportedModelError(description, expected="initialized dense tensors of numbers", hint=hint)
