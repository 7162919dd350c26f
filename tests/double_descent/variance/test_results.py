"""Results of the variance package: saved and loaded, printed on one screen, as tables."""

import torch

from kernelmem.double_descent.variance.anova import VarianceComponents, variance_components
from kernelmem.double_descent.variance.bias_variance import Decomposition, decompose_cross_entropy, decompose_squared
from kernelmem.double_descent.variance.effective_parameters import EffectiveParameters, effective_parameters
from kernelmem.double_descent.variance.factorial import Cell, FactorialDesign, factorial_design
from kernelmem.double_descent.variance.run_smoother import RunSmoother
from tests.tolerances import summing


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def check_text(result, word):
    assert repr(result) == str(result)
    assert word in str(result)
    assert len(str(result).splitlines()) <= 40
    assert len(str(result)) < 2500
    assert "tensor(" not in str(result)
    assert "<table" in result._repr_html_()


def test_a_decomposition(tmp_path):
    squared = decompose_squared(draw(4, 100, 3), draw(100, 3, seed=1))
    loaded = Decomposition.load(squared.save(tmp_path / "d"))
    assert torch.equal(loaded.example_bias, squared.example_bias)
    assert (loaded.risk, loaded.loss, loaded.n_members) == (squared.risk, "squared", 4)
    frame = squared.to_frame()
    assert list(frame.index) == ["risk", "bias", "variance"]
    assert frame.loc["variance", "se"] == squared.variance_se
    check_text(squared, "4 members, 100 examples")
    check_text(decompose_cross_entropy(draw(3, 5, 4).log_softmax(2), torch.arange(5) % 4), "nats")


def test_effective_parameters(tmp_path):
    result = effective_parameters(draw(30, 20))
    loaded = EffectiveParameters.load(result.save(tmp_path / "p"))
    assert torch.equal(loaded.per_example, result.per_example)
    assert list(result.to_frame()["per_example"]) == result.per_example.tolist()
    check_text(result, "effective parameters")


def test_variance_components(tmp_path):
    result = variance_components(draw(3, 3, 1, 2, 50, 2), draw(50, 2, seed=1))
    loaded = VarianceComponents.load(result.save(tmp_path / "v"))
    assert str(loaded) == str(result)
    assert loaded["data", "order"].value == result["data", "order"].value
    assert loaded.levels == {"initialization": 3, "data": 3, "order": 2}
    assert loaded.averaged(data=2) == result.averaged(data=2)
    assert torch.equal(loaded.per_example, result.per_example)
    check_text(result, "initialization x data")


def test_a_factorial_design(tmp_path):
    design = factorial_design(initializations=3, data=2, noise=2, seed=1)
    loaded = FactorialDesign.load(design.save(tmp_path / "f"))
    assert loaded.cells == design.cells
    assert isinstance(loaded.cells[0], Cell)
    assert (loaded.shape, loaded.nested) == ((3, 2, 2, 1), True)
    assert list(design.to_frame().columns) == ["init_seed", "data_seed", "noise_seed", "order_seed"]
    assert len(design.to_frame()) == 12
    check_text(design, "12 trainings: 3 initialization x 2 data x 2 noise x 1 order, noise nested in data")


def test_a_run_smoother(tmp_path):
    S, y = draw(7, 2, 5, 2), draw(5, 2, seed=1)
    offsets = draw(7, 2, seed=2)
    outputs = offsets + torch.einsum("rcnd,nd->rc", S, y)
    result = RunSmoother(S[:5], S[5:], y, offsets, outputs)
    loaded = RunSmoother.load(result.save(tmp_path / "s"))
    assert torch.equal(loaded.S, result.S)
    frame = result.to_frame()
    assert list(frame["set"]) == ["train"] * 5 + ["test"] * 2
    assert frame["effective_parameters"][5] == result.p_eff.per_example[0]
    size = torch.einsum("rcnd,nd->rc", S.abs(), y.abs()) + offsets.abs()
    assert frame["residual"].max() < summing(2 * 5 + 1) * float(size.max())
    check_text(result, "5 training examples, 2 test examples, C = 2")
    check_text(RunSmoother(S[:5], S[:0], y, offsets[:5], outputs[:5]), "0 test examples")
