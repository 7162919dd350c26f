"""kernelmem.training.ensemble.train: many MLPs in one batch equal the plain loops of the same networks."""

import dataclasses
import itertools
import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kernelmem.core.checks import seed_sequence
from kernelmem.core.errors import InputError, NumericalError
from kernelmem.training.batching import BatchOrder
from kernelmem.training.ensemble.members import EnsembleOptions, Member, as_task
from kernelmem.training.ensemble.metrics import loss_and_error
from kernelmem.training.ensemble.ragged_layout import chunks
from kernelmem.training.ensemble.ragged_mlp import RaggedMLPs
from kernelmem.training.ensemble.recipe import Recipe, lr_at
from kernelmem.training.ensemble.train import Ensemble, train_mlps, train_one
from kernelmem.training.mlp import mlp

N, D, C, MORE = 40, 5, 3, 11
METRICS = ("train_loss", "train_error", "test_loss", "test_error")


def data(dtype=torch.float64):
    generator = torch.Generator().manual_seed(7)
    x, x_test = (torch.randn(n, D, generator=generator, dtype=torch.float64).to(dtype) for n in (N, MORE))
    y, y_test = (torch.randint(C, (n,), generator=generator) for n in (N, MORE))
    return x, y, x_test, y_test


def member(width=4, n=N, init=0, order=0, *, labels=None):
    rows = torch.randperm(N, generator=torch.Generator().manual_seed(n))[:n]
    return Member(width, rows, data()[1][rows] if labels is None else labels, init, order)


def chosen(**options):
    return EnsembleOptions(
        **{"dtype": torch.float64, "n_classes": C, "keep_outputs": True, "keep_parameters": True, **options}
    )


def trained(members, recipe, *, dtype=torch.float64, progress=None, **options):
    x, _, *test = data(dtype)
    return train_mlps(members, x, test=test, recipe=recipe, options=chosen(dtype=dtype, **options), progress=progress)


def alone(one, recipe, *, dtype=torch.float64, **options):
    x, _, *test = data(dtype)
    widths = (one.width,) * recipe.depth if isinstance(one.width, int) else one.width
    model = mlp(D, widths, C, recipe.activation, seed=one.init_seed)
    return train_one(model, one, x, test=test, recipe=recipe, options=chosen(dtype=dtype, **options))


def gap(many, k, one, j=0):
    """The largest difference between member k of an ensemble and member j of another, in all that they say."""
    assert [s.step for s in many.metrics] == [s.step for s in one.metrics]
    found = [0.0]
    for a, b in zip(many.metrics, one.metrics, strict=True):
        found += [float((getattr(a, name)[k] - getattr(b, name)[j]).abs()) for name in METRICS]
        found.append(float((a.logits[k] - b.logits[j]).abs().max()))
        assert torch.equal(a.train_predictions[k], b.train_predictions[j])
    assert list(many.parameters[k]) == list(one.parameters[j])
    found += [float((many.parameters[k][name] - value).abs().max()) for name, value in one.parameters[j].items()]
    return max(found)


COMBINATIONS = list(itertools.product(("adam", "adamw", "sgd"), ("cross_entropy", "mse"), (None, 8), (1, 2)))
SCHEDULES, ACTIVATIONS = ("constant", "wsd", "cosine"), ("relu", "tanh", "gelu")


