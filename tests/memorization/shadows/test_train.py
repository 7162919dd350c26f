"""Training of shadow ensembles: the same models in every way of running them, files, refusals."""

import copy
import pickle
import random
import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from kernelmem.core import FileCorruptError, InputError, NumericalError, UnsupportedModelError
from kernelmem.memorization.shadows import EnsembleTraining, ShadowEnsemble, ShadowOptions, shadow_ensemble
from kernelmem.memorization.shadows import train as module
from kernelmem.memorization.shadows.masks import model_seeds
from kernelmem.training import EnsembleOptions, Member, Recipe, mlp, train_one

GENERATOR = torch.Generator().manual_seed(0)
X, Y = torch.randn(20, 4, generator=GENERATOR), torch.arange(20) % 3
X_TEST, Y_TEST = torch.randn(6, 4, generator=GENERATOR), torch.arange(6) % 3
TRAIN, TEST = (X, Y), (X_TEST, Y_TEST)
TRAINING = EnsembleTraining(Recipe(steps=5, lr=0.05, batch_size=8), width=5)
OPTIONS = ShadowOptions(n_models=7, models_per_chunk=3)


def trained(training: Any = TRAINING, *, train: object = TRAIN, options=OPTIONS, **arguments) -> ShadowEnsemble:
    arguments = {"test": TEST, "progress": False, **arguments}
    return shadow_ensemble(train, training, options=options, **arguments)


def make_model(width):
    return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 3))


class Functional(nn.Module):
    """The text of the module does not say what it computes."""

    def __init__(self, width, activation):
        super().__init__()
        self.first, self.last, self.activation = nn.Linear(4, width), nn.Linear(width, 3), activation

    def forward(self, x):
        return self.last(self.activation(self.first(x)))


def train_linear(indices, seed):
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        rows = indices[torch.randperm(len(indices))]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X[rows]), Y[rows]).backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_each_model_is_that_of_a_plain_loop_on_its_rows(dtype):
    ensemble = trained(options=replace(OPTIONS, dtype=dtype), seed=4)
    assert ensemble.logits.dtype == dtype
    for k in (0, 6):
        rows, (init_seed, order_seed) = ensemble.masks[k].nonzero()[:, 0], model_seeds(4, k)
        member = Member(5, rows, Y[rows], init_seed, order_seed)
        network = mlp(4, 5, 3, seed=init_seed)
        options = EnsembleOptions(dtype=dtype, keep_outputs=True, n_classes=3)
        data = (torch.cat([X, X_TEST]), torch.cat([Y, Y_TEST]))
        expected = train_one(network, member, X, test=data, recipe=TRAINING.recipe, options=options)
        logits = expected.metrics[-1].logits
        assert logits is not None
        logits = logits.to(dtype)
        tolerance = 1e-10 if dtype == torch.float64 else 1e-4
        torch.testing.assert_close(ensemble.logits[k], logits[0, :20], rtol=0, atol=tolerance)
        torch.testing.assert_close(ensemble.test_logits[k], logits[0, 20:], rtol=0, atol=tolerance)


TRAININGS = [TRAINING, EnsembleTraining(TRAINING.recipe, 3, make_model), train_linear]


@pytest.mark.parametrize("training", TRAININGS)
def test_threads_give_the_same_bits(training):
    with ThreadPoolExecutor(2) as executor:
        assert torch.equal(trained(training, executor=executor).logits, trained(training).logits)


class PicklingExecutor(Executor):
    """Sends calls and values through the pickler of multiprocessing, without another process."""

    def submit(self, fn, /, *args, **kwargs):
        function, arguments = pickle.loads(ForkingPickler.dumps((fn, args)))
        future = Future()
        future.set_result(pickle.loads(ForkingPickler.dumps(function(*arguments))))
        return future


@pytest.mark.parametrize("training", TRAININGS)
def test_data_that_are_sent_to_a_process_stay_where_they_are(training):
    before = X.data_ptr(), Y.data_ptr()
    assert torch.equal(trained(training, executor=PicklingExecutor()).logits, trained(training).logits)
    assert before == (X.data_ptr(), Y.data_ptr())
    assert not X.is_shared()


def test_more_models_begin_with_the_models_of_fewer(tmp_path):
    few, many = trained(path=tmp_path), trained(options=replace(OPTIONS, n_models=11))
    assert torch.equal(many.masks[:7], few.masks)
    assert torch.equal(many.logits[:6], few.logits[:6])  # model 6 shares its batched product with other models
    continued = trained(options=replace(OPTIONS, n_models=11), path=tmp_path)
    assert torch.equal(continued.logits[:7], few.logits)
    torch.testing.assert_close(continued.logits, many.logits, rtol=0, atol=1e-4)
    assert torch.equal(trained(options=replace(OPTIONS, n_models=4), path=tmp_path).logits, few.logits[:4])


