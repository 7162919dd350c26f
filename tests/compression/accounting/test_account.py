"""The account of small networks: noise in bits, nulls, references that are refused, invariances, files."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import kernelmem as km
from kernelmem.compression.accounting.calibration import noise_entropy
from kernelmem.training import EnsembleOptions, Member, Recipe, digits, mlp, train_classifier, train_mlps

N, WIDTHS = 300, (64, 64)
RATES = (0.0, 0.2)


@pytest.fixture(scope="module")
def trained():
    """Rows of digits, and for each rate (labels, network trained until it fits them)."""
    data = digits(n_train=N, seed=0)
    x = data.x_train.reshape(N, -1)
    labels = [km.corrupt_labels(data.y_train, rate, seed=1).y for rate in RATES]
    networks = fit([torch.arange(N)] * 2, labels, x, [3, 3])
    return x, dict(zip(RATES, zip(labels, networks, strict=True), strict=True))


def fit(rows, labels, x, seeds):
    """Networks that fit labels (n_k,) of rows, each of its own seed."""
    members = [Member(WIDTHS, r, y, seed, seed) for r, y, seed in zip(rows, labels, seeds, strict=True)]
    options = EnsembleOptions(keep_parameters=True, n_classes=10)
    test = (x[:2], torch.tensor([0, 1]))
    result = train_mlps(members, x, test=test, recipe=Recipe(steps=150, lr=0.01), options=options, progress=False)
    networks = []
    for parameters in result.parameters or []:
        network = mlp(64, WIDTHS, 10, seed=0)
        network.load_state_dict(parameters)
        networks.append(network)
    return networks


@pytest.fixture(scope="module")
def accounts(trained):
    x, cases = trained
    return {rate: km.account(network, (x, y), reference="infinite_ntk") for rate, (y, network) in cases.items()}


def test_noise_is_memorized_bit_for_bit(accounts):
    """At n = 300 the left-out predictions are worse with noise than without, so that 8 % are allowed."""
    clean, noisy = accounts[0.0], accounts[0.2]
    bits = N * noise_entropy(0.2, 10)
    assert noisy.memorized - clean.memorized == pytest.approx(bits, rel=0.08)
    assert abs(noisy.noise_rate - 0.2) < 3 * noisy.noise_rate_error
    assert clean.noise_rate < 0.01
    assert noisy.noise == pytest.approx(N * noise_entropy(noisy.noise_rate, 10))
    slope = math.log2(9 * (1 - noisy.noise_rate) / noisy.noise_rate)  # dH / dr
    assert noisy.noise_error == pytest.approx(N * slope * noisy.noise_rate_error, rel=0.05)
    assert float((noisy.predicted == clean.labels).double().mean()) > 0.8
    assert clean.network < 8
    assert noisy.network < 12
    assert noisy.online > noisy.left_out


def test_the_parts_add_up_and_the_rows_too(accounts):
    for result in accounts.values():
        follows = result.uniform - result.left_out
        assert follows + result.memorized + result.network == pytest.approx(result.uniform)
        assert 0 <= result.left_out - float(result.left_out_rows.sum()) <= math.log2(19 * 41 * 30)
        assert float(result.network_rows.sum()) <= result.network + 1e-9
        assert torch.equal(result.memorized_rows, result.left_out_rows - result.network_rows)
        assert result.to_frame()["memorized"].is_monotonic_decreasing


def test_an_untrained_network_reads_minus_one(trained, accounts):
    x, cases = trained
    for rate, (y, _) in cases.items():
        result = km.account(mlp(64, WIDTHS, 10, seed=5), (x, y), reference="infinite_ntk")
        assert result.memorized is not None
        assert abs(result.memorized) <= 2
        assert all(abs(bits) <= 2 for bits in accounts[rate].nulls.values())


def test_networks_that_did_not_see_the_row_or_saw_other_flips_read_about_zero(trained):
    x, cases = trained
    y, network = cases[0.2]
    received = []

    def train(indices, labels, seed):
        received.append((indices, labels))
        return fit([indices], [labels], x, [seed % 1000])[0]

    result = km.account(network, (x, y), reference="infinite_ntk", retrain=train)
    assert len(result.nulls) == 3
    assert all(abs(bits) <= 2 for bits in result.nulls.values())
    first, second = received[0][0], received[1][0]
    assert torch.equal(torch.cat([first, second]).sort().values, torch.arange(N))
    for rows, labels in received[:2]:
        assert torch.equal(labels, y[rows])
    for (rows, labels), (_, redrawn) in zip(received[:2], received[2:], strict=True):
        assert torch.equal(received[2 if rows is first else 3][0], rows)
        assert 0.1 < float((redrawn != labels).double().mean()) < 0.6
    with_two = km.account(
        network, (x, y), reference="infinite_ntk", retrain=lambda indices, seed: train(indices, y[indices], seed)
    )
    assert len(with_two.nulls) == 2


def test_the_trained_kernel_is_refused_and_its_bits_are_counted(trained):
    x, cases = trained
    y, network = cases[0.2]
    for reference in (
        "ntk",
        network,
        km.ntk(network, x),
        3.0 * km.ntk(network, x, dtype=torch.float64).numpy(),
        network(x).softmax(1).detach(),
    ):
        with pytest.raises(km.InputError, match=r"(learned these labels|own outputs)"):
            km.account(network, (x, y), reference=reference)
    result = km.account(network, (x, y), trained_kernel=True)
    assert result.reference == "NTK of the re-initialized network"
    assert result.moved_into_kernel > 20
    assert "moved into the kernel" in str(result)


def test_a_linear_model_has_a_kernel_that_learns_nothing(trained):
    x, cases = trained
    y = cases[0.0][0]
    model = nn.Linear(64, 10)
    result = km.account(model, (x, y), reference=km.ntk(model, x, dtype=torch.float64))
    assert result.estimable
    assert result.reference == "given kernel"


def test_the_network_before_training_is_a_reference_and_the_null(trained):
    x, cases = trained
    y, network = cases[0.2]
    result = km.account(network, (x, y), reference=mlp(64, WIDTHS, 10, seed=3))
    assert result.reference == "NTK of the given network"
    assert result.initialization == "the given network"
    assert list(result.nulls.values()) == pytest.approx([-1.0], abs=0.1)


def test_the_network_before_training_is_a_reference_on_frozen_features(trained):
    """Its kernel is that of the trained network: only a linear layer was trained. The trained network itself is refused."""
    x, cases = trained
    y = cases[0.2][0]
    model = nn.Sequential(mlp(64, (64,), 32, seed=0).requires_grad_(False), nn.Linear(32, 10))
    before = copy.deepcopy(model)
    train_classifier(model, x, y, epochs=5, seed=0)
    result = km.account(model, (x, y), reference=before)
    assert result.reference == "NTK of the given network"
    for trained_reference in (model, km.ntk(model, x)):
        with pytest.raises(km.InputError, match=r"NTK of the trained network.*the network before training"):
            km.account(model, (x, y), reference=trained_reference)


def test_a_frozen_part_does_not_excuse_a_kernel_that_moves(trained):
    x, cases = trained
    y = cases[0.2][0]
    model = mlp(64, WIDTHS, 10, seed=0)
    next(model.parameters()).requires_grad_(False)
    near = copy.deepcopy(model)
    with torch.no_grad():
        list(near.parameters())[-1].add_(1e-6)
    with pytest.raises(km.InputError, match="NTK of the trained network"):
        km.account(model, (x, y), reference=near)


def test_probabilities_are_not_logits(trained):
    x, cases = trained
    y, network = cases[0.2]
    expected = km.account(network, (x, y), reference="rbf")
    softmax = nn.Sequential(network, nn.Softmax(1))
    with pytest.raises(km.InputError, match=r"probabilities.*model\(x\)\.clamp_min\(1e-12\)\.log\(\)"):
        km.account(softmax, (x, y), reference="rbf")
    result = km.account(softmax, (x, y), reference="rbf", forward=lambda model, x: model(x).clamp_min(1e-12).log())
    assert result.memorized == pytest.approx(expected.memorized, abs=0.1)
    model, two = nn.Linear(64, 1), y % 2
    torch.nn.init.ones_(model.weight)
    sigmoid = nn.Sequential(nn.BatchNorm1d(64), model, nn.Sigmoid())
    with pytest.raises(km.InputError, match=r"torch\.logit\(model\(x\), eps=1e-12\)"):
        km.account(sigmoid, (x - x.mean(), two), reference="rbf")
    logit = km.account(sigmoid, (x - x.mean(), two), forward=lambda m, b: torch.logit(m(b), eps=1e-12), reference="rbf")
    assert logit.n_classes == 2


def test_class_frequencies_of_rare_classes():
    x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    y = (torch.arange(200) % 50 == 0).long()
    result = km.account(nn.Linear(4, 2), (x, y))
    assert result.class_frequencies == pytest.approx(200 * (1 - noise_entropy(0.02, 2)))
    for text in (str(result), result.sentence):
        assert "172" in text
    balanced = km.account(nn.Linear(4, 2), (x, (x[:, 0] > x[:, 0].median()).long()))
    assert balanced.class_frequencies == pytest.approx(0, abs=1e-9)
    assert "class frequencies" not in str(balanced)


def test_random_labels_are_not_estimable(trained):
    x, _ = trained
    y = torch.from_numpy(np.random.default_rng(0).integers(0, 10, N))
    result = km.account(mlp(64, WIDTHS, 10, seed=5), (x, y), reference="infinite_ntk")
    assert not result.estimable
    assert result.left_out is None
    assert result.memorized is None
    assert result.noise_rate is None
    assert "Not estimable" in result.sentence
    assert "not estimable" in str(result)
    assert abs(result.network - result.uniform) <= 2
    assert abs(result.nulls["untrained network"]) <= 2
    assert torch.allclose(result.left_out_rows, torch.full((N,), math.log2(10), dtype=torch.float64))


def test_names_of_classes_and_order_of_rows_do_not_matter(trained, accounts):
    x, cases = trained
    y, network = cases[0.2]
    rng = np.random.default_rng(0)
    rows, classes = torch.from_numpy(rng.permutation(N)), torch.from_numpy(rng.permutation(10))
    renamed = mlp(64, WIDTHS, 10, seed=0)
    renamed.load_state_dict(network.state_dict())
    with torch.no_grad():
        for parameter, source in zip(renamed[-1].parameters(), network[-1].parameters(), strict=True):
            parameter.copy_(source[classes])
    moved = km.account(renamed, (x[rows], classes.argsort()[y][rows]), reference="infinite_ntk")
    first = accounts[0.2]
    for name in ("left_out", "network", "memorized", "noise_rate"):
        assert getattr(moved, name) == pytest.approx(getattr(first, name), rel=1e-5)
    assert torch.allclose(moved.memorized_rows, first.memorized_rows[rows], atol=1e-4)


def test_model_and_random_state_are_unchanged_in_train_mode(trained):
    x, cases = trained
    y, network = cases[0.2]
    model = nn.Sequential(nn.Dropout(0.5), network).train()
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    result = km.account(model, (x, y), reference="infinite_ntk")
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert result.network < 12


def test_one_logit_equals_two_outputs_and_forward_takes_dicts():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(80, 4, generator=g)
    y = (x[:, 0] + 0.3 * torch.randn(80, generator=g) > 0).long()
    one = nn.Linear(4, 1)
    two = nn.Linear(4, 2)
    with torch.no_grad():
        two.weight.copy_(torch.cat([torch.zeros(1, 4), one.weight]))
        two.bias.copy_(torch.cat([torch.zeros(1), one.bias]))
    first, second = (km.account(model, (x, y), reference="rbf") for model in (one, two))
    third = km.account(
        two, ({"inputs": x}, y.numpy()), reference="rbf", forward=lambda model, batch: model(batch["inputs"])
    )
    assert first.uniform == 80
    for other in (second, third):
        assert other.left_out == pytest.approx(first.left_out)
        assert other.network == pytest.approx(first.network)
    assert torch.equal(second.network_rows, third.network_rows)


def test_classes_without_labels_and_few_rows():
    x = torch.eye(6, 4, dtype=torch.float64) + 0.1
    result = km.account(nn.Linear(4, 5), (x, [0, 3, 0, 3, 0, 3]))
    assert result.n_classes == 5
    assert result.uniform == pytest.approx(6 * math.log2(5))
    assert km.account(nn.Linear(4, 5), (x[:2], [0, 3])).uniform == pytest.approx(2 * math.log2(5))


def test_a_network_whose_outputs_are_its_parameters():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.outputs = nn.Parameter(torch.tensor([1.0, 2.0]))

        def forward(self, x):
            return self.outputs.expand(len(x), 2)

    x = torch.linspace(-1, 1, 30)[:, None]
    result = km.account(Constant(), (x, (x[:, 0] > 0).long()), reference="rbf")
    assert result.memorized == pytest.approx(-1, abs=0.1)


def test_held_out_probabilities(trained):
    x, cases = trained
    y, network = cases[0.2]
    p = torch.full((N, 10), 0.05, dtype=torch.float64)
    p[torch.arange(N), cases[0.0][0]] = 0.55
    result = km.account(network, (x, y), reference=p)
    assert result.online is None
    assert result.memorized == pytest.approx(N * noise_entropy(0.2, 10), rel=0.03)
    assert abs(result.noise_rate - 0.2) < 1e-4


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"reference": "nonsense"}, "initial_ntk"),
        ({"reference": torch.zeros(3, 3)}, "reference of shape"),
        ({"reference": torch.zeros(N, N)}, "not zero"),
        ({"reference": torch.full((N, 10), 0.2)}, "sum to 1"),
        ({"retrain": lambda: None}, "retrain"),
        ({"memory": 10_000}, "random rows"),
        ({"memory": 40 * N * N, "reference": "rbf"}, "expected at most memory="),
        ({"trained_kernel": 1}, "trained_kernel"),
    ],
)
def test_wrong_arguments_are_refused(trained, change, match):
    x, cases = trained
    y, network = cases[0.0]
    with pytest.raises(km.InputError, match=match):
        km.account(network, (x, y), **change)


def test_labels_of_one_class_or_beyond_the_outputs_are_refused(trained):
    x, cases = trained
    network = cases[0.0][1]
    with pytest.raises(km.InputError, match="one class"):
        km.account(network, (x, torch.ones(N)))
    with pytest.raises(km.InputError, match=r"outside 0\.\.9"):
        km.account(network, (x, torch.arange(N) % 11))


def test_save_load_figure_and_text(accounts, trained, tmp_path):
    x = trained[0]
    result = accounts[0.2]
    loaded = km.Account.load(result.save(tmp_path / "account.safetensors"))
    assert str(loaded) == str(result)
    assert loaded.sentence == result.sentence
    assert torch.equal(loaded.memorized_rows, result.memorized_rows)
    assert len(str(result).splitlines()) < 24
    for images in (None, x.reshape(N, 8, 8), x.reshape(N, 1, 8, 8), np.zeros((N, 8, 8, 3))):
        assert result.plot(images).axes
    with pytest.raises(km.InputError, match="reshape"):
        result.plot(x)
    assert replace(result, left_out=None, noise_rate=None, noise_rate_error=None, estimable=False, online=None).plot()
    assert replace(result, network=result.left_out + 1).sentence.count("no more than that (-1 bits, null -1)") == 1
