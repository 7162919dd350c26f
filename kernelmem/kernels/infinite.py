"""Kernels of infinitely wide fully connected networks in closed form, accurate for duplicate and opposite inputs too."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kernelmem.core.batches import Batch, as_rows
from kernelmem.core.checks import as_count, as_number, check_choice
from kernelmem.core.errors import InputError

Activation = Literal["relu", "erf"]

BLOCK_ENTRIES = 2**20  # kernel entries computed at once, with about twelve float64 temporaries of this size
# Pairs with |cosine| > 1 - CLOSE_COSINE are close: the error eps / sin(angle) of the angle from a GEMM exceeds 6 eps.
CLOSE_COSINE = 2**-6
GATHERED_PAIR_COST = 30  # one gathered pair costs as much as this many pairs of a block of differences
DIFFERENCE_MODE = "donot_use_mm_for_euclid_dist"
MAX_DEPTH = 100_000  # hidden layers; the cost is proportional to it
MAX_NORM = 1e75  # norm of a row: its fourth power must be finite


def infinite_ntk(
    x: Batch,
    y: Batch | None = None,
    *,
    depth: int,
    activation: Activation = "relu",
    weight_var: float = 2.0,
    bias_var: float = 0.0,
) -> Tensor:
    r"""Compute the neural tangent kernel of a fully connected network of infinite width, Θ(x, y).

    The network has ``depth`` hidden layers in NTK parametrization: every layer is √(w/fan_in) W a + √b β with W, β
    ~ N(0, 1), w = ``weight_var``, b = ``bias_var``; all W and β are trained. With φ the activation::

        Σ⁰ = w x·y/d + b                                          Θ⁰ = Σ⁰
        Σˡ⁺¹ = w E[φ(u) φ(v)] + b                                 Θˡ⁺¹ = Σˡ⁺¹ + Θˡ w E[φ'(u) φ'(v)]
        (u, v) ~ N(0, [[Σˡ(x, x), Σˡ(x, y)], [Σˡ(x, y), Σˡ(y, y)]])

    This is K^{cc} of one output; outputs are independent, so that ``km.ntk(..., outputs="trace")`` converges to C times
    it. For relu the recursion runs on angles between rows instead of correlations, and is accurate to rounding where
    arccos loses half the digits: on the diagonal and for duplicate, nearly equal and opposite rows.

    Args:
        x: n rows (n, d): tensor, array, Dataset or DataLoader; further axes are flattened.
        y: m rows (m, d), in the same forms; None means y = x.
        depth: number of hidden layers; 0 is the linear model, w x·y/d + b.
        activation: activation function φ, "relu" or "erf".
        weight_var: variance w > 0 of the weights; 2 preserves the scale of relu networks.
        bias_var: variance b >= 0 of the biases.

    Returns:
        (n, m), float32 if x and y are float32 or narrower, otherwise float64 (integers too); on x's device, computed in
        float64. With y=None it is symmetric to the bit, and entries of equal rows equal the diagonal to the bit. A zero
        row with b = 0 has relu kernel 0 with every row.

    Raises:
        InputError: NaN, complex or no rows, d that differs, row norms above 1e75, an unknown activation, a depth or
            variance out of range, a kernel too large for its dtype.

    Cost: 2nmd + O(nm depth) operations (half with y=None), plus 3d per pair within 0.18 of angle 0 or π; memory
    is the result, two float64 copies of the rows and about 100 MB.

    Source: Jacot, Gabriel, Hongler 2018; relu: Cho and Saul 2009; erf: Williams 1997.

    >>> rows = torch.tensor([[3.0, 4.0], [-3.0, -4.0]])
    >>> infinite_ntk(rows, depth=0)  # 2 x·y / d
    tensor([[ 25., -25.],
            [-25.,  25.]])
    >>> infinite_ntk(rows, depth=1)  # opposite rows have no active unit in common
    tensor([[50.,  0.],
            [ 0., 50.]])
    """
    return _kernel_in_blocks(x, y, _Network(depth, activation, weight_var, bias_var), tangent=True)


def infinite_nngp(
    x: Batch,
    y: Batch | None = None,
    *,
    depth: int,
    activation: Activation = "relu",
    weight_var: float = 2.0,
    bias_var: float = 0.0,
) -> Tensor:
    r"""Compute the covariance Σ(x, y) of an infinitely wide random network (its Gaussian process, NNGP).

    The network, arguments, result, errors and cost are those of :func:`infinite_ntk`::

        Σ⁰ = w x·y/d + b            Σˡ⁺¹ = w E[φ(u) φ(v)] + b,  (u, v) ~ N(0, Σˡ on {x, y})

    and the value is Σ at l = ``depth``. It is also the tangent kernel of the last layer (its weights and bias).

    Source: Neal 1996; Lee et al. 2018; relu: Cho and Saul 2009; erf: Williams 1997.

    >>> rows = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    >>> infinite_nngp(rows, depth=1) * math.pi  # orthogonal: κ₁ = 1/π
    tensor([[3.1416, 1.0000],
            [1.0000, 3.1416]], dtype=torch.float64)
    """
    return _kernel_in_blocks(x, y, _Network(depth, activation, weight_var, bias_var), tangent=False)


@dataclass(frozen=True)
class _Network:
    """Parameters of the network, validated on construction."""

    depth: int
    activation: str
    weight_var: float
    bias_var: float

    def __post_init__(self) -> None:
        hint = "for another activation, average km.ntk over wide random networks"
        check_choice(self.activation, "activation", tuple(LAYER_RECURSIONS), hint=hint)
        # Python numbers: a NumPy float32 would reduce the precision of the recursion.
        object.__setattr__(self, "depth", as_count(self.depth, "depth", minimum=0, maximum=MAX_DEPTH))
        object.__setattr__(self, "weight_var", as_number(self.weight_var, "weight_var", exclusive=True))
        object.__setattr__(self, "bias_var", as_number(self.bias_var, "bias_var"))


@dataclass(frozen=True)
class _Rays:
    """Unit vectors and lengths of the first-layer preactivations (√(w/d) x, √b), whose inner product is Σ⁰."""

    directions: Tensor  # (n, d + 1), unit rows, zero if the length is zero
    lengths: Tensor  # (n,)

    def __getitem__(self, rows: slice) -> "_Rays":
        return _Rays(self.directions[rows], self.lengths[rows])


@dataclass(frozen=True)
class _Angles:
    """Angles θ between left and right rays, by sin²(θ/2) and cos²(θ/2), one of which is accurate near 0 and near π."""

    haversine: Tensor  # (k, m) sin²(θ/2)
    cohaversine: Tensor  # (k, m) cos²(θ/2)
    left: Tensor  # (k, 1) lengths
    right: Tensor  # (1, m) lengths


def _kernel_in_blocks(x: Batch, y: Batch | None, network: _Network, *, tangent: bool) -> Tensor:
    """Compute the tangent kernel (if ``tangent``) or the covariance of the last layer, (n, m), by blocks of examples."""
    x_rows = _validated_matrix(x, "x")
    y_rows = x_rows if y is None else _validated_matrix(y, "y").to(x_rows.device)
    if x_rows.shape[1] != y_rows.shape[1]:
        raise InputError(
            f"x with {x_rows.shape[1]} and y with {y_rows.shape[1]} features per row",
            expected="the same number of features",
            hint="pass rows x and y with the same features",
        )
    left = _as_rays(x_rows, "x", network)
    right = left if y is None else _as_rays(y_rows, "y", network)
    dtype = _result_dtype(x_rows.dtype, y_rows.dtype)
    n, m = len(left.lengths), len(right.lengths)
    kernel = x_rows.new_empty((n, m), dtype=dtype)
    rows_per_block = max(1, BLOCK_ENTRIES // m)
    for start in range(0, n, rows_per_block):
        rows = slice(start, min(start + rows_per_block, n))
        columns = slice(start if y is None else 0, m)
        kernel[rows, columns] = _kernel_block(left[rows], right[columns], network, tangent)
        if not bool(torch.isfinite(kernel[rows, columns]).all()):
            raise InputError(
                f"depth={network.depth}, weight_var={network.weight_var} and rows of norm up to"
                f" {float(torch.maximum(left.lengths.max(), right.lengths.max())):.3g}, whose kernel overflows",
                expected=f"entries within {dtype}".replace("torch.", ""),
                hint="pass weight_var=2.0, which preserves the scale of relu networks, or float64 rows",
            )
        if y is None:
            # Copied, not recomputed: half the work, and a GEMM may round entries ij and ji differently.
            diagonal_block = kernel[rows, rows]
            diagonal_block.copy_(diagonal_block.triu() + diagonal_block.triu(1).T)
            kernel[rows.stop :, rows] = kernel[rows, rows.stop :].T
    return kernel


def _kernel_block(left: _Rays, right: _Rays, network: _Network, tangent: bool) -> Tensor:
    """Compute one block of the tangent kernel (if ``tangent``) or of the covariance by the recursion over layers."""
    angles = _angles_between(left, right)
    covariance = angles.left * angles.right * (angles.cohaversine - angles.haversine)
    total = covariance
    # range comes first in zip, so that the generator does not compute a layer that is not used
    for _, (covariance, slope) in zip(
        range(network.depth), LAYER_RECURSIONS[network.activation](angles, network), strict=False
    ):
        total = total.mul(slope).add_(covariance) if tangent else covariance
    return total


def _angles_between(left: _Rays, right: _Rays) -> _Angles:
    """Return the angles between all pairs of left and right rays, accurate for nearly equal and nearly opposite rays too."""
    cosine = left.directions @ right.directions.T
    haversine, cohaversine = (1 - cosine) / 2, (1 + cosine) / 2
    # Near 0 and π the cosine is inaccurate; the length of the difference (sum) of the unit vectors is not.
    for sign, inaccurate, accurate in ((1, haversine, cohaversine), (-1, cohaversine, haversine)):
        close = sign * cosine > 1 - CLOSE_COSINE
        n_close = int(close.sum())
        if n_close > close.numel() // GATHERED_PAIR_COST:
            chord_lengths = torch.cdist(left.directions, sign * right.directions, compute_mode=DIFFERENCE_MODE)
            torch.where(close, chord_lengths.square_().div_(4), inaccurate, out=inaccurate)
        elif n_close:
            pairs_per_block = max(1, BLOCK_ENTRIES // left.directions.shape[1])
            for i, j in (pairs.T for pairs in close.nonzero().split(pairs_per_block)):
                inaccurate[i, j] = (left.directions[i] - sign * right.directions[j]).square().sum(1) / 4
        torch.where(close, 1 - inaccurate, accurate, out=accurate)
    return _Angles(haversine, cohaversine, left.lengths[:, None], right.lengths[None])


def _relu_layers(angles: _Angles, network: _Network) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield for each relu layer the covariance Σˡ⁺¹ = a r r' κ₁ + b and the slope a κ₀, with a = w/2.

    w and b are the weight and bias variances, r and r' the lengths of two rays, θ the angle between them,
    κ₀ = (π − θ)/π and κ₁ = (sin θ + (π − θ) cos θ)/π.

    The next angle follows from the haversine formula. The next preactivation is (√a r h, √b) with a unit vector h, at
    latitude α = atan(√b / (√a r)), and the h of two rows have the cosine κ₁::

        sin²(θ⁺/2) = sin²((α − α')/2) + cos α cos α' (1 − κ₁)/2,    (1 − κ₁)/2 = sin²(θ/2) − (sin θ − θ cos θ)/2π

    Both terms are >= 0 and accurate to rounding, so that no digit of θ⁺ is lost as θ goes to 0.
    """
    gain, bias_std = math.sqrt(network.weight_var / 2), math.sqrt(network.bias_var)
    left, right = angles.left, angles.right
    haversine, cohaversine = angles.haversine, angles.cohaversine
    theta = 2 * torch.atan2(haversine.sqrt(), cohaversine.sqrt())
    supplement = 2 * torch.atan2(cohaversine.sqrt(), haversine.sqrt())  # π − θ, exact at opposite rows
    while True:
        left, right = gain * left, gain * right
        sine, cosine = 2 * (haversine * cohaversine).sqrt(), cohaversine - haversine
        kappa = (sine + supplement * cosine) / math.pi
        yield left * right * kappa + network.bias_var, supplement * (network.weight_var / 2 / math.pi)
        # The difference can round below 0, e.g. for theta = 1e-16.
        haversine = (haversine - (sine - theta * cosine) / (2 * math.pi)).clamp_min_(0)
        if bias_std:
            latitude_left, latitude_right = (
                torch.atan2(torch.full_like(length, bias_std), length) for length in (left, right)
            )
            haversine *= latitude_left.cos() * latitude_right.cos()
            haversine += ((latitude_left - latitude_right) / 2).sin().square()
            left, right = (torch.hypot(length, torch.full_like(length, bias_std)) for length in (left, right))
        # After the first layer κ₁ >= 0, so θ <= π/2, where asin and 1 − hav are well conditioned.
        cohaversine = 1 - haversine
        theta = 2 * haversine.sqrt().asin_()
        supplement = math.pi - theta


