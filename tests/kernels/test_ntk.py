"""kernelmem.kernels.ntk against its closed forms, its refusals and its memory limit (laws: tests/properties)."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from kernelmem.core.errors import InputError, UnsupportedModelError, VerificationError
from kernelmem.core.options import as_bytes
from kernelmem.kernels import reference
from kernelmem.kernels.ntk import ntk
from kernelmem.testing.cases import with_random_weights
from kernelmem.testing.closeness import assert_exact
from kernelmem.testing.modules import Apply, Recurrent

KINDS = ("trace", "diagonal", "full", "pseudo")


def relative(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)).double()


@pytest.fixture
def x():
    return torch.randn(7, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_linear_model_has_the_closed_form(x):
    model = nn.Linear(5, 4).double()
    inner = x @ x.T + 1
    assert relative(ntk(model, x, outputs="trace"), 4 * inner) < 1e-14
    full = ntk(model, x, outputs="full")
    assert relative(full, inner[:, :, None, None] * torch.eye(4)) < 1e-14


@pytest.mark.parametrize("outputs", KINDS)
def test_one_hidden_layer_by_hand(outputs):
    """f = V tanh(W x + b): the four tangents written out."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2, bias=False)).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    W, b, V = (p.detach() for p in model.parameters())
    h = torch.tanh(x @ W.T + b)
    g = V[None] * (1 - h**2)[:, None]  # (n, C, H)
    full = torch.einsum("nch,mdh->nmcd", g, g) * (x @ x.T + 1)[:, :, None, None]
    full += (h @ h.T)[:, :, None, None] * torch.eye(2)
    assert relative(ntk(model, x, outputs=outputs), _of(full, outputs)) < 1e-13


def _of(full, outputs):
    diagonal = full.diagonal(dim1=2, dim2=3)
    return {
        "full": full,
        "diagonal": diagonal,
        "trace": diagonal.sum(-1),
        "pseudo": full.sum((2, 3)) / full.shape[-1],
    }[outputs]


