"""Random projections of tangents, computed from their factors: features whose inner products estimate the NTK.

For a weight with tangent Σ_s g_s ⊗ a_s, coordinate j of the sketch is Σ_s (u_j · g_s)(v_j · a_s) with random signs u_j,
v_j: a product of two small projections, so that neither the tangent nor a (P, dim) matrix is formed.
"""

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from kernelmem.core.batches import Batch, Forward, as_rows
from kernelmem.core.checks import as_count, as_seed, check_choice, check_result, seed_sequence
from kernelmem.core.models.torch_func import standard_modes
from kernelmem.tangents.capture import ParameterUse
from kernelmem.tangents.engine.backward import ForwardPass
from kernelmem.tangents.engine.engine import Engine
from kernelmem.tangents.groups.base import Group, UseGradients
from kernelmem.tangents.groups.directions import OutputDirections
from kernelmem.tangents.groups.mixed import MixedGroup
from kernelmem.tangents.groups.outer import OuterGroup
from kernelmem.tangents.groups.table import TableGroup
from kernelmem.tangents.prepare import prepare

CHUNK_BYTES = 64 * 2**20
MAX_DIM = 2**24  # features of one row take 64 MiB in float32
SIGNS_PER_BLOCK = 2**22  # random signs drawn at a time for tangents in explicit form


