"""A preregistered prediction is on disk before training and close to it; the theory of features is that of the pool."""

import json

import pytest
import torch

from kernelmem.core.errors import InputError
from kernelmem.double_descent.prediction.predict import Prediction
from kernelmem.double_descent.prediction.preregistered import PreregisteredPrediction, preregister
from kernelmem.double_descent.prediction.random_features import FeatureTheory, feature_theory
from kernelmem.double_descent.prediction.score import PredictionScore
from kernelmem.double_descent.presets.digits import digits_pool, preset, run_preset
from kernelmem.double_descent.sweeps.options import Execution
from kernelmem.double_descent.sweeps.random_features import FeatureOptions, feature_sweep
from kernelmem.double_descent.theory.kernel_ridge.curves import feature_curve
from kernelmem.double_descent.theory.kernel_ridge.spectral_task import flip_noise, pool_task
from kernelmem.training.datasets import LabeledData
from kernelmem.training.ensemble.recipe import Recipe

LAZY = Recipe(optimizer="sgd", lr=0.004, momentum=0.9, steps=300, loss="mse")


@pytest.fixture(scope="module")
def data():
    whole = digits_pool(0)
    return LabeledData("some digits", whole.x_train[:150], whole.y_train[:150], whole.x_test[:100], whole.y_test[:100])


def test_a_prediction_is_close_and_written_before_training(data, tmp_path):
    seen = []

    def watch(done, total):
        seen.append((tmp_path / "prediction.safetensors").exists())

    found = preregister(
        data, (20, 60, 120), width=60, recipe=LAZY, n_seeds=3, execution=Execution(out=tmp_path), progress=watch
    )
    assert seen[0]  # progress is called before the first network
    assert found.score.rank_correlation == 1
    assert float(found.score.relative_error.abs().max()) < 0.3
    held = Prediction.load(tmp_path / "prediction.safetensors")
    assert torch.equal(held.expected, found.prediction.expected)
    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert summary["kind"] == "prediction"
    assert summary["prediction"]["measured"] == pytest.approx((2 * found.sweep.curves.test_loss.mean(0)).tolist())
    assert "rank correlation" in str(found)
    assert found.seconds > 0
    read = PreregisteredPrediction.load(found.save(tmp_path / "all.safetensors"))
    assert str(read) == str(found) == repr(found)
    assert len(str(found).splitlines()) <= 40
    assert torch.equal(read.sweep.curves.test_loss, found.sweep.curves.test_loss)
    assert found.to_frame().measured.tolist() == found.score.measured.tolist()
    assert found.to_frame().expected.tolist() == found.prediction.expected.tolist()
    score = PredictionScore.load(found.score.save(tmp_path / "score.safetensors"))
    assert str(score) == repr(found.score)
    assert (tmp_path / "figure.svg").stat().st_size > 1000


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(loss="mse"),
        Recipe(optimizer="sgd"),
        Recipe(optimizer="sgd", loss="mse", schedule="wsd"),
        Recipe(optimizer="sgd", loss="mse", batch_size=16),
        Recipe(optimizer="sgd", loss="mse", weight_decay=0.1),
    ],
)
def test_training_that_is_not_lazy_is_refused(data, recipe):
    with pytest.raises(InputError, match="recipe"):
        preregister(data, (20, 40, 60), recipe=recipe)


def test_the_theory_of_features_is_that_of_their_kernel(data, tmp_path):
    found = feature_sweep(data, "width", (10, 30, 60, 200), n_seeds=4, options=FeatureOptions(n=60))
    theory = feature_theory(data, found)
    x = torch.cat([data.x_train, data.x_test]).double()
    y = torch.cat([data.y_train, data.y_test])
    K = torch.exp(-0.045 * torch.cdist(x, x).square())
    task = pool_task((K + K.T) / 2, torch.eye(10, dtype=torch.float64)[y] - 0.1)
    want = feature_curve(task, [10, 30, 60, 200], n=60, noise=flip_noise(0.2, 10)).clean
    assert want is not None
    torch.testing.assert_close(theory.expected, want)
    simple = feature_curve(task.as_population(), [10, 30, 60, 200], n=60, noise=flip_noise(0.2, 10)).clean
    assert simple is not None
    torch.testing.assert_close(theory.population, simple)
    assert theory.peak == 60
    assert bool((theory.control < theory.expected)[torch.isfinite(theory.expected)].all())
    assert bool((theory.relative_error[torch.tensor([0, 1, 3])].abs() < 0.25).all())
    assert torch.isnan(theory.relative_error[2])
    assert theory.measured.tolist() == found.curves.test_loss.mean(0).tolist()
    assert theory.summary()["peak"] == 60
    assert str(FeatureTheory.load(theory.save(tmp_path / "theory.safetensors"))) == repr(theory)
    assert theory.to_frame().axis.tolist() == [10, 30, 60, 200]
    assert theory.plot_curves()[0][0] == [10, 30, 60, 200]


def test_other_sweeps_have_no_such_theory(data):
    for other in (
        feature_sweep(data, "samples", (20, 40), n_seeds=1, options=FeatureOptions(width=30)),
        feature_sweep(data, "width", (10, 20), n_seeds=1, options=FeatureOptions(n=30, features="relu")),
    ):
        with pytest.raises(InputError, match="cosine"):
            feature_theory(data, other)


def test_the_preset_of_features_carries_its_theory(data, tmp_path):
    from dataclasses import replace

    own = replace(preset("features"), values=(10, 40, 160), n=40, n_seeds=4)
    run_preset(own, data=data, execution=Execution(out=tmp_path))
    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert summary["config"]["theory"]["peak"] == 40