class Tied(nn.Module):
    """A layer called twice, a free parameter, and a weight used in functional form."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(5, 5)
        self.gain = nn.Parameter(torch.randn(5))
        self.out = nn.Linear(5, 3)

    def forward(self, x):
        x = self.inner(torch.tanh(self.inner(x)) * self.gain)
        return self.out(torch.nn.functional.linear(x, self.out.weight.T @ self.out.weight))


class RecurrentNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(5, 4, batch_first=True)
        self.out = nn.Linear(4, 3)

    def forward(self, x):
        return self.out(self.rnn(x[:, None].repeat(1, 3, 1))[0][:, -1])


class Convolutional(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv1d(1, 2, 3), nn.GroupNorm(1, 2), nn.ReLU(), nn.Flatten(), nn.Linear(6, 3))

    def forward(self, x):
        return self.body(x[:, None])


@pytest.mark.parametrize("make", [Tied, RecurrentNetwork, Convolutional])
@pytest.mark.parametrize("outputs", KINDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_other_modules_equal_the_reference(make, outputs, dtype, tolerance, x):
    torch.manual_seed(0)
    model = make()
    found = ntk(model, x, x[:3], outputs=outputs, dtype=dtype)
    expected = reference.ntk(model, x, x[:3], outputs=outputs, dtype=torch.float64)
    assert found.dtype == dtype
    assert relative(found.double(), expected) < tolerance


@pytest.mark.parametrize("outputs", KINDS)
@pytest.mark.parametrize("memory", [6_000, 20_000, "1GiB"])
def test_the_memory_limit_changes_no_value(model, x, outputs, memory):
    if outputs == "full" and memory == 6_000:
        memory = 12_000
    assert relative(ntk(model, x, outputs=outputs, memory=memory), reference.ntk(model, x, outputs=outputs)) < 1e-12


def test_too_little_memory_is_refused_with_the_figure(model, x):
    with pytest.raises(InputError, match="memory"):
        ntk(model, x, memory=100)


def test_parameters_select_summands(model, x):
    names = [name for name, _ in model.named_parameters()]
    parts = [ntk(model, x, parameters=[name]) for name in names]
    assert relative(sum(parts), ntk(model, x)) < 1e-13
    assert relative(ntk(model, x, parameters=["0.bias"]), reference.ntk(model, x, parameters=["0.bias"])) < 1e-13


def test_frozen_parameters_are_left_out_by_default(model, x):
    model[0].requires_grad_(False)
    assert (
        relative(ntk(model, x), reference.ntk(model, x, parameters=["2.weight", "2.bias", "4.weight", "4.bias"]))
        < 1e-13
    )


def test_the_model_is_not_changed(model, x):
    model.train()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    model[2].requires_grad_(False)
    before = copy.deepcopy(model)
    ntk(model, x)
    assert model.training
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in before.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))


@pytest.mark.parametrize("wrap", [lambda x: x.numpy(), lambda x: x.tolist(), TensorDataset, "loader", "labeled"])
def test_inputs_as_users_have_them(model, x, wrap):
    if wrap == "loader":
        given = DataLoader(TensorDataset(x), batch_size=3)
    elif wrap == "labeled":
        given = TensorDataset(x, torch.zeros(len(x)))
    else:
        given = wrap(x)
    assert relative(ntk(model, given, dtype=torch.float64), reference.ntk(model, x)) < 1e-12


def test_dict_batches_through_forward(model, x):
    forward = lambda m, batch: m(batch["pixels"])  # noqa: E731
    found = ntk(model, {"pixels": x, "ids": torch.arange(7)}, forward=forward)
    assert relative(found, reference.ntk(model, x)) < 1e-12


class MixesRows(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(5, 3)

    def forward(self, x):
        return self.out(x - x.mean(0, keepdim=True))


class Sampling(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(5, 3)

    def forward(self, x):
        return torch.nn.functional.dropout(self.out(x), 0.5, training=True)


class WritesOver(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x):
        h = torch.tanh(self.first(x)) * 1.0
        out = self.second(h)
        h.add_(1.0)
        return out + h[:, :3]


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3)), UnsupportedModelError, "eval"),
        (lambda: nn.Sequential(nn.Linear(5, 3), nn.Dropout(0.1)), UnsupportedModelError, "eval"),
        (Sampling, UnsupportedModelError, "deterministic"),
        (MixesRows, VerificationError, "mix"),
        (WritesOver, UnsupportedModelError, "in place"),
        (lambda: nn.Sequential(nn.Linear(5, 3), nn.Flatten(0)), UnsupportedModelError, "forward="),
        (lambda: nn.Linear(4, 3), InputError, "shape"),
        (lambda: nn.ReLU(), InputError, "parameters"),
    ],
)
def test_models_that_cannot_be_analyzed_are_refused(make, error, words, x):
    torch.manual_seed(0)
    with pytest.raises(error, match=words) as caught:
        ntk(make().double(), x)
    assert caught.value.given
    assert caught.value.expected
    assert caught.value.hint


def test_eval_mode_normalization_is_taken(x):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3)).double()
    model(x)
    model.eval()
    assert relative(ntk(model, x), reference.ntk(model, x)) < 1e-12


@pytest.mark.parametrize(
    "change",
    [
        {"outputs": "mean"},
        {"parameters": ["nope"]},
        {"parameters": []},
        {"dtype": torch.float16},
        {"memory": "lots"},
        {"memory": -1},
        {"x": np.full((3, 5), np.nan)},
        {"x": np.zeros((0, 5))},
        {"x": "text"},
    ],
)
def test_bad_arguments(model, x, change):
    arguments = {"x": x} | change
    with pytest.raises(InputError):
        ntk(model, arguments.pop("x"), **arguments)


def test_progress_counts_tiles(model, x):
    seen = []
    ntk(model, x, memory=4_000, progress=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == list(range(1, len(seen) + 1))
    assert seen[-1][0] == seen[-1][1] > 1


def test_unused_parameters_add_nothing(x):
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle, self.free = nn.Linear(5, 3), nn.Linear(5, 3), nn.Parameter(torch.ones(2))

        def forward(self, x):
            self.idle(x)
            return self.used(x)

    torch.manual_seed(0)
    model = Unused().double()
    assert relative(ntk(model, x), 3 * (x @ x.T + 1)) < 1e-13


def test_sizes_in_words():
    assert as_bytes("2GiB") == 2**31
    assert as_bytes("500 MB") == 500_000_000
    assert as_bytes(12.0) == 12


def rows(*size, seed=1):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_duplicate_rows_make_a_singular_kernel():
    model, x = (
        with_random_weights(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)), dtype=torch.float32),
        rows(6, 4).float(),
    )
    K = ntk(model, x.repeat(3, 1))
    assert torch.equal(K, K.T)
    values = torch.linalg.eigvalsh(K.double())
    assert float(values.min()) >= -len(K) * torch.finfo(torch.float32).eps * float(values.max())


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("C", [1, 3])
@pytest.mark.parametrize(
    "first",
    [
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(9, 4)),
        lambda: nn.Sequential(nn.Conv1d(3, 4, 3), nn.Flatten()),
        lambda: nn.Sequential(nn.Conv1d(3, 2, 2), nn.GroupNorm(1, 2), nn.Tanh(), nn.Flatten()),
        lambda: nn.Sequential(Recurrent(nn.GRU(3, 4, batch_first=True)), Apply(lambda h: h[:, -1])),
        lambda: nn.Sequential(nn.TransformerEncoderLayer(3, 1, 4, batch_first=True), Apply(lambda h: h.sum(1))),
    ],
    ids=["linear", "conv", "norm", "gru", "transformer"],
)
def test_one_row_and_one_output(first, n, C):
    body = first()
    with torch.no_grad():
        width = body.eval()(torch.zeros(1, 3, 3)).shape[1]
    assert_exact(with_random_weights(nn.Sequential(body, nn.Tanh(), nn.Linear(width, C))), rows(n, 3, 3))


def test_one_output_without_a_readout():
    assert_exact(
        with_random_weights(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), Apply(lambda h: h.sum(1, keepdim=True)))),
        rows(3, 4),
    )
