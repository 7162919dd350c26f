"""kernelmem.recording.trainers.skorch: training with skorch is recorded, replayed and explained by the ledger."""

import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kernelmem.core.errors import InputError
from kernelmem.recording.replay import replay
from kernelmem.recording.run import Run
from kernelmem.trajectory.ledger.ledger import ledger

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    skorch = pytest.importorskip("skorch")
    from sklearn.base import clone
    from skorch.callbacks import Callback, Checkpoint, GradientNormClipping, LRScheduler

    from kernelmem.recording.trainers.skorch import Recorded, call_with_keywords, nll_of_probabilities


class RecordedClassifier(Recorded, skorch.NeuralNetClassifier):
    pass


class RecordedRegressor(Recorded, skorch.NeuralNetRegressor):
    pass


class Net(nn.Module):
    def __init__(self, *, outputs=3, softmax=False, dropout=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.head = nn.Linear(4, 6), nn.Linear(6, outputs)
        self.dropout, self.softmax = nn.Dropout(dropout), softmax
        self.double()

    def forward(self, x):
        f = self.head(self.dropout(self.first(x).tanh()))
        return f.softmax(1) if self.softmax else f


def data(n=20):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 4, generator=generator, dtype=torch.float64).numpy()
    return x, torch.randint(3, (n,), generator=generator).numpy()


OPTIONS = {
    "criterion": nn.CrossEntropyLoss,
    "max_epochs": 3,
    "batch_size": 6,
    "verbose": 0,
    "optimizer": torch.optim.Adam,
    "lr": 0.01,
    "iterator_train__shuffle": True,
}


def fitted(make, X=None, y=None, **options):
    x, labels = data()
    torch.manual_seed(7)
    net = make(options.pop("net", Net), **{**OPTIONS, **options})
    return net.fit(x if X is None else X, labels if y is None else y)


CASES = {
    "plain": {},
    "clipped, scheduled": {
        "callbacks": [
            GradientNormClipping(0.1),
            LRScheduler(torch.optim.lr_scheduler.ExponentialLR, gamma=0.9, step_every="batch"),
        ]
    },
    "all rows": {"train_split": None},
}


@pytest.mark.parametrize("case", CASES)
def test_recording_does_not_change_the_training_and_the_ledger_explains_it(lab, case):
    plain = fitted(skorch.NeuralNetClassifier, **CASES[case])
    net = fitted(RecordedClassifier, out=lab.directory / "run", **CASES[case])
    assert lab.same([net.module_.state_dict()], [plain.module_.state_dict()])
    run = Run.open(lab.directory / "run")
    run.verify()
    x, y = data()
    for step in run.steps:
        given_x, given_y = run.batch(step.index)
        assert (given_x.numpy() == x[step.examples]).all()
        assert (given_y.numpy() == y[step.examples]).all()
    counts = torch.cat([step.examples for step in run.steps]).bincount(minlength=20)
    assert sorted(counts.unique().tolist()) == ([3] if case == "all rows" else [0, 3])
    assert (run.steps[0].scale < 1) == ("clipped" in case)
    assert (len({step.groups[0]["lr"] for step in run.steps}) > 1) == ("scheduled" in case)
    account = ledger(run, net.module_, x[:5])
    assert account.largest_residual <= 1e-10
    assert float((account.final - net.module_(torch.from_numpy(x[:5])).detach()).abs().max()) <= 1e-12
    assert float((account.final - account.initial).abs().max()) > 1e-3
    assert net.recording_ is None
    assert ("step" in vars(net.optimizer_)) == ("scheduled" in case)  # the scheduler's own
    assert not net.module_._forward_pre_hooks


def test_probabilities_with_nll_loss_are_recorded_with_nll_of_probabilities(lab):
    net = fitted(RecordedClassifier, out=lab.directory / "run", criterion=nn.NLLLoss, module__softmax=True, keep=4)
    run = Run.open(lab.directory / "run")
    assert run.loss.endswith("nll_of_probabilities")
    assert {step.scale for step in run.steps} == {1.0}
    *_, (_, weights) = replay(run, Net(softmax=True), loss=nll_of_probabilities)
    assert all(torch.equal(weights[name], value) for name, value in net.module_.state_dict().items())
    account = ledger(run, Net(softmax=True), data()[0][:5], loss=nll_of_probabilities)
    assert account.largest_residual <= 1e-10


