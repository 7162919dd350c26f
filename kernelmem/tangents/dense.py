"""The dense definition: the Jacobian of chosen parameters, row by row. Slow, right for every module."""

from typing import Any

import torch
from torch import Tensor

from kernelmem.ground.batches import Rows
from kernelmem.ground.transforms import functional_call, jacrev, vmap
from kernelmem.tangents.prepare import Prepared

__all__ = ["rowwise_jacobian", "vectorized_jacobian"]


def rowwise_jacobian(prepared: Prepared, rows: list[Any], names: list[str]) -> Tensor:
    """∂f_c(x_n)/∂θ by one backward pass for each row and output: (n, C, P).

    ``rows`` are batches of one row each. Cost: n·C backward passes of one row; memory n·C·P.
    """
    parameters = [prepared.parameters[name] for name in names]
    jacobian = []
    for row in rows:
        with torch.enable_grad():
            outputs = prepared.outputs(row, 1)[0]
            per_output = []
            for c in range(len(outputs)):
                if not outputs.requires_grad:
                    per_output.append(torch.cat([torch.zeros_like(p).flatten() for p in parameters]))
                    continue
                gradients = torch.autograd.grad(
                    outputs[c],
                    parameters,
                    retain_graph=c < len(outputs) - 1,
                    allow_unused=True,
                    materialize_grads=True,
                )
                per_output.append(torch.cat([gradient.flatten() for gradient in gradients]))
        jacobian.append(torch.stack(per_output))
    return torch.stack(jacobian)


def vectorized_jacobian(prepared: Prepared, batch: Any, names: list[str]) -> Tensor:
    """The same, by torch.func over all rows of a batch at once: (n, C, P). Raises where vmap cannot follow the model."""
    module = prepared.module
    fixed = {name: p.detach() for name, p in module.named_parameters() if name not in names}
    fixed |= {name: b.detach() for name, b in module.named_buffers()}

    class _Bound(torch.nn.Module):
        # functional_call swaps tensors on a module; forward= may reach into it, so it must be the same object.
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, row: Any) -> Tensor:
            return prepared.forward(self.module, row)

    bound = _Bound()

    def outputs(selected: dict[str, Tensor], row: Any) -> Tensor:
        one = Rows(row, 1).map(lambda leaf: leaf.unsqueeze(0))
        values = {f"module.{name}": value for name, value in (fixed | selected).items()}
        return functional_call(bound, values, (one,))[0]

    selected = {name: prepared.parameters[name].detach() for name in names}
    jacobian = vmap(jacrev(outputs), in_dims=(None, 0))(selected, batch)
    return torch.cat([jacobian[name].flatten(2) for name in names], dim=2)
