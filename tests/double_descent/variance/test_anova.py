"""kernelmem.double_descent.variance.anova and factorial: identities, a model with known components, mean squares, refusals."""

import math
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kernelmem.core.errors import InputError
from kernelmem.double_descent.variance.anova import FACTORS, variance_components
from kernelmem.double_descent.variance.factorial import Cell, factorial_design
from kernelmem.training.ensemble.members import EnsembleOptions
from kernelmem.training.ensemble.recipe import Recipe
from kernelmem.training.ensemble.train import train_mlps
from tests.profiles import examples
from tests.tolerances import summing


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def crossed(sizes, sds, *, m, C=1, seed, mean=0.0):
    """μ + Σ_S sd_S g_S with independent normal g_S for every level of S, example and output."""
    result = torch.full((*sizes, m, C), mean, dtype=torch.float64)
    for i, (subset, sd) in enumerate(sds.items()):
        shape = [size if axis in subset else 1 for axis, size in enumerate(sizes)]
        result = result + sd * draw(*shape, m, C, seed=1000 * seed + i)
    return result


def subsets(count):
    return [subset for size in range(1, count + 1) for subset in combinations(range(count), size)]


@examples(0.625)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(0, 1000), st.booleans())
def test_bias_and_components_add_up_to_the_risk(sizes, seed, nested):
    if max(sizes) < 2:
        sizes = [2, *sizes[1:]]
    names = FACTORS[: len(sizes)]
    inside = {"noise": "data"} if nested and len(sizes) > 2 else {}
    f, y = draw(*sizes, 3, 2, seed=seed), draw(3, 2, seed=seed + 1)
    result = variance_components(f, y, factors=names, nested=inside)
    assert result.risk == pytest.approx(float((f - y).square().sum(-1).mean()), rel=1e-12)
    assert result.bias + result.variance == pytest.approx(result.risk, rel=1e-10)
    assert result.averaged() == pytest.approx(result.risk, rel=1e-10)
    for i, component in enumerate(result.components):
        assert component.value == pytest.approx(float(result.per_example[i].mean()), abs=summing(3) * result.risk)
    assert result.absent == tuple(n for n, size in zip(names, sizes, strict=True) if size == 1)


@examples(0.375)
@given(st.integers(2, 5), st.integers(2, 5), st.integers(0, 1000))
def test_two_factors_are_the_classical_mean_squares(size, J, seed):
    f = draw(size, J, 4, 1, seed=seed)
    result = variance_components(f, torch.zeros(4, 1), factors=("a", "b"))
    g = f[..., 0]
    whole, rows, columns = g.mean((0, 1)), g.mean(1), g.mean(0)
    ms_a = J * (rows - whole).square().sum(0) / (size - 1)
    ms_b = size * (columns - whole).square().sum(0) / (J - 1)
    rest = g - rows[:, None] - columns[None] + whole
    ms_ab = rest.square().sum((0, 1)) / ((size - 1) * (J - 1))
    assert result["a"].value == pytest.approx(float(((ms_a - ms_ab) / J).mean()), rel=1e-9, abs=1e-12)
    assert result["b"].value == pytest.approx(float(((ms_b - ms_ab) / size).mean()), rel=1e-9, abs=1e-12)
    assert result["a", "b"].value == pytest.approx(float(ms_ab.mean()), rel=1e-9)


@examples(0.375)
@given(st.integers(2, 5), st.integers(2, 5), st.integers(0, 1000))
def test_a_nested_factor_is_the_classical_nested_analysis(J, K, seed):
    f = draw(J, K, 4, 1, seed=seed)
    result = variance_components(f, torch.zeros(4, 1), factors=("data", "noise"), nested={"noise": "data"})
    g = f[..., 0]
    within = g.var(1, correction=1).mean(0)
    between = g.mean(1).var(0, correction=1) - within / K
    assert result["data"].value == pytest.approx(float(between.mean()), rel=1e-9, abs=1e-12)
    assert result["data", "noise"].value == pytest.approx(float(within.mean()), rel=1e-9)
    with pytest.raises(InputError):
        result["noise"]