@standard_modes()
def tangent_features(
    model: nn.Module,
    x: Batch,
    dim: int,
    *,
    seed: int,
    outputs: Literal["pseudo", "trace"] = "pseudo",
    parameters: Iterable[str] | None = None,
    forward: Forward | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Project the tangents of n rows to features Φ (n, dim) with E[Φ(x) Φ(y)ᵀ] = K(x, y) over seeds.

    Each coordinate z is a decoupled chaos of degree at most two in random signs, so that E z⁴ <= 9 (E z²)²
    (hypercontractivity)::

        sd of Φ(x)·Φ(x) <= √(8/dim) K(x, x),     sd of Φ(x)·Φ(y) <= 3 √(K(x, x) K(y, y) / dim).

    Args:
        model: any module whose ``model(x)`` is (n, C); never changed.
        x: n rows, as in :func:`kernelmem.ntk`.
        dim: number of features; a relative error ε (of the norms) needs dim ≈ 9/ε².
        seed: seed of the random projection. With the same seed the features of a row do not depend on the other rows, so
            that features of training and test rows can be computed in separate calls.
        outputs: "pseudo" (kernel of Σ_c f_c / √C, one backward sweep) or "trace" (C sweeps).
        parameters: names of the parameters to differentiate with respect to; None: those with requires_grad.
        forward: maps (model, batch) to (n, C) outputs.
        dtype: torch.float32 or torch.float64; None: the model's own.
        device: where to compute; None: where the model is.

    Returns:
        (n, dim) in ``dtype`` on ``device``.

    Raises:
        InputError: dim < 1, other outputs, rows that the model does not accept. UnsupportedModelError: as in ntk.
        NumericalError: features with NaN or infinite values; the message names the rows.

    Cost: one forward pass, one (or C) backward sweeps, n·S·(in + k·out)·dim operations per layer; memory (in + k·out)·dim.
    For dim larger than about n, :func:`kernelmem.ntk` gives the exact kernel at a lower cost.

    Source: Johnson and Lindenstrauss 1984; products of projections: Kar and Karnick 2012.

    >>> model = nn.Linear(3, 1)
    >>> tangent_features(model, torch.ones(2, 3), 16, seed=0).shape
    torch.Size([2, 16])
    """
    dim = as_count(dim, "dim", maximum=MAX_DIM)
    check_choice(outputs, "outputs", ("pseudo", "trace"), hint='pass outputs="trace" for Σ_c K^{cc}')
    rows, seed = as_rows(x, "x"), as_seed(seed)
    prepared = prepare(model, rows, forward=forward, parameters=parameters, dtype=dtype, device=device)
    rows = rows.to(dtype=prepared.dtype, device=prepared.device)
    engine = Engine.build(prepared, rows, OutputDirections(outputs, prepared.n_outputs))
    seeds = seed_sequence(seed, [group.names[0] for group in engine.survey.groups] + list(engine.survey.dense))
    k, bytes_per_number = engine.directions.k, torch.finfo(prepared.dtype).bits // 8
    gradient_numbers = sum(output_numbers for _, output_numbers in engine.survey.elements.values())
    rows_per_chunk = max(
        1, min(1024, CHUNK_BYTES // max(1, bytes_per_number * (2 * engine.survey.saved + 3 * k * gradient_numbers)))
    )
    features = torch.empty(rows.n, dim, dtype=prepared.dtype, device=prepared.device)
    for start in range(0, rows.n, rows_per_chunk):
        stop = min(start + rows_per_chunk, rows.n)
        features[start:stop] = _project_rows(engine, rows.slice(start, stop), stop - start, dim, seeds)
    hint = "check these rows and the weights (a diverged run?), or pass dtype=torch.float64 if numbers overflow"
    return check_result(features.mul_(dim**-0.5), "features", hint=hint)


def _project_rows(engine: Engine, batch: Batch, n: int, dim: int, seeds: dict[str, int]) -> Tensor:
    """Project the tangents of a batch of n examples, and return (n, dim) without the factor 1/√dim."""
    captured, k = engine.capture(batch, n), engine.directions.k
    forward_pass = ForwardPass(captured, engine.survey.groups, engine.directions, engine.survey.readout, k)
    gradients = forward_pass.gradients(range(k), all_directions=True)
    features = torch.zeros(n, dim, dtype=engine.prepared.dtype, device=engine.prepared.device)
    like = forward_pass.outputs.detach()
    for group, uses in zip(engine.survey.groups, forward_pass.group_uses, strict=True):
        group_gradients = [gradients.get(use.key) for use in uses]
        features += _project_group(group, uses, group_gradients, n, k, dim, seeds[group.names[0]], like)
    if engine.survey.dense:
        jacobian = engine.dense(batch, n, forward_pass.cotangents(range(k)))
        sizes = [engine.prepared.parameters[name].numel() for name in engine.survey.dense]
        for name, tangents in zip(engine.survey.dense, jacobian.split(sizes, dim=2), strict=True):
            features += _project_tangents(tangents.flatten(1), dim, seeds[name])
    return features


def _project_group(
    group: Group,
    uses: list[ParameterUse],
    gradients: list[UseGradients],
    n: int,
    k: int,
    dim: int,
    seed: int,
    like: Tensor,
) -> Tensor:
    """Project the tangents of one parameter group of n examples in k output directions, and return (n, dim).

    Tangents that are outer products are projected by their factors and never formed.
    """
    if isinstance(group, MixedGroup):
        tangents = group.write(uses, gradients, n, k, "diagonal", like=like)["tangents"]
        return _project_tangents(tangents.flatten(1), dim, seed)
    if isinstance(group, TableGroup):
        buffers = group.write(uses, gradients, n, k, "diagonal", like=like)
        generator = torch.Generator().manual_seed(seed)
        row_signs = _random_signs((group.rows, dim), generator)
        gradient_signs = _random_signs((k * group.width, dim), generator).to(buffers["gradients"])
        projected_gradients = buffers["gradients"].flatten(2) @ gradient_signs
        projected_gradients *= row_signs.to(buffers["tokens"].device)[buffers["tokens"].clamp_min(0)]
        return (projected_gradients * (buffers["tokens"] >= 0)[..., None]).sum(1)
    assert isinstance(group, OuterGroup)
    activations, output_gradients = group.factors(uses, gradients, n, k)  # (n, G, S, in), (n, G, S, k, out)
    generator = torch.Generator().manual_seed(seed)
    features = activations.new_zeros(n, dim)
    for channel_group in range(activations.shape[1]):
        # The last column of the activations is that of the bias: signs for the weight are drawn first.
        activation_signs = _random_signs((activations.shape[3], dim), generator).to(activations)
        gradient_signs = _random_signs((k * output_gradients.shape[4], dim), generator).to(activations)
        projected_activations = activations[:, channel_group] @ activation_signs
        projected_gradients = output_gradients[:, channel_group].flatten(2) @ gradient_signs
        features += (projected_activations * projected_gradients).sum(1)
    return features


def _project_tangents(tangents: Tensor, dim: int, seed: int) -> Tensor:
    """Multiply tangents (n examples, p entries) by a (p, dim) matrix of random signs, which is drawn block by block."""
    generator = torch.Generator().manual_seed(seed)
    features = tangents.new_zeros(len(tangents), dim)
    for block in tangents.split(max(1, SIGNS_PER_BLOCK // dim), dim=1):
        features += block @ _random_signs((block.shape[1], dim), generator).to(block)
    return features


def _random_signs(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Draw a tensor of independent random signs +1 and -1 in int8."""
    return torch.randint(0, 2, shape, generator=generator, dtype=torch.int8) * 2 - 1
