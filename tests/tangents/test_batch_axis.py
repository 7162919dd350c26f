"""kernelmem.tangents.batch_axis: shapes with known answers, and layers whose batch axis is not the first."""

import pytest
import torch
from torch import nn

from kernelmem.core.errors import KernelmemError
from kernelmem.kernels import reference
from kernelmem.kernels.ntk import ntk
from kernelmem.tangents.batch_axis import BatchAxis, find_batch_axis, resolve_interleaving
from kernelmem.testing.cases import with_random_weights
from kernelmem.testing.closeness import assert_close, assert_exact, scale_of
from kernelmem.testing.modules import Apply, Attention, ByPosition, Recurrent, SequenceFirst


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


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ([(2, 5), (3, 5)], BatchAxis(0)),
        ([(5, 2), (5, 3)], BatchAxis(1)),
        ([(8, 5), (12, 5)], BatchAxis(0, 4)),
        ([(2, 2), (3, 3)], None),  # two axes follow the batch size
        ([(5,), (5,)], None),
        ([(3, 5), (4, 5)], None),  # 1 + n is not proportional to n
        ([(2, 5), (3, 5, 1)], None),
    ],
)
def test_find_batch_axis(shapes, expected):
    assert find_batch_axis([torch.Size(shape) for shape in shapes], [2, 3]) == expected


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("major", [True, False])
def test_rows_of_each_example(axis, major):
    """Four examples with three windows each, along any axis and in either order."""
    windows = rows(4, 3, 5, 6)
    flat = (windows if major else windows.transpose(0, 1)).reshape(12, 5, 6).movedim(0, axis)
    assert torch.equal(BatchAxis(axis, 3, major).rows(flat, 4), windows)


def test_the_gradient_of_the_first_row_tells_the_order():
    by_row, interleaved, neither = torch.zeros(3, 6, 2)
    by_row[:3] = 1.0
    interleaved[::2] = 1.0
    neither[[0, 1, 5]] = 1.0
    unresolved = BatchAxis(0, 3)
    assert resolve_interleaving(unresolved, by_row, 2) == BatchAxis(0, 3, major=True)
    assert resolve_interleaving(unresolved, interleaved, 2) == BatchAxis(0, 3, major=False)
    assert resolve_interleaving(unresolved, neither, 2) is None
    assert resolve_interleaving(unresolved, torch.zeros(6, 2), 2) is None
    assert resolve_interleaving(BatchAxis(0), torch.zeros(2, 2), 2) == BatchAxis(0)
