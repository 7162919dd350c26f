"""Models trained in one batch are those trained one after the other; training reaches the closed form."""

import pytest
import torch
from torch import nn

from kernelmem.core import InputError, NumericalError, UnsupportedModelError
from kernelmem.text import TextTraining, as_documents, counterfactual, token_losses, train_language_model
from kernelmem.text.language_models import causal_lm
from kernelmem.text.retraining.ensemble import LanguageModels, train_ensemble
from tests.text.small_models import Attention, Recurrent, V, random_documents

DOCUMENTS = random_documents(5, 1, 9, 3, 7, 6, 2)
RECIPE = TextTraining(epochs=2, batch=2)


class Fused(nn.Module):
    """Attention by torch's fused function, which has no rule for vmap."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(V + 1, 8), nn.Linear(8, V)

    def forward(self, ids):
        x = self.embedding(ids)[:, None]
        return self.head((x + nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True))[:, 0])


def fresh(kind):
    """Weights that depend on the random state, in float64."""

    def make():
        model = kind()
        for p in model.parameters():
            nn.init.normal_(p, std=0.3)
        return model.double()

    return make


@pytest.mark.parametrize("kind", [Attention, Fused, lambda: nn.Embedding(V + 1, V)], ids=["own", "fused", "bigram"])
def test_one_batch_gives_what_single_trainings_give(kind):
    result = counterfactual(fresh(kind), DOCUMENTS, models=4, recipe=RECIPE, bos=V, seed=3, progress=False)
    assert result.note == ""
    from kernelmem.core.models.random_states import random_states
    from kernelmem.memorization.shadows.masks import model_seeds

    for k in (0, 1):  # halves of 3 and of 4 documents
        weights, order = model_seeds(3, k)
        with random_states(weights):
            model = fresh(kind)()
        chosen = [DOCUMENTS[int(i)] for i in result.masks[k].nonzero()[:, 0]]
        train_language_model(model, chosen, RECIPE, bos=V, seed=order, progress=False)
        expected = token_losses(causal_lm(model, bos=V), DOCUMENTS, progress=False).per_document()
        torch.testing.assert_close(result.bits[k], expected, rtol=1e-9, atol=1e-9)


def test_the_numbers_do_not_depend_on_the_memory():
    arguments = {"models": 4, "recipe": RECIPE, "bos": V, "progress": False}
    a = counterfactual(fresh(Attention), DOCUMENTS, **arguments)
    b = counterfactual(fresh(Attention), DOCUMENTS, memory=200_000, **arguments)
    torch.testing.assert_close(a.bits, b.bits, rtol=1e-9, atol=1e-9)
    with pytest.raises(InputError, match="memory=6,000"):
        counterfactual(fresh(Attention), DOCUMENTS, memory=6000, **arguments)


@pytest.mark.parametrize("kind", [Recurrent, lambda: nn.Sequential(nn.Embedding(V + 1, V), nn.Dropout(0.1))])
def test_models_without_a_rule_are_trained_one_after_the_other(kind):
    calls = []
    state = torch.get_rng_state()
    result = counterfactual(
        kind, DOCUMENTS, models=4, recipe=RECIPE, bos=V, progress=lambda done, total: calls.append((done, total))
    )
    assert "one after the other: torch.func.vmap refuses" in result.note
    assert result.note in str(result)
    assert calls == [(i, 8) for i in range(9)]
    assert torch.equal(state, torch.get_rng_state())


def test_progress_of_one_batch():
    calls = []
    counterfactual(
        fresh(Attention), DOCUMENTS, models=4, recipe=RECIPE, progress=lambda done, total: calls.append((done, total))
    )
    assert calls == [(i, 8) for i in range(0, 9, 2)]


def test_training_reaches_the_closed_form_of_the_bigram_model():
    """Maximum likelihood of a table of logits is the relative frequency, so that the counterfactual is known."""
    numbers = torch.Generator().manual_seed(0)
    documents = torch.randint(2, (4, 40), generator=numbers)
    recipe = TextTraining(epochs=200, batch=2, lr=0.3, final=0.0, weight_decay=0.0, clip=None)
    result = counterfactual(
        lambda: nn.Embedding(2, 2, dtype=torch.float64), documents, models=4, recipe=recipe, progress=False
    )
    for mask, bits in zip(result.masks, result.bits, strict=True):
        counts = torch.zeros(2, 2, dtype=torch.float64)
        for document in documents[mask]:
            counts.index_put_((document[:-1], document[1:]), torch.tensor(1.0).double(), accumulate=True)
        log2_p = (counts / counts.sum(1, keepdim=True)).log2()
        expected = -log2_p[documents[:, :-1], documents[:, 1:]].sum(1)
        torch.testing.assert_close(bits, expected, rtol=0, atol=1e-3)


def test_a_frozen_part_stays():
    def make():
        model = fresh(Attention)()
        model.embedding.requires_grad_(requires_grad=False)
        return model

    task = LanguageModels(make, as_documents(DOCUMENTS), (torch.tensor([0, 2]),), ((1, 2),), RECIPE, V, 10**9)
    trained = train_ensemble(task, lambda done, total: None)
    assert trained.parameters == sum(p.numel() for p in Attention().parameters()) - 8 * (V + 1)


@pytest.mark.parametrize(
    ("make_model", "changes", "error", "message"),
    [
        (Attention(), {}, InputError, "a function that returns a new model"),
        (lambda seed: Attention(), {}, InputError, "lambda: ..."),
        (len, {}, InputError, "a function of"),
        (dict, {}, InputError, "lambda: ..."),
        (nn.Identity, {}, UnsupportedModelError, "without trainable parameters"),
        (lambda: Attention(causal=False), {}, UnsupportedModelError, "bidirectional"),
        (lambda: nn.Embedding(5, 5), {}, KeyError, ""),
        (Attention, {"models": 5}, InputError, "pass models=6"),
        (Attention, {"models": 2}, InputError, "models=2"),
        (Attention, {"documents": [[1, 2]]}, InputError, "one document"),
        (Attention, {"documents": [[1], [2], []], "bos": None}, InputError, "none with a loss"),
        (Attention, {"recipe": 3}, InputError, "recipe"),
        (Attention, {"recipe": TextTraining(epochs=3, lr=1e30, clip=None)}, NumericalError, "learning rate"),
    ],
)
def test_what_is_refused(make_model, changes, error, message):
    arguments = {"documents": DOCUMENTS, "models": 4, "recipe": RECIPE, "bos": V} | changes
    if error is KeyError:  # a vocabulary that is too small
        error, message, arguments["bos"] = InputError, "documents", 0
    with pytest.raises(error, match=message):
        counterfactual(make_model, **arguments, progress=False)


def test_models_of_different_shapes_are_refused():
    sizes = iter([8, 8, 8, 8, 4, 8, 4, 8])
    with pytest.raises(UnsupportedModelError, match="different"):
        counterfactual(lambda: Attention(size=next(sizes)), DOCUMENTS, models=4, recipe=RECIPE, bos=V, progress=False)
