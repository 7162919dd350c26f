"""The ledger does not depend on how the work is split: rows, slices, nodes, steps in one pass, parts of a run."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.func import functional_call

import kernelmem.trajectory.trace as forward
from kernelmem.core.batches import as_rows
from kernelmem.trajectory.integration import step_integral as integral
from kernelmem.trajectory.ledger import backward_sweep as backward
from kernelmem.trajectory.ledger import dense_adjoint as dense
from kernelmem.trajectory.ledger import factored_adjoint as factored
from kernelmem.trajectory.ledger import grouped_sweep as grouped
from kernelmem.trajectory.ledger.ledger import LedgerOptions, ledger
from kernelmem.trajectory.network.network import Network
from kernelmem.trajectory.network.weight_blocks import Blocks
from tests.trajectory.definition import data, definition, ragged, small, train


def largest(tensor):
    return float(tensor.abs().max())


def convolutional():
    torch.manual_seed(0)
    layers = [nn.Unflatten(1, (2, 2)), nn.Conv1d(2, 4, 1, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)]
    return nn.Sequential(*layers).double()


class Sequences(nn.Module):
    """Two positions a row; the first layer sees them one row after the other, the second position by position."""

    def __init__(self, interleaved=True):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.last = nn.Linear(2, 5), nn.Linear(5, 4), nn.Linear(4, 3)
        self.interleaved = interleaved

    def forward(self, x):
        hidden = torch.tanh(self.first(x.reshape(-1, 2, 2)))
        if self.interleaved:
            hidden = torch.tanh(self.second(hidden.transpose(0, 1).reshape(-1, 5))).view(2, -1, 4).sum(0)
        else:
            hidden = torch.tanh(self.second(hidden.reshape(-1, 5))).view(-1, 2, 4).sum(1)
        return self.last(hidden)


SGD, ADAM = torch.optim.SGD, torch.optim.Adam
HEAVY = {"lr": 0.1, "momentum": 0.8, "dampening": 0.3, "weight_decay": 0.05, "maximize": True}
CASES = {
    "tanh, plain": (small, SGD, {"lr": 0.2, "weight_decay": 0.05, "maximize": True}, {}),
    "tanh, momentum": (small, SGD, HEAVY, {}),
    "tanh, nesterov, from the middle": (
        small,
        SGD,
        {"lr": 0.1, "momentum": 0.8, "nesterov": True, "weight_decay": 0.05},
        {"steps": (2, 6)},
    ),
    "tanh, adamw": (small, torch.optim.AdamW, {"lr": 0.02, "weight_decay": 0.1, "maximize": True}, {}),
    "tanh, adam, from the middle": (small, ADAM, {"lr": 0.02}, {"steps": (3, 5)}),
    "tanh, adam, averaged": (small, ADAM, {"lr": 0.02, "weight_decay": 0.1}, {"final_weights": "average"}),
    "tanh, plain, averaged": (small, SGD, {"lr": 0.2}, {"final_weights": "average"}),
    "relu, plain": (lambda: small(nn.ReLU), SGD, {"lr": 0.3}, {}),
    "relu, momentum": (lambda: small(nn.ReLU), SGD, HEAVY, {}),
    "relu, momentum, from the middle": (lambda: small(nn.ReLU), SGD, HEAVY, {"steps": (2, 6)}),
    "relu, momentum, averaged": (lambda: small(nn.ReLU), SGD, HEAVY, {"final_weights": "average"}),
    "convolution, adam": (convolutional, ADAM, {"lr": 0.02, "weight_decay": 0.1}, {}),
    "positions, plain": (lambda: Sequences(False).double(), SGD, {"lr": 0.2}, {}),
    "interleaved, momentum": (lambda: Sequences().double(), SGD, HEAVY, {}),
}
SETTINGS = {
    "everything": [
        *((module, "MAX_STEPS_TOGETHER", 1) for module in (forward, backward)),
        *((module, "MAX_NUMBERS", 1) for module in (backward, integral, grouped)),
        *((dense, name, 3) for name in ("SLICE_PARAMETERS", "SLICE_NUMBERS", "SLICE_ROWS")),
        (backward, "SLICE_PARAMETERS", 3),
        (forward, "MAX_BYTES", 1),
    ],
    "slices": [(dense, "SLICE_PARAMETERS", 5), (dense, "SLICE_NUMBERS", 7), (dense, "SLICE_ROWS", 4)],
    "kept factors": [(backward, "MIN_NUMBERS", 1), (factored, "DENSE_SHARE", 1e9)],
    "factors, then dense": [
        (backward, "MIN_NUMBERS", 1),
        (factored, "DENSE_SHARE", 2.5),
        *((module, "MAX_STEPS_TOGETHER", 1) for module in (forward, backward)),
    ],
    "nodes": [(integral, "MAX_NUMBERS", 1), (grouped, "MAX_NUMBERS", 1)],
    "slopes first": [(backward, "MAX_NUMBERS", 1), (integral, "MAX_NUMBERS", 300)],
    "a step at a time": [(forward, "MAX_STEPS_TOGETHER", 1), (backward, "MAX_STEPS_TOGETHER", 1)],
    "two steps at a time": [(forward, "MAX_STEPS_TOGETHER", 2), (backward, "MAX_STEPS_TOGETHER", 2)],
    "stretches": [(forward, "MAX_BYTES", 4 * 8 * 4 * 48)],
}


@pytest.mark.parametrize(
    ("make", "together"),
    [
        (small, True),
        (lambda: small(nn.ReLU), True),
        (convolutional, True),
        (lambda: Sequences(False).double(), True),
        (lambda: Sequences().double(), False),  # some of its rows are no piece of its batch
    ],
)
def test_networks_run_in_blocks_if_possible(make, together):
    """What goes wrong in blocks is found when the network is made, and costs time only: so it would not be seen elsewhere."""
    model, (x, _) = make(), data()
    names = [name for name, _ in model.named_parameters()]
    network = Network(model, as_rows(x), parameters=names)
    assert network.supports_blocks is together
    generator = torch.Generator().manual_seed(1)
    start, stop = (
        {name: torch.randn(3, *p.shape, generator=generator, dtype=p.dtype) for name, p in model.named_parameters()}
        for _ in range(2)
    )
    places = torch.linspace(0, 1, 12, dtype=torch.float64)
    for counts, lines in (((5, 1, 6), {}), ((5, 1, 6), {"stop": stop}), ((12,), {"stop": stop}), ((4, 4, 4), {})):
        blocks = Blocks(counts, start, **lines, places=places if lines else None)
        found = network.outputs(as_rows(x), blocks)
        block = [b for b, count in enumerate(counts) for _ in range(count)]
        for i in range(12):
            state = {name: w[block[i]] for name, w in start.items()}
            if lines:
                state = {name: w + places[i] * (stop[name][block[i]] - w) for name, w in state.items()}
            expected = functional_call(model, state, (x[i : i + 1],))
            assert largest(found[i] - expected[0]) <= 1e-12 * (1 + largest(expected))


def test_blocks_are_padded_and_unpadded():
    blocks = Blocks((2, 4, 1), {})
    pad, unpad = blocks.padding
    rows = torch.arange(7)
    padded = rows[pad].view(3, 4)
    assert padded[1].tolist() == [2, 3, 4, 5]
    assert padded[0, :2].tolist() == [0, 1]
    assert padded[2].unique().tolist() == [6]  # a block is filled up with its own rows
    assert torch.equal(rows[pad][unpad], rows)
    assert Blocks((3, 3), {}).padding == (None, None)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of every case, with batches of different sizes, and its ledgers."""
    found = {}

    def of(case):
        if case not in found:
            make, kind, options, asked = CASES[case]
            x, y = data()
            model = make()
            average = None
            if "final_weights" in asked:
                multi = torch.optim.swa_utils.get_ema_multi_avg_fn(0.7)
                average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=multi)
            folder = tmp_path_factory.mktemp("chunks") / "run"
            batches = ragged(sizes=(5, 3, 3, 4, 1, 5, 4))
            run = train(folder, model, kind(model.parameters(), **options), x, y, batches, average=average)
            rows = {"x": x[:5], "options": LedgerOptions(data=(x, y), **asked)}
            groups = {"by": torch.arange(12)}
            own = ledger(run, model, **with_history(rows, "final_weights" not in asked))
            found[case] = run, model, rows, groups, own, ledger(run, model, **rows, **groups)
        return found[case]

    return of


