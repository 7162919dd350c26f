"""kernelmem.training.ensemble.train.train_modules: networks of any architecture, batched by width, equal their plain loops."""

import gc
from dataclasses import replace

import pytest
import torch
from torch import nn

from kernelmem.core.errors import InputError, UnsupportedModelError
from kernelmem.training.ensemble.members import EnsembleOptions, Member
from kernelmem.training.ensemble.recipe import Recipe
from kernelmem.training.ensemble.train import train_mlps, train_modules, train_one
from kernelmem.training.mlp import mlp
from tests.training.ensemble.test_train import gap

N, C = 24, 3
OPTIONS = EnsembleOptions(evaluate_at=(0, 5), dtype=torch.float64, n_classes=C, keep_outputs=True, keep_parameters=True)


def data():
    generator = torch.Generator().manual_seed(5)
    x, x_test = (torch.randn(n, 1, 6, 6, generator=generator, dtype=torch.float64) for n in (N, 9))
    return x, torch.randint(C, (N,), generator=generator), x_test, torch.randint(C, (9,), generator=generator)


def convolutional(width, *between):
    head = [nn.Conv2d(1, width, 3, padding=1), *between, nn.ReLU(), nn.Conv2d(width, 2 * width, 3, stride=2), nn.ReLU()]
    return nn.Sequential(*head, nn.Flatten(), nn.Linear(8 * width, C))


def normalized(width):
    return convolutional(width, nn.BatchNorm2d(width))


def perceptron(width):
    return nn.Sequential(nn.Flatten(), *mlp(36, width, C))


def example_members(shared=((2, N, 0, 0), (3, N, 1, 1), (2, 17, 2, 2), (2, N, 3, 0), (3, 5, 4, 1))):
    found = []
    for width, n, init, order in shared:
        rows = torch.randperm(N, generator=torch.Generator().manual_seed(n))[:n]
        found.append(Member(width, rows, data()[1][rows], init, order))
    return found


def trained(make_model, members, recipe, **options):
    x, _, *test = data()
    return train_modules(make_model, members, x, test=test, recipe=recipe, options=replace(OPTIONS, **options))


def alone(make_model, one, recipe):
    x, _, *test = data()
    with torch.random.fork_rng():
        torch.manual_seed(one.init_seed)
        model = make_model(one.width)
    return train_one(model, one, x, test=test, recipe=recipe, options=OPTIONS)


def test_no_tensor_stays_alive():
    def n_tensors():
        gc.collect()
        return sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())

    recipe = Recipe(steps=5)
    trained(perceptron, example_members(), recipe)
    before = n_tensors()
    trained(perceptron, example_members(), recipe)
    assert n_tensors() <= before


@pytest.mark.parametrize("make_model", [convolutional, normalized, perceptron])
@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(batch_size=8, steps=16, schedule="wsd", weight_decay=0.1),
        Recipe("adamw", steps=16, schedule="cosine", loss="mse"),
        Recipe("sgd", 0.02, momentum=0.9, batch_size=8, steps=16),
    ],
    ids=lambda recipe: recipe.optimizer,
)
def test_modules_equal_their_plain_loops(make_model, recipe):
    members, state = example_members(), torch.get_rng_state()
    many = trained(make_model, members, recipe)
    assert torch.equal(torch.get_rng_state(), state)
    # Adam divides the rounding of a gradient that is zero (of a bias before BatchNorm) by its own size
    tolerance = 1e-7 if make_model is normalized and recipe.optimizer != "sgd" else 1e-9
    for k, one in enumerate(members):
        assert gap(many, k, alone(make_model, one, recipe)) < tolerance


def test_an_mlp_is_the_same_in_both_engines():
    members, recipe = example_members(), Recipe(batch_size=8, steps=60)
    x, _, *test = data()
    by_module = trained(perceptron, members, recipe)
    ragged = train_mlps(members, x, test=test, recipe=recipe, options=OPTIONS)
    for a, b in zip(by_module.metrics, ragged.metrics, strict=True):
        torch.testing.assert_close(a.logits, b.logits, rtol=0, atol=1e-9)


def test_chunks_change_nothing():
    members, recipe = example_members(), Recipe(batch_size=8, steps=20)
    whole, cut = trained(normalized, members, recipe), trained(normalized, members, recipe, memory=60_000)
    assert max(gap(whole, k, cut, k) for k in range(len(members))) < 1e-7
    with pytest.raises(InputError, match="one network at a time"):
        trained(normalized, members, recipe, memory=1000)


class Partly(nn.Sequential):
    """A network with a frozen layer, and a parameter that takes no part."""

    def __init__(self, width):
        super().__init__(*convolutional(width))
        self[0].requires_grad_(False)
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, x):
        for layer in self:
            x = layer(x)
        return x


def test_frozen_and_unused_parameters_stay():
    members, recipe = example_members()[:1], Recipe(steps=6, weight_decay=0.1)
    many = trained(Partly, members, recipe)
    assert gap(many, 0, alone(Partly, members[0], recipe)) < 1e-9
    with torch.random.fork_rng():
        torch.manual_seed(0)
        before = Partly(2).double().state_dict()
    for name in ("0.weight", "unused"):
        assert torch.equal(many.parameters[0][name], before[name])
    assert not torch.equal(many.parameters[0]["5.weight"], before["5.weight"])


class Noisy(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layer = nn.Linear(36, C)

    def forward(self, x):
        return self.layer(x.flatten(1)) + torch.randn(len(x), C, dtype=x.dtype)


def by_seed(width):
    return perceptron(width + int(torch.randint(1, 50, ())))


@pytest.mark.parametrize(
    ("make_model", "error", "message"),
    [
        (lambda width: convolutional(width, nn.Dropout(0.1)), UnsupportedModelError, "dropout in '1'"),
        (Noisy, UnsupportedModelError, "vmap refuses"),
        (by_seed, UnsupportedModelError, "same architecture"),
        (lambda width: width, UnsupportedModelError, "an nn.Module"),
        (lambda width: nn.Sequential(nn.Flatten(), mlp(36, width, C + 1)), InputError, "one output per class"),
    ],
)
def test_models_refused(make_model, error, message):
    with pytest.raises(error, match=message):
        trained(make_model, example_members(), Recipe(steps=6))
