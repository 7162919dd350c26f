"""Laws of the ledger on small random networks: equal to the definition; independent of names, order and batching."""

import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kernelmem.core.errors import InputError
from kernelmem.recording.recorder import Recorder
from kernelmem.recording.run import Run
from kernelmem.trajectory.influence.influence import InfluenceOptions, influence
from kernelmem.trajectory.ledger import backward_sweep as backward
from kernelmem.trajectory.ledger.ledger import LedgerOptions, ledger
from kernelmem.trajectory.path_kernel.exact_kernel_machine import exact_kernel_machine
from tests.profiles import examples
from tests.trajectory.definition import data, definition, ragged, small, train

rates, fractions, booleans = st.floats(0.01, 0.3), st.floats(0.0, 0.9), st.booleans()
decays = st.sampled_from([0.0, 0.02, 0.3])
common = {"lr": rates, "weight_decay": decays, "maximize": booleans}
PLAIN = st.fixed_dictionaries({"lr": rates, "momentum": st.just(0.0), "weight_decay": decays, "maximize": booleans})
MOMENTUM = st.fixed_dictionaries({**common, "momentum": st.floats(0.1, 0.95), "dampening": fractions})
NESTEROV = st.fixed_dictionaries({**common, "momentum": st.floats(0.1, 0.95), "nesterov": st.just(True)})
SGD = st.one_of(PLAIN, MOMENTUM, NESTEROV)
ADAPTIVE = {
    "Adam": st.fixed_dictionaries({**common, "amsgrad": booleans, "decoupled_weight_decay": booleans}),
    "AdamW": st.fixed_dictionaries(common),
    "RMSprop": st.fixed_dictionaries({**common, "momentum": st.sampled_from([0.0, 0.6])}),
    "Adagrad": st.fixed_dictionaries({**common, "lr_decay": st.sampled_from([0.0, 0.1])}),
}
OPTIMIZERS = st.one_of(
    st.tuples(st.just("SGD"), SGD), *(st.tuples(st.just(name), own) for name, own in ADAPTIVE.items())
)
WIDTHS = st.lists(st.integers(1, 6), min_size=0, max_size=2).map(lambda inner: (4, *inner, 3))
SIZES = st.lists(st.integers(1, 6), min_size=2, max_size=5)
TARGETS = st.sampled_from([None, "margin", "loss", "log_probability", ("logit", 1)])


def largest(tensor):
    return float(tensor.abs().max())


def run_in(folder, model, name, options, x, y, batches, **others):
    if name != "SGD":
        options = {**options, "lr": 0.1 * options["lr"]}
    optimizer = getattr(torch.optim, name)(model.parameters(), **options)
    return train(Path(folder) / "run", model, optimizer, x, y, batches, **others)