def test_a_killed_run_resumes_with_the_finished_chunks(tmp_path, monkeypatch):
    expected = trained()
    calls = []

    def killed(chunk, progress=False):
        calls.append(chunk.start)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return run_chunk(chunk, progress)

    run_chunk = module.run_chunk
    monkeypatch.setattr(module, "run_chunk", killed)
    with pytest.raises(KeyboardInterrupt):
        trained(path=tmp_path)
    calls.append(None)
    assert torch.equal(trained(path=tmp_path).logits, expected.logits)
    assert calls == [0, 3, 6, None, 6]


def test_a_damaged_file_is_trained_again_and_a_damaged_identity_refused(tmp_path):
    expected = trained(path=tmp_path).logits
    file = tmp_path / "models-0000003-0000006.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert torch.equal(trained(path=tmp_path).logits, expected)
    assert file.read_bytes() == content
    (tmp_path / "shadows.json").write_text("{", encoding="utf-8")
    with pytest.raises(FileCorruptError, match=r"shadows\.json"):
        trained(path=tmp_path)


SAME = {
    "arrays": {"train": (X.numpy(), Y.numpy()), "test": (X_TEST.numpy(), Y_TEST.numpy())},
    "precision": {"train": (X.double().numpy(), Y.to(torch.int32)), "test": (X_TEST.tolist(), Y_TEST.tolist())},
    "layout": {"train": (X.T.contiguous().T, torch.stack([Y, Y], 1)[:, 0]), "test": (X_TEST.T.contiguous().T, Y_TEST)},
    "data set": {"train": TensorDataset(X, Y), "test": TensorDataset(X_TEST, Y_TEST)},
    "device": {"options": replace(OPTIONS, device="cpu")},
    "chunks": {"options": replace(OPTIONS, models_per_chunk=2)},
    "memory": {"memory": "2MB"},
}
DIFFERENT = {
    "training rows": {"train": (X + 1e-3, Y)},
    "training rows, labels": {"train": (X.flip(0), Y.flip(0))},
    "labels": {"train": (X, (Y + 1) % 3)},
    "test rows": {"test": (X_TEST + 1e-3, Y_TEST)},
    "test labels": {"test": (X_TEST, Y_TEST.flip(0))},
    "model": {"training": replace(TRAINING, width=6)},
    "recipe": {"training": replace(TRAINING, recipe=replace(TRAINING.recipe, lr=0.06))},
    "sampling": {"options": replace(OPTIONS, sampling="balanced")},
    "share": {"options": replace(OPTIONS, share=0.5)},
    "seed": {"seed": 1},
    "dtype": {"options": replace(OPTIONS, dtype=torch.float64)},
    "number of outputs": {"options": replace(OPTIONS, n_classes=4)},
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("shadows")
    trained(path=path)
    return path


@pytest.mark.parametrize("name", SAME)
def test_the_same_ensemble_is_never_refused(name, directory, monkeypatch):
    monkeypatch.setattr(module, "run_chunk", None)  # nothing is trained again
    assert torch.equal(trained(path=directory, **SAME[name]).logits, trained(path=directory).logits)


@pytest.mark.parametrize("name", DIFFERENT)
def test_another_ensemble_is_refused_and_the_difference_named(name, directory):
    with pytest.raises(InputError, match=rf"different: {name}( \(|;)"):
        trained(path=directory, **DIFFERENT[name])


def test_modules_are_compared_by_structure_and_by_what_they_compute(tmp_path):
    tanh, relu = (lambda width, f=f: Functional(width, f) for f in (torch.tanh, torch.relu))
    recipe = TRAINING.recipe
    trained(EnsembleTraining(recipe, 3, tanh), path=tmp_path)
    trained(EnsembleTraining(recipe, 3, lambda width: Functional(width, torch.tanh)), path=tmp_path)
    with pytest.raises(InputError, match="different: initial outputs of make_model"):
        trained(EnsembleTraining(recipe, 3, relu), path=tmp_path)
    with pytest.raises(InputError, match="different: model"):
        trained(EnsembleTraining(recipe, 4, tanh), path=tmp_path)


def test_hashes_speak_of_data_and_training():
    first, second = trained(), trained(train=(X.numpy(), Y.numpy()))
    assert first.identity == second.identity
    assert trained(train=(X.flip(0), Y.flip(0))).identity.data != first.identity.data
    assert trained(replace(TRAINING, width=6)).identity.training != first.identity.training
    assert trained(train_linear).identity.training == ""


def test_outputs_beyond_memory_are_mapped(tmp_path):
    expected = trained(train_linear)
    options = replace(OPTIONS, training_name="linear")
    mapped = trained(train_linear, options=options, path=tmp_path, memory=1000)
    assert torch.equal(mapped.logits, expected.logits)
    assert sorted(file.name for file in tmp_path.iterdir())[-1] == "shadows.json"
    with pytest.raises(InputError, match=r"outputs \(7, 26, 3\) of 2,184 bytes"):
        trained(train_linear, memory=1000)


def random_states():
    return torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()  # noqa: NPY002


def test_a_users_training_is_seeded_and_its_world_unchanged():
    seen = []

    def train(indices, seed):
        seen.append((indices, seed, torch.rand(1).item(), np.random.rand(), random.random()))  # noqa: NPY002
        model = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5), nn.BatchNorm1d(3))
        model[1].eval()
        seen[-1] += (model, copy.deepcopy(model.state_dict()))
        return model

    states = random_states()
    first, second = trained(train), trained(train)
    assert torch.equal(first.logits, second.logits)
    assert states == random_states()
    for k, (indices, seed, *drawn, model, weights) in enumerate(seen[:7]):
        assert torch.equal(indices, first.masks[k].nonzero()[:, 0])
        assert seed == model_seeds(0, k)[0]
        assert drawn == list(seen[7 + k][2:5])
        assert [part.training for part in model.modules()] == [True, True, False, True]
        assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
        model.eval()
        torch.testing.assert_close(first.test_logits[k], model(X_TEST).detach())


