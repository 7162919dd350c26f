"""Valid calls of training and double descent."""

import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

from kernelmem import double_descent, training
from kernelmem.double_descent import theory, variance
from kernelmem.training import LabeledData, Member, Recipe, ensemble
from tests.border.calls_kernels import K, X, Y, model
from tests.border.driver import Call

ROWS = torch.randn(16, 3, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(16) % 2
DATA = LabeledData("a", ROWS, LABELS, ROWS + 0.1, LABELS)
RECIPE = Recipe(steps=2, lr=0.1)
QUIET = {"progress": False}
TASK = theory.population_task([1.0, 0.5], [1.0, 0.5])
CURVE = theory.isotropic_curve([0.5, 2.0], signal=1.0, noise=0.5)
CURVES = np.random.default_rng(0).random((4, 3))
UNDEFINED = frozenset({"test_error", "test_loss", "train_error", "train_loss", "memorized_flips", "recovered_flips"})
UNDEFINED |= {"noisy_test_error", "kernel_flips", "kernel_clean"}
WARNS = (double_descent.ThresholdWarning,)


def make_model(*arguments: object) -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def mlp(**arguments: object) -> nn.Module:
    """Without a seed the weights come from the global random state, as documented."""
    with torch.random.fork_rng(devices=[]):
        return training.mlp(**arguments)


def members() -> list[Member]:
    return [Member(2, torch.arange(4), LABELS[:4], 0, 0), Member(3, torch.arange(8), LABELS[:8], 1, 1)]


@cache
def sweep() -> double_descent.Sweep:
    return double_descent.sweep(DATA, "width", [1, 2], recipe=RECIPE, n_seeds=4, progress=False)


@cache
def feature_sweep() -> double_descent.Sweep:
    options = double_descent.FeatureOptions(n=8, width=4)
    return double_descent.feature_sweep(DATA, "width", [2, 4], n_seeds=4, options=options, progress=False)


@cache
def prediction() -> double_descent.Prediction:
    return double_descent.predict_curve(make_model, (ROWS, LABELS), widths=2, samples=[4, 8], seeds=(0, 1))


@cache
def data_file() -> Path:
    path = Path(tempfile.mkdtemp()) / "data.npz"
    np.savez(path, x_train=ROWS, y_train=LABELS, x_test=ROWS, y_test=LABELS)
    return path


def trained(**arguments: object) -> dict[str, object]:
    options = training.EnsembleOptions(evaluate_at=(1,))
    return {"members": members(), "x": ROWS, "test": (ROWS, LABELS), "recipe": RECIPE, "options": options, **arguments}


TRAINING = {
    "labeled_data": Call(
        training.labeled_data,
        lambda: (
            {"x_train": ROWS, "y_train": LABELS, "x_test": ROWS, "y_test": LABELS, "name": "a"}
            | {"image_shape": None, "flipped": LABELS.bool()}
        ),
    ),
    "digits": Call(training.digits, lambda: {"n_train": 10, "seed": 0}, examples=0.2),
    "read_npz": Call(training.read_npz, lambda: {"path": data_file()}),
    "mnist": Call(training.mnist, lambda: {"directory": "nowhere"}),
    "cifar10": Call(training.cifar10, lambda: {"directory": "nowhere"}),
    "mlp": Call(mlp, lambda: {"d": 3, "widths": (2, 2), "C": 2, "activation": "relu", "seed": 0}),
    "standardized_mlp": Call(
        training.standardized_mlp,
        lambda: {"x": ROWS, "n_classes": 2, "widths": (2,), "seed": 0, "per_feature": False},
    ),
    "Standardize": Call(training.Standardize, lambda: {"x": ROWS, "per_feature": False}),
    "per_example_loss": Call(training.per_example_loss, lambda: {"loss": "mse"}),
    "shuffled": Call(
        lambda **arguments: [batch for _, batch in zip(range(9), training.shuffled(**arguments), strict=False)],
        lambda: {"n": 4, "batch_size": 2, "epochs": 1, "seed": 0},
    ),
    "BatchOrder": Call(training.BatchOrder, lambda: {"seed": 0, "n": 4, "batch_size": 2}),
    "train_classifier": Call(
        training.train_classifier,
        lambda: (
            {"model": model(torch.float32), "x": ROWS, "y": LABELS, "epochs": 1, "batch_size": 8, "lr": 0.1}
            | {"seed": 0, "progress": False}
        ),
        changes=frozenset({"model"}),
    ),
    "Recipe": Call(
        Recipe,
        lambda: (
            {"optimizer": "sgd", "lr": 0.01, "momentum": 0.0, "weight_decay": 0.0, "schedule": "constant"}
            | {"batch_size": None, "steps": 10, "loss": "mse", "activation": "relu", "depth": 1}
        ),
    ),
    "EnsembleOptions": Call(
        training.EnsembleOptions,
        lambda: (
            {"evaluate_at": (), "dtype": torch.float32, "device": None, "memory": "1GiB", "n_classes": None}
            | {"keep_outputs": False, "keep_parameters": False, "diverged": "keep"}
        ),
    ),
    "Member": Call(
        lambda **arguments: training.train_mlps(**trained(members=[Member(**arguments)])),
        lambda: {"width": 2, "rows": torch.arange(4), "labels": LABELS[:4], "init_seed": 0, "order_seed": 0},
        examples=0.5,
        undefined=frozenset({"metrics", "parameters"}),
    ),
    "train_mlps": Call(
        training.train_mlps,
        lambda: trained(progress=False),
        examples=0.5,
        undefined=frozenset({"metrics", "parameters"}),
    ),
    "train_modules": Call(
        training.train_modules,
        lambda: trained(make_model=make_model, progress=False),
        examples=0.5,
        undefined=frozenset({"metrics", "parameters"}),
    ),
    "train_one": Call(
        training.train_one,
        lambda: (
            {key: value for key, value in trained().items() if key != "members"}
            | {"model": model(torch.float32), "member": members()[0], "progress": False}
        ),
        changes=frozenset({"model"}),
        undefined=frozenset({"metrics", "parameters"}),
        examples=0.5,
    ),
    "as_task": Call(ensemble.as_task, trained),
}
SWEEPS = {
    "sweep": Call(
        double_descent.sweep,
        lambda: (
            {"data": DATA, "over": "width", "values": [1, 2], "noise": 0.2, "n_seeds": 4, "seed": 0}
            | QUIET
            | {"recipe": RECIPE, "options": double_descent.SweepOptions(), "execution": double_descent.Execution()}
        ),
        examples=0.25,
        undefined=UNDEFINED,
        warns=WARNS,
    ),
    "feature_sweep": Call(
        double_descent.feature_sweep,
        lambda: (
            {"data": DATA, "over": "width", "values": [2, 4], "noise": 0.2, "n_seeds": 4, "seed": 0}
            | QUIET
            | {"options": double_descent.FeatureOptions(n=8, width=4)}
        ),
        examples=0.5,
        undefined=UNDEFINED,
        warns=WARNS,
    ),
    "phase_diagram": Call(
        double_descent.phase_diagram,
        lambda: (
            {"data": DATA, "grid": double_descent.Grid([1, 2], [4], [1, 2], [0.0, 0.5]), "n_seeds": 1}
            | QUIET
            | {"recipe": RECIPE, "seed": 0, "epsilon": 0.1, "execution": double_descent.Execution()}
        ),
        examples=0.25,
        undefined=UNDEFINED,
        warns=WARNS,
    ),
    "find_threshold": Call(
        double_descent.find_threshold,
        lambda: (
            {"data": DATA, "over": "width", "values": [1, 2], "noise": 0.2, "seed": 0, "recipe": RECIPE}
            | QUIET
            | {"search": double_descent.SearchOptions(n_seeds=2), "options": double_descent.SweepOptions()}
            | {"execution": double_descent.Execution()}
        ),
        examples=0.25,
        undefined=frozenset({"value"}),
        warns=WARNS,
    ),
    "predict_curve": Call(
        double_descent.predict_curve,
        lambda: (
            {"make_model": make_model, "data": (ROWS, LABELS), "widths": 2, "samples": [4, 8], "ridge": 0.1}
            | {"seeds": (0, 1), "options": double_descent.PredictionOptions(), "forward": None, "memory": "1GiB"}
            | QUIET
        ),
        examples=0.25,
    ),
    "score_prediction": Call(
        double_descent.score_prediction,
        lambda: {"prediction": prediction(), "measured": CURVES[:, :2], "n_permutations": 9, "seed": 0},
    ),
    "preregister": Call(
        double_descent.preregister,
        lambda: (
            {"data": DATA, "samples": [4, 8], "width": 2, "noise": 0.2, "recipe": RECIPE, "n_seeds": 2}
            | QUIET
            | {"n_initial": 1, "seed": 0, "execution": double_descent.Execution(out=tempfile.mkdtemp())}
        ),
        examples=0.1,
        undefined=UNDEFINED,
        warns=WARNS,
    ),
    "feature_theory": Call(
        double_descent.feature_theory, lambda: {"data": DATA, "sweep": feature_sweep()}, examples=0.25
    ),
    "ridge_of_time": Call(double_descent.ridge_of_time, lambda: {"eigenvalues": [1.0, 0.5], "time": 2.0}),
    "random_features": Call(
        double_descent.random_features,
        lambda: {"x": ROWS, "count": 3, "seed": 0, "features": "cosine", "scale": 0.3},
    ),
    "crossing": Call(
        double_descent.crossing,
        lambda: {"axis": [1, 2, 3], "train_error": [0.5, 0.2, 0.0], "epsilon": 0.1, "direction": "falling"},
        undefined=frozenset({"value"}),
        warns=WARNS,
    ),
    "peak": Call(double_descent.peak, lambda: {"curves": CURVES, "axis": None, "metric": "test_error"}),
    "bisect": Call(
        double_descent.bisect,
        lambda: {
            "errors": lambda index: [0.4 - 0.2 * index, 0.5 - 0.2 * index],
            "values": [1, 2, 4],
            "epsilon": 0.1,
            "direction": "falling",
        },
        undefined=frozenset({"value"}),
        warns=WARNS,
    ),
    "Grid": Call(double_descent.Grid, lambda: {"widths": [1], "samples": [4], "steps": [1, 2], "noise": [0.0]}),
}
AXIS = {"signal": 1.0, "noise": 0.5}
THEORY = {
    "gaussian_features_curve": Call(
        theory.gaussian_features_curve, lambda: {"features": [1, 3], "n": 6, "power": [0.5] * 4, "noise": 0.5}
    ),
    "gaussian_samples_curve": Call(theory.gaussian_samples_curve, lambda: {"samples": [2, 8], "n_features": 4, **AXIS}),
    "simulate_gaussian_features": Call(
        theory.simulate_gaussian_features,
        lambda: {"features": [1, 3], "n": 6, "power": [0.5] * 4, "noise": 0.5, "repetitions": 2, "seed": 0},
    ),
    "universal_lower_bound": Call(theory.universal_lower_bound, lambda: {"n": 4, "p": 8, "noise": 0.5}),
    "gradient_descent_curve": Call(
        theory.gradient_descent_curve,
        lambda: {"steps": [1, 3], "X": X, "coefficients": [1.0, 0.5, 0.0], "noise": 0.5, "lr": 0.1, "covariance": None},
    ),
    "gradient_descent_weights": Call(
        theory.gradient_descent_weights, lambda: {"X": X, "y": X[:, 0], "steps": [1, 3], "lr": 0.1}
    ),
    "equalizing_learning_rates": Call(theory.equalizing_learning_rates, lambda: {"scales": [1.0, 0.5], "rate": 0.1}),
    "gradient_flow_curve": Call(
        theory.gradient_flow_curve, lambda: {"times": [0.5, 1.0], "ratio": 0.5, "n_nodes": 64, **AXIS}
    ),
    "simulate_gradient_flow": Call(
        theory.simulate_gradient_flow,
        lambda: {"times": [0.5, 1.0], "ratio": 0.5, "n": 8, "repetitions": 2, "seed": 0, **AXIS},
    ),
    "superposition_curve": Call(
        theory.superposition_curve,
        lambda: (
            {"steps": [1, 2], "scales": [1.0, 0.5], "coefficients": [1.0, 0.5], "n": 50, "noise": 0.5}
            | {"lr": [0.1, 0.1]}
        ),
    ),
    "isotropic_curve": Call(theory.isotropic_curve, lambda: {"ratio": [0.5, 2.0], "ridge": 0.1, **AXIS}),
    "misspecified_curve": Call(
        theory.misspecified_curve, lambda: {"ratio": [0.5, 2.0], "signal_fraction": [0.5, 0.9], **AXIS}
    ),
    "optimal_ridge_curve": Call(theory.optimal_ridge_curve, lambda: {"ratio": [0.5, 2.0], **AXIS}),
    "polynomial_signal_fraction": Call(
        theory.polynomial_signal_fraction, lambda: {"ratio": [0.5, 2.0], "exponent": 1.0}
    ),
    "simulate_isotropic": Call(
        theory.simulate_isotropic,
        lambda: {"ratio": [0.5, 2.0], "n": 8, "ridge": 0.1, "repetitions": 2, "seed": 0, **AXIS},
    ),
    "population_task": Call(theory.population_task, lambda: {"eigenvalues": [1.0, 0.5], "power": [1.0, 0.5]}),
    "pool_task": Call(theory.pool_task, lambda: {"kernel": K, "targets": X}),
    "feature_curve": Call(
        theory.feature_curve, lambda: {"task": TASK, "features": [1, 8], "n": 4, "ridge": 0.1, "noise": 0.5}
    ),
    "learnabilities": Call(
        theory.learnabilities, lambda: {"task": TASK, "samples": [1, 3], "ridge": 0.1, "n_features": 9.0}
    ),
    "learning_curve": Call(
        theory.learning_curve,
        lambda: {"task": TASK, "samples": [1, 3], "ridge": 0.1, "noise": 0.5, "n_features": 9.0},
    ),
    "ridge_curve": Call(
        theory.ridge_curve, lambda: {"task": TASK, "ridges": [0.1, 1.0], "n": 3, "noise": 0.5, "n_features": 9.0}
    ),
    "simulate_features": Call(
        theory.simulate_features,
        lambda: {"task": TASK, "features": [1, 8], "n": 4, "ridge": 0.1, "noise": 0.5, "repetitions": 2, "seed": 0},
    ),
    "simulate_learning": Call(
        theory.simulate_learning,
        lambda: {"task": TASK, "samples": [1, 3], "ridge": 0.1, "noise": 0.5, "repetitions": 2, "seed": 0},
    ),
    "error_bound": Call(theory.error_bound, lambda: {"clean": [0.1, 0.2]}),
    "flip_noise": Call(theory.flip_noise, lambda: {"rate": 0.2, "n_classes": 3, "kind": "symmetric"}),
    "estimate_risk": Call(theory.estimate_risk, lambda: {"kernel": K, "y": X[:, 0], "ridge": 0.1}),
    "activation_moments": Call(
        theory.activation_moments, lambda: {"activation": lambda x: np.maximum(x, 0), "kinks": (0.0,)}
    ),
    "sphere_features_curve": Call(
        theory.sphere_features_curve,
        lambda: (
            {"features_per_dimension": [0.5, 2.0], "samples_per_dimension": 1.0, "linear": 1.0, "noise": 0.5}
            | {"nonlinear": 0.1, "ridge": 0.1, "moments": theory.ActivationMoments(0.4, 0.5, 0.3)}
        ),
    ),
    "simulate_sphere_features": Call(
        theory.simulate_sphere_features,
        lambda: (
            {"features_per_dimension": [1.0, 2.0], "samples_per_dimension": 2.0, "dimension": 4, "noise": 0.5}
            | {"ridge": 0.1, "repetitions": 2, "n_test": 10, "seed": 0}
        ),
    ),
    "simulate": Call(
        theory.simulate,
        lambda: {"theory": CURVE, "draw": lambda rng: rng.random(2), "repetitions": 3, "seed": 0},
    ),
}
VARIANCE = {
    "decompose_squared": Call(
        variance.decompose_squared,
        lambda: {"outputs": torch.stack([X, X + 1, X + 3]), "targets": X},
        undefined=frozenset({"risk_se", "bias_se", "variance_se"}),  # of two members
    ),
    "decompose_cross_entropy": Call(
        variance.decompose_cross_entropy,
        lambda: {"log_probabilities": torch.stack([X, X + 1, 2 * X]).log_softmax(2), "targets": Y},
        undefined=frozenset({"risk_se", "bias_se", "variance_se"}),  # of two members
    ),
    "variance_components": Call(
        variance.variance_components,
        lambda: (
            {"outputs": torch.stack([X, X + 1, X + 3, 2 * X]).reshape(2, 2, 4, 3), "targets": X}
            | {"factors": ("initialization", "data"), "nested": None}
        ),
        undefined=frozenset({"components", "bias_se", "risk_se"}),
    ),
    "factorial_design": Call(
        variance.factorial_design,
        lambda: {"initializations": 2, "data": 1, "noise": 1, "order": 1, "seed": 0, "nested": True},
    ),
    "effective_parameters": Call(
        variance.effective_parameters, lambda: {"smoother": K / 10}, undefined=frozenset({"se"})
    ),
    "feature_smoother": Call(variance.feature_smoother, lambda: {"features": X, "test_features": X[:2], "ridge": 0.1}),
    "kernel_smoother": Call(variance.kernel_smoother, lambda: {"kernel": K, "K_test": K[:2], "ridge": 0.1}),
}
CALLS = TRAINING | SWEEPS | THEORY | VARIANCE
