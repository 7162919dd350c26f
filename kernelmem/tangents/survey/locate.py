"""Rows that do not lie in the order of the batch inside a pass: their places, found by tagged gradients."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from kernelmem.tangents.batch_axis import locate_rows, row_tags
from kernelmem.tangents.batch_axis.ragged import SMALL_GRADIENT
from kernelmem.tangents.capture import Capture, ParameterUse, UseKey, backward_pass


def random_outputs(captured: Capture) -> Tensor:
    """Return random weights (C,) of the outputs of a pass, the same for all passes of a model."""
    generator = torch.Generator().manual_seed(0)
    C = captured.outputs.shape[1]
    return torch.randn(C, generator=generator, dtype=torch.float64).to(captured.outputs)


def locate_uses(captured: Capture, uses: Iterable[ParameterUse]) -> set[UseKey]:
    """Find the examples of the entries of each use, and set its batch axis; return the keys of the uses that have none.

    Every entry of the output of a use must influence the outputs of one example alone. Cost: two backward passes.
    """
    uses = list(uses)
    if not uses or not captured.outputs.requires_grad:
        return {use.key for use in uses}
    tags = row_tags(captured.n)
    gradients, tagged_gradients = _tagged_gradients(captured, uses, tags)
    tolerance = _tolerance(captured)
    unlocated = set()
    for use, gradient, tagged_gradient in zip(uses, gradients, tagged_gradients, strict=True):
        use.located = gradient is None  # no entry influences the outputs
        if gradient is None or tagged_gradient is None:
            continue
        for axis in range(gradient.ndim):
            ragged_axis = locate_rows(gradient, tagged_gradient, tags, axis, tolerance)
            if ragged_axis is None:
                continue
            use.batch_axis = ragged_axis
            use.located = use.is_supported(captured.n)
            if use.located:
                break
        if not use.located:
            unlocated.add(use.key)
    return unlocated


def misplaced_names(captured: Capture) -> set[str]:
    """Return the parameters of uses whose entries do not belong to the examples along their batch axis.

    Cost: two backward passes.
    """
    n = captured.n
    if not captured.uses or not captured.outputs.requires_grad:
        return set()
    tags = row_tags(n).to(captured.outputs)
    names: set[str] = set()
    gradients = _tagged_gradients(captured, captured.uses, row_tags(n))
    for use, gradient, tagged_gradient in zip(captured.uses, *gradients, strict=True):
        if gradient is None or tagged_gradient is None:
            continue
        rows, tagged_rows = (use.batch_axis.rows(t, n).reshape(n, -1) for t in (gradient, tagged_gradient))
        norms = tagged_rows.norm(dim=1)
        deviations = (tagged_rows - tags[:, None] * rows).norm(dim=1)
        if bool((deviations > _tolerance(captured) * (norms + SMALL_GRADIENT * norms.max())).any()):
            names |= use.parameters
    return names


def _tagged_gradients(
    captured: Capture, uses: Sequence[ParameterUse], tags: Tensor
) -> tuple[tuple[Tensor | None, ...], tuple[Tensor | None, ...]]:
    """Return the output gradients of uses for Σ_i u·f_i and for Σ_i t_i u·f_i, with random u and the tags t (n,)."""
    cotangent = random_outputs(captured).expand(captured.n, -1)
    edges = [use.edge for use in uses]
    first, second = (
        backward_pass(captured.outputs, edges, direction)
        for direction in (cotangent, cotangent * tags.to(cotangent)[:, None])
    )
    return first, second


def _tolerance(captured: Capture) -> float:
    """Return the relative difference of two gradients that rounding explains."""
    return 1e-3 if captured.precision == torch.float32 else 1e-9