def test_batches_of_any_structure_with_forward():
    def train(indices, seed):
        return nn.Linear(4, 1)

    rows, test_rows = {"a": X, "b": {"c": Y}}, {"a": X_TEST, "b": {"c": Y_TEST}}
    options = replace(OPTIONS, forward=lambda model, batch: model(batch["a"])[:, 0:1] + batch["b"]["c"][:, None])
    ensemble = trained(train, train=(rows, Y % 2), test=(test_rows, Y_TEST % 2), options=options)
    assert ensemble.n_classes == 2
    assert int(ensemble.logits[:, :, 0].count_nonzero()) == 0
    with pytest.raises(UnsupportedModelError, match="pass forward="):
        trained(train, train=(rows, Y % 2), test=(test_rows, Y_TEST % 2))
    with pytest.raises(InputError, match=r"rows of type dict.*train\(indices, seed\)"):
        trained(train=(rows, Y), test=None)


def test_real_targets_are_trained_with_squared_error():
    training = replace(TRAINING, recipe=replace(TRAINING.recipe, loss="mse", steps=30))
    targets = X[:, :2]
    ensemble = trained(training, train=(X, targets), test=(X_TEST, X_TEST[:, :2].numpy()))
    assert ensemble.n_classes == 2
    assert float(ensemble.statistic("log_likelihood").mean()) > float(-targets.square().sum(1).mean() / 2)
    with pytest.raises(InputError, match="y of shape"):
        trained(train=(X, targets))
    labels = trained(training)
    assert labels.n_classes == 3


def test_diverged_models_are_named_or_dropped(tmp_path):
    def train(indices, seed):
        model = nn.Linear(4, 3)
        if 0 in indices:
            model.bias.data[0] = torch.nan
        return model

    masks = trained(train_linear).masks
    diverged = [int(k) for k in masks[:, 0].nonzero()[:, 0]]
    with pytest.raises(NumericalError, match=f"of models {diverged[0]}"):
        trained(train, options=replace(OPTIONS, training_name="a"), path=tmp_path)
    ensemble = trained(train, options=replace(OPTIONS, training_name="a", diverged="drop"), path=tmp_path)
    assert ensemble.identity.dropped == tuple(diverged)
    assert torch.equal(ensemble.masks, masks[~masks[:, 0]])
    assert bool(ensemble.logits.isfinite().all())
    assert f"diverged: models {diverged[0]}" in str(ensemble)


def test_no_test_rows():
    ensemble = trained(test=None)
    assert ensemble.n_test == 0
    assert ensemble.test_statistic("margin").shape == (7, 0)
    assert "test rows" not in str(ensemble)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": (X, Y[:5])}, "20 labels"),
        ({"train": (X, Y - 1)}, "values outside 0"),
        ({"train": (X, X[:, 0])}, r"y\[:, None\] for one"),
        ({"train": (X, torch.zeros(20)), "test": None}, "labels of one class"),
        ({"train": (X[:1], Y[:1])}, "one training row"),
        ({"train": (X[:, 0], Y)}, r"x\[:, None\]"),
        ({"train": X}, r"train=\(x, y\)"),
        ({"test": (X_TEST[:, :3], Y_TEST)}, "same shape of a row"),
        ({"train": (X * torch.nan, Y)}, "NaN"),
        ({"training": "mlp"}, "training='mlp'"),
        ({"training": lambda indices: None}, r"a function of \(indices, seed\)"),
        ({"training": train_linear, "path": "a"}, "training_name="),
        ({"executor": "threads"}, "Executor"),
        ({"seed": -1}, "seed=-1"),
        ({"memory": 10}, "memory for one network at a time"),
        ({"options": ShadowOptions(n_models=7, share=0.01)}, "share=0.01 of 20 rows"),
    ],
)
def test_what_cannot_be_trained_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        trained(**changes)


