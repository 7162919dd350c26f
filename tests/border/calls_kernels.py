"""Valid calls of core, tangents, kernels, label noise and kernel machines."""

import tempfile
from functools import cache

import numpy as np
import torch
from scipy.linalg import LinAlgWarning
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn

import kernelmem as km
from kernelmem import core, kernel_machines, kernels
from tests.border.driver import Call

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(4, 3, generator=GENERATOR, dtype=torch.float64)
Y = torch.tensor([0, 1, 0, 1])
K = X @ X.T + torch.eye(4, dtype=torch.float64)
L = torch.exp(-torch.cdist(X, X))
SIX = torch.randn(6, 6, generator=GENERATOR, dtype=torch.float64)
SIX = SIX @ SIX.T


def model(dtype: torch.dtype = torch.float64) -> nn.Module:
    linear = nn.Linear(3, 2, dtype=dtype)
    with torch.no_grad():
        linear.weight.copy_(X[:2])
        linear.bias.fill_(0.1)
    return linear.eval()


MODEL = model()
SINGLE = model(torch.float32)
LOO = km.leave_one_out(K, Y, 0.1)
SPECTRUM = km.spectrum(SIX)
OPERATOR = km.ntk_operator(MODEL, X)
TANGENT = km.TangentKernel(MODEL)
FLOW = kernel_machines.gradient_flow(K, X[:, 0], [0.0, 1.0])


def kernel_options() -> dict[str, object]:
    return {"parameters": None, "forward": None, "dtype": None, "memory": "1GiB"}


@cache
def directory() -> str:
    return tempfile.mkdtemp()


# validate_data of scikit-learn checks rows and targets, and its conformance tests ask for its ValueError and TypeError. Its
# SVC checks C and class_weight.
CHECKED = frozenset({"X", "y"})


def estimator_calls(name: str, **parameters: object) -> dict[str, Call]:
    estimator = getattr(km, name)
    targets = X[:, 0] if "Regressor" in name or "GP" in name else Y

    def construct_and_fit(X: object, y: object, **arguments: object) -> object:
        return estimator(**arguments).fit(X, y).predict(np.ones((2, 3)))

    common = {"gamma": None, "degree": 3, "coef0": 1, "kernel_params": None}
    parameters = common | parameters
    fitted = estimator(kernel="rbf").fit(X.numpy(), targets.numpy())
    warns = (LinAlgWarning, ConvergenceWarning)
    calls = {
        f"{name}.fit": Call(
            construct_and_fit,
            lambda: {"X": X.numpy(), "y": targets.numpy(), **parameters},
            warns=warns,
            checked_by_scikit_learn=CHECKED | ({"C", "class_weight"} if name == "KernelMachineSVC" else set()),
        ),
        f"{name}.predict": Call(lambda X: fitted.predict(X), lambda: {"X": X.numpy()}, checked_by_scikit_learn=CHECKED),
    }
    if name == "KernelMachineClassifier":
        calls[f"{name}.decision_function"] = Call(
            lambda X: fitted.decision_function(X), lambda: {"X": X.numpy()}, checked_by_scikit_learn=CHECKED
        )
    return calls


