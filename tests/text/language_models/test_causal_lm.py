"""kernelmem.text.language_models: what is accepted, what is refused by name, and that nothing of the user changes."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kernelmem import InputError, KernelmemError, NumericalError, UnsupportedModelError
from kernelmem.text import causal_lm, token_losses
from tests.text.small_models import Attention, Bigram, Recurrent, V, random_documents

DOCUMENTS = random_documents(5, 0, 1, 12, 3)


class Output(Recurrent):
    """LSTM with an output of another form."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, ids):
        hidden, state = self.layer(self.embedding(ids))
        return self.change(self.head(hidden), hidden, state)


class WithKeywords(Recurrent):
    """Model with the arguments of Hugging Face models."""

    def forward(self, input_ids, attention_mask, position_ids, use_cache=True):
        assert not use_cache
        assert torch.equal(position_ids, torch.arange(input_ids.shape[1]).expand_as(input_ids))
        assert bool((attention_mask.diff(dim=1) <= 0).all())  # padded on the right
        return super().forward(input_ids)


class Box:
    """Output with the attribute of Hugging Face models."""

    def __init__(self, logits):
        self.logits = logits


@pytest.mark.parametrize(
    "change",
    [
        lambda logits, hidden, state: (logits, state),
        lambda logits, hidden, state: [logits],
        lambda logits, hidden, state: {"logits": logits, "hidden": hidden},
        lambda logits, hidden, state: Box(logits),
        lambda logits, hidden, state: logits.half().float() * 0 + logits,
    ],
)
def test_forms_of_outputs(change):
    expected = token_losses(causal_lm(Recurrent(), bos=V), DOCUMENTS).token_bits
    assert torch.equal(token_losses(causal_lm(Output(change), bos=V), DOCUMENTS).token_bits, expected)
    by_forward = causal_lm(
        Output(change), bos=V, forward=lambda model, ids: model.head(model.layer(model.embedding(ids))[0])
    )
    assert torch.equal(token_losses(by_forward, DOCUMENTS).token_bits, expected)
    assert torch.equal(token_losses(causal_lm(WithKeywords(), bos=V), DOCUMENTS).token_bits, expected)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda logits, hidden, state: logits[:, -1:], UnsupportedModelError, "forward="),
        (lambda logits, hidden, state: logits[:, -1], UnsupportedModelError, "forward="),
        (lambda logits, hidden, state: logits.argmax(2), UnsupportedModelError, "forward="),
        (lambda logits, hidden, state: logits.argmax(2, keepdim=True), UnsupportedModelError, "int64"),
        (lambda logits, hidden, state: (hidden, logits), UnsupportedModelError, "tuple"),
        (lambda logits, hidden, state: None, UnsupportedModelError, "NoneType"),
        (lambda logits, hidden, state: logits[9], UnsupportedModelError, "IndexError"),
        (lambda logits, hidden, state: logits * torch.nan, NumericalError, "NaN"),
        (lambda logits, hidden, state: F.dropout(logits, 0.5), UnsupportedModelError, "two passes"),
        (lambda logits, hidden, state: logits.flip(1), UnsupportedModelError, "bidirectional"),
        (lambda logits, hidden, state: logits - logits.mean(), UnsupportedModelError, "bidirectional"),
        (lambda logits, hidden, state: logits + len(logits), UnsupportedModelError, "other documents"),
        (lambda logits, hidden, state: logits + logits.shape[1], UnsupportedModelError, "tokens that follow"),
        (lambda logits, hidden, state: logits[:, :, : 2 + len(logits)], UnsupportedModelError, "vocabulary"),
    ],
)
def test_unusable_models_are_refused_by_name(change, error, match):
    with pytest.raises(error, match=match) as raised:
        causal_lm(Output(change), bos=V)
    assert "Output" in str(raised.value)


@pytest.mark.parametrize(
    "model",
    [Recurrent(bidirectional=True), Recurrent(nn.GRU, batch_first=False), Attention(causal=False), nn.Linear(3, 3)],
)
def test_models_that_are_not_causal_are_refused(model):
    with pytest.raises(UnsupportedModelError):
        causal_lm(model, bos=1)


@pytest.mark.parametrize(
    "options",
    [
        {"model": Recurrent},
        {"model": "gpt2"},
        {"forward": lambda model: model},
        {"bos": -1},
        {"bos": True},
        {"bos": 1.5},
        {"bos": V + 1},  # outside the embedding
        {"adapter": "off"},
        {"adapter": False},  # no adapter
        {"model": Recurrent().to("meta")},
    ],
)
def test_other_arguments_are_refused(options):
    with pytest.raises(KernelmemError):
        causal_lm(**{"model": Recurrent(), **options})


def test_the_model_of_the_user_is_not_changed():
    model = Recurrent(num_layers=2, dropout=0.5).train()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    lm = causal_lm(model, bos=V)
    bits = token_losses(lm, DOCUMENTS).token_bits
    assert model.training
    assert model.layer.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        model.head.weight.zero_()
    assert torch.equal(token_losses(lm, DOCUMENTS).token_bits, bits)  # a copy of the weights was taken


def test_caller_modes_are_ignored():
    lm = causal_lm(Attention(), bos=V)
    bits = token_losses(lm, DOCUMENTS).token_bits
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        inside = token_losses(causal_lm(Attention(), bos=V), DOCUMENTS)
    assert torch.equal(inside.token_bits, bits)


@pytest.mark.parametrize("bos", [V, None])
def test_log_probs_are_those_of_each_prefix(bos):
    lm = causal_lm(Attention().double(), bos=bos)
    first = 0 if bos else 1
    for ids, rows in zip(DOCUMENTS, lm.log_probs(DOCUMENTS), strict=True):
        assert rows.shape == (max(len(ids) - first, 0), V)
        if len(rows):
            prefixes = [ids[:t] for t in range(first, len(ids))]
            torch.testing.assert_close(lm.next_log_probs(prefixes), rows, rtol=0, atol=1e-12)
            torch.testing.assert_close(rows.exp().sum(1), torch.ones(len(rows), dtype=torch.float64))


def test_memory_changes_batches_and_nothing_else():
    lm = causal_lm(Recurrent().double(), bos=V)
    everything = list(lm.log_probs(DOCUMENTS))
    one_by_one = list(lm.log_probs(DOCUMENTS, memory=12 * V * 64))
    assert all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(everything, one_by_one, strict=True))
    with pytest.raises(InputError, match="memory"):
        lm.log_probs(DOCUMENTS, memory=12 * V * 64 - 1)


def test_a_prefix_needs_a_token_or_bos():
    lm = causal_lm(Bigram())
    with pytest.raises(InputError, match="empty prefix"):
        lm.next_log_probs([[1], []])
    with pytest.raises(InputError, match="prefixes"):
        lm.next_log_probs([[V]])


def test_half_precision_weights_are_computed_in_single_precision():
    lm = causal_lm(Attention().bfloat16(), bos=V)
    assert lm.dtype == torch.float32
    exact = token_losses(causal_lm(Attention().bfloat16().double(), bos=V), DOCUMENTS).token_bits
    torch.testing.assert_close(token_losses(lm, DOCUMENTS).token_bits, exact, rtol=0, atol=1e-4)
    assert "vocabulary 11, bos 11, float32" in repr(lm)


def test_wrapped_models():
    expected = token_losses(causal_lm(Attention(), bos=V), DOCUMENTS).token_bits
    assert torch.equal(token_losses(causal_lm(nn.DataParallel(Attention()), bos=V), DOCUMENTS).token_bits, expected)
