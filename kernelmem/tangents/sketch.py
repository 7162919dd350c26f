"""Random projections of tangents, computed from their factors: features whose inner products estimate the NTK.

With random signs u_j for the rows and v_j for the columns of a parameter (its first axis, and all others), coordinate j of
the sketch of a tangent T is u_jᵀ T v_j. For a weight with T = Σ_s g_s ⊗ a_s it is Σ_s (u_j · g_s)(v_j · a_s): a product of
two small projections, so that neither the tangent nor a (P, dim) matrix is formed. The signs depend on the name and the
shape of the parameter alone, not on the way in which its tangents are computed.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from kernelmem.core.batches import Batch, Forward, Rows, as_rows
from kernelmem.core.checks import as_count, as_seed, check_choice, check_result, seed_sequence
from kernelmem.core.models.torch_func import standard_modes
from kernelmem.tangents.batch_axis import row_tags
from kernelmem.tangents.capture import ParameterUse
from kernelmem.tangents.engine.backward import ForwardPass
from kernelmem.tangents.engine.engine import Engine
from kernelmem.tangents.groups.base import Group, UseGradients
from kernelmem.tangents.groups.directions import OutputDirections
from kernelmem.tangents.groups.mixed import MixedGroup
from kernelmem.tangents.groups.outer import OuterGroup
from kernelmem.tangents.groups.table import TableGroup
from kernelmem.tangents.prepare import prepare
from kernelmem.tangents.survey import Certificate, PassMismatchError

CHUNK_BYTES = 64 * 2**20
MAX_DIM = 2**24  # features of one row take 64 MiB in float32
BLOCK_NUMBERS = 2**22  # numbers of projections of explicit tangents at a time
N_CERTIFIED = 8  # coordinates that are compared with the projection of autograd's gradient


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
        NumericalError: features with NaN or infinite values; the message names the rows. VerificationError: as in ntk.

    Cost: one forward pass, two (or 2C) backward sweeps, n·S·(in + k·out)·dim operations per layer; memory (in + k·out)·dim.
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
    seeds, k = seed_sequence(seed, list(prepared.parameters)), engine.directions.k
    signs = {name: Signs.draw(prepared.parameters[name], k, dim, seeds[name]) for name in seeds}
    while True:
        try:
            features = _features(engine, rows, dim, signs)
            break
        except PassMismatchError as mismatch:
            engine = engine.without_assumptions(mismatch)
    hint = "check these rows and the weights (a diverged run?), or pass dtype=torch.float64 if numbers overflow"
    return check_result(features.mul_(dim**-0.5), "features", hint=hint)


@dataclass(frozen=True)
class Signs:
    """Random signs of the rows and columns of one parameter as a matrix (r, c), for each coordinate of the sketch.

    Attributes:
        rows: signs u, int8 (r, dim), or (k · r, dim) for k output directions.
        columns: signs v, int8 (k · c, dim), or (c, dim).
        shape: (k, r, c).
        of_rows: True if the directions have their own signs of rows (r <= c, fewer numbers), False: of columns.
    """

    rows: Tensor
    columns: Tensor
    shape: tuple[int, int, int]
    of_rows: bool

    @classmethod
    def draw(cls, parameter: Tensor, k: int, dim: int, seed: int) -> "Signs":
        """Draw the signs of a parameter for k output directions and ``dim`` coordinates."""
        r = parameter.shape[0] if parameter.ndim else 1
        c = parameter.numel() // max(r, 1)
        generator, of_rows = torch.Generator().manual_seed(seed), r <= c
        rows = _random_signs((k * r if of_rows else r, dim), generator)
        columns = _random_signs((c if of_rows else k * c, dim), generator)
        return cls(rows.to(parameter.device), columns.to(parameter.device), (k, r, c), of_rows)

    def project(self, tangents: Tensor, coordinates: slice = slice(None)) -> Tensor:
        """Project explicit tangents (n examples, k, *parameter shape) to (n, coordinates)."""
        matrices = tangents.reshape(-1, *self.shape)
        short, long = (self.rows, self.columns) if self.of_rows else (self.columns, self.rows)
        matrices = (matrices if self.of_rows else matrices.mT).flatten(1, 2)  # (n, k · shorter axis, longer axis)
        short, long = short[:, coordinates], long[:, coordinates].to(tangents)
        features = tangents.new_zeros(len(matrices), short.shape[1])
        step = max(1, BLOCK_NUMBERS // max(1, features.numel()))
        for start in range(0, len(short), step):
            block = slice(start, start + step)
            features += ((matrices[:, block] @ long) * short[block].to(tangents)).sum(1)
        return features

    def of_factors(self, positions: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return signs of output gradients, (k or 1, G · out, dim), and of activations, (1 or k, in, dim).

        ``positions`` (G groups, out, in) holds the place of each product g ⊗ a in the flattened parameter. The result is
        None if the products are not arranged as a matrix whose rows or columns belong to the output gradients.
        """
        _, r, c = self.shape
        rows, columns = (index.flatten(0, 1) for index in (positions // c, positions % c))
        row_signs, column_signs = (
            sign.view(-1, size, sign.shape[1]) for sign, size in ((self.rows, r), (self.columns, c))
        )
        for of_gradients, of_activations, gradient_signs, activation_signs in (
            (rows, columns, row_signs, column_signs),
            (columns, rows, column_signs, row_signs),
        ):
            if torch.equal(of_gradients, of_gradients[:, :1].expand_as(of_gradients)) and torch.equal(
                of_activations, of_activations[:1].expand_as(of_activations)
            ):
                return gradient_signs[:, of_gradients[:, 0]], activation_signs[:, of_activations[0]]
        return None


def _features(engine: Engine, rows: Rows, dim: int, signs: Mapping[str, Signs]) -> Tensor:
    """Project the tangents of all rows, and return (n, dim) without the factor 1/√dim."""
    k, bytes_per_number = engine.directions.k, torch.finfo(engine.prepared.dtype).bits // 8
    gradient_numbers = sum(output_numbers for _, output_numbers in engine.survey.elements.values())
    rows_per_chunk = max(
        1, min(1024, CHUNK_BYTES // max(1, bytes_per_number * (2 * engine.survey.saved + 3 * k * gradient_numbers)))
    )
    features = torch.zeros(rows.n, dim, dtype=engine.prepared.dtype, device=engine.prepared.device)
    for start in range(0, rows.n, rows_per_chunk):
        stop = min(start + rows_per_chunk, rows.n)
        _add_features(features[start:stop], engine, rows.slice(start, stop), signs)
    return features


def _add_features(features: Tensor, engine: Engine, batch: Batch, signs: Mapping[str, Signs]) -> None:
    """Add the projected tangents of a batch of n examples to ``features`` (n, dim).

    Raises:
        PassMismatchError: projections that differ from those of autograd's gradient.
    """
    n, k = len(features), engine.directions.k
    captured = engine.capture(batch, n)
    forward_pass = ForwardPass(captured, engine.survey.groups, engine.directions, engine.survey.readout, k)
    gradients = forward_pass.gradients(range(k), all_directions=True)
    like = forward_pass.outputs.detach()
    projections: dict[str, Tensor] = {}
    for group, uses in zip(engine.survey.groups, forward_pass.group_uses, strict=True):
        if uses:
            group_gradients = [gradients.get(use.key) for use in uses]
            projections |= _project_group(group, uses, group_gradients, (n, k), signs, like)
    if engine.survey.dense:
        jacobian = engine.dense(batch, n, forward_pass.cotangents(range(k)))
        sizes = [engine.prepared.parameters[name].numel() for name in engine.survey.dense]
        for name, tangents in zip(engine.survey.dense, jacobian.split(sizes, dim=2), strict=True):
            projections[name] = signs[name].project(tangents)
    _certify(engine, forward_pass, projections, signs)
    for projected in projections.values():
        features += projected


def _certify(
    engine: Engine, forward_pass: ForwardPass, projections: Mapping[str, Tensor], signs: Mapping[str, Signs]
) -> None:
    """Compare Σ_i w_i φ_i, φ_i the projections of the examples, with those of autograd's gradients of Σ_i w_i v_k · f_i.

    Raises:
        PassMismatchError: sums that differ by more than rounding; it names the parameters.
    """
    prepared, k, captured = engine.prepared, engine.directions.k, forward_pass.captured
    weights = row_tags(forward_pass.n).to(forward_pass.outputs)
    cotangents = forward_pass.cotangents(range(k)) * weights[:, None, None]
    directions = [Certificate(prepared) for _ in range(k)]
    for direction, certificate in enumerate(directions):
        certificate.add_pass(captured, cotangents[:, direction])
    gradients = {
        name: torch.stack([certificate.gradients[name] for certificate in directions])
        for name in directions[0].gradients
    }
    certificate = Certificate(prepared, gradients, captured=captured)
    expected_sums: dict[tuple[str, ...], Tensor] = {}
    for name, projected in projections.items():
        coordinates = slice(0, min(N_CERTIFIED, projected.shape[1]))
        certificate.add_tangents((name,), weights @ projected[:, coordinates] * coordinates.stop**-0.5)
        gradient = gradients.get(name)
        expected_sums[(name,)] = (
            torch.zeros_like(certificate.sums[(name,)])
            if gradient is None
            else signs[name].project(gradient, coordinates)[0] * coordinates.stop**-0.5
        )
    certificate.check(expected_sums)


def _project_group(
    group: Group,
    uses: list[ParameterUse],
    gradients: list[UseGradients],
    size: tuple[int, int],
    signs: Mapping[str, Signs],
    like: Tensor,
) -> dict[str, Tensor]:
    """Project the tangents of one group to (n, dim) for each parameter; ``size`` is (n examples, k directions).

    Tangents that are outer products are projected by their factors and never formed.
    """
    n, k = size
    if isinstance(group, TableGroup) and uses[0].settings["layout"] is None:
        buffers = group.write(uses, gradients, n, k, "diagonal", like=like)
        return {group.names[0]: _project_lookups(signs[group.names[0]], buffers["tokens"], buffers["gradients"])}
    if isinstance(group, OuterGroup):
        projections = _project_factors(group, uses, gradients, size, signs)
        if projections is not None:
            return projections
    numbers = [signs[name].shape[1] * signs[name].shape[2] for name in group.names]
    explicit = MixedGroup(group.names, group.keys, group.layer, tuple(torch.Size((number,)) for number in numbers))
    tangents = explicit.write(uses, gradients, n, k, "diagonal", like=like)["tangents"]
    return {
        name: signs[name].project(part) for name, part in zip(group.names, tangents.split(numbers, dim=2), strict=True)
    }


def _project_factors(
    group: OuterGroup,
    uses: list[ParameterUse],
    gradients: list[UseGradients],
    size: tuple[int, int],
    signs: Mapping[str, Signs],
) -> dict[str, Tensor] | None:
    """Project the tangents of a weight and its bias from their factors; return None if the weight has another layout."""
    (n, k), shape, use = size, group.shape, uses[0]
    activations, output_gradients = group.factors(uses, gradients, n, k)  # (n, G, S, in), (n, G, S, k, out)
    projections: dict[str, Tensor] = {}
    if group.has_weight:
        name = use.names["weight"]
        order = torch.arange(shape.groups * shape.fan_out * shape.fan_in, device=activations.device)
        places = use.rule.to_weight_shape(use, order.view(1, 1, shape.groups, shape.fan_out, shape.fan_in)).flatten()
        if places.numel() != order.numel():  # a part of the parameter
            return None
        positions = torch.full_like(order, -1).scatter_(0, places, order)
        if bool((positions < 0).any()):
            return None
        factor_signs = signs[name].of_factors(positions.view(shape.groups, shape.fan_out, shape.fan_in))
        if factor_signs is None:
            return None
        gradient_signs, activation_signs = (sign.to(activations) for sign in factor_signs)
        features = activations.new_zeros(n, gradient_signs.shape[2])
        for channel_group in range(shape.groups):
            outputs = slice(channel_group * shape.fan_out, (channel_group + 1) * shape.fan_out)
            a, g = activations[:, channel_group, :, : shape.fan_in], output_gradients[:, channel_group]
            u, v = gradient_signs[:, outputs], activation_signs
            if len(v) == 1:  # one product with the gradients of all directions
                features += ((a @ v[0]) * (g.flatten(2) @ u.flatten(0, 1))).sum(1)
            else:
                for direction in range(k):
                    features += ((a @ v[direction]) * (g[:, :, direction] @ u[0])).sum(1)
        projections[name] = features
    if group.has_bias:
        projections[use.names["bias"]] = signs[use.names["bias"]].project(output_gradients.sum(2).transpose(1, 2))
    return projections


def _project_lookups(signs: Signs, tokens: Tensor, gradients: Tensor) -> Tensor:
    """Project Σ_s e_v(s) ⊗ g_s from tokens v (n, S), -1 for none, and output gradients g (n, S, k, d)."""
    used, rows, k = (tokens >= 0)[..., None], tokens.clamp_min(0), gradients.shape[2]
    columns = signs.columns.to(gradients)
    if not signs.of_rows:
        return ((gradients.flatten(2) @ columns) * signs.rows[rows] * used).sum(1)
    row_signs = signs.rows.view(k, -1, signs.rows.shape[1])
    features = gradients.new_zeros(len(tokens), signs.rows.shape[1])
    for direction in range(k):
        features += ((gradients[:, :, direction] @ columns) * row_signs[direction][rows] * used).sum(1)
    return features


def _random_signs(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Draw a tensor of independent random signs +1 and -1 in int8."""
    return torch.randint(0, 2, shape, generator=generator, dtype=torch.int8) * 2 - 1