def test_one_factor_is_the_variance():
    f, y = draw(5, 7, 3), draw(7, 3, seed=1)
    result = variance_components(f, y, factors=("initialization",))
    assert result["initialization"].value == pytest.approx(float(f.var(0).sum(1).mean()), rel=1e-12)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_known_components_are_found_without_bias(count):
    sizes, m, repeats = (4, 3, 3, 3)[:count], 4, 100
    sds = {subset: 0.2 + 0.15 * i for i, subset in enumerate(subsets(count))}
    names, y = FACTORS[:count], torch.zeros(m, 1)
    result = [
        variance_components(crossed(sizes, sds, m=m, seed=r, mean=0.5), y, factors=names, nested={})
        for r in range(repeats)
    ]
    got = {subset: torch.tensor([f[[names[i] for i in subset]].value for f in result]) for subset in sds}
    for subset, values in got.items():
        assert abs(float(values.mean()) - sds[subset] ** 2) < 3 * float(values.std()) / repeats**0.5, subset
    bias = torch.tensor([f.bias for f in result])
    assert abs(float(bias.mean()) - 0.25) < 3 * float(bias.std()) / repeats**0.5


def test_known_components_are_found_where_noise_is_nested_in_data():
    """Crossing levels of noise by their number would mix unrelated draws."""
    m, repeats, names = 4, 200, ("initialization", "data", "noise")
    sds = {(0,): 0.3, (1,): 0.5, (0, 1): 0.4, (1, 2): 0.7, (0, 1, 2): 0.2}
    result = [
        variance_components(
            crossed((3, 4, 3), sds, m=m, seed=r), torch.zeros(m, 1), factors=names, nested={"noise": "data"}
        )
        for r in range(repeats)
    ]
    assert {component.factors for component in result[0].components} == {
        tuple(names[i] for i in subset) for subset in sds
    }
    for subset, sd in sds.items():
        values = torch.tensor([f[[names[i] for i in subset]].value for f in result])
        assert abs(float(values.mean()) - sd**2) < 3 * float(values.std()) / repeats**0.5, subset


def test_standard_errors_are_those_of_repeated_experiments_or_larger():
    sizes, m, repeats = (6, 6, 5), 3, 40
    sds = {(0,): 0.6, (1,): 0.5, (2,): 0.4, (0, 1): 0.5, (0, 1, 2): 0.3}
    names = FACTORS[:3]
    result = [
        variance_components(crossed(sizes, sds, m=m, seed=r), torch.zeros(m, 1), factors=names) for r in range(repeats)
    ]
    for i in range(len(result[0].components)):
        spread = float(torch.tensor([f.components[i].value for f in result]).std())
        told = float(torch.tensor([f.components[i].se for f in result]).square().mean().sqrt())
        assert 0.75 < told / spread < 3.0, result[0].components[i].name
    for name in ("bias", "risk"):
        spread = float(torch.tensor([getattr(f, name) for f in result]).std())
        told = float(torch.tensor([getattr(f, name + "_se") for f in result]).square().mean().sqrt())
        assert 0.75 < told / spread < 2.0, name


@examples(0.5)
@given(st.integers(0, 1000), st.booleans())
def test_the_order_of_levels_does_not_matter(seed, nested):
    f, y = draw(3, 4, 3, 2, 5, 2, seed=seed), draw(5, 2, seed=seed + 1)
    inside = {"noise": "data"} if nested else {}
    want = variance_components(f, y, nested=inside)
    generator = torch.Generator().manual_seed(seed)
    moved = f
    for axis in range(4):
        moved = moved.index_select(axis, torch.randperm(f.shape[axis], generator=generator))
    if nested:  # of a nested factor, level by level of the outer one
        moved = torch.stack([moved[:, j].index_select(1, torch.randperm(3, generator=generator)) for j in range(4)], 1)
    got = variance_components(moved, y, nested=inside)
    for a, b in zip(got.components, want.components, strict=True):
        assert a.value == pytest.approx(b.value, rel=1e-9, abs=1e-12)
        if not nested:
            assert math.isnan(a.se) or a.se == pytest.approx(b.se, rel=1e-9, abs=1e-12)