def test_a_users_function_that_returns_no_fitting_model_is_refused():
    with pytest.raises(UnsupportedModelError, match="returns NoneType"):
        trained(lambda indices, seed: None)
    with pytest.raises(UnsupportedModelError, match=r"2 outputs; expected 3 outputs"):
        trained(lambda indices, seed: nn.Linear(4, 2))
    for size in (1, 7):
        options = replace(OPTIONS, models_per_chunk=size)
        with pytest.raises(UnsupportedModelError, match=r"with . and with . outputs"):
            trained(lambda indices, seed: nn.Linear(4, 3 + (len(indices) > 14)), options=options)
    with pytest.raises(UnsupportedModelError, match="fails on the rows"):
        trained(lambda indices, seed: nn.Linear(5, 3))


def test_models_that_fail_on_the_rows_are_refused_before_training():
    training = EnsembleTraining(TRAINING.recipe, 3, make_model)
    with pytest.raises(UnsupportedModelError, match=r"int64.*pass x\.float\(\)"):
        trained(training, train=(torch.ones(20, 4, dtype=torch.int64), Y), test=None)
    with pytest.raises(UnsupportedModelError, match=r"fails on rows of shape \(3,\).*shape of the rows"):
        trained(training, train=(X[:, :3], Y), test=None)
    with pytest.raises(UnsupportedModelError, match=r"pass forward=|\(8, C\)"):
        trained(EnsembleTraining(TRAINING.recipe, 3, lambda width: nn.Flatten(0)), test=None)


def test_diverged_training_is_refused():
    recipe = replace(TRAINING.recipe, optimizer="sgd", lr=1e30)
    with pytest.raises(NumericalError, match="of models 0, 1, 2"):
        trained(replace(TRAINING, recipe=recipe))


def test_functions_that_cannot_be_sent_are_named():
    with ProcessPoolExecutor(1) as executor, pytest.raises(InputError, match="top level of a module"):
        trained(lambda indices, seed: nn.Linear(4, 3), executor=executor)


@pytest.mark.parametrize(
    "options",
    [{"n_models": 1}, {"share": 1.0}, {"share": 0}, {"sampling": "even"}, {"dtype": torch.float16}, {"n_classes": 1},
     {"diverged": "keep"}, {"models_per_chunk": 0}, {"forward": 3}, {"training_name": 3}, {"device": "abacus"}],
)  # fmt: skip
def test_options_out_of_range_are_refused(options):
    with pytest.raises(InputError):
        ShadowOptions(**options)


@pytest.mark.parametrize("arguments", [{"recipe": 3}, {"width": 0}, {"width": ()}, {"make_model": 3}])
def test_trainings_out_of_range_are_refused(arguments):
    with pytest.raises(InputError):
        EnsembleTraining(**{"recipe": TRAINING.recipe, **arguments})


def test_equal_epochs_take_the_share_of_the_steps(tmp_path):
    options = replace(OPTIONS, share=0.6, sampling="balanced")
    scaled = trained(
        EnsembleTraining(Recipe(steps=10, lr=0.05, batch_size=8), width=5, equal_epochs=True), options=options
    )
    same = EnsembleTraining(Recipe(steps=6, lr=0.05, batch_size=8), width=5)
    assert torch.equal(scaled.logits, trained(same, options=options, path=tmp_path).logits)
    assert not torch.equal(
        scaled.logits, trained(replace(same, recipe=Recipe(steps=10, batch_size=8)), options=options).logits
    )
    trained(replace(same, equal_epochs=True, recipe=replace(same.recipe, steps=10)), options=options, path=tmp_path)
    assert EnsembleTraining(Recipe(steps=1), equal_epochs=True).recipe_for(0.1).steps == 1
    with pytest.raises(InputError, match="equal_epochs"):
        EnsembleTraining(Recipe(steps=1), equal_epochs=3)  # pyright: ignore[reportArgumentType]


def slow_model(width):
    """A model whose layers are drawn with pauses, in which another thread would draw."""
    first = nn.Linear(4, width)
    time.sleep(0.005)
    return nn.Sequential(first, nn.Tanh(), nn.Linear(width, 3))


def test_threads_that_build_models_at_once_do_not_share_random_numbers():
    training = EnsembleTraining(Recipe(steps=1), 3, slow_model)
    with ThreadPoolExecutor(3) as executor:
        assert torch.equal(trained(training, executor=executor).logits, trained(training).logits)