def clipping(t, model, optimizer):
    nn.utils.clip_grad_norm_(model.parameters(), 0.2)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_loss_weights_sums_over_the_batch_and_clipping_are_in_the_contributions(tmp_path, reduction):
    x, y = data()
    model, weights = small(), torch.linspace(0.1, 2.0, 12, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    recorded = {"weights": weights, "reduction": reduction, "before": clipping}
    run = train(tmp_path / "run", model, optimizer, x, y, ragged(), **recorded)
    assert max(step.scale for step in run.steps) < 0.9
    own = ledger(run, model, x[:3], options=LedgerOptions(data=(x, y)))
    contributions, _ = definition(run, model, x, y, x[:3])
    assert largest(own.contributions - contributions) <= 1e-13
    assert largest(own.rounding) <= 1e-13
    assert torch.equal(ledger(run, model, x[:3]).contributions, own.contributions)  # the last example was met


@given(options=SGD, widths=WIDTHS, sizes=SIZES, seed=st.integers(0, 2**16), weighted=booleans)
@examples(0.25)
def test_contributions_are_those_of_the_definition(options, widths, sizes, seed, weighted):
    x, y = data(seed=seed)
    model = small(widths=widths, seed=seed)
    weights = 0.5 + torch.rand(12, generator=torch.Generator().manual_seed(seed)).double() if weighted else None
    with tempfile.TemporaryDirectory() as folder:
        run = run_in(folder, model, "SGD", options, x, y, ragged(12, sizes, seed), weights=weights)
        own = ledger(run, model, x[:3], options=LedgerOptions(data=(x, y)))
        contributions, decay = definition(run, model, x, y, x[:3])
    size = 1.0 + largest(contributions)
    assert largest(own.contributions - contributions) <= 1e-11 * size
    assert largest(own.decay - decay) <= 1e-11 * size
    assert largest(own.rounding) <= 1e-12 * size
    assert own.largest_residual <= 1e-11 * size


@given(
    optimizer=OPTIMIZERS,
    activation=st.sampled_from([nn.Tanh, nn.GELU, nn.ReLU, nn.LeakyReLU, nn.Hardtanh]),
    widths=WIDTHS,
    sizes=SIZES,
    target=TARGETS,
    seed=st.integers(0, 2**16),
)
@examples(0.5)
def test_every_split_of_the_change_adds_up(optimizer, activation, widths, sizes, target, seed):
    """Examples, groups, steps, layers and parts of the run: one change, whatever the network and the optimizer."""
    x, y = data(seed=seed)
    model = small(activation, widths, seed)
    with tempfile.TemporaryDirectory() as folder:
        run = run_in(folder, model, *optimizer, x, y, ragged(12, sizes, seed))
        given_rows = {"x": x[:2], "labels": y[:2], "target": target}
        all_examples = LedgerOptions(data=(x, y))
        own = ledger(run, model, **given_rows, options=replace(all_examples, history=True))
        size = 1.0 + float(own.mass.max())
        assert own.largest_residual <= 1e-11 * size
        assert largest(own.rounding) <= 1e-11 * size
        assert own.recomputed_residual() == pytest.approx(own.largest_residual, abs=1e-12 * size)
        assert largest(own.history.sum(1) - own.contributions) <= 1e-12 * size
        steps = ledger(run, model, by="step", **given_rows, options=all_examples)
        assert largest(own.history.sum(2) - steps.contributions) <= 1e-12 * size
        groups = torch.arange(12) % 3
        grouped = ledger(run, model, by=groups, **given_rows, options=all_examples)
        assert largest(grouped.contributions - own.by_group(groups)) <= 1e-10 * size
        middle = len(sizes) // 2
        parts = [
            ledger(run, model, **given_rows, options=replace(all_examples, steps=pair))
            for pair in ((0, middle), (middle, len(sizes)))
        ]
        assert largest(sum(part.contributions for part in parts) - own.contributions) <= 1e-10 * size
        for name in ("decay", "rounding"):
            line = getattr(own, name)
            assert largest(getattr(grouped, name) - line) <= 1e-10 * size
            assert largest(getattr(steps, name) - line) <= 1e-12 * size
            assert largest(sum(getattr(part, name) for part in parts) - line) <= 1e-10 * size


class Renamed(nn.Module):
    """The network of ``small``, its parameters under other names and registered in another order."""

    def __init__(self, model):
        super().__init__()
        self.zeta, self.alpha = nn.Module(), nn.Module()
        self.alpha.b, self.alpha.a = model[2].bias, model[2].weight
        self.zeta.y, self.zeta.z = model[0].bias, model[0].weight

    def forward(self, x):
        hidden = torch.tanh(nn.functional.linear(x, self.zeta.z, self.zeta.y))
        return nn.functional.linear(hidden, self.alpha.a, self.alpha.b)


@pytest.mark.parametrize(("name", "options"), [("SGD", {"lr": 0.2}), ("AdamW", {"lr": 0.01, "weight_decay": 0.1})])
def test_names_and_order_of_parameters_do_not_matter(tmp_path, name, options):
    x, y = data()
    found = []
    for other in (False, True):
        model = Renamed(small()) if other else small()
        optimizer = getattr(torch.optim, name)(model.parameters(), **options)
        run = train(tmp_path / str(other), model, optimizer, x, y, ragged())
        found.append(ledger(run, model, x[:3], options=LedgerOptions(data=(x, y))))
        layers = ledger(run, model, x[:3], by="layer", options=LedgerOptions(data=(x, y)))
        assert set(layers.sources) == ({"zeta", "alpha"} if other else {"0", "2"})
        first = layers.sources.index("zeta" if other else "0")
        found[-1] = (found[-1], layers.contributions[:, first])
    (one, layer), (renamed, renamed_layer) = found
    assert largest(one.contributions - renamed.contributions) <= 1e-13
    assert largest(one.decay - renamed.decay) <= 1e-13
    assert largest(layer - renamed_layer) <= 1e-12


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_permuted_examples_and_rows_permute_the_terms(tmp_path, activation):
    x, y = data()
    order, rows = torch.randperm(12, generator=torch.Generator().manual_seed(3)), torch.tensor([2, 0, 2, 1])
    found = []
    for name, index in (("a", torch.arange(12)), ("b", order)):
        model = small(activation)
        back = index.argsort()
        run = train(
            tmp_path / name,
            model,
            torch.optim.Adam(model.parameters(), lr=0.01),
            x[index],
            y[index],
            [back[own] for own in ragged()],
        )
        chosen = x[:3] if name == "a" else x[:3][rows]
        found.append(ledger(run, model, chosen, options=LedgerOptions(data=(x, y))).contributions)
    assert largest(found[1] - found[0][rows][:, order]) <= 1e-13
    assert largest(found[0]) > 1e-3


def test_an_example_repeated_in_a_batch_counts_twice(tmp_path):
    x, y = data()
    batches = [torch.tensor([3, 3, 3, 5]), torch.tensor([1, 1]), torch.tensor([0, 3, 0])]
    model = small()
    run = train(tmp_path / "run", model, torch.optim.SGD(model.parameters(), lr=0.2), x, y, batches)
    own = ledger(run, model, x[:3], options=LedgerOptions(data=(x, y), history=True))
    expected, _ = definition(run, model, x, y, x[:3])
    assert largest(own.contributions - expected) <= 1e-12
    assert largest(own.history.sum(1) - expected) <= 1e-12
    groups = ledger(run, model, x[:3], by=torch.arange(12), options=LedgerOptions(data=(x, y)))
    assert largest(groups.contributions - expected) <= 1e-12


def skipping(t, model, optimizer):
    """The first layer has no gradient in some steps, the last bias in others."""
    if t in (0, 3):
        model[0].weight.grad = model[0].bias.grad = None
    if t in (2, 3):
        model[2].bias.grad = None


def growing(t, model, optimizer):
    """The last layer joins after two steps, with momentum of its own."""
    if t == 2:
        optimizer.add_param_group({"params": model[2].parameters(), "lr": 0.07, "momentum": 0.4, "weight_decay": 0.1})


def switching(t, model, optimizer):
    """Momentum begins in the middle, with dampening; plain steps before and after it."""
    optimizer.param_groups[0].update(momentum=0.8 if t in (2, 3) else 0.0, dampening=0.3, lr=0.1 / (1 + t))


def ending(t, model, optimizer):
    """Momentum stops, and what was carried is left alone."""
    optimizer.param_groups[0].update(momentum=0.8 if t < 3 else 0.0)


def pausing(t, model, optimizer):
    """Momentum rests for two steps, and goes on with what it had."""
    optimizer.param_groups[0].update(momentum=0.0 if t in (2, 3) else 0.7)


def apart(t, model, optimizer):
    """The last weight has momentum, its bias has none."""
    if t == 0:
        bias = optimizer.param_groups[0]["params"].pop()
        optimizer.add_param_group({"params": [bias], "momentum": 0.0})


EVENTS = {
    "pausing": (pausing, {"lr": 0.2, "dampening": 0.2}, False),
    "apart": (apart, {"lr": 0.2, "momentum": 0.6}, False),
    "skipping": (skipping, {"lr": 0.2}, False),
    "skipping, momentum": (skipping, {"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "weight_decay": 0.1}, False),
    "growing": (growing, {"lr": 0.2}, True),
    "growing, momentum": (growing, {"lr": 0.1, "momentum": 0.9, "nesterov": True}, True),
    "switching": (switching, {"lr": 0.2}, False),
    "ending": (ending, {"lr": 0.1, "momentum": 0.5}, False),
}


@pytest.mark.parametrize("together", [1, 32])
@pytest.mark.parametrize("event", EVENTS)
def test_changes_in_the_middle_of_a_run_are_explained(tmp_path, monkeypatch, event, together):
    monkeypatch.setattr(backward, "MAX_STEPS_TOGETHER", together)
    x, y = data()
    before, options, part = EVENTS[event]
    model = small()
    parameters = model[0].parameters() if part else model.parameters()
    run = train(tmp_path / "run", model, torch.optim.SGD(parameters, **options), x, y, ragged(), before=before)
    own = ledger(run, model, x[:3], options=LedgerOptions(data=(x, y)))
    expected, decay = definition(run, model, x, y, x[:3])
    assert largest(own.contributions - expected) <= 1e-12
    assert largest(own.decay - decay) <= 1e-12
    assert own.largest_residual <= 1e-12
    assert largest(own.rounding) <= 1e-13
    groups = ledger(run, model, x[:3], by=torch.arange(12), options=LedgerOptions(data=(x, y)))
    assert largest(groups.contributions - expected) <= 1e-12
    assert largest(groups.decay - decay) <= 1e-12


@pytest.mark.parametrize(
    ("momentum", "dampening", "nesterov"), [(0.0, 0.0, False), (0.7, 0.0, False), (0.7, 0.4, False), (0.7, 0.0, True)]
)
def test_a_linear_model_has_its_closed_form_with_momentum_and_decay(tmp_path, momentum, dampening, nesterov):
    """c_i = −Σ_s κ_s (x·x_i + 1) (p_s(x_i) − y_i) / B, decay = −λ Σ_s κ_s f_s(x), κ_s the sum of what a gradient does."""
    x, y = data()
    model = small(widths=(4, 3))
    options = {"lr": 0.2, "momentum": momentum, "dampening": dampening, "nesterov": nesterov, "weight_decay": 0.1}
    batches = ragged()
    run = train(tmp_path / "run", model, torch.optim.SGD(model.parameters(), **options), x, y, batches)
    own = ledger(run, model, x[:5], options=LedgerOptions(data=(x, y)))
    T = len(batches)
    expected, decay = torch.zeros(5, 12, 3, dtype=torch.float64), torch.zeros(5, 3, dtype=torch.float64)
    for s, index in enumerate(batches):
        state = run.weights(s)
        outputs = x @ state["0.weight"].T + state["0.bias"]
        later = sum(momentum ** (t - s) for t in range(s, T))
        enters = 1 - dampening if s and momentum else 1.0
        kappa = 0.2 * (1 + momentum * later if nesterov else enters * later)
        slope = (outputs.softmax(1) - nn.functional.one_hot(y, 3))[index] / len(index)
        expected[:, index] -= kappa * (x[:5] @ x[index].T + 1)[:, :, None] * slope
        decay -= 0.1 * kappa * outputs[:5]
    assert largest(own.contributions - expected) <= 1e-14
    assert largest(own.decay - decay) <= 1e-14
    assert own.largest_residual <= 1e-14


@pytest.mark.parametrize("by", ["example", "group"])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_residual_of_a_step_of_length_h_is_of_order_2n_plus_1(tmp_path, n, by):
    """A rule with n nodes, and no refinement: half the step leaves 2^(2n + 1) times less."""
    x, y = data()
    found = []
    for lr in (0.8, 0.4):
        model = small()
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        run = train(tmp_path / f"{lr}", model, optimizer, x, y, [torch.arange(12)])
        sources = y if by == "group" else by
        own = ledger(run, model, x[:4], by=sources, options=LedgerOptions(n_nodes=n, tolerance=1e6))
        assert own.evaluations.tolist() == [n]
        assert largest(own.residuals.sum(0) - own.residual) <= 1e-14
        found.append(own.residual)
    big, half = found
    seen = half.abs() > 1e-11  # far above rounding
    assert bool(seen.any())
    ratio = float((big[seen] / half[seen]).log2().median())
    assert abs(ratio - (2 * n + 1)) < 0.3


def test_a_fixed_number_of_nodes_is_refined_if_needed(tmp_path):
    x, y = data()
    model = small()
    run = train(tmp_path / "run", model, torch.optim.SGD(model.parameters(), lr=1.0), x, y, ragged())
    for by in ("example", y):
        own = ledger(run, model, x[:4], by=by, options=LedgerOptions(n_nodes=1))
        assert own.largest_residual <= 1e-12
        assert float(own.evaluations.max()) > 2


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
@pytest.mark.parametrize("by", ["example", "group"])
def test_tolerance_is_shared_by_the_steps_and_saves_work(tmp_path, activation, by):
    x, y = data()
    model = small(activation, widths=(4, 5, 5, 3))
    run = train(tmp_path / "run", model, torch.optim.SGD(model.parameters(), lr=1.0), x, y, ragged())
    sources = y if by == "group" else by
    loose, tight = (
        ledger(run, model, x[:4], by=sources, options=LedgerOptions(n_nodes=1, tolerance=own)) for own in (1e-4, 0.0)
    )
    assert 1e-12 < largest(loose.residuals) <= 1e-4 / len(run)
    assert tight.largest_residual <= 1e-13
    assert float(loose.evaluations.sum()) < float(tight.evaluations.sum())


@pytest.mark.parametrize("together", [1, 32])
def test_rounding_of_averaged_float32_training_is_a_separate_term(tmp_path, monkeypatch, together):
    """What rounding did to single steps acts on the average too, with what each step counts in it."""
    monkeypatch.setattr(backward, "MAX_STEPS_TOGETHER", together)
    x, y = (own.float() if own.is_floating_point() else own for own in data())
    model = small().float()
    averaged = torch.optim.swa_utils.AveragedModel(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    run = train(tmp_path / "run", model, optimizer, x, y, ragged(), average=averaged)
    own = ledger(run, model, x[:3], options=LedgerOptions(data=(x, y), final_weights="average"))
    groups = ledger(run, model, x[:3], by=torch.arange(12), options=LedgerOptions(final_weights="average"))
    for one in (own, groups):
        assert one.largest_residual <= 1e-12
        assert 1e-10 < largest(one.rounding) < 1e-4
    assert largest(own.rounding - groups.rounding) <= 1e-12
    assert largest(own.contributions - groups.contributions) <= 1e-12


class Tied(nn.Module):
    """One weight in two places."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.middle, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        hidden = torch.tanh(self.middle(torch.tanh(self.first(x))))
        return self.last(torch.tanh(self.middle(hidden)))


class Positions(nn.Module):
    """A linear layer without bias at two positions a row, one with a bias alone."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(2, 5, bias=False), nn.Linear(5, 3)
        self.last.weight.requires_grad_(False)

    def forward(self, x):
        return self.last(torch.tanh(self.first(x.view(-1, 2, 2))).sum(1))


@pytest.mark.parametrize("make", [Tied, Positions])
@pytest.mark.parametrize("options", [{"lr": 0.2}, {"lr": 0.1, "momentum": 0.8, "weight_decay": 0.05}])
def test_weights_of_many_uses_and_layers_of_many_positions(tmp_path, make, options):
    x, y = data()
    model = make().double()
    moved = [p for p in model.parameters() if p.requires_grad]
    run = train(tmp_path / "run", model, torch.optim.SGD(moved, **options), x, y, ragged())
    own = ledger(run, model, x[:3], options=LedgerOptions(data=(x, y)))
    expected, decay = definition(run, model, x, y, x[:3])
    assert largest(own.contributions - expected) <= 1e-12
    assert largest(own.decay - decay) <= 1e-12
    groups = ledger(run, model, x[:3], by=torch.arange(12), options=LedgerOptions(data=(x, y)))
    assert largest(groups.contributions - expected) <= 1e-12


class Head(nn.Module):
    """With a second head in train mode; nothing is drawn, so that steps of different modes could pass for alike."""

    def __init__(self):
        super().__init__()
        self.first, self.last, self.second = nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(4, 3)

    def forward(self, x):
        outputs = self.last(torch.tanh(self.first(x)))
        return self.second(x) + outputs if self.training else outputs


def dropout():
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 3))


@pytest.mark.parametrize("make", [dropout, Head])
@pytest.mark.parametrize("first", [True, False])
def test_modes_that_change_between_steps_are_those_of_each_step(tmp_path, make, first):
    """Train mode in some steps, eval mode in others."""
    x, y = data()
    torch.manual_seed(0)
    model = make().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    with Recorder(model, optimizer, tmp_path / "run", loss="cross_entropy") as recorder:
        for t, index in enumerate(ragged()):
            model.train((t % 3 != 1) is first)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[index]), y[index]).backward()
            recorder.step(index, x[index], y[index])
    run = Run.open(tmp_path / "run")
    own = ledger(run, model, x[:3], options=LedgerOptions(data=(x, y)))
    assert own.largest_residual <= 1e-12
    assert largest(own.rounding) <= 1e-13
    groups = ledger(run, model, x[:3], by=torch.arange(12), options=LedgerOptions(data=(x, y)))
    assert largest(groups.contributions - own.contributions) <= 1e-12