@pytest.mark.parametrize(("turn", "combination"), list(enumerate(COMBINATIONS)))
def test_batched_training_equals_the_plain_loops(turn, combination):
    optimizer, loss, batch_size, depth = combination
    recipe = Recipe(
        optimizer,
        lr=0.05 if optimizer == "sgd" else 0.01,
        momentum=0.9 * (optimizer == "sgd"),
        weight_decay=0.01 * (turn % 2),
        schedule=SCHEDULES[turn % 3],
        batch_size=batch_size,
        steps=60,
        loss=loss,
        activation=ACTIVATIONS[(turn // 3) % 3],
        depth=depth,
    )
    # of near widths, of near numbers of rows, two that share rows and order, one that has fewer rows than a batch
    networks = [member(7, 40, 0, 0), member(3, 40, 1, 0), member(8, 37, 2, 5), member(20, 6, 3, 1), member(8, 40, 4, 3)]
    many = trained(networks, recipe, evaluate_at=(0, 3))
    for k in (0, 2, 3) if turn % 2 else (1, 3, 4):
        assert gap(many, k, alone(networks[k], recipe, evaluate_at=(0, 3))) < 1e-9
    assert many.recipe is recipe
    assert many.members == tuple(networks)


@pytest.mark.parametrize(
    ("optimizer", "schedule"), list(itertools.product(("adam", "adamw", "sgd"), ("constant", "wsd", "cosine")))
)
@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_the_plain_loop_equals_torch_optim(optimizer, schedule, loss):
    """The reference uses torch's own schedulers and losses."""
    steps, batch = 50, 12
    recipe = Recipe(optimizer, 0.03, weight_decay=0.1, schedule=schedule, batch_size=batch, steps=steps, loss=loss)
    if optimizer == "sgd":
        recipe = dataclasses.replace(recipe, momentum=0.8)
    x, y, x_test, y_test = data()
    model = mlp(D, 6, C, seed=4).double()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    options = EnsembleOptions(dtype=torch.float64, keep_parameters=True)
    one = train_one(model, member(6, N, 4, 9), x, test=(x_test, y_test), recipe=recipe, options=options)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    made = {
        "adam": lambda p: torch.optim.Adam(p, lr=0.03, weight_decay=0.1),
        "adamw": lambda p: torch.optim.AdamW(p, lr=0.03, weight_decay=0.1),
        "sgd": lambda p: torch.optim.SGD(p, lr=0.03, weight_decay=0.1, momentum=0.8),
    }[optimizer](model.parameters())
    scheduler = {
        "constant": lambda o: torch.optim.lr_scheduler.ConstantLR(o, factor=1.0),
        "wsd": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda t: min(1.0, (50 - t) / 15)),
        "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=50),
    }[schedule](made)
    rows = member(6, N, 4, 9).rows
    generator = torch.Generator().manual_seed(seed_sequence(9, ["order"])["order"])
    stream = torch.cat([torch.randperm(N, generator=generator) for _ in range(-(-steps * batch // N))])
    for t in range(steps):
        index = rows[stream[t * batch : (t + 1) * batch]]
        made.zero_grad()
        f = model(x[index])
        if loss == "cross_entropy":
            value = F.cross_entropy(f, y[index])
        else:
            value = ((f - F.one_hot(y[index], C) + 1 / C) ** 2).sum() / (2 * batch)
        value.backward()
        made.step()
        scheduler.step()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(one.parameters[0][name], value, rtol=0, atol=1e-10)
    f = model(x_test).detach()
    last = one.metrics[-1]
    if loss == "cross_entropy":
        expected = F.cross_entropy(f, y_test)
    else:
        expected = ((f - F.one_hot(y_test, C) + 1 / C) ** 2).sum() / (2 * MORE)
    torch.testing.assert_close(last.test_loss[0], expected, rtol=0, atol=1e-10)
    assert float(last.test_error[0]) == float((f.argmax(1) != y_test).double().mean())
    assert torch.equal(last.train_predictions[0], model(x[rows]).argmax(1))
    assert float(last.train_error[0]) == pytest.approx(float((model(x[rows]).argmax(1) != y[rows]).double().mean()))


@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu"])
def test_no_learning_keeps_the_initial_network(activation):
    recipe = Recipe(lr=0.0, steps=5, depth=2, activation=activation)
    one = member((6, 9), 20, 3)
    many = trained([member(5), one], recipe, evaluate_at=(0,))
    x, _, x_test, _ = data()
    model = mlp(D, (6, 9), C, activation, seed=3).double()
    for snapshot in many.metrics:
        torch.testing.assert_close(snapshot.logits[1], model(x_test).detach(), rtol=0, atol=1e-12)
        expected = F.cross_entropy(model(x[one.rows]), one.labels).detach()
        torch.testing.assert_close(snapshot.train_loss[1], expected, rtol=0, atol=1e-12)
    for name, value in model.state_dict().items():
        assert torch.equal(many.parameters[1][name], value)


def test_float32_is_near_float64_for_a_few_steps():
    recipe = Recipe("sgd", 0.05, momentum=0.5, batch_size=8, steps=10)
    networks = [member(7), member(9, 30, 2, 1)]
    double, single = (trained(networks, recipe, dtype=dtype) for dtype in (torch.float64, torch.float32))
    assert single.parameters[0]["0.weight"].dtype == torch.float32
    assert single.metrics[-1].test_loss.dtype == torch.float64
    torch.testing.assert_close(single.metrics[-1].logits, double.metrics[-1].logits, rtol=1e-4, atol=1e-5)


def test_initial_weights_have_their_variances():
    model = mlp(300, (400, 500), 200, seed=1)
    for layer, variance in zip(model[::2], (2 / 300, 2 / 400, 1 / 500), strict=True):
        W = layer.weight.detach().double()
        # the standard error of a variance of normal draws is variance sqrt(2 / number)
        assert abs(float(W.var()) / variance - 1) < 5 * (2 / W.numel()) ** 0.5
        assert abs(float(W.mean())) < 5 * (variance / W.numel()) ** 0.5
        assert float(layer.bias.detach().abs().max()) == 0
    with torch.random.fork_rng():
        torch.manual_seed(1)
        again = mlp(300, (400, 500), 200)
        state = torch.get_rng_state()
        mlp(300, (400, 500), 200, seed=1)
        assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize(("n", "batch"), [(10, 4), (10, 5), (7, 6), (9, 1)])
def test_batches_are_pieces_of_permutations(n, batch):
    order = BatchOrder(3, n, batch)
    assert not order.full
    stream = torch.cat([order.take(n) for _ in range(2)]).flatten()
    for start in range(0, len(stream), n):
        assert torch.equal(stream[start : start + n].sort().values, torch.arange(n))
    one_by_one, other = BatchOrder(3, n, batch), BatchOrder(4, n, batch)
    assert torch.equal(torch.cat([one_by_one.take(1) for _ in range(2 * n)]).flatten(), stream)
    assert not torch.equal(torch.cat([other.take(n), other.take(n)]).flatten(), stream)


@pytest.mark.parametrize("batch", [None, 6, 60])
def test_a_batch_of_all_rows_has_them_in_order(batch):
    order = BatchOrder(0, 6, batch)
    assert order.full
    assert torch.equal(order.take(2), torch.arange(6).repeat(2, 1))


def test_the_order_seed_matters_and_the_initial_seed_does_not_change_the_order():
    recipe = Recipe(batch_size=8, steps=20)
    many = trained([member(5, N, 0, 0), member(5, N, 0, 1), member(5, N, 0, 0)], recipe)
    assert gap(many, 0, many, 2) < 1e-12
    logits = many.metrics[-1].logits
    assert float((logits[0] - logits[1]).abs().max()) > 1e-3


def test_real_targets():
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(20, C, generator=generator, dtype=torch.float64)
    x, _, x_test, _ = data()
    y_test = torch.randn(MORE, C, generator=generator, dtype=torch.float64)
    networks = [member(4, 20, labels=real), member(9, 20, labels=real, order=2)]
    for batch_size in (None, 6):
        recipe = Recipe("sgd", 0.05, loss="mse", steps=40, batch_size=batch_size)
        options = {"recipe": recipe, "options": EnsembleOptions(dtype=torch.float64, keep_outputs=True)}
        many = train_mlps(networks, x, test=(x_test, y_test), **options)
        last = many.metrics[-1]
        torch.testing.assert_close(last.test_loss, 0.5 * (last.logits - y_test).square().sum(2).mean(1))
        torch.testing.assert_close(last.test_error, (last.logits.argmax(2) != y_test.argmax(1)).double().mean(1))
        model = mlp(D, 9, C, seed=0)
        one = train_one(model, networks[1], x, test=(x_test, y_test), **options)
        torch.testing.assert_close(one.metrics[-1].logits[0], last.logits[1], rtol=0, atol=1e-9)


def test_metrics_in_closed_form():
    f = torch.zeros(1, 4, 3)
    f[0, 1, 2] = 5.0
    loss, error, predicted = loss_and_error(f, torch.tensor([[0, 2, 0, 1]]))
    expected = (3 * torch.log(torch.tensor(3.0)) + torch.log(1 + 2 * torch.exp(torch.tensor(-5.0)))) / 4
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    assert float(error) == 0.25
    assert predicted.tolist() == [[0, 2, 0, 0]]
    f[0, 0, 0] = torch.inf
    assert all(torch.isnan(value).all() for value in loss_and_error(f, torch.tensor([[0, 2, 0, 1]]))[:2])


def test_a_diverged_member_leaves_the_others_alone():
    x, y, x_test, y_test = data()
    x[0] = 1e6
    rows = torch.arange(1, 20)
    bad = torch.arange(20)
    networks = [Member(6, rows, y[rows], 0, 0), Member(6, bad, y[bad], 0, 0), Member(9, rows, y[rows], 1, 0)]
    options = EnsembleOptions(dtype=torch.float64, keep_outputs=True, keep_parameters=True)
    common = {"test": (x_test, y_test), "recipe": Recipe("sgd", 0.1, steps=60, loss="mse")}
    many = train_mlps(networks, x, options=options, **common)
    assert many.diverged == (1,)
    last = many.metrics[-1]
    assert all(bool(torch.isnan(getattr(last, name)[1])) for name in METRICS)
    healthy = train_mlps([networks[0], networks[2]], x, options=options, **common)
    assert healthy.diverged == ()
    assert max(gap(many, 0, healthy, 0), gap(many, 2, healthy, 1)) < 1e-12
    with pytest.raises(NumericalError, match="members 1 with losses"):
        train_mlps(networks, x, options=dataclasses.replace(options, diverged="raise"), **common)


def test_padding_stays_zero():
    x, _, x_test, y_test = data()
    for activation in ("relu", "tanh", "gelu"):
        recipe = Recipe(steps=30, weight_decay=0.1, activation=activation, batch_size=8, depth=2)
        networks = [member(8, order=0), member(7, order=1, init=1)]
        task = as_task(networks, x, test=(x_test, y_test), recipe=recipe, options=chosen())
        (part,) = chunks(task, 2**30, 8)
        engine = RaggedMLPs(task, part)
        assert len(engine.stacks) == 1, "similar widths must share a product"
        optimizer = torch.optim.AdamW(engine.parameters, weight_decay=0.1)
        for _ in range(30):
            engine.gradient()
            optimizer.step()
        own = sum(h * (D + 1) + h * (h + 1) + C * (h + 1) for h in (8, 7))
        assert int((engine.parameters[0] == 0).sum()) == len(engine.parameters[0]) - own


def test_what_is_kept():
    recipe = Recipe(steps=7)
    bare = trained([member()], recipe, keep_outputs=False, keep_parameters=False)
    assert bare.parameters is None
    assert [s.step for s in bare.metrics] == [7]
    assert bare.metrics[0].logits is None
    assert bare.seconds > 0
    several = trained([member(), member(5)], recipe, evaluate_at=[5, 0, 7, 5])
    assert [s.step for s in several.metrics] == [0, 5, 7]
    assert several.metrics[0].logits.shape == (2, MORE, C)
    assert several.metrics[0].logits.dtype == torch.float64
    nn.Sequential(nn.Linear(D, 5), nn.ReLU(), nn.Linear(5, C)).load_state_dict(several.parameters[1])
    calls = []
    trained([member(), member(5)], recipe, memory=20_000, progress=lambda *call: calls.append(call))
    assert calls[-1] == (14, 14)
    assert [call[0] for call in calls] == sorted(call[0] for call in calls)


def test_a_recipe_goes_into_json():
    recipe = Recipe("sgd", momentum=0.9, batch_size=64)
    assert Recipe(**json.loads(json.dumps(dataclasses.asdict(recipe)))) == recipe
    assert lr_at(Recipe(lr=2.0, schedule="cosine", steps=8), 4) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": "rmsprop"}, '"adam", "adamw" or "sgd"'),
        ({"loss": "hinge"}, '"cross_entropy" or "mse"'),
        ({"activation": "sine"}, '"relu", "tanh" or "gelu"'),
        ({"schedule": "step"}, '"constant", "wsd" or "cosine"'),
        ({"lr": float("nan")}, "finite number >= 0"),
        ({"weight_decay": -1.0}, "finite number >= 0"),
        ({"steps": 0}, "whole number >= 1"),
        ({"batch_size": 0}, "whole number >= 1"),
        ({"depth": True}, "whole number"),
        ({"momentum": 0.9}, "Adam has its own"),
        ({"optimizer": "sgd", "momentum": 1.0}, "momentum in 0..1"),
    ],
)
def test_recipes_refused(change, message):
    with pytest.raises(InputError, match=message):
        Recipe(**change)


LABELS = torch.zeros(3, dtype=torch.int64)
ROWS = torch.arange(3)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([], "at least one Member"),
        ([1], "at least one Member"),
        ([Member(4, ROWS[:0], LABELS[:0], 0, 0)], "at least one row number"),
        ([Member(4, torch.tensor([0, 1, N]), LABELS, 0, 0)], "0..39"),
        ([Member(4, torch.tensor([0, 1, -1]), LABELS, 0, 0)], "0..39"),
        ([Member(4, torch.ones(3, dtype=torch.bool), LABELS, 0, 0)], "row number"),
        ([Member(4, ROWS, LABELS[:2], 0, 0)], "3 labels"),
        ([Member(4, ROWS, LABELS + C, 0, 0)], "3 values outside"),
        ([Member(4, ROWS, LABELS - 1, 0, 0)], "outside"),
        ([Member(4, ROWS, torch.zeros(3, C), 0, 0)], r"\(3,\) labels"),
        ([Member(0, ROWS, LABELS, 0, 0)], "width=0 of member 0"),
        ([Member((), ROWS, LABELS, 0, 0)], "width"),
        ([Member(4, ROWS, LABELS, -1, 0)], "init_seed of member 0=-1"),
        ([Member(4, ROWS, LABELS, 0, 0.5)], "order_seed of member 0=0.5"),
    ],
)
def test_members_refused(members, message):
    with pytest.raises(InputError, match=message):
        trained(members, Recipe(steps=2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"evaluate_at": [3]}, r"whole number in 0..2"),
        ({"evaluate_at": [-1]}, r"whole number in 0..2"),
        ({"dtype": torch.float16}, "float32 or torch.float64"),
        ({"memory": 100}, "one network at a time"),
        ({"diverged": "ignore"}, "keep"),
        ({"x_test": torch.randn(4, D + 1)}, "same shape of a row"),
        ({"x": torch.full((N, D), torch.nan)}, "finite"),
        ({"y_test": torch.zeros(MORE + 1, dtype=torch.int64)}, "11 labels"),
        ({"x_test": torch.randn(0, D), "y_test": LABELS[:0]}, "same shape"),
    ],
)
def test_arguments_refused(options, message):
    x, _, x_test, y_test = data()
    given = {"x": x, "x_test": x_test, "y_test": y_test, "n_classes": C, **options}
    x, *test = (given.pop(name) for name in ("x", "x_test", "y_test"))
    with pytest.raises(InputError, match=message):
        train_mlps([member()], x, test=test, recipe=Recipe(steps=2), options=EnsembleOptions(**given))


