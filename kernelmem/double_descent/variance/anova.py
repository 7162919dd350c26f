r"""Variance components of initialization, data, label noise and batch order, from a balanced factorial of trainings.

The outputs of a balanced factorial are f = μ + Σ_S f_S over all subsets S of the factors, the f_S of different subsets
being uncorrelated. With V_S = E|f_S|², and C_T the mean of ⟨f(z), f(z')⟩ over two trainings that share exactly the
factors T,

    C_T = |μ|² + Σ_{∅ ≠ S ⊆ T} V_S,    variance = C_all − C_∅ = Σ_S V_S,    risk = |μ − y|² + Σ_S V_S.

Means over all pairs of cells estimate every C_T without bias; solving for V_S gives the classical estimates from mean
squares. All factors are treated alike, and the estimates add up to the total exactly.

Label noise can be nested in data: each data set then has its own noise draws, so two trainings can share noise only if
they share data, and the main effect of noise and its interaction with data are one component.

Source: Adlam and Pennington 2020; estimates from mean squares: Henderson 1953.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kernelmem.core.checks import ArrayLike, as_count, as_names, as_tensor, check_instance
from kernelmem.core.errors import InputError
from kernelmem.core.files.result_files import Result
from kernelmem.double_descent.variance.bias_variance import as_targets

if TYPE_CHECKING:
    import pandas as pd

FACTORS = ("initialization", "data", "noise", "order")
MIN_LEVELS = 3  # for a jackknife: with one level left out, two are needed to estimate a variance

Subset = frozenset[str]
EMPTY: Subset = frozenset()


@dataclass(frozen=True)
class Component:
    """Variance due to one factor, or to the interaction of several factors.

    Attributes:
        factors: names of the factors.
        value: unbiased estimate of the variance, which can be negative.
        se: standard error of ``value``.
    """

    factors: tuple[str, ...]
    value: float
    se: float

    @property
    def name(self) -> str:
        """Names of the factors, joined by " x "."""
        return " x ".join(self.factors)


@dataclass(frozen=True, eq=False, repr=False)
class VarianceComponents(Result):
    """Risk = bias + Σ components: means over examples, squares summed over outputs.

    Standard errors: jackknife over the levels of each factor, squares added. An interaction is counted once for each of
    its factors, so they are conservative (too large by a factor of 1.2 to 2.5 in simulations). NaN if a factor has only
    two levels.

    Attributes:
        components: variance components V_S, small subsets of factors first.
        bias: squared bias |μ − y|².
        bias_se: standard error of ``bias``.
        risk: mean squared error over all cells, |f − y|².
        risk_se: standard error of ``risk``.
        levels: number of levels of each factor that was varied.
        absent: factors with a single level; their effect is part of the bias.
        per_example: (number of components, m) components of each example, float64.
    """

    components: tuple[Component, ...]
    bias: float
    bias_se: float
    risk: float
    risk_se: float
    levels: Mapping[str, int]
    absent: tuple[str, ...]
    per_example: Tensor

    @property
    def variance(self) -> float:
        """Sum of all components: the total variance of one training."""
        return sum(component.value for component in self.components)

    def __getitem__(self, factors: str | Iterable[str]) -> Component:
        """Return the component of one factor, or of the interaction of several.

        Raises:
            InputError: there is no component of these factors.
        """
        names = {factors} if isinstance(factors, str) else set(factors)
        for component in self.components:
            if set(component.factors) == names:
                return component
        raise InputError(
            f"factors {sorted(names)}",
            expected=f"one of {', '.join(component.name for component in self.components)}",
            hint="name the factors of one component",
        )

    def averaged(self, **counts: int) -> float:
        """Return the expected risk if outputs are averaged over crossed levels: bias + Σ_S V_S / Π_{i ∈ S} k_i.

        Args:
            **counts: number of averaged levels k_i of each factor, for example ``initialization=5``.

        Raises:
            InputError: a factor was not varied, or a count is below 1.
        """
        for name, k in counts.items():
            if name not in self.levels:
                raise InputError(
                    f"factor {name!r}",
                    expected=f"one of {', '.join(self.levels)}",
                    hint="average over a factor that was varied in the design",
                )
            as_count(k, name)
        expected_risk = self.bias
        for component in self.components:
            n_averaged = 1
            for name in component.factors:
                n_averaged *= counts.get(name, 1)
            expected_risk += component.value / n_averaged
        return expected_risk

    def to_frame(self) -> "pd.DataFrame":
        """Return one row for the bias and one for each component: component, value, se."""
        import pandas as pd

        rows = [{"component": "bias", "value": self.bias, "se": self.bias_se}]
        rows += [{"component": c.name, "value": c.value, "se": c.se} for c in self.components]
        return pd.DataFrame(rows)

    def __str__(self) -> str:
        """Return a table of the risk, the bias and the variance components with their standard errors."""
        levels = " x ".join(f"{count} {name}" for name, count in self.levels.items())
        lines = [f"risk {self.risk:.5g} ± {self.risk_se:.2g} of a factorial of {levels}"]
        entries = [("bias", self.bias, self.bias_se), *((c.name, c.value, c.se) for c in self.components)]
        width = max(len(name) for name, _, _ in entries)
        lines += [f"  {name:<{width}}{value:>12.5g} ± {se:.2g}" for name, value, se in entries]
        if self.absent:
            lines.append(f"not varied, so part of the bias: {', '.join(self.absent)}")
        return "\n".join(lines)


def variance_components(
    outputs: ArrayLike,
    targets: ArrayLike,
    *,
    factors: tuple[str, ...] = FACTORS,
    nested: Mapping[str, str] | None = None,
) -> VarianceComponents:
    r"""Estimate the bias |μ − y|² and every variance component V_S from the outputs of a balanced factorial.

    ::

        Ĉ_T = mean over pairs of cells that share exactly T of ⟨f, f'⟩,   V̂_T = Ĉ_T − Ĉ_∅ − Σ_{∅ ≠ S ⊊ T} V̂_S

    Args:
        outputs: (levels of the first factor, ..., levels of the last, m, C), one training for each cell; C = 1 for one
            output. Factors with one level are ignored.
        targets: (m,) integer labels (one-hot), or real (m, C).
        factors: names of the factors of the first axes, in order.
        nested: inner factor -> outer factor; with {"noise": "data"} level k of noise is a different draw for each level of
            data.

    Returns:
        VarianceComponents: float64; bias + Σ components = risk holds exactly.

    Raises:
        InputError: no factor has two levels, the axes do not match the names, an output is NaN, or ``nested`` has unknown
            names or nests a factor in itself or in another nested factor.

    Cost: O(2^F N m C) for N cells and F factors, times the number of levels for the standard errors.

    Source: Adlam and Pennington 2020; Henderson 1953.
    """
    cell_outputs = as_tensor(outputs, "outputs", dtype=torch.float64, squared=True).cpu()
    factors = tuple(as_names(factors, "factors") or ())
    outer_factors = {} if nested is None else nested
    check_instance(outer_factors, "nested", Mapping, hint='pass nested={"noise": "data"}')
    _check_factorial(cell_outputs, factors, outer_factors)
    y = as_targets(targets, cell_outputs.flatten(0, len(factors) - 1))
    varied = tuple(name for name, size in zip(factors, cell_outputs.shape, strict=False) if size > 1)
    # A factor nested in one with a single level is the same as a crossed one.
    outer_factors = {name: outer for name, outer in outer_factors.items() if name in varied and outer in varied}
    cell_outputs = cell_outputs.reshape(
        *(size for size in cell_outputs.shape[:-2] if size > 1), *cell_outputs.shape[-2:]
    )
    subsets = _shareable_subsets(varied, outer_factors)
    bias, risk, components = _estimate_components(cell_outputs, y, varied, subsets)
    bias_se, risk_se, *component_se = _jackknife_errors(cell_outputs, y, varied, subsets).tolist()
    return VarianceComponents(
        components=tuple(
            Component(tuple(name for name in varied if name in subset), float(values.mean()), se)
            for (subset, values), se in zip(components.items(), component_se, strict=True)
        ),
        bias=float(bias.mean()),
        bias_se=bias_se,
        risk=float(risk.mean()),
        risk_se=risk_se,
        levels=dict(zip(varied, cell_outputs.shape, strict=False)),
        absent=tuple(name for name in factors if name not in varied),
        per_example=torch.stack(list(components.values())),
    )


def _shareable_subsets(varied: tuple[str, ...], outer_factors: Mapping[str, str]) -> list[Subset]:
    """Return the subsets of the factors ``varied`` whose levels two trainings can share, small subsets first.

    A subset that has a nested factor must have its outer factor, which ``outer_factors`` (inner to outer) names.
    """
    subsets = [frozenset(names) for size in range(len(varied) + 1) for names in combinations(varied, size)]
    return [s for s in subsets if all(outer in s for name, outer in outer_factors.items() if name in s)]


def _estimate_components(
    cell_outputs: Tensor, y: Tensor, varied: tuple[str, ...], subsets: list[Subset]
) -> tuple[Tensor, Tensor, dict[Subset, Tensor]]:
    """Return bias (m,), risk (m,) and the variance components V_S (m,) of every nonempty subset S, at m examples.

    ``cell_outputs`` (levels..., m, C) are the outputs of the cells, with one axis for each factor in ``varied``, and ``y``
    (m, C) the targets. ``subsets`` of factors, small ones first, start with the empty one.
    """
    n_cells = cell_outputs[..., 0, 0].numel()
    pair_counts: dict[Subset, float] = {}  # number of ordered pairs of cells that share exactly this subset
    product_sums: dict[Subset, Tensor] = {}  # (m,) sum of ⟨f, f'⟩ over these pairs
    for subset in reversed(subsets):  # inclusion-exclusion: pairs that share at least the subset, minus supersets
        other_axes = [axis for axis, name in enumerate(varied) if name not in subset]
        n_groups = n_cells
        for axis in other_axes:
            n_groups //= cell_outputs.shape[axis]
        group_sums = cell_outputs.sum(other_axes) if other_axes else cell_outputs  # (levels of the subset..., m, C)
        product_sum = group_sums.square().sum(-1)
        product_sum = product_sum.flatten(0, -2).sum(0) if subset else product_sum
        supersets = [other for other in pair_counts if subset < other]
        pair_counts[subset] = n_groups * float(n_cells // n_groups) ** 2 - sum(
            pair_counts[other] for other in supersets
        )
        product_sums[subset] = product_sum - sum(
            (product_sums[other] for other in supersets), torch.zeros_like(product_sum)
        )
    C = {subset: product_sums[subset] / pair_counts[subset] for subset in subsets}
    V: dict[Subset, Tensor] = {}
    for subset in subsets[1:]:
        subset_variance = sum((values for other, values in V.items() if other < subset), torch.zeros_like(C[subset]))
        V[subset] = C[subset] - C[EMPTY] - subset_variance
    flat_outputs = cell_outputs.flatten(0, len(varied) - 1)  # (cells, m, C)
    bias = C[EMPTY] + y.square().sum(1) - 2 * (flat_outputs.mean(0) * y).sum(1)
    return bias, (flat_outputs - y).square().sum(2).mean(0), V


def _jackknife_errors(cell_outputs: Tensor, y: Tensor, varied: tuple[str, ...], subsets: list[Subset]) -> Tensor:
    """Return jackknife standard errors of bias, risk and the components, (1 + len(subsets),), in this order.

    Arguments as in :func:`_estimate_components`; all are NaN if a factor has fewer than MIN_LEVELS levels.
    """
    variance = cell_outputs.new_zeros(len(subsets) + 1)
    for axis in range(len(varied)):
        n_levels = cell_outputs.shape[axis]
        if n_levels < MIN_LEVELS:
            return variance.fill_(float("nan"))
        estimates = []
        for level in range(n_levels):
            other_levels = (torch.arange(n_levels) != level).nonzero()[:, 0]
            bias, risk, components = _estimate_components(
                cell_outputs.index_select(axis, other_levels), y, varied, subsets
            )
            estimates.append(torch.stack([bias.mean(), risk.mean(), *(v.mean() for v in components.values())]))
        variance += torch.stack(estimates).var(0, correction=0) * (n_levels - 1)
    return variance.sqrt()


def _check_factorial(cell_outputs: Tensor, factors: tuple[str, ...], outer_factors: Mapping[str, str]) -> None:
    """Check that ``cell_outputs`` has one axis per factor and then m examples and C outputs, and that nesting is valid.

    Raises:
        InputError: no factor has two levels, names and axes disagree, or a factor is nested in a nested factor.
    """
    if (
        not factors
        or len(set(factors)) != len(factors)
        or cell_outputs.ndim != len(factors) + 2
        or 0 in cell_outputs.shape
    ):
        raise InputError(
            f"outputs of shape {tuple(cell_outputs.shape)} for factors {factors}",
            expected="one axis for each factor, in order, then examples and outputs",
            hint="reshape to (levels, ..., m, C), as FactorialDesign.fold does",
        )
    if max(cell_outputs.shape[:-2]) < 2:
        raise InputError(
            f"outputs of shape {tuple(cell_outputs.shape)}, one level for each of the factors {factors}",
            expected="at least one factor with two or more levels",
            hint="train with more seeds",
        )
    for name, outer in outer_factors.items():
        if name not in factors or outer not in factors or outer in outer_factors or name == outer:
            raise InputError(
                f"nested={dict(outer_factors)!r} for factors {factors}",
                expected="{inner factor: outer factor}, where the outer factor is not nested in another factor",
                hint='pass nested={"noise": "data"}, or omit it',
            )