def test_invalid_arguments_are_refused(tmp_path):
    x, y = data()
    model = small()
    run = train(tmp_path / "run", model, torch.optim.SGD(model.parameters(), lr=0.1), x, y, ragged())
    for options in ({"tolerance": float("nan")}, {"tolerance": -1.0}, {"n_nodes": 0}, {"n_nodes": -2}):
        with pytest.raises(InputError, match=r"tolerance=|n_nodes="):
            LedgerOptions(**options)
    with pytest.raises(InputError, match="data of 5 examples"):
        ledger(run, model, x[:2], options=LedgerOptions(data=(x[:5], y[:5])))
    with pytest.raises(InputError, match="steps="):
        ledger(run, model, x[:2], options=LedgerOptions(steps=(0, len(run) + 1)))
    with pytest.raises(InputError, match="without labels"):
        ledger(run, model, x[:2], target="log_probability")
    with pytest.raises(InputError, match=r"an output 0..2"):
        ledger(run, model, x[:2], target=("logit", 3))
    assert ledger(run, model, x[:2], options=LedgerOptions(tolerance=0.0)).largest_residual <= 1e-13


class Scaled(nn.Module):
    """A unit whose pre-activations are a vector (n,), and parameters without axes."""

    def __init__(self, activation=torch.tanh):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, 1), nn.Linear(1, 3)
        self.gain, self.shift = nn.Parameter(torch.tensor(1.5)), nn.Parameter(torch.zeros(()))
        self.activation = activation

    def forward(self, x):
        hidden = self.activation(self.first(x).squeeze(1)) * self.gain
        return self.last(hidden[:, None]) + self.shift


