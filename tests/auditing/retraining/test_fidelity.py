"""Share of the shadow models' memorization that a network shows, from outputs with known probabilities."""

import numpy as np
import pytest
import torch

from kernelmem.auditing.retraining import retraining_scores, shown_memorization
from kernelmem.memorization.shadows import ShadowEnsemble, ShadowIdentity

N, M = 400, 40


@pytest.fixture(scope="module")
def models():
    """Scores of 40 models with probability p_i of the label without row i and 1 with it, and p of training and test rows."""
    rng = np.random.default_rng(0)
    p = rng.beta(1.0, 0.7, size=(2, N))
    masks = rng.permuted(np.repeat(np.arange(M)[:, None] < 32, N, axis=1), axis=0)
    train, test = rng.random((2, M, N)) < p[:, None]
    logits, test_logits = (
        torch.nn.functional.one_hot(torch.from_numpy(correct).long(), 2).double() for correct in (train | masks, test)
    )
    y = torch.ones(N, dtype=torch.int64)
    shadows = ShadowEnsemble(torch.from_numpy(masks), logits, y, test_logits, y, ShadowIdentity())
    return retraining_scores(shadows, seed=0), *p


def shown(models, correct, test_correct, labels=None):
    labels = torch.ones(N, dtype=torch.int64) if labels is None else labels
    return shown_memorization(models[0], correct, labels, test_correct, torch.arange(N))


@pytest.mark.parametrize("power", [0.3, 1.0, 2.0])
def test_a_network_that_never_saw_the_rows_shows_nothing(models, power):
    """Also where it gives labels that the models without the row miss, as a network trained on other rows does."""
    _, p, p_test = models
    rng = np.random.default_rng(1)
    results = [shown(models, rng.random(N) < p**power, rng.random(N) < p_test**power) for _ in range(20)]
    shares = np.array([result.share for result in results])
    assert all(result.visible for result in results)
    assert abs(shares.mean()) < 0.2
    assert shares.std() < 1.5 * np.mean([result.error for result in results])
    assert shares.max() < 0.5


def test_a_network_of_the_same_training_shows_all(models):
    _, _, p_test = models
    result = shown(models, np.ones(N, bool), np.random.default_rng(2).random(N) < p_test)
    assert abs(result.share - 1) < 3 * result.error < 0.5


def test_without_outputs_on_these_test_rows_the_network_is_expected_to_be_as_the_models(models):
    _, p, p_test = models
    correct = np.random.default_rng(3).random(N) < p
    other = shown(models, correct, np.ones(N, bool), torch.zeros(N, dtype=torch.int64))
    assert abs(other.share) < 0.2
    assert other.share == shown(models, correct, p_test > 2, torch.ones(3, dtype=torch.int64)).share
