"""Ledgers of networks trained with dropout and batch statistics: masks and statistics are those of the batch.

Of some networks a part of the parameters has no rule for tangents and is differentiated densely.
"""

import pytest
import torch
from torch import nn

from kernelmem.recording.recorder import Recorder
from kernelmem.recording.run import Run
from kernelmem.trajectory.ledger.ledger import ledger

N, LENGTH, VOCABULARY = 6, 5, 50


class Encoder(nn.Module):
    """A transformer layer with dropout."""

    def __init__(self, **options):
        super().__init__()
        self.layer, self.out = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.2, **options), nn.Linear(4, 3)
        self.axis = 1 if options.get("batch_first") else 0

    def forward(self, x):
        return self.out(self.layer(x if self.axis else x.transpose(0, 1)).mean(self.axis))


class Attention(nn.Module):
    """Attention with dropout of its weights."""

    def __init__(self, need_weights):
        super().__init__()
        self.attention, self.out = nn.MultiheadAttention(4, 2, dropout=0.3, batch_first=True), nn.Linear(4, 3)
        self.need_weights = need_weights

    def forward(self, x):
        return self.out(self.attention(x, x, x, need_weights=self.need_weights)[0].mean(1))


class UpConvolution(nn.Module):
    """A transposed convolution before batch normalization."""

    def __init__(self):
        super().__init__()
        self.up, self.norm, self.out = nn.ConvTranspose1d(LENGTH, 6, 2), nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, x):
        return self.out(torch.tanh(self.norm(self.up(x))).mean(2))


class Bag(nn.Module):
    """Means of embeddings before batch normalization."""

    def __init__(self):
        super().__init__()
        self.bag, self.norm, self.out = nn.EmbeddingBag(VOCABULARY, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, ids):
        return self.out(self.norm(self.bag(ids)))


class Scaled(nn.Module):
    """A parameter that enters an operation without a rule, after dropout: it is differentiated densely."""

    def __init__(self):
        super().__init__()
        self.inner, self.power, self.out = nn.Linear(4, 6), nn.Parameter(torch.full((6,), 1.5)), nn.Linear(6, 3)

    def forward(self, x):
        h = torch.dropout(torch.sigmoid(self.inner(x.mean(1))), 0.3, self.training)
        return self.out(torch.pow(h + 0.1, torch.softmax(self.power, 0)))


class Recurrent(nn.Module):
    """Two recurrent layers with dropout between them."""

    def __init__(self, kind, **options):
        super().__init__()
        self.inner = kind(4, 3, num_layers=2, dropout=0.4, batch_first=True, **options)
        self.out = nn.Linear(6 if options.get("bidirectional") else 3, 3)

    def forward(self, x):
        return self.out(self.inner(x)[0][:, -1])


def language_model(name):
    """A small random model of the transformers library, with dropout 0.1."""
    transformers = pytest.importorskip("transformers")
    if name == "bert":
        config = transformers.BertConfig(
            vocab_size=VOCABULARY, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12
        )
        model = transformers.BertForSequenceClassification
    elif name == "distilbert":
        config = transformers.DistilBertConfig(vocab_size=VOCABULARY, dim=8, n_layers=1, n_heads=2, hidden_dim=12)
        model = transformers.DistilBertForSequenceClassification
    else:
        config = transformers.GPT2Config(
            vocab_size=VOCABULARY, n_positions=LENGTH, n_embd=8, n_layer=1, n_head=2, pad_token_id=0
        )
        model = transformers.GPT2ForSequenceClassification
    config.num_labels = 3
    return model(config)


class Classifier(nn.Module):
    """Logits of a language model."""

    def __init__(self, name):
        super().__init__()
        self.inner = language_model(name)

    def forward(self, ids):
        return self.inner(ids).logits


NETWORKS = {
    "encoder": lambda: Encoder(batch_first=True),
    "encoder, sequence first": Encoder,
    "attention with weights": lambda: Attention(True),
    "attention": lambda: Attention(False),
    "transposed convolution, batch statistics": UpConvolution,
    "embedding bag, batch statistics": Bag,
    "operation without a rule": Scaled,
    "lstm": lambda: Recurrent(nn.LSTM),
    "gru in both directions": lambda: Recurrent(nn.GRU, bidirectional=True),
    "rnn": lambda: Recurrent(nn.RNN),
    **{name: (lambda name=name: Classifier(name)) for name in ("bert", "distilbert", "gpt2")},
}


def train(path, model, optimizer, x, y, steps=3):
    with Recorder(model, optimizer, path, loss="cross_entropy") as recorder:
        for t in range(steps):
            index = torch.arange(N) if t % 2 == 0 else torch.tensor([4, 1, 3, 0])
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[index]), y[index]).backward()
            recorder.step(index, x[index], y[index])
    return Run.open(path)


IN_FLOAT32 = ("encoder", "attention", "embedding bag, batch statistics", "lstm", "bert")


@pytest.mark.parametrize(
    ("name", "dtype"), [(name, torch.float64) for name in NETWORKS] + [(name, torch.float32) for name in IN_FLOAT32]
)
def test_residual_is_rounding(tmp_path, name, dtype):
    torch.manual_seed(0)
    model = NETWORKS[name]().to(dtype)
    x = torch.randn(N, LENGTH, 4, dtype=dtype)
    if name in ("bert", "distilbert", "gpt2", "embedding bag, batch statistics"):
        x = torch.randint(1, VOCABULARY, (N, LENGTH))
    run = train(tmp_path / "run", model, torch.optim.SGD(model.parameters(), lr=0.1), x, torch.arange(N) % 3)
    result = ledger(run, model, x[:2])
    change = float((result.final - result.initial).abs().max())
    assert result.largest_residual <= 1e-10 * change
    allowed = 1e-9 if dtype == torch.float64 else 1e-4
    assert float(result.rounding.abs().max()) <= allowed * float(result.mass.max())