def with_history(rows, history):
    return {**rows, "options": replace(rows["options"], history=history)}


def agree(one, other, tolerance=1e-12):
    for name in ("contributions", "decay", "rounding", "initial", "final"):
        assert largest(getattr(one, name) - getattr(other, name)) <= tolerance, name
    assert one.largest_residual <= 1e-11


@pytest.mark.parametrize("case", CASES)
def test_all_kinds_of_runs_equal_the_definition(runs, case):
    """Against the definition where there is one, and two ways of computing it elsewhere."""
    run, model, rows, _, own, by_group = runs(case)
    assert largest(own.contributions) > 1e-3
    agree(own, by_group, 1e-11)
    if run.optimizer == "SGD" and rows["options"].final_weights == "last" and rows["options"].steps is None:
        contributions, decay = definition(run, model, *rows["options"].data, rows["x"], nodes=8)
        if "relu" not in case:  # its kinks are not located there
            assert largest(own.contributions - contributions) <= 1e-11
            assert largest(own.decay - decay) <= 1e-11


def combinations():
    """Everything split in every kind of run; each other setting in every third kind, in `make soak` in all."""
    for i, setting in enumerate(SETTINGS):
        for j, case in enumerate(CASES):
            if "factors" in setting and not ("tanh" in case and SGD in CASES[case]):
                continue
            is_chosen = setting == "everything" or (i + j) % 3 == 0
            yield pytest.param(case, setting, marks=[] if is_chosen else pytest.mark.soak)


@pytest.mark.parametrize(("case", "setting"), list(combinations()))
def test_splitting_the_work_does_not_matter(runs, monkeypatch, case, setting):
    run, model, rows, groups, own, by_group = runs(case)
    for module, name, value in SETTINGS[setting]:
        monkeypatch.setattr(module, name, value)
    found = ledger(run, model, **with_history(rows, own.history is not None))
    agree(found, own)
    if own.history is not None:
        assert largest(found.history - own.history) <= 1e-12
    if setting in ("nodes", "stretches", "everything"):
        agree(ledger(run, model, **rows, **groups), by_group, 1e-11)


def test_a_row_alone_has_the_same_terms(runs):
    for case in ("tanh, plain", "relu, momentum"):
        run, model, rows, _, own, _ = runs(case)
        for i in (0, 3):
            alone = ledger(run, model, **{**rows, "x": rows["x"][i : i + 1]})
            assert largest(alone.contributions[0] - own.contributions[i]) <= 1e-11
            assert largest(alone.decay[0] - own.decay[i]) <= 1e-11


def test_the_trained_model_is_unchanged(runs):
    run, model, rows, _, _, _ = runs("tanh, momentum")
    before = copy.deepcopy(model.state_dict())
    ledger(run, model, **rows)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
