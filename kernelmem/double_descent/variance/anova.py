r"""Which randomness makes networks differ: variance components of initialization, data, label noise and batch order.

Outputs of a balanced factorial of trainings are f = μ + Σ_S f_S over all subsets S of the factors, the parts of different
subsets uncorrelated. With V_S = E|f_S|², and C_T the mean of ⟨f(z), f(z')⟩ over two trainings that share the factors T and
no other,

    C_T = |μ|² + Σ_{∅ ≠ S ⊆ T} V_S,    variance = C_all − C_∅ = Σ_S V_S,    risk = |μ − y|² + Σ_S V_S.

Means over all pairs of cells estimate every C_T without bias; solved for V_S they are the classical estimates from mean
squares. No factor is before another (symmetric), and the estimates add up to the total exactly.

Label noise may be nested in data: every data set then has noise draws of its own, so that sharing noise means sharing data,
and what noise does on average over data sets and with one of them are one component.

Source: Adlam and Pennington 2020; estimates from mean squares: Henderson 1953.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kernelmem.core.checks import as_count, as_tensor
from kernelmem.core.errors import InputError
from kernelmem.double_descent.variance.bias_variance import read_targets

if TYPE_CHECKING:
    import pandas

__all__ = ["FACTORS", "Component", "VarianceComponents", "variance_components"]

FACTORS = ("initialization", "data", "noise", "order")
FEWEST = 3  # levels for a jackknife: with one left out, two remain to differ

Subset = frozenset[str]
EMPTY: Subset = frozenset()


@dataclass(frozen=True)
class Component:
    """What one factor, or the interaction of several, adds to the variance. Unbiased, so it may be below 0."""

    factors: tuple[str, ...]
    value: float
    se: float

    @property
    def name(self) -> str:
        """The factors with a cross between them."""
        return " x ".join(self.factors)


@dataclass(frozen=True, eq=False)
class VarianceComponents:
    """Risk = bias + Σ components: means over rows, squares summed over outputs.

    Standard errors: jackknife over the levels of every factor in turn, the squares added. An interaction is met once for
    every factor in it, so they are too large, in simulations by 1.2 to 2.5 times. NaN where a factor has but two levels.
    """

    components: tuple[Component, ...]
    bias: float  # |μ − y|²
    bias_se: float
    risk: float  # mean over all cells
    risk_se: float
    levels: Mapping[str, int]
    absent: tuple[str, ...]  # factors with one level: what they do is in the bias
    rows: Tensor = field(repr=False)  # (components, m)

    @property
    def variance(self) -> float:
        """Σ components, of one training."""
        return sum(own.value for own in self.components)

    def __getitem__(self, factors: str | Iterable[str]) -> Component:
        wanted = {factors} if isinstance(factors, str) else set(factors)
        for own in self.components:
            if set(own.factors) == wanted:
                return own
        raise InputError(
            f"factors {sorted(wanted)}",
            expected=f"one of {', '.join(own.name for own in self.components)}",
            hint="name the factors of one component",
        )

    def averaged(self, **counts: int) -> float:
        """Expected risk of the mean of outputs over crossed levels, ``initialization=5`` say: bias + Σ_S V_S / Π_{i ∈ S} k_i.

        Raises:
            InputError: a factor that was not varied, a count below 1.
        """
        for name, k in counts.items():
            if name not in self.levels:
                raise InputError(f"factor {name!r}", expected=f"one of {', '.join(self.levels)}", hint="vary it")
            as_count(k, name)
        total = self.bias
        for own in self.components:
            share = 1
            for name in own.factors:
                share *= counts.get(name, 1)
            total += own.value / share
        return total

    def to_frame(self) -> "pandas.DataFrame":
        """One line for each component, and the bias."""
        import pandas  # slow to import

        lines = [{"component": "bias", "value": self.bias, "se": self.bias_se}]
        lines += [{"component": own.name, "value": own.value, "se": own.se} for own in self.components]
        return pandas.DataFrame(lines)

    def __str__(self) -> str:
        cells = " x ".join(f"{size} {name}" for name, size in self.levels.items())
        lines = [f"risk {self.risk:.5g} ± {self.risk_se:.2g} of a factorial of {cells}"]
        width = max(len(own.name) for own in self.components)
        for name, value, se in [
            ("bias", self.bias, self.bias_se),
            *((c.name, c.value, c.se) for c in self.components),
        ]:
            lines.append(f"  {name:<{width}}{value:>12.5g} ± {se:.2g}")
        if self.absent:
            lines.append(f"not varied, so in the bias: {', '.join(self.absent)}")
        return "\n".join(lines)


def variance_components(
    outputs: Any,
    targets: Any,
    *,
    factors: tuple[str, ...] = FACTORS,
    nested: Mapping[str, str] | None = None,
) -> VarianceComponents:
    r"""Estimate bias |μ − y|² and every variance component V_S from the outputs of a balanced factorial.

    ::

        Ĉ_T = mean over pairs of cells that share exactly T of ⟨f, f'⟩,   V̂_T = Ĉ_T − Ĉ_∅ − Σ_{∅ ≠ S ⊊ T} V̂_S

    Args:
        outputs: (levels of the first factor, ..., levels of the last, m, C); C = 1 for one output. One training a cell;
            a factor with one level is left out of the account.
        targets: (m,) integer labels (one-hot), or real (m, C).
        factors: names of the first axes, in order.
        nested: {"noise": "data"}: level k of noise is another draw for every level of data.

    Returns:
        VarianceComponents: float64, exactly bias + Σ components = risk.

    Raises:
        InputError: no factor with two levels, axes that do not fit the names, NaN, unknown names in ``nested``, a factor
            nested in one that is itself nested, or in itself.

    Cost: O(2^F N m C) for N cells and F factors, times the number of levels for the standard errors.

    Source: Adlam and Pennington 2020; Henderson 1953.
    """
    f = as_tensor(outputs, "outputs", dtype=torch.float64).cpu()
    inside = dict(nested or {})
    _check(f, factors, inside)
    y = read_targets(targets, f.flatten(0, len(factors) - 1))
    kept = tuple(name for name, size in zip(factors, f.shape, strict=False) if size > 1)
    absent = tuple(name for name in factors if name not in kept)
    # A factor inside one of a single level is as good as crossed.
    inside = {name: outer for name, outer in inside.items() if name in kept and outer in kept}
    f = f.reshape(*(size for size in f.shape[:-2] if size > 1), *f.shape[-2:])
    subsets = _subsets(kept, inside)
    bias, risk, parts = _estimate(f, y, kept, subsets)
    errors = _jackknife(f, y, kept, subsets)
    rows = torch.stack(list(parts.values()))
    return VarianceComponents(
        components=tuple(
            Component(tuple(name for name in kept if name in own), float(part.mean()), float(errors[i + 2]))
            for i, (own, part) in enumerate(parts.items())
        ),
        bias=float(bias.mean()),
        bias_se=float(errors[0]),
        risk=float(risk.mean()),
        risk_se=float(errors[1]),
        levels=dict(zip(kept, f.shape, strict=False)),
        absent=absent,
        rows=rows,
    )


def _subsets(kept: tuple[str, ...], inside: Mapping[str, str]) -> list[Subset]:
    """What two trainings can share, small sets first: a nested factor only with the one around it."""
    found = [frozenset(own) for size in range(len(kept) + 1) for own in combinations(kept, size)]
    return [own for own in found if all(outer in own for name, outer in inside.items() if name in own)]


def _estimate(
    f: Tensor, y: Tensor, kept: tuple[str, ...], subsets: list[Subset]
) -> tuple[Tensor, Tensor, dict[Subset, Tensor]]:
    """Bias and risk (m,), and every component (m,)."""
    sizes = dict(zip(kept, f.shape, strict=False))
    cells = f[..., 0, 0].numel()
    pairs: dict[Subset, float] = {}
    products: dict[Subset, Tensor] = {}
    for own in reversed(subsets):  # pairs that share at least T, less those that share more
        rest = [axis for axis, name in enumerate(kept) if name not in own]
        levels = cells
        for axis in rest:
            levels //= f.shape[axis]
        summed = f.sum(rest) if rest else f
        at_least = summed.square().sum(-1).flatten(0, -2).sum(0) if own else summed.square().sum(-1)
        more = [other for other in pairs if own < other]
        pairs[own] = levels * float(cells // levels) ** 2 - sum(pairs[other] for other in more)
        products[own] = at_least - sum((products[other] for other in more), torch.zeros_like(at_least))
    assert all(count > 0 for count in pairs.values()), sizes
    means = {own: products[own] / pairs[own] for own in subsets}
    parts: dict[Subset, Tensor] = {}
    for own in subsets[1:]:
        smaller = sum((part for other, part in parts.items() if other < own), torch.zeros_like(means[own]))
        parts[own] = means[own] - means[EMPTY] - smaller
    flat = f.flatten(0, len(kept) - 1)
    rest_of_square = y.square().sum(1) - 2 * (flat.mean(0) * y).sum(1)
    return means[EMPTY] + rest_of_square, (flat - y).square().sum(2).mean(0), parts


def _jackknife(f: Tensor, y: Tensor, kept: tuple[str, ...], subsets: list[Subset]) -> Tensor:
    """Standard errors of bias, risk and the components."""
    squares = f.new_zeros(len(subsets) + 1)
    for axis in range(len(kept)):
        size = f.shape[axis]
        if size < FEWEST:
            return squares.fill_(float("nan"))
        found = []
        for level in range(size):
            keep = torch.arange(size) != level
            bias, risk, parts = _estimate(f.index_select(axis, keep.nonzero()[:, 0]), y, kept, subsets)
            found.append(torch.stack([bias.mean(), risk.mean(), *(part.mean() for part in parts.values())]))
        squares += torch.stack(found).var(0, correction=0) * (size - 1)
    return squares.sqrt()


def _check(f: Tensor, factors: tuple[str, ...], inside: Mapping[str, str]) -> None:
    if not factors or len(set(factors)) != len(factors) or f.ndim != len(factors) + 2 or 0 in f.shape:
        raise InputError(
            f"outputs of shape {tuple(f.shape)} for factors {factors}",
            expected="one axis for each factor, in order, then rows and outputs",
            hint="reshape to (levels, ..., m, C), as Factorial.fold does",
        )
    if max(f.shape[:-2]) < 2:
        raise InputError(
            f"outputs of shape {tuple(f.shape)}, one training",
            expected="at least two levels of a factor",
            hint="train with other seeds",
        )
    for name, outer in inside.items():
        if name not in factors or outer not in factors or outer in inside or name == outer:
            raise InputError(
                f"nested={dict(inside)!r} of factors {factors}",
                expected="{inner factor: outer factor}, the outer one not nested itself",
                hint='pass nested={"noise": "data"}, or leave it out',
            )
