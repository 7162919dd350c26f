"""Precision of a network's outputs: parts that compute in fewer bits than float64, and the rounding error that they cause.

Some models convert to float32 whatever their dtype (RMSNorm of Llama, rotary tables). Quadrature cannot be more accurate than
their rounding, which is measured: it is what a quadratic polynomial does not explain of the outputs along a short segment.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from kernelmem.core.batches import Rows
from kernelmem.tangents.capture import tensors_in
from kernelmem.trajectory.network.network import Network, take

N_PLACES = 17
N_ROWS = 8
LENGTH_EPSILONS = (
    128  # length of the segment relative to the weights, in machine epsilons: so many roundings are crossed
)
LONGEST = 1e-2
NOISE_QUANTILE = 0.9  # of the deviations from the polynomial: the largest may be those of a kink
SAFETY = 32.0  # largest residual of one step, in roundings of an output


class _NarrowResults(TorchFunctionMode):
    """Finds the floating-point type with the largest epsilon among results that depend on parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.dtype = torch.float64

    def __torch_function__(
        self, func: Callable[..., object], types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        result = func(*args, **(kwargs or {}))
        for tensor in tensors_in(result):
            if tensor.requires_grad and torch.finfo(tensor.dtype).eps > torch.finfo(self.dtype).eps:
                self.dtype = tensor.dtype
        return result


def inner_dtype(network: Network) -> torch.dtype:
    """Return the narrowest floating-point type of the activations that depend on parameters: float64 for most models.

    Cost: one forward pass of two rows.
    """
    rows = take(network.test_rows, torch.arange(2))
    with torch.enable_grad(), _NarrowResults() as results:
        network.prepared.outputs(rows.slice(0, 2), 2)
    return results.dtype


def output_rounding(network: Network, rows: Rows, states: Sequence[Mapping[str, Tensor]], dtype: torch.dtype) -> float:
    """Return the rounding error of the outputs of some rows, at the weights and buffers in ``states``.

    Cost: 17 forward passes of at most 8 rows for each state.
    """
    length = min(LENGTH_EPSILONS * torch.finfo(dtype).eps, LONGEST)
    places = torch.linspace(-1.0, 1.0, N_PLACES, dtype=torch.float64)
    polynomials = torch.stack([places**degree for degree in range(3)], 1)
    generator = torch.Generator().manual_seed(0)
    some_rows = take(rows, torch.arange(min(N_ROWS, rows.n)))
    rounding = 0.0
    for state in states:
        directions = {
            name: torch.randn(state[name].shape, generator=generator, dtype=torch.float64)
            * length
            * state[name].double()
            for name in network.parameters
        }
        outputs = []
        for place in places.tolist():
            network.set_state({**state, **{name: state[name].double() + place * u for name, u in directions.items()}})
            outputs.append(network.outputs(some_rows).flatten())
        values = torch.stack(outputs)  # (places, rows · outputs)
        deviations = values - polynomials @ torch.linalg.lstsq(polynomials, values).solution
        rounding = max(rounding, float(deviations.abs().flatten().quantile(NOISE_QUANTILE)))
    return rounding


def reachable_tolerance(
    network: Network, rows: Rows, states: Sequence[Mapping[str, Tensor]], tolerance: float, n_steps: int
) -> tuple[float, torch.dtype]:
    """Return the tolerance of a run of ``n_steps`` steps that the network's own rounding allows, and its inner dtype.

    This is ``tolerance`` if the network computes in float64, or if it is larger.
    """
    dtype = inner_dtype(network)
    if dtype == torch.float64:
        return tolerance, dtype
    return max(tolerance, SAFETY * n_steps * output_rounding(network, rows, states, dtype)), dtype
