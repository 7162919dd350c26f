"""kernelmem.tangents.rules.recurrent: recurrent layers in both dtypes and layouts, outputs of torch up to rounding."""

import pytest
import torch
from torch import nn

from kernelmem.testing.cases import with_random_weights
from kernelmem.testing.closeness import assert_exact
from kernelmem.testing.modules import Recurrent

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")


def rows(*size, seed=1):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
@pytest.mark.parametrize("batch_first", [True, False])
def test_recurrent_layers(kind, dtype, batch_first):
    inner = Recurrent(kind(3, 2, num_layers=2, bidirectional=True, batch_first=batch_first))
    assert_exact(
        with_random_weights(nn.Sequential(inner, nn.Flatten(), nn.Linear(12, 2))),
        rows(4, 3, 3),
        rows(2, 3, 3),
        dtype=dtype,
    )


CALLS = (
    torch.rnn_tanh,
    torch.rnn_relu,
    torch.lstm,
    torch.gru,
    torch.rnn_tanh_cell,
    torch.rnn_relu_cell,
    torch.lstm_cell,
    torch.gru_cell,
)


class Unrolled(torch.overrides.TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        from kernelmem.tangents.rules.recurrent import RecurrentRule

        if func in CALLS:
            self.calls += 1
            return RecurrentRule().expand(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "layer",
    [
        nn.RNN(3, 4, num_layers=2, bidirectional=True),
        nn.RNN(3, 4, nonlinearity="relu", batch_first=True, bias=False),
        nn.GRU(3, 4, num_layers=2, bidirectional=True, batch_first=True),
        nn.LSTM(3, 4, num_layers=2, bidirectional=True),
        nn.LSTM(3, 4, proj_size=2, batch_first=True),
        nn.RNNCell(3, 4),
        nn.RNNCell(3, 4, nonlinearity="relu"),
        nn.GRUCell(3, 4, bias=False),
        nn.LSTMCell(3, 4),
    ],
    ids=str,
)
def test_unrolling_gives_the_outputs_of_torch(layer):
    layer = with_random_weights(layer)
    x = rows(5, 3) if isinstance(layer, nn.RNNCellBase) else rows(5, 2, 3)
    expected, mode = layer(x), Unrolled()
    with mode:
        outputs = layer(x)
    assert mode.calls == 1
    for a, b in zip(flat(outputs), flat(expected), strict=True):
        torch.testing.assert_close(a, b)


def flat(tree):
    return [tree] if isinstance(tree, torch.Tensor) else [tensor for item in tree for tensor in flat(item)]


def test_packed_sequences_are_not_unrolled():
    packed = nn.utils.rnn.pack_sequence([rows(3, 3), rows(2, 3)])
    mode = Unrolled()
    with mode, pytest.raises(TypeError):  # the fused call gets NotImplemented back, which the layer cannot unpack
        with_random_weights(nn.GRU(3, 4))(packed)
    assert mode.calls == 1


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_dropout_between_layers_draws_the_numbers_of_torch(kind):
    torch.manual_seed(0)
    layer, x = kind(3, 4, num_layers=3, dropout=0.4, batch_first=True).double(), rows(5, 6, 3)
    torch.manual_seed(1)
    expected = layer(x)[0]
    torch.manual_seed(1)
    with Unrolled() as unrolled:
        outputs = layer(x)[0]
    assert unrolled.calls == 1
    assert torch.allclose(outputs, expected, rtol=0, atol=1e-14)
    assert not torch.allclose(layer(x)[0], expected)