def test_a_regressor_dropout_and_replay(lab):
    _, y = data()
    net = fitted(
        RecordedRegressor,
        y=(y[:, None] / 2.0),
        out=lab.directory / "run",
        criterion=nn.MSELoss,
        module__outputs=1,
        module__dropout=0.3,
        keep=100,
    )
    run = Run.open(lab.directory / "run")
    assert run.loss == "mse_mean"
    assert all(step.random is not None for step in run.steps)
    *_, (_, weights) = replay(run, Net(outputs=1, dropout=0.3))
    assert all(torch.equal(weights[name], value) for name, value in net.module_.state_dict().items())


def test_rows_of_a_dict_are_keywords(lab):
    x, _ = data()
    net = fitted(RecordedClassifier, X={"x": x}, out=lab.directory / "run", keep=3)
    run = Run.open(lab.directory / "run")
    assert set(run.batch(0)[0]) == {"x"}
    *_, (_, weights) = replay(run, Net(), forward=call_with_keywords)
    assert all(torch.equal(weights[name], value) for name, value in net.module_.state_dict().items())


class Pickled(Callback):
    def on_epoch_end(self, net, **_):
        again = pickle.loads(pickle.dumps(net))
        assert again.recording_ is None
        assert again.module_(torch.zeros(1, 4, dtype=torch.float64)).shape == (1, 3)


def test_a_net_is_cloned_pickled_in_training_and_fitted_twice(lab):
    callbacks = [Pickled(), Checkpoint(dirname=str(lab.directory / "checkpoints"), monitor="train_loss_best")]
    options = {
        "callbacks": callbacks,
        "optimizer": torch.optim.SGD,
    }  # without a state, so that partial_fit can be recorded
    net = fitted(RecordedClassifier, out=lab.directory / "run", **options)
    net.set_params(out=lab.directory / "second").partial_fit(*data())  # the same optimizer goes on
    net.set_params(out=lab.directory / "run")
    other = clone(net).set_params(out=lab.directory / "other", callbacks=None)
    assert other.get_params()["keep"] == "all"
    other.fit(*data())
    assert len(Run.open(lab.directory / "other")) == len(Run.open(lab.directory / "run"))
    with pytest.raises(InputError, match="already holds a run"):
        net.fit(*data())
    net.set_params(out=lab.directory / "more").partial_fit(*data())
    more = Run.open(lab.directory / "more")
    assert len(more) == len(Run.open(lab.directory / "run"))
    assert lab.same([{name: more.weights(len(more))[name] for name in more.parameters}], [net.module_.state_dict()])


def test_training_that_goes_on_with_the_momentum_of_another_run_is_refused(lab):
    net = fitted(RecordedClassifier, out=lab.directory / "run", optimizer=torch.optim.Adam)
    with pytest.raises(InputError, match="an optimizer that has already taken steps"):
        net.set_params(out=lab.directory / "second").partial_fit(*data())


class Regularized(RecordedClassifier):
    def get_loss(self, y_pred, y_true, *args, **options):
        return super().get_loss(y_pred, y_true, *args, **options) + self.module_.head.weight.square().sum()


class TwoOptimizers(RecordedClassifier):
    def initialize_optimizer(self, *args, **options):
        super().initialize_optimizer(*args, **options)
        with self._current_init_context("optimizer"):
            self.another_ = torch.optim.SGD(self.module_.parameters(), lr=0.1)
        return self


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (Regularized, {}, "largest mismatch is in head.weight"),
        (TwoOptimizers, {}, "optimizers optimizer, another"),
        (
            RecordedClassifier,
            {"criterion": nn.KLDivLoss},
            r"criterion KLDivLoss\(\) without.*pass loss=",
        ),
        (RecordedClassifier, {"criterion": nn.NLLLoss, "criterion__weight": torch.ones(3).double()}, "NLLLoss"),
        (RecordedClassifier, {"iterator_train": lambda dataset, **_: [dataset[0]]}, "returns a list"),
        (RecordedClassifier, {"loss": "mse"}, "largest mismatch"),
    ],
)
def test_what_cannot_be_recorded_is_refused(lab, make, options, words):
    with pytest.raises(InputError, match=words):
        fitted(make, out=lab.directory / "run", **options)


def test_a_user_defined_loss(lab):
    def smoothed(f, y):
        return F.cross_entropy(f, y, label_smoothing=0.1, reduction="none")

    fitted(RecordedClassifier, out=lab.directory / "run", criterion__label_smoothing=0.1, loss=smoothed)
    assert Run.open(lab.directory / "run").loss.endswith("smoothed")
