"""The dense definition: the Jacobian of chosen parameters, row by row. Slow, right for every module."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from kernelmem.core.batches import Batch, Rows
from kernelmem.core.torch_func import functional_call, jacrev, vmap
from kernelmem.tangents.prepare import PreparedModel
from kernelmem.tangents.rules.elementwise import PReLURule

__all__ = ["rowwise_jacobian", "vectorized_jacobian", "vectorizes"]


def rowwise_jacobian(
    prepared: PreparedModel, rows: Sequence[Batch], names: list[str], directions: Tensor | None = None
) -> Tensor:
    """Σ_c v_nkc ∂f_c(x_n)/∂θ by one backward pass for each row and direction: (n, k, P).

    ``rows`` are batches of one row each; ``directions`` v (n, k, C), None: every output by itself. Cost: nk backward
    passes of one row; memory nkP.
    """
    parameters = [prepared.parameters[name] for name in names]
    if directions is None:
        every = torch.eye(prepared.n_outputs, dtype=prepared.dtype, device=prepared.device)
        directions = every.expand(len(rows), *every.shape)
    jacobian = []
    for row, own in zip(rows, directions, strict=True):
        with torch.enable_grad():
            outputs = prepared.outputs(row, 1)[0]
            per_direction = []
            for direction in own:
                if not outputs.requires_grad:
                    per_direction.append(torch.cat([torch.zeros_like(p).flatten() for p in parameters]))
                    continue
                gradients = torch.autograd.grad(
                    outputs, parameters, direction, retain_graph=True, allow_unused=True, materialize_grads=True
                )
                per_direction.append(torch.cat([gradient.to_dense().flatten() for gradient in gradients]))
        jacobian.append(torch.stack(per_direction))
    return torch.stack(jacobian)


class _Bound(nn.Module):
    """The model together with forward=, which may reach into it: functional_call swaps tensors on this one object."""

    def __init__(self, prepared: PreparedModel) -> None:
        super().__init__()
        self.module = prepared.module
        self.run = prepared.forward

    def forward(self, row: Batch) -> Tensor:
        with _SafeUnderVmap():
            return self.run(self.module, row)


class _SafeUnderVmap(TorchFunctionMode):
    """Replaces operations whose vmap rules in torch give wrong numbers."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.prelu:
            return PReLURule().expand(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))


def vectorized_jacobian(
    prepared: PreparedModel, batch: Batch, names: list[str], directions: Tensor | None = None
) -> Tensor:
    """The same, by torch.func over all rows of a batch at once. Raises where vmap cannot follow the model."""
    bound = _Bound(prepared)
    fixed = {name: p.detach() for name, p in bound.named_parameters()} | dict(bound.named_buffers())
    selected = {f"module.{name}": prepared.parameters[name].detach() for name in names}

    def outputs(values: dict[str, Tensor], row: Batch, own: Tensor | None = None) -> Tensor:
        one = Rows(row, 1).map(lambda leaf: leaf.unsqueeze(0))
        found = functional_call(bound, fixed | values, (one,))[0]
        return found if own is None else own @ found

    with warnings.catch_warnings():  # some operations are looped over inside: slower, not wrong
        warnings.filterwarnings("ignore", message="There is a performance drop")
        own = () if directions is None else (directions,)
        jacobian = vmap(jacrev(outputs), in_dims=(None, 0, *(0 for _ in own)))(selected, batch, *own)
    return torch.cat([jacobian[name].flatten(2) for name in selected], dim=2)


def vectorizes(prepared: PreparedModel, rows: Rows, names: list[str]) -> bool:
    """Whether torch.func follows this model and agrees with plain autograd: on a few rows, in a few directions."""
    if len(list(prepared.module.named_modules())) != len(list(prepared.module.named_modules(remove_duplicate=False))):
        return False  # functional_call does not put a module back that is registered in two places
    generator = torch.Generator().manual_seed(0)
    few = torch.randn(min(4, prepared.n_outputs), prepared.n_outputs, generator=generator, dtype=torch.float64)
    few = few.to(dtype=prepared.dtype, device=prepared.device)
    tolerance = 1e-3 if prepared.dtype == torch.float32 else 1e-9
    for size in (2, 3):  # sizes that happen to be equal hide some of torch's faults
        single = [rows.take([i % rows.n]) for i in range(size)]
        directions = few.expand(size, *few.shape)
        try:
            found = vectorized_jacobian(prepared, rows.take([i % rows.n for i in range(size)]), names, directions)
        except Exception:  # vmap and jacrev raise many types, from inside the user's module
            return False
        expected = rowwise_jacobian(prepared, single, names, directions)
        if not bool((found - expected).norm() <= tolerance * expected.norm()):
            return False
    return True