def test_a_model_with_other_outputs_is_refused():
    x, _, x_test, y_test = data()
    with pytest.raises(InputError, match="one output per class"):
        train_one(mlp(D, 4, C + 1, seed=0), member(), x, test=(x_test, y_test), recipe=Recipe(steps=2))


@pytest.mark.parametrize("arguments", [(0, 4, 3), (5, (), 3), (5, (4, 0), 3), (5, 4, 0)])
def test_networks_refused(arguments):
    with pytest.raises(InputError, match=r"at least one hidden layer|whole number"):
        mlp(*arguments)
    with pytest.raises(InputError, match='"relu", "tanh" or "gelu"'):
        mlp(5, 4, 3, "sine")


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_members_with_different_numbers_of_rows_share_a_product(loss):
    """By SGD: Adam would not notice a gradient that is wrong by a factor."""
    recipe = Recipe("sgd", 0.1, steps=40, loss=loss)
    networks = [member(8, 40, 0), member(8, 37, 1), member(7, 36, 2)]
    x, _, x_test, y_test = data()
    task = as_task(networks, x, test=(x_test, y_test), recipe=recipe, options=chosen())
    (part,) = chunks(task, 2**30, 8)
    assert len(RaggedMLPs(task, part).stacks) == 1
    many = trained(networks, recipe)
    for k, one in enumerate(networks):
        assert gap(many, k, alone(one, recipe)) < 1e-9


