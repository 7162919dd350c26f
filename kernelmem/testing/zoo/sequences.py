"""Zoo entries: embeddings and recurrent layers."""

from collections.abc import Callable
from typing import Any

from torch import nn

from kernelmem.testing.cases import Inputs
from kernelmem.testing.modules import Apply, ByPosition, CellLoop, Recurrent, SequenceFirst, Shift, TiedReadout
from kernelmem.testing.zoo.layers import Group

TOKENS, SEQUENCE = Inputs((4,), vocabulary=6), Inputs((4, 3))


def _mean() -> nn.Module:
    return Apply(lambda h: h.mean(1))


def embeddings() -> Group:
    """Return entries with integer inputs: repeated tokens, padding, bags, weights tied to the readout."""
    return {
        "embedding": (lambda: nn.Sequential(nn.Embedding(6, 3), nn.Flatten(), nn.Linear(12, 3)), TOKENS),
        "embedding, mean": (lambda: nn.Sequential(nn.Embedding(6, 3), _mean(), nn.Linear(3, 4)), TOKENS),
        "embedding alone": (lambda: nn.Sequential(nn.Embedding(6, 3), _mean()), TOKENS),
        "embedding of one token": (
            lambda: nn.Sequential(nn.Embedding(6, 4), nn.Tanh(), nn.Linear(4, 3)), Inputs((), vocabulary=6)),
        "embedding padding": (
            lambda: nn.Sequential(nn.Embedding(6, 3, padding_idx=0), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)),
            TOKENS),
        "embedding with positions": (
            lambda: nn.Sequential(nn.Embedding(6, 3), Shift(4, 3), nn.Tanh(), nn.Linear(3, 3), nn.Tanh(), _mean(),
                                  nn.Linear(3, 2)), TOKENS),
        "embedding bag": (lambda: nn.Sequential(nn.EmbeddingBag(6, 3), nn.Tanh(), nn.Linear(3, 3)), TOKENS),
        "embedding bag sum, padding": (
            lambda: nn.Sequential(nn.EmbeddingBag(6, 3, mode="sum", padding_idx=1), nn.Tanh(), nn.Linear(3, 3)),
            TOKENS),
        "embedding bag max": (
            lambda: nn.Sequential(nn.EmbeddingBag(6, 3, mode="max"), nn.Tanh(), nn.Linear(3, 3)), TOKENS),
        "embedding tied to the readout in functional form": (
            lambda: TiedReadout(5, 3, nn.Sequential(nn.Linear(3, 3), nn.Tanh())), Inputs((4,), vocabulary=5)),
        "embedding tied to the readout by a shared weight": (
            lambda: TiedReadout(5, 3, nn.Tanh(), share=True), Inputs((4,), vocabulary=5)),
    }  # fmt: skip


def _recurrent(kind: Callable[..., nn.RNNBase], width: int, *, learned_start: bool = False, **options: Any):
    """Return an entry that builds a recurrent layer, followed by a linear readout of all positions."""

    def build() -> nn.Module:
        inner = kind(3, 2, **options)
        return nn.Sequential(Recurrent(inner, learned_start=learned_start), nn.Flatten(), nn.Linear(4 * width, 2))

    return build, SEQUENCE


def recurrences() -> Group:
    """Return entries of nn.RNN, nn.LSTM, nn.GRU with their options, and of their cells in a loop."""
    cell = lambda kind, **options: nn.Sequential(CellLoop(kind(3, 3, **options)), nn.Linear(3, 2))  # noqa: E731
    return {
        "rnn": _recurrent(nn.RNN, 2, batch_first=True),
        "rnn relu, sequence first": _recurrent(nn.RNN, 2, nonlinearity="relu"),
        "rnn with a learned start": _recurrent(nn.RNN, 2, batch_first=True, learned_start=True),
        "rnn two layers, bidirectional": _recurrent(nn.RNN, 4, batch_first=True, num_layers=2, bidirectional=True),
        "lstm": _recurrent(nn.LSTM, 2, batch_first=True),
        "lstm without bias, sequence first": _recurrent(nn.LSTM, 2, bias=False),
        "lstm two layers": _recurrent(nn.LSTM, 2, batch_first=True, num_layers=2, dropout=0.5),
        "lstm bidirectional": _recurrent(nn.LSTM, 4, batch_first=True, bidirectional=True),
        "lstm projected": _recurrent(nn.LSTM, 1, batch_first=True, proj_size=1),
        "lstm projected, two layers, bidirectional, sequence first": _recurrent(
            nn.LSTM, 2, proj_size=1, num_layers=2, bidirectional=True),
        "gru": _recurrent(nn.GRU, 2, batch_first=True),
        "gru two layers, bidirectional, sequence first": _recurrent(nn.GRU, 4, num_layers=2, bidirectional=True),
        "rnn cell": (lambda: cell(nn.RNNCell), SEQUENCE),
        "lstm cell": (lambda: cell(nn.LSTMCell), SEQUENCE),
        "gru cell without bias": (lambda: cell(nn.GRUCell, bias=False), SEQUENCE),
        "lstm after an embedding": (
            lambda: nn.Sequential(nn.Embedding(6, 3), Recurrent(nn.LSTM(3, 2, batch_first=True)), _mean(),
                                  nn.Linear(2, 3)), TOKENS),
        "rows flattened with positions": (
            lambda: nn.Sequential(ByPosition(nn.Sequential(nn.Linear(3, 3), nn.Tanh())), _mean(), nn.Linear(3, 2)),
            SEQUENCE),
        "linear with positions first": (
            lambda: nn.Sequential(SequenceFirst(nn.Sequential(nn.Linear(3, 3), nn.Tanh())), _mean(), nn.Linear(3, 2)),
            SEQUENCE),
        "positions flattened with rows": (
            lambda: nn.Sequential(SequenceFirst(nn.Sequential(nn.Linear(3, 3), nn.Tanh()), flat=True), nn.Flatten(),
                                  nn.Linear(12, 2)), SEQUENCE),
    }  # fmt: skip