def test_the_order_of_factors_does_not_matter():
    f, y = draw(3, 4, 5, 6, 2), draw(6, 2, seed=1)
    names = FACTORS[:3]
    want = variance_components(f, y, factors=names)
    got = variance_components(f.permute(2, 0, 1, 3, 4), y, factors=(names[2], names[0], names[1]))
    for component in want.components:
        assert got[component.factors].value == pytest.approx(component.value, rel=1e-9, abs=1e-12)
        assert got[component.factors].se == pytest.approx(component.se, rel=1e-9)


def test_the_risk_of_a_mean_over_levels_follows_from_the_components():
    """Measured risk of a mean over crossed levels, averaged over independent repeats."""
    sds = {(0,): 0.6, (1,): 0.5, (0, 1): 0.8}
    names, m, y = FACTORS[:2], 4, torch.ones(4, 1, dtype=torch.float64)
    want, got = [], []
    for r in range(300):
        f = crossed((4, 3), sds, m=m, seed=r)
        want.append(variance_components(f, y, factors=names).averaged(initialization=4))
        got.append(float((f.mean(0) - y).square().sum(-1).mean()))
    gap = torch.tensor(want) - torch.tensor(got)
    assert abs(float(gap.mean())) < 3 * float(gap.std()) / 300**0.5 + 1e-12
    result = variance_components(crossed((4, 3), sds, m=m, seed=0), y, factors=names)
    v = {component.factors: component.value for component in result.components}
    by_hand = result.bias + v["initialization",] / 2 + v["data",] / 3 + v["initialization", "data"] / 6
    assert result.averaged(initialization=2, data=3) == pytest.approx(by_hand, rel=1e-12)
    for bad in ({"order": 2}, {"data": 0}, {"data": 1.5}):
        with pytest.raises(InputError):
            result.averaged(**bad)


def test_factors_with_one_level_have_no_component_and_with_two_no_standard_error():
    result = variance_components(draw(3, 1, 2, 1, 4, 2), torch.zeros(4).long())
    assert result.absent == ("data", "order")
    assert [component.name for component in result.components] == ["initialization", "noise", "initialization x noise"]
    assert math.isnan(result.bias_se)
    assert all(math.isnan(component.se) for component in result.components)
    assert "not varied" in str(result)
    assert list(result.to_frame()["component"]) == ["bias", "initialization", "noise", "initialization x noise"]


@pytest.mark.parametrize(
    ("shape", "factors", "nested"),
    [
        ((3, 2, 4, 2), FACTORS, None),
        ((3, 2, 4), ("a", "b"), None),
        ((1, 1, 4, 2), ("a", "b"), None),
        ((3, 3, 4, 2), ("a", "a"), None),
        ((4, 2), (), None),
        ((3, 0, 4, 2), ("a", "b"), None),
        ((3, 3, 4, 2), ("a", "b"), {"a": "c"}),
        ((3, 3, 4, 2), ("a", "b"), {"a": "a"}),
        ((3, 3, 3, 4, 2), ("a", "b", "c"), {"a": "b", "b": "c"}),
    ],
)
def test_invalid_shapes_are_refused(shape, factors, nested):
    with pytest.raises(InputError):
        variance_components(torch.ones(*shape), torch.zeros(4).long(), factors=factors, nested=nested)


def test_nan_and_wrong_targets_are_refused():
    f = draw(3, 3, 4, 2)
    for targets in (torch.zeros(5).long(), torch.full((4,), 2), draw(4, 3)):
        with pytest.raises(InputError):
            variance_components(f, targets, factors=("a", "b"))
    f[0, 0, 0, 0] = float("nan")
    with pytest.raises(InputError):
        variance_components(f, torch.zeros(4).long(), factors=("a", "b"))