def test_outputs_beyond_the_range_of_exp():
    x, _, x_test, y_test = data()
    recipe, one = Recipe("sgd", 1e-9, steps=3), member(6)
    common = {"test": (1e4 * x_test, y_test), "recipe": recipe, "options": chosen()}
    many = train_mlps([one], 1e4 * x, **common)
    assert float(many.metrics[-1].logits.abs().max()) > 1000
    loop = train_one(mlp(D, 6, C, seed=0), one, 1e4 * x, **common)
    torch.testing.assert_close(many.metrics[-1].logits, loop.metrics[-1].logits, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("widths", [(4, 4), (4, 5), (5, 4)])
def test_a_full_batch_and_partial_batches_of_the_same_size(widths):
    recipe = Recipe("adam", steps=12, batch_size=20)
    members = [member(widths[0], 20, init=1, order=3), member(widths[1], 40, init=2, order=4)]
    for networks in (members, members[::-1]):
        many = trained(networks, recipe)
        assert max(gap(many, k, alone(one, recipe)) for k, one in enumerate(networks)) < 1e-9


def test_an_ensemble_is_saved_printed_and_tabulated(tmp_path):
    recipe = Recipe(steps=7, batch_size=8)
    many = trained([member(), member((3, 5), 20, 2, 1)], recipe, evaluate_at=[0, 5])
    read = Ensemble.load(many.save(tmp_path / "ensemble.safetensors"))
    assert gap(read, 0, many, 0) == gap(read, 1, many, 1) == 0
    assert (read.recipe, read.seconds, read.diverged) == (recipe, many.seconds, ())
    for one, other in zip(read.members, many.members, strict=True):
        assert (one.width, one.init_seed, one.order_seed) == (other.width, other.init_seed, other.order_seed)
        assert torch.equal(one.rows, other.rows)
        assert torch.equal(one.labels, other.labels)
    frame = many.to_frame()
    assert frame.groupby("step").size().to_dict() == {0: 2, 5: 2, 7: 2}
    assert frame[frame.step == 7]["test_loss"].tolist() == many.metrics[-1].test_loss.tolist()
    assert frame["width"].tolist() == ["4", "(3, 5)"] * 3
    assert frame["n"].tolist() == [N, 20] * 3
    for text in (str(many), repr(many)):
        assert len(text.splitlines()) <= 10
        assert "2 networks, 7 steps" in text
        assert "final test error" in text
    assert len(repr(many.metrics)) + len(repr(many.members)) < 400
    assert "<table" in many._repr_html_()
