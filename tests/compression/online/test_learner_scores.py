"""Online codes of learners: blocks, missing classes, random initialization, outputs that are not probabilities."""

import random

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.svm import SVC
from torch import nn

import kernelmem as km
from kernelmem.compression import LearnerPredictor, OnlineCode, OnlineOptions, online_code

GENERATOR = np.random.default_rng(0)
Y = GENERATOR.integers(3, size=60)
X = np.eye(3)[Y] + 0.3 * GENERATOR.standard_normal((60, 3))


def nearest_mean(x, y):
    """Softmax of minus the distances to the class means; unseen classes are far away."""
    means = np.stack([x[y == c].mean(0) if (y == c).any() else np.full(x.shape[1], 9.0) for c in range(3)])

    def predict_proba(rows):
        p = np.exp(-np.linalg.norm(rows[:, None] - means, axis=2))
        return p / p.sum(1, keepdims=True)

    return predict_proba


def network(x, y):
    model = nn.Linear(x.shape[1], 3)
    for _ in range(20):  # by hand: torch.optim takes seconds to import
        loss = nn.functional.cross_entropy(model(x), y)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= 2 * gradient
    return lambda rows: model(rows).softmax(1)


def test_each_block_is_predicted_by_a_learner_of_the_rows_before():
    options = OnlineOptions(temperatures=[1.0], floors=[0.5], uniform=2.0**-16, first_block=5, growth=2.0)
    q = LearnerPredictor(nearest_mean, 3, options)(X, Y)
    weights = np.array([(1 - 2.0**-16) / 2] * 2 + [2.0**-16])  # learner, marginal, uniform
    for i in range(60):
        start = max(s for s in (0, 5, 10, 20, 40) if s <= i)
        counts = np.bincount(Y[:i], minlength=3)
        marginal = (counts + 0.5) / (i + 1.5)
        p = nearest_mean(X[:start], Y[:start])(X[i : i + 1])[0] if start else marginal
        experts = np.stack([0.5 * p + 0.5 / 3, marginal, np.full(3, 1 / 3)])
        np.testing.assert_allclose(q[i], weights @ experts, rtol=1e-11)
        weights = weights * experts[:, Y[i]] / (weights @ experts)[Y[i]]


def test_later_labels_do_not_move_predictions_by_a_bit():
    predictor = LearnerPredictor(nearest_mean, 3)
    q = predictor(X, Y)
    for t in (0, 7, 8, 30, 59):
        other = np.concatenate([Y[:t], (Y[t:] + 1) % 3])
        assert np.array_equal(predictor(X, other)[: t + 1], q[: t + 1])


@pytest.mark.parametrize(
    ("learner", "rows"),
    [
        (nearest_mean, X),
        (network, torch.from_numpy(X).float()),
        (lambda x, y: LogisticRegression().fit(x, y), X),
        (lambda x, y: LogisticRegression().fit(x, y).predict_proba, X.astype(np.float32)),
        (lambda x, y: MLPClassifier((4,), solver="lbfgs", max_iter=20).fit(x, y), X),  # initialized at random
        (lambda x, y: network(x["a"], y) and (lambda rows: network(x["a"], y)(rows["a"])), {"a": torch.from_numpy(X).float()}),
    ],
    ids=["function", "torch", "classifier", "predict_proba", "random", "dict"],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:lbfgs failed to converge")
def test_labels_decode_by_training_again(learner, rows):
    state = random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state()  # noqa: NPY002
    code = online_code(learner, Y, x=rows, n_classes=3, order_seed=2)
    assert torch.equal(OnlineCode.decode(code.encode(), learner, x=rows), torch.from_numpy(Y))
    assert state[0] == random.getstate()
    assert state[1] == np.random.get_state()[1].tobytes()  # noqa: NPY002
    assert torch.equal(state[2], torch.get_rng_state())
    assert code.kind == "learner"
    assert code.ideal < 0.8 * code.uniform


def test_another_learner_decodes_nothing():
    code = online_code(nearest_mean, Y, x=X)
    for learner, rows in (
        (lambda x, y: LogisticRegression().fit(x, y), X),
        (nearest_mean, X + 0.1 * X**2),
        (nearest_mean, X[:50]),
    ):
        with pytest.raises(km.FileCorruptError):
            OnlineCode.decode(code.encode(), learner, x=rows)


def test_missing_classes_get_the_floor():
    late = np.concatenate([np.zeros(20), np.ones(20), np.full(20, 2)]).astype(int)
    seen = []

    def learner(x, y):
        seen.append(np.unique(y).tolist())
        return LogisticRegression().fit(x, y)

    q = LearnerPredictor(learner, 3)(X, late)
    np.testing.assert_allclose(q.sum(1), 1, atol=1e-12)
    assert q.min() > 1e-5
    assert seen[0] == [0, 1]  # not trained while one class is known


@pytest.mark.parametrize(
    ("learner", "message"),
    [
        (lambda x, y: lambda rows: np.ones((len(rows), 2)) / 2, "one column for each of 3 classes.*predict_proba"),
        (lambda x, y: lambda rows: np.ones((len(rows), 3)), "each row with the sum 1.*softmax"),
        (lambda x, y: lambda rows: np.log(np.full((len(rows), 3), 1 / 3)), "softmax"),
        (lambda x, y: lambda rows: np.full((len(rows), 3), np.nan), "predictions of the learner"),
        (lambda x, y: None, "returned None; .*LogisticRegression"),
        (lambda x, y: SVC().fit(x, y), r"returned SVC\(\) without predict_proba; .*CalibratedClassifierCV"),
        (lambda x, y: x.no_such_method(), "raised AttributeError"),
        (lambda x, y: LogisticRegression().fit(x, 10 * y), "one column for each of 3 classes"),
    ],
)
def test_what_is_no_learner_is_refused(learner, message):
    with pytest.raises(km.InputError, match=message):
        online_code(learner, Y, x=X)


def test_the_learner_cannot_change_the_rows():
    def learner(x, y):
        x += 1
        y += 1
        return lambda rows: np.full((len(rows), 3), 1 / 3)

    before = X.copy()
    online_code(learner, Y, x=X)
    assert np.array_equal(X, before)


def test_rows_and_kernels_are_not_confused():
    with pytest.raises(km.InputError, match="without rows"):
        online_code(nearest_mean, Y)
    with pytest.raises(km.InputError, match="kernel alone"):
        online_code(X @ X.T, Y, x=X)
    with pytest.raises(km.InputError, match=r"kernel of shape \(60, 3\).*infinite_ntk.*x="):
        online_code(X, Y)
    with pytest.raises(km.InputError, match=r"pass x.toarray\(\)"):
        online_code(nearest_mean, Y, x=csr_array(X))  # pyright: ignore[reportArgumentType]
    with pytest.raises(km.InputError, match="TfidfVectorizer"):
        online_code(nearest_mean, Y, x=["a text"] * len(Y))  # pyright: ignore[reportArgumentType]
    with pytest.raises(km.InputError, match="clone"):
        online_code(LogisticRegression(), Y, x=X)  # pyright: ignore[reportArgumentType]
    with pytest.raises(km.InputError, match="60 labels"):
        online_code(nearest_mean, Y[:5], x=X)
