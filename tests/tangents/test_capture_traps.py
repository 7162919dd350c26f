"""What breaks in other libraries, silently: every case is right here, by hand or by the definition, or refused by name.

One test for each row of the table "what breaks in the peers"; the sizes are chosen so that what might be confused
(rows, positions, channels) has the same length.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kernelmem.core.errors import KernelmemError
from kernelmem.kernels import reference
from kernelmem.kernels.ntk import ntk
from kernelmem.testing.cases import with_random_weights
from kernelmem.testing.closeness import assert_close, assert_exact, scale_of
from kernelmem.testing.modules import (
    Apply,
    Attention,
    ByPosition,
    CalledTwice,
    Recurrent,
    SequenceFirst,
    Shift,
)

KINDS = ("trace", "diagonal", "full", "pseudo")
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")


def rows(*size, seed=1):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def is_right_or_refused(model, x):
    """No silent error: where the batch cannot be followed row by row, the call says so."""
    try:
        found = ntk(model, x)
    except KernelmemError:
        return
    left = reference.jacobian(model, x)
    assert_close(found, reference.kernel_of(left, left), 1e-10, scale_of(left))


# --- uses of parameters ----------------------------------------------------------------------------------------------


def test_tied_module_sums_its_tangents_before_contraction():
    """f = w (w x): ∂f/∂w = 2 w x; contracting each use alone would give 2 w² x x' instead of 4 w² x x'."""
    inner = nn.Linear(1, 1, bias=False).double()
    x = rows(4, 1)
    w = float(inner.weight.detach())
    for model in (nn.Sequential(inner, inner), nn.Sequential(inner, nn.Identity(), nn.Sequential(inner))):
        assert_close(ntk(model, x), 4 * w**2 * (x @ x.T), 1e-12, 4 * w**2 * float((x @ x.T).max()))


@pytest.mark.parametrize("inner", [nn.Linear(4, 4), nn.LayerNorm(4), nn.PReLU(4)], ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_module_at_two_places(inner, n):
    """The same module object under two names: both must stay one, also after the tangents have been taken."""
    assert_exact(with_random_weights(nn.Sequential(inner, nn.Tanh(), inner, nn.Linear(4, 2))), rows(n, 4))
    assert_exact(with_random_weights(nn.Sequential(CalledTwice(inner), nn.Linear(4, 2))), rows(n, 4))


def test_weight_under_two_names():
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    model = with_random_weights(nn.Sequential(first, nn.Tanh(), second))
    assert len(list(model.named_parameters())) == 3
    assert_exact(model, rows(4, 3))


def test_free_parameter_counts():
    """f = x + b: K = 1 for every pair and output."""
    x = rows(4, 3)
    assert_close(ntk(Shift(3).double(), x), torch.full((4, 4), 3.0), 1e-14, 3.0)


class Foreign(nn.Module):
    def __init__(self, way):
        super().__init__()
        self.first, self.second, self.way = nn.Linear(4, 4), nn.Linear(4, 3), way

    def forward(self, x):
        h = torch.tanh(self.first(x))
        if self.way == "linear":
            h = F.linear(h, self.first.weight)
        elif self.way == "transposed":
            h = F.linear(h, self.first.weight.T, self.first.bias)
        elif self.way == "both":  # as the weight and as the input of one call
            h = h + F.linear(self.first.weight, self.first.weight).sum(0)
        return self.second(h)


@pytest.mark.parametrize("way", ["linear", "transposed", "both"])
@pytest.mark.parametrize("n", [2, 4])
def test_weight_of_another_module(way, n):
    assert_exact(with_random_weights(Foreign(way)), rows(n, 4))


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_grouped_convolution_by_hand(groups):
    """A convolution with one position and no readout is a block-diagonal linear map."""
    model, x = with_random_weights(nn.Sequential(nn.Conv1d(4, 4, 3, groups=groups), nn.Flatten())), rows(3, 4, 3)
    parts = x.reshape(3, groups, -1)
    inner = torch.einsum("ngi,mgi->nmg", parts, parts).repeat_interleave(4 // groups, dim=2) + 1
    assert_close(ntk(model, x, outputs="diagonal"), inner, 1e-13, float(inner.max()))
    assert_close(ntk(model, x), inner.sum(-1), 1e-13, float(inner.max()))


# --- axes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("S", [1, 2, 3, 4])
def test_linear_on_sequences_by_hand(S):
    """f = mean_s (W x_s + b): the kernel of the mean input, whichever axis equals which."""
    model, x = with_random_weights(nn.Sequential(nn.Linear(4, 4), Apply(lambda h: h.mean(1)))), rows(4, S, 4)
    inner = x.mean(1) @ x.mean(1).T + 1
    assert_close(ntk(model, x), 4 * inner, 1e-13, 4 * float(inner.max()))


def test_embedding_by_hand():
    """f = mean_s E[x_s]: K = C Σ_v share_v(x) share_v(x'); the padding token has no tangent."""
    x = torch.tensor([[0, 1, 1], [2, 2, 2], [1, 0, 3]])
    share = F.one_hot(x, 4).double().mean(1)
    for padding in (None, 0):
        model = with_random_weights(nn.Sequential(nn.Embedding(4, 5, padding_idx=padding), Apply(lambda h: h.mean(1))))
        mine = share if padding is None else share[:, 1:]
        assert_close(ntk(model, x), 5 * mine @ mine.T, 1e-13, 5.0)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    "body",
    [
        lambda: nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)),
        lambda: nn.LayerNorm(4),
        lambda: nn.LSTM(4, 4),
        lambda: nn.GRU(4, 2, bidirectional=True),
        lambda: nn.TransformerEncoderLayer(4, 2, dim_feedforward=3),
    ],
    ids=["linear", "norm", "lstm", "gru", "transformer"],
)
def test_sequence_first_where_rows_and_positions_are_equally_many(body, n):
    inner = body()
    inner = Recurrent(inner) if isinstance(inner, nn.RNNBase) else SequenceFirst(inner)
    assert_exact(with_random_weights(nn.Sequential(inner, nn.Flatten(), nn.Linear(4 * n, 2))), rows(n, n, 4))


