"""Dense Jacobian of selected parameters: row by row (the definition, slow), or vectorized by torch.func."""

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from kernelmem.core.batches import Batch, Rows
from kernelmem.core.errors import KernelmemError, UnsupportedModelError
from kernelmem.core.models import plain_execution
from kernelmem.core.models.torch_func import functional_call, jacrev, vmap
from kernelmem.tangents.prepare import PreparedModel
from kernelmem.tangents.rules.elementwise import PReLURule


def rowwise_jacobian(
    prepared: PreparedModel, rows: Sequence[Batch], names: list[str], directions: Tensor | None = None
) -> Tensor:
    """Compute Σ_c v_nkc ∂f_c(x_n)/∂θ, (n, k, P), by one backward pass per example n and direction k.

    ``rows`` are batches of one example each, θ the P scalar parameters called ``names``; ``directions`` is v (n, k, C) for C
    outputs, and None means each output separately. Cost: nk backward
    passes of one row; memory nkP.
    """
    parameters = [prepared.parameters[name] for name in names]
    if directions is None:
        one_hot = torch.eye(prepared.n_outputs, dtype=prepared.dtype, device=prepared.device)
        directions = one_hot.expand(len(rows), *one_hot.shape)
    jacobian = []
    for row, row_directions in zip(rows, directions, strict=True):
        with torch.enable_grad():
            outputs = outputs_of_row(prepared, row)
            tangents = []
            for direction in row_directions:
                if not outputs.requires_grad:
                    tangents.append(torch.cat([torch.zeros_like(p).flatten() for p in parameters]))
                    continue
                gradients = torch.autograd.grad(
                    outputs, parameters, direction, retain_graph=True, allow_unused=True, materialize_grads=True
                )
                tangents.append(torch.cat([gradient.to_dense().flatten() for gradient in gradients]))
        jacobian.append(torch.stack(tangents))
    return torch.stack(jacobian)


def outputs_of_row(prepared: PreparedModel, row: Batch) -> Tensor:
    """Return the outputs (C,) of a batch of one example.

    Raises:
        UnsupportedModelError: the model does not accept one example.
    """
    try:
        return prepared.outputs(row, 1)[0]
    except KernelmemError:
        raise
    except Exception as error:  # the user's code may raise any type
        raise UnsupportedModelError(
            f"a model that fails on a batch of one row ({type(error).__name__}: {error})",
            expected="a model in which an example's output depends on that example alone",
            hint="call model.eval() (batch statistics need several rows), and do not assume a batch size in forward",
        ) from error


def batch_jacobian(prepared: PreparedModel, rows: Rows, directions: Tensor) -> Tensor:
    """Compute the Jacobian along ``directions`` (n, k, C outputs), (n, k, P), from one pass of all n rows.

    Cost: nk backward passes of n rows; memory nkP.
    """
    parameters = list(prepared.parameters.values())
    n, k = directions.shape[:2]
    sizes = [parameter.numel() for parameter in parameters]
    jacobian = torch.zeros(n, k, sum(sizes), dtype=prepared.dtype, device=prepared.device)
    with torch.enable_grad():
        outputs = prepared.outputs(rows.slice(0, rows.n), n)
    for row in range(n if outputs.requires_grad else 0):
        for direction in range(k):
            cotangent = torch.zeros_like(outputs)
            cotangent[row] = directions[row, direction]
            gradients = torch.autograd.grad(outputs, parameters, cotangent, retain_graph=True, allow_unused=True)
            for part, gradient in zip(jacobian[row, direction].split(sizes), gradients, strict=True):
                if gradient is not None:
                    part.copy_(gradient.to_dense().flatten())
    return jacobian


class BoundModel(nn.Module):
    """A model together with a function that runs it, so that functional_call replaces the tensors the function reads."""

    def __init__(self, module: nn.Module, run: Callable[..., Tensor]) -> None:
        super().__init__()
        self.module = module
        self.run = run

    def forward(self, *args: object) -> Tensor:
        """Return the result of the function that was passed on construction."""
        return self.run(*args)


class _SafeUnderVmap(TorchFunctionMode):
    """Context that replaces torch operations whose vmap rules are wrong (torch.prelu) by equivalent ones."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.prelu:
            return PReLURule().expand(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))


def vectorized_jacobian(
    prepared: PreparedModel, batch: Batch, names: list[str], directions: Tensor | None = None
) -> Tensor:
    """Compute the result of :func:`rowwise_jacobian`, (n, k, P), for all n examples of a batch at once, by torch.func.

    An error of torch is passed on if vmap does not support the model.
    """

    def run(row: Batch) -> Tensor:
        with plain_execution(prepared.device), _SafeUnderVmap():
            return prepared.forward(prepared.module, row)

    bound = BoundModel(prepared.module, run)
    constants = {name: p.detach() for name, p in bound.named_parameters()} | dict(bound.named_buffers())
    selected = {f"module.{name}": prepared.parameters[name].detach() for name in names}

    def outputs(values: dict[str, Tensor], row: Batch, row_directions: Tensor | None = None) -> Tensor:
        batch_of_one = Rows(row, 1).map(lambda leaf: leaf.unsqueeze(0))
        result = functional_call(bound, constants | values, (batch_of_one,))[0]
        return result if row_directions is None else row_directions @ result

    with warnings.catch_warnings():  # vmap loops over some operations: slower, not wrong
        warnings.filterwarnings("ignore", message="There is a performance drop")
        mapped_inputs = (batch,) if directions is None else (batch, directions)
        jacobian = vmap(jacrev(outputs), in_dims=(None, *(0 for _ in mapped_inputs)))(selected, *mapped_inputs)
    return torch.cat([jacobian[name].flatten(2) for name in selected], dim=2)


def supports_vectorized_jacobian(prepared: PreparedModel, rows: Rows, names: list[str]) -> bool:
    """Return True if :func:`vectorized_jacobian` supports this model and agrees with autograd on a few examples."""
    if len(list(prepared.module.named_modules())) != len(list(prepared.module.named_modules(remove_duplicate=False))):
        return False  # functional_call does not restore a module that is registered in two places
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(min(4, prepared.n_outputs), prepared.n_outputs, generator=generator, dtype=torch.float64)
    directions = directions.to(dtype=prepared.dtype, device=prepared.device)
    tolerance = prepared.tolerance(1e-3, 1e-9)
    for size in (2, 3):  # two sizes: a batch size that equals another dimension hides some errors of torch
        single_rows = [rows.take([i % rows.n]) for i in range(size)]
        expanded_directions = directions.expand(size, *directions.shape)
        try:
            batch = rows.take([i % rows.n for i in range(size)])
            vectorized = vectorized_jacobian(prepared, batch, names, expanded_directions)
        except Exception:  # vmap and jacrev raise many types, also from the user's module
            return False
        expected = rowwise_jacobian(prepared, single_rows, names, expanded_directions)
        if not bool((vectorized - expected).norm() <= tolerance * expected.norm()):
            return False
    return True