@pytest.mark.parametrize("activation", [torch.tanh, torch.relu])
@pytest.mark.parametrize("options", [{"lr": 0.2}, {"lr": 0.1, "momentum": 0.8, "weight_decay": 0.05}])
def test_parameters_without_axes_are_parameters(tmp_path, options, activation):
    x, y = data()
    model = Scaled(activation).double()
    averaged = torch.optim.swa_utils.AveragedModel(model)
    optimizer = torch.optim.SGD(model.parameters(), **options)
    run = train(tmp_path / "run", model, optimizer, x, y, ragged(), average=averaged)
    own = ledger(run, model, x[:3], options=LedgerOptions(data=(x, y)))
    assert own.largest_residual <= 1e-12
    if activation is torch.tanh:
        expected, decay = definition(run, model, x, y, x[:3])
        assert largest(own.contributions - expected) <= 1e-12
        assert largest(own.decay - decay) <= 1e-12
    layers = ledger(run, model, x[:3], by="layer")
    assert layers.sources == ("gain", "shift", "first", "last")
    assert largest(layers.contributions.sum(1) - own.contributions.sum(1)) <= 1e-12
    mean = ledger(run, model, x[:3], options=LedgerOptions(data=(x, y), final_weights="average"))
    assert mean.largest_residual <= 1e-12
    assert ledger(run, model, x[:3], options=LedgerOptions(steps=(2, 5))).largest_residual <= 1e-12
    machine = exact_kernel_machine(run, model, x[:3])
    assert largest(machine.contributions(12) - own.contributions) <= 1e-12
    assert influence(run, model, x[:3], options=InfluenceOptions(data=(x, y))).influence.shape == (3, 12, 3)