def _erf_layers(angles: _Angles, network: _Network) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield for each erf layer the covariance w (2/π) asin(2Σ/√D) + b and the slope w (4/π)/√(D − 4Σ²).

    w and b are the weight and bias variances, Σ the covariance of the layer before, and
    D = (1 + 2q)(1 + 2q') with the variances q = Σ(x, x) and q' = Σ(x', x').

    asin(2Σ/√D) = atan2(2Σ, √(D − 4Σ²)) and D − 4Σ² = 1 + 2q + 2q' + 4(q q' − Σ²): neither cancels when q is large,
    and at the first layer q q' − Σ² = q q' sin²θ.
    """
    scale, bias_var = 2 * network.weight_var / math.pi, network.bias_var
    left_var, right_var = angles.left.square(), angles.right.square()
    covariance = angles.left * angles.right * (angles.cohaversine - angles.haversine)
    determinant = 4 * left_var * right_var * angles.haversine * angles.cohaversine
    while True:
        denominator = (1 + 2 * left_var + 2 * right_var + 4 * determinant).sqrt_()
        covariance = scale * torch.atan2(2 * covariance, denominator) + bias_var
        yield covariance, 2 * scale / denominator
        # 1 + 2q + 2q in this order, so that q q' − Σ² = 0 to the bit for duplicates
        left_var, right_var = (
            scale * torch.atan2(2 * variance, (1 + 2 * variance + 2 * variance).sqrt()) + bias_var
            for variance in (left_var, right_var)
        )
        determinant = (left_var * right_var - covariance.square()).clamp_min_(0)


LAYER_RECURSIONS: dict[str, Callable[[_Angles, _Network], Iterator[tuple[Tensor, Tensor]]]] = {
    "relu": _relu_layers,
    "erf": _erf_layers,
}


def _validated_matrix(rows: Batch, name: str) -> Tensor:
    """Return real, finite rows with their axes flattened, (n examples, d); ``name`` is used in error messages."""
    tree = as_rows(rows, name).tree
    if not isinstance(tree, Tensor) or tree.ndim < 2 or tree[0].numel() == 0 or tree.is_complex():
        shape = f" of shape {tuple(tree.shape)} and dtype {tree.dtype}" if isinstance(tree, Tensor) else ""
        raise InputError(
            f"{name}, a {type(tree).__name__}{shape}".replace("torch.", ""),
            expected="real rows (n, d), d >= 1",
            hint=f"pass {name}[:, None] if each row is one number, {name}[None] if it is one row",
        )
    return tree.flatten(1)


def _as_rays(rows: Tensor, name: str, network: _Network) -> _Rays:
    """Convert rows (n, d) to unit vectors and lengths of the first-layer preactivations."""
    vectors = rows.new_full((len(rows), rows.shape[1] + 1), math.sqrt(network.bias_var), dtype=torch.float64)
    vectors[:, :-1] = rows
    vectors[:, :-1] *= math.sqrt(network.weight_var / rows.shape[1])
    # Divide by the largest entry first, so that squares do not overflow or underflow; then |vector| >= 1, or 0.
    scale = vectors.abs().amax(1, keepdim=True)
    vectors /= scale.clamp_min(torch.finfo(torch.float64).tiny)
    norms = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    vectors /= norms.clamp_min(1.0)
    lengths = (scale * norms)[:, 0]
    if float(lengths.max()) > MAX_NORM:
        raise InputError(
            f"{name} with a row of norm {float(lengths.max()):.3g} after the first layer's scaling",
            expected=f"at most {MAX_NORM:g}",
            hint="rescale the rows",
        )
    return _Rays(vectors, lengths)


def _result_dtype(x: torch.dtype, y: torch.dtype) -> torch.dtype:
    """Return float32 for floating-point rows of at most that precision, otherwise float64."""
    promoted = torch.promote_types(x, y)
    return torch.float32 if promoted.is_floating_point and promoted != torch.float64 else torch.float64