PAIR = ("alignment", "centered_alignment", "kernel_distance", "relative_distance")
CALLS = {
    "core.as_rows": Call(core.as_rows, lambda: {"x": X, "name": "x"}),
    "core.seed_sequence": Call(core.seed_sequence, lambda: {"seed": 0, "names": ["a"]}),
    "core.check_directory": Call(core.check_directory, lambda: {"directory": directory()}),
    "core.write_file": Call(core.write_file, lambda: {"path": f"{directory()}/a", "content": "b"}),
    "core.write_files": Call(core.write_files, lambda: {"directory": directory(), "contents": {"a": "b"}}),
    "core.load_weights": Call(core.load_weights, lambda: {"path": "nowhere", "key": "a"}),
    "core.fit_weights": Call(
        core.fit_weights,
        lambda: {"model": model(), "state": MODEL.state_dict(), "source": "a"},
        changes=frozenset({"model"}),
    ),
    "core.array_sha256": Call(core.array_sha256, lambda: {"arrays": {"a": np.ones(2)}}),
    "tangent_features": Call(
        km.tangent_features,
        lambda: {
            "model": MODEL,
            "x": X,
            "dim": 4,
            "seed": 0,
            "outputs": "pseudo",
            "parameters": None,
            "forward": None,
            "dtype": None,
            "device": None,
        },
    ),
    "ntk": Call(
        km.ntk,
        lambda: (
            {"model": MODEL, "x": X, "y": None, "outputs": "trace", "by": None, "device": None, "progress": None}
            | {"verify": True, "target": None, "labels": Y}
            | kernel_options()
        ),
    ),
    "ntk(target)": Call(
        km.ntk,
        lambda: (
            {"model": MODEL, "x": X, "y": X[:2], "target": "margin", "labels": (Y, Y[:2]), "verify": False}
            | kernel_options()
        ),
    ),
    "ntk(float32)": Call(km.ntk, lambda: {"model": SINGLE, "x": X, "y": X, "outputs": "full"} | kernel_options()),
    "ntk_plan": Call(
        km.ntk_plan,
        lambda: (
            {"model": MODEL, "x": X, "y": None, "outputs": "trace", "target": None, "labels": None} | kernel_options()
        ),
    ),
    "ntk_operator": Call(
        km.ntk_operator, lambda: {"model": MODEL, "x": X, "outputs": "trace", "device": None} | kernel_options()
    ),
    "NTKOperator.matmul": Call(lambda v: OPERATOR @ v, lambda: {"v": X[:, :2]}),
    "infinite_ntk": Call(
        km.infinite_ntk,
        lambda: {"x": X, "y": None, "depth": 2, "activation": "relu", "weight_var": 2.0, "bias_var": 0.0},
    ),
    "infinite_nngp": Call(
        km.infinite_nngp,
        lambda: {"x": X, "y": X, "depth": 1, "activation": "erf", "weight_var": 2.0, "bias_var": 0.1},
    ),
    "spectrum": Call(km.spectrum, lambda: {"kernel": K}),
    "Spectrum.condition": Call(SPECTRUM.condition, lambda: {"ridge": 0.0}),
    "Spectrum.effective_dimension": Call(SPECTRUM.effective_dimension, lambda: {"ridge": 0.1}),
    "Spectrum.decay": Call(SPECTRUM.decay, lambda: {"first": 1, "last": 4}),
    **{name: Call(getattr(kernels, name), lambda name=name: pair(name)) for name in PAIR},
    "debiased_alignment": Call(kernels.debiased_alignment, lambda: {"first": SIX, "second": SIX + torch.eye(6)}),
    "target_alignment": Call(km.target_alignment, lambda: {"kernel": K, "y": Y}),
    "centered_target_alignment": Call(kernels.centered_target_alignment, lambda: {"kernel": K, "y": X[:, 0]}),
    "corrupt_labels": Call(
        km.corrupt_labels,
        lambda: {"y": Y, "rate": 0.5, "kind": "symmetric", "seed": 0, "exact": True, "x": None, "matrix": None},
    ),
    "corrupt_labels(matrix)": Call(
        km.corrupt_labels,
        lambda: {"y": Y, "rate": 0.5, "kind": "matrix", "seed": 0, "matrix": [[0.5, 0.5], [0.0, 1.0]]},
    ),
    "corrupt_labels(instance)": Call(
        km.corrupt_labels, lambda: {"y": Y, "rate": 0.5, "kind": "instance", "seed": 0, "x": X}
    ),
    "detect": Call(
        km.detect,
        lambda: {"score": X[:, 0], "flipped": torch.tensor([True, False, False, True]), "seed": 0, "permutations": 20},
    ),
    "leave_one_out": Call(km.leave_one_out, lambda: {"kernel": K, "y": Y, "ridge": 0.1}),
    "LeaveOneOut.predict": Call(LOO.predict, lambda: {"K_test": K[:2]}),
    "LeaveOneOut.influence": Call(LOO.influence, lambda: {"K_test": K[:2]}),
    "LeaveOneOut.block": Call(LOO.block, lambda: {"indices": [0, 1]}),
    "choose_ridge": Call(km.choose_ridge, lambda: {"kernel": K, "y": Y, "grid": None}),
    "fidelity": Call(km.fidelity, lambda: {"surrogate": X, "network": X + 1}),
    "solve": Call(
        kernel_machines.solve,
        lambda: (
            {"kernel": K, "targets": X, "ridge": 0.1, "solver": "auto", "sample_weight": None}
            | {"jitter": 0.0, "tolerance": 1e-8, "max_iter": 50, "rank": None, "seed": 0}
        ),
        undefined=frozenset({"coefficients", "residual", "condition"}),  # the code of the solution says so
    ),
    "solve(nystroem)": Call(
        kernel_machines.solve,
        lambda: (
            {"kernel": SIX, "targets": SIX[:, 0], "ridge": 0.1, "solver": "nystroem", "rank": 3, "seed": 0}
            | {"sample_weight": torch.ones(6)}
        ),
        undefined=frozenset({"coefficients", "residual", "condition"}),
    ),
    "solve(conjugate gradient)": Call(
        kernel_machines.solve,
        lambda: {"kernel": SIX, "targets": SIX[:, 0], "ridge": 0.1, "solver": "cg", "rank": 3, "max_iter": 9},
        undefined=frozenset({"coefficients", "residual", "condition"}),
    ),
    "gradient_flow": Call(
        kernel_machines.gradient_flow,
        lambda: {"kernel": K, "y": X[:, :2], "times": [0.0, 1.0], "weight_decay": 0.0, "linearization": None},
    ),
    "gradient_descent": Call(
        kernel_machines.gradient_descent,
        lambda: (
            {"kernel": K, "y": X[:, :2], "steps": [0, 5], "sgd": kernel_machines.SGDConfig(lr=0.1)}
            | {"linearization": kernel_machines.Linearization(initial=X[:, :2], K_test=K[:2], initial_test=X[:2, :2])}
        ),
    ),
    "minibatch_sgd": Call(
        kernel_machines.minibatch_sgd,
        lambda: (
            {"kernel": K, "y": X[:, :2], "steps": 3, "sgd": kernel_machines.SGDConfig(lr=0.1), "batches": None}
            | {"lr_factors": None, "loss": "mse", "linearization": None}
        ),
    ),
    "SGDConfig": Call(
        kernel_machines.SGDConfig,
        lambda: {"lr": 0.1, "momentum": 0.0, "dampening": 0.0, "nesterov": False, "weight_decay": 0.0},
    ),
    "LinearizedTraining.predict": Call(FLOW.predict, lambda: {"K_test": K[:2]}),
    "kernel_distances": Call(
        kernel_machines.kernel_distances,
        lambda: {"K_test": K[:2], "K_test_diag": K.diagonal()[:2], "K_train_diag": K.diagonal()},
    ),
    "nearest_neighbors": Call(
        kernel_machines.nearest_neighbors, lambda: {"distances": torch.cdist(X, X), "targets": X, "k": 2}
    ),
    "nadaraya_watson": Call(kernel_machines.nadaraya_watson, lambda: {"K_test": L, "targets": X}),
    "centered": Call(kernel_machines.centered, lambda: {"outputs": X}),
    "margin": Call(kernel_machines.margin, lambda: {"outputs": X, "labels": Y}),
    "ComparisonOptions": Call(
        kernel_machines.ComparisonOptions,
        lambda: (
            {"ridge": 1e-8, "n_nodes": 1, "stride": 1, "domingos_rows": 4, "ledger_rows": 8, "checkpoints": 9}
            | {"movement_rows": 256, "seed": 0, "memory": "4GiB"}
        ),
    ),
    "TangentKernel": Call(
        lambda X, Y, **arguments: km.TangentKernel(**arguments)(X, Y),
        lambda: (
            {"X": X.numpy(), "Y": X.numpy(), "model": MODEL, "outputs": "trace", "shape": None, "device": None}
            | kernel_options()
        ),
    ),
    "TangentKernel.diagonal": Call(TANGENT.diagonal, lambda: {"X": X.numpy()}),
    "StoredKernel": Call(
        lambda values, X, Y: kernel_machines.StoredKernel(values)(X, Y),
        lambda: {"values": K.numpy(), "X": np.array([0, 1]), "Y": np.array([2])},
    ),
    **estimator_calls("KernelMachineRegressor", kernel="rbf", ridge=0.1, prior=None, solver="auto", solver_params=None),
    **estimator_calls("KernelMachineClassifier", kernel="rbf", ridge="loo", prior=None, solver="auto"),
    **estimator_calls("KernelMachineGP", kernel="laplacian", ridge=0.1, prior=None),
    **estimator_calls("KernelMachineSVC", kernel="rbf", C=1.0, tol=None, max_iter=-1, class_weight=None),
}


def pair(name: str) -> dict[str, Tensor]:
    return {"kernel": K, "reference": L} if name == "relative_distance" else {"first": K, "second": L}
