"""Training of language models: closed forms of the loss and the schedule, seeds, refusals."""

import math

import pytest
import torch
from torch import nn

from kernelmem.core import InputError, NumericalError
from kernelmem.text import TextTraining, causal_lm, document_batch, document_loss, token_losses, train_language_model
from tests.text.small_models import Recurrent, Uniform, V, random_documents

DOCUMENTS = random_documents(9, 3, 0, 7, 1, 5)


def bigram(seed=0):
    torch.manual_seed(seed)
    return nn.Embedding(V + 1, V)


def test_the_loss_of_an_epoch_is_that_of_all_tokens():
    model = bigram().double()
    bits = token_losses(causal_lm(model, bos=V), DOCUMENTS).per_document().sum() / sum(map(len, DOCUMENTS))
    losses = train_language_model(model, DOCUMENTS, TextTraining(epochs=1, batch=6), bos=V)
    assert losses == pytest.approx((float(bits),), rel=1e-12)


def test_a_step_is_that_of_adamw_on_the_mean_loss_of_tokens():
    model, other = bigram().double(), bigram().double()
    recipe = TextTraining(epochs=1, batch=6, lr=0.1, warm_up=0, clip=0.5, weight_decay=0.3)
    train_language_model(model, DOCUMENTS, recipe, bos=V)
    optimizer = torch.optim.AdamW(other.parameters(), lr=0.1, weight_decay=0.3)
    (document_loss(other, document_batch(DOCUMENTS, bos=V)).sum() / sum(map(len, DOCUMENTS))).backward()
    nn.utils.clip_grad_norm_(other.parameters(), 0.5)
    optimizer.step()
    assert torch.allclose(model.weight, other.weight, rtol=0, atol=1e-12)


def test_a_bigram_model_learns_the_frequencies():
    documents = [[0, 1, 0, 2], [0, 1]]
    model = bigram().double()
    recipe = TextTraining(epochs=100, batch=2, lr=1.0, clip=None, weight_decay=0.0, final=0.0)
    bits = train_language_model(model, documents, recipe, bos=V)[-1]
    entropy = 3 * (-2 / 3 * math.log2(2 / 3) - 1 / 3 * math.log2(1 / 3))  # after 0 comes 1, 2, 1; the rest is certain
    assert bits == pytest.approx(entropy / 6, abs=1e-3)


def test_schedule():
    recipe = TextTraining(warm_up=3, final=0.1)
    shares = [recipe.lr_share(step, 13) for step in range(13)]
    assert shares[:4] == [0.25, 0.5, 0.75, 1.0]
    assert shares[-1] == pytest.approx(0.1)
    assert torch.tensor(shares[3:]).diff().diff().abs().max() < 1e-6


def test_the_same_seed_gives_the_same_weights_with_dropout():
    models = []
    for seed in (1, 1, 2):
        model = Recurrent(num_layers=2, dropout=0.5)
        state = torch.random.get_rng_state()
        calls = []
        recipe = TextTraining(epochs=2, batch=2)
        train_language_model(model, DOCUMENTS, recipe, bos=V, seed=seed, progress=lambda *call, c=calls: c.append(call))
        assert torch.equal(torch.random.get_rng_state(), state)
        assert calls == [(1, 2), (2, 2)]
        assert not model.training
        models.append(model.head.weight)
    assert torch.equal(models[0], models[1])
    assert not torch.equal(models[0], models[2])


def test_wrong_arguments_are_refused():
    with pytest.raises(InputError, match="without a token that has a loss"):
        train_language_model(bigram(), [[1], [2]])
    with pytest.raises(InputError, match="without trainable parameters"):
        train_language_model(Uniform(), DOCUMENTS)
    for options in (
        {"epochs": 0},
        {"batch": 0},
        {"lr": 0},
        {"warm_up": -1},
        {"final": 2},
        {"clip": 0},
        {"lr": math.nan},
    ):
        with pytest.raises(InputError):
            TextTraining(**options)
    model = bigram()
    model.weight.data[0] = math.inf
    with pytest.raises(NumericalError, match="loss"):
        train_language_model(model, DOCUMENTS, bos=V)