def test_a_factorial_has_every_combination_once_and_contains_the_smaller_ones():
    result = factorial_design(initializations=3, data=2, noise=2, order=2, seed=5, nested=False)
    assert len(result) == len(set(result.cells)) == 24
    assert [len(set(column)) for column in zip(*result.cells, strict=True)] == [3, 2, 2, 2]
    assert result.cells[0]._replace(order_seed=result.cells[1].order_seed) == result.cells[1]  # order is innermost
    assert result.cells[0].init_seed == result.cells[7].init_seed != result.cells[8].init_seed
    nested = factorial_design(initializations=3, data=2, noise=2, order=2, seed=5)
    assert [len(set(column)) for column in zip(*nested.cells, strict=True)] == [3, 2, 4, 2]
    for design, nest in ((result, False), (nested, True)):
        smaller = factorial_design(initializations=2, data=2, noise=1, order=1, seed=5, nested=nest)
        assert set(smaller.cells) <= set(design.cells)
    assert not set(factorial_design(initializations=3, data=2, seed=6).cells) & set(result.cells)
    seeds = {seed for cell in result.cells for seed in cell}
    assert len(seeds) == 9  # no seed serves two factors
    assert isinstance(result.cells[0], Cell)


def test_a_factorial_folds_outputs_in_its_order_and_counts_nested_noise():
    design = factorial_design(initializations=3, data=3, noise=3, seed=0)
    value = {seed: i for i, seed in enumerate(sorted({s for cell in design.cells for s in cell}))}
    outputs = torch.tensor(
        [[[value[c.data_seed] + 1e-3 * value[c.noise_seed]]] for c in design.cells], dtype=torch.float64
    )
    folded = design.fold(outputs)
    assert folded.shape == (3, 3, 3, 1, 1, 1)
    assert torch.equal(folded[0], folded[1])
    result = design.components(outputs, torch.zeros(1, 1))
    assert {c.factors for c in result.components} >= {("data",), ("data", "noise")}
    assert ("noise",) not in {c.factors for c in result.components}
    one_data_set = factorial_design(initializations=3, noise=3, seed=0)  # noise is then as good as crossed
    names = {c.factors for c in one_data_set.components(draw(9, 2, 1), torch.zeros(2, 1)).components}
    assert names == {("initialization",), ("noise",), ("initialization", "noise")}
    assert all(abs(c.value) < 1e-9 for c in result.components if "initialization" in c.factors)
    crossed_noise = factorial_design(initializations=3, data=3, noise=3, seed=0, nested=False)
    assert ("noise",) in {c.factors for c in crossed_noise.components(outputs, torch.zeros(1, 1)).components}
    with pytest.raises(InputError):
        design.fold(outputs[:-1])


@pytest.mark.parametrize(
    "bad", [{"data": 0}, {"noise": -1}, {"order": 1.5}, {"initializations": True}, {"data": 10**7}]
)
def test_invalid_factorials_are_refused(bad):
    with pytest.raises(InputError):
        factorial_design(**bad, seed=0)
    with pytest.raises(InputError):
        factorial_design(data=2, seed=-1)


def test_a_factorial_trains_as_an_ensemble_that_shares_its_levels():
    """After a few full-batch steps initialization and data have an effect, batch order has none."""
    x, y = draw(30, 4), torch.arange(30) % 3
    design, drawn = factorial_design(initializations=2, data=2, noise=2, order=2, seed=0), []

    def rows_and_labels(data_seed, noise_seed):
        drawn.append((data_seed, noise_seed))
        rows = torch.randperm(20, generator=torch.Generator().manual_seed(data_seed))[:12]
        flips = torch.Generator().manual_seed(noise_seed)
        return rows, torch.where(torch.rand(12, generator=flips) < 0.3, (y[rows] + 1) % 3, y[rows])

    members = design.members(5, rows_and_labels)
    assert len(drawn) == len(set(drawn)) == 4
    assert [m.init_seed for m in members] == [cell.init_seed for cell in design.cells]
    assert [m.order_seed for m in members] == [cell.order_seed for cell in design.cells]
    recipe = Recipe(optimizer="sgd", lr=0.1, steps=5, loss="mse")
    options = EnsembleOptions(keep_outputs=True, dtype=torch.float64)
    trained = train_mlps(members, x, test=(x[20:], y[20:]), recipe=recipe, options=options)
    targets = nn.functional.one_hot(y[20:], 3).double() - 1 / 3
    result = design.components(trained.metrics[-1].logits, targets)
    assert result.risk == pytest.approx(2 * float(trained.metrics[-1].test_loss.mean()), rel=1e-9)
    assert all(abs(c.value) < 1e-12 for c in result.components if "order" in c.factors)
    assert result["initialization"].value > 0.1