def test_attention_with_positions_first_where_rows_and_positions_are_equally_many():
    for n in (2, 3, 4):
        inner = Attention(nn.MultiheadAttention(4, 2), need_weights=True)
        assert_exact(with_random_weights(nn.Sequential(inner, nn.Flatten(), nn.Linear(4 * n, 2))), rows(n, n, 4))


@pytest.mark.parametrize("wrap", [ByPosition, lambda body: SequenceFirst(body, flat=True)], ids=["row", "position"])
@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_positions_flattened_into_the_batch_axis(wrap, n):
    """Windows: (n·k, ...) inside, with either axis the fastest."""
    body = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    assert_exact(with_random_weights(nn.Sequential(wrap(body), nn.Flatten(), nn.Linear(6, 2))), rows(n, 3, 4))


def test_windows_through_convolutions():
    patches = Apply(lambda x: x.unfold(2, 3, 3).transpose(1, 2))  # (n, windows, channels, 3)
    body = nn.Sequential(nn.Conv1d(2, 3, 2), nn.Tanh(), nn.Flatten())
    assert_exact(
        with_random_weights(nn.Sequential(patches, ByPosition(body), nn.Flatten(), nn.Linear(18, 2))), rows(3, 2, 9)
    )


class Doubled(nn.Module):
    """Both signs of the rows in one batch of 2n."""

    def __init__(self):
        super().__init__()
        self.inner, self.out = nn.Linear(4, 3), nn.Linear(6, 2)

    def forward(self, x):
        both = torch.tanh(self.inner(torch.cat([x, -x])))
        return self.out(torch.cat(both.chunk(2), dim=1))


class Reversed(nn.Module):
    """A layer that sees the rows in another order."""

    def __init__(self):
        super().__init__()
        self.inner, self.out = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x):
        return self.out(torch.tanh(self.inner(x.flip(0)).flip(0)))


class Broadcast(nn.Module):
    """A layer on learned codes, whose first axis holds no rows; and its values, repeated for every row."""

    def __init__(self, codes):
        super().__init__()
        self.code, self.inner, self.out = nn.Parameter(torch.zeros(codes, 4)), nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x):
        codes = torch.tanh(self.inner(self.code))  # (codes, 3)
        return self.out(torch.tanh(x @ codes.T) @ codes)


@pytest.mark.parametrize("make", [Doubled, Reversed, *(lambda k=k: Broadcast(k) for k in (1, 2, 3, 4))])
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_batch_axes_that_do_not_hold_the_rows_in_order(make, n):
    inner = with_random_weights(make())
    is_right_or_refused(inner, rows(n, 3 if isinstance(inner, Broadcast) else 4))


# --- rows and outputs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_integer_inputs(dtype):
    body = nn.Sequential(nn.Embedding(5, 3), nn.Tanh(), nn.Flatten(), nn.Linear(9, 2))
    x = torch.randint(5, (4, 3), generator=torch.Generator().manual_seed(0)).to(dtype)
    assert_exact(with_random_weights(body), x)


def test_integers_that_stand_for_numbers():
    model = with_random_weights(nn.Sequential(Apply(lambda x: x.double() / 255), nn.Linear(4, 2)))
    assert_exact(model, torch.randint(256, (3, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)))


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_float64_buffers_in_a_float32_model(dtype):
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 2)
            self.register_buffer("scale", torch.tensor([0.5, 2.0], dtype=torch.float64))

        def forward(self, x):
            return self.inner(x) * self.scale.to(x.dtype)

    model, x = Mixed(), rows(3, 4).float()
    assert model.scale.dtype == torch.float64
    expected = 4.25 * (x.double() @ x.double().T + 1)
    assert_close(ntk(model, x, dtype=dtype), expected, 1e-6, float(expected.max()))
    assert model.scale.dtype == torch.float64


@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_signals_of_few_positions_from_sequences(length, n):
    """Strides that torch.func's own convolution gradient does not take in float64, from two rows on."""
    turn = Apply(lambda x: x.transpose(1, 2))
    model = nn.Sequential(turn, nn.Conv1d(3, 3, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(3 * length, 2))
    assert_exact(with_random_weights(model), rows(n, length, 3))


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("C", [2, 3, 4])
@pytest.mark.parametrize("size", [1, 4])
def test_prelu_where_sizes_agree_and_where_not(n, C, size):
    """torch.func's rule for the weight's gradient gives other values, or none, as the sizes meet."""
    assert_exact(with_random_weights(nn.Sequential(nn.Linear(4, 4), nn.PReLU(size), nn.Linear(4, C))), rows(n, 4))
