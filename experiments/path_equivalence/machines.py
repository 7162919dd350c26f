"""Which kernel machine the trained network is: its outputs on test rows beside those of kernel machines and ledgers."""

import time

import torch
from torch import Tensor, nn

import kernelmem as km
from experiments.path_equivalence.configs import EVERY, EXACT_ROWS, N_TRAIN, SCALES, Options
from experiments.path_equivalence.quadrature import slopes_at
from experiments.path_equivalence.training import Problem, Scaled, problem, recorded
from kernelmem.kernels.alignment import kernel_distance
from kernelmem.path.domingos import domingos_form
from kernelmem.path.kernel import path_kernel

__all__ = ["DIVERGES", "MACHINES", "measure"]

RIDGE = 1e-8  # times the largest eigenvalue
DIVERGES = "diverges"
FORM_ROWS = 4  # of the test rows: on these the form of Domingos is computed
MACHINES = (
    "initial kernel, same descent",
    "final kernel, same descent",
    "mean path kernel, same descent",
    "path kernel, coefficients free of x",
    "ridge on outputs, initial kernel",
    "ridge on outputs, final kernel",
    "ridge on outputs, path kernel",
    "null: the same, outputs permuted",
    "left ledger",
    "path kernel, coefficients depend on x",
    "exact ledger",
)


def measure(options: Options) -> list[dict]:
    """One line for each regime and seed: relative L2 error of every machine, and how far the kernel moved."""
    lines = []
    for regime, scale in SCALES.items():
        for seed in range(options.seeds):
            began = time.perf_counter()
            own = problem(seed, nn.Tanh)
            model = Scaled(own.network, scale)
            with recorded(own, model, options.learning_rate / scale**2, options.steps) as run:
                line = {"regime": regime, "seed": seed, **_of_run(own, model, run)}
            lines.append(line)
            print(f"machines {regime} seed {seed}: {time.perf_counter() - began:.1f} s", flush=True)
    return lines


def _of_run(own: Problem, model: Scaled, run: km.Run) -> dict:
    rows = torch.cat([own.x, own.x_test])
    rate, steps = float(run.steps[0].groups[0]["lr"]), len(run)
    with torch.no_grad():
        final = model(rows)  # trained by the recorder; zero before
    kernels = {"final": _matrix(km.ntk(model, rows, outputs="full"))}
    start = Scaled(model.start, model.scale).requires_grad_(True)
    start.start.requires_grad_(False)
    kernels["initial"] = _matrix(km.ntk(start, rows, outputs="full"))
    mean = path_kernel(run, model, rows, outputs="full", order=1, every=EVERY)
    kernels["path"] = _matrix(mean.values)
    form = domingos_form(run, model, own.x_test[:FORM_ROWS], data=(own.x, own.y), order=2)
    ledger = km.ledger(run, model, x=own.x_test[:EXACT_ROWS])
    largest = {name: _largest(kernel) for name, kernel in kernels.items()}
    targets = torch.nn.functional.one_hot(own.y, 10).double()
    fit, test = final[:N_TRAIN], final[N_TRAIN:]
    found: dict[str, Tensor | None] = {}
    for name, label in (("initial", "initial kernel"), ("final", "final kernel"), ("path", "mean path kernel")):
        found[f"{label}, same descent"] = _descend(kernels[name], largest[name], targets, rate, steps)
    # Domingos 2020 read as a kernel machine: the mean kernel, and each example's loss derivative summed over the run
    free = (kernels["path"][10 * N_TRAIN :, : 10 * N_TRAIN] @ form.summed_derivatives.flatten()).view(-1, 10)
    found["path kernel, coefficients free of x"] = -free
    for name in ("initial", "final", "path"):
        found[f"ridge on outputs, {name} kernel"] = _ridge(kernels[name], largest[name], fit)
    shuffled = fit[torch.randperm(N_TRAIN, generator=torch.Generator().manual_seed(0))]
    found["null: the same, outputs permuted"] = _ridge(kernels["path"], largest["path"], shuffled)
    found["left ledger"] = _left(own, model, run)
    found["path kernel, coefficients depend on x"] = form.predictions
    found["exact ledger"] = ledger.initial + ledger.contributions.sum(1) + ledger.decay + ledger.rounding
    errors = {name: DIVERGES if value is None else _error(value, test) for name, value in found.items()}
    first, last = (kernels[name][: 10 * N_TRAIN, : 10 * N_TRAIN] for name in ("initial", "final"))
    return {
        "errors": errors,
        "movement": float((last - first).norm() / first.norm()),
        "distance": float(kernel_distance(_trace(first), _trace(last))),
        "stability": {name: rate * value / N_TRAIN for name, value in largest.items()},
        "path_kernel_error": mean.error,
        "cancellation": float(ledger.cancellation.median()),
        "test_accuracy": float((test.argmax(1) == own.y_test).double().mean()),
        "train_accuracy": float((fit.argmax(1) == own.y).double().mean()),
    }


def _error(found: Tensor, test: Tensor) -> float:
    """Relative L2 error, on as many of the test rows as were computed."""
    test = test[: len(found)]
    return float((found - test).norm() / test.norm())


def _matrix(full: Tensor) -> Tensor:
    """(n, n, C, C) -> (nC, nC)."""
    n, _, C, _ = full.shape
    return full.transpose(1, 2).reshape(n * C, n * C)


def _trace(matrix: Tensor) -> Tensor:
    n = len(matrix) // 10
    return matrix.view(n, 10, n, 10).diagonal(dim1=1, dim2=3).sum(-1)


def _largest(kernel: Tensor) -> float:
    train = kernel[: 10 * N_TRAIN, : 10 * N_TRAIN]
    return float(torch.linalg.eigvalsh(train)[-1])


def _descend(kernel: Tensor, largest: float, targets: Tensor, rate: float, steps: int) -> Tensor | None:
    """Gradient descent on the squared error with a kernel that does not move; None where it diverges."""
    if rate * largest / N_TRAIN >= 2:
        return None
    coefficients = torch.zeros_like(targets).flatten()
    train = kernel[: 10 * N_TRAIN, : 10 * N_TRAIN]
    for _ in range(steps):
        coefficients -= rate / N_TRAIN * (train @ coefficients - targets.flatten())
    return (kernel[10 * N_TRAIN :, : 10 * N_TRAIN] @ coefficients).view(-1, 10)


def _ridge(kernel: Tensor, largest: float, outputs: Tensor) -> Tensor:
    """Kernel ridge regression on the network's outputs, with next to no ridge."""
    train = kernel[: 10 * N_TRAIN, : 10 * N_TRAIN]
    ridge = RIDGE * largest * torch.eye(len(train), dtype=train.dtype)
    factor = torch.linalg.cholesky(train + ridge)
    coefficients = torch.cholesky_solve(outputs.reshape(-1, 1), factor)[:, 0]
    return (kernel[10 * N_TRAIN :, : 10 * N_TRAIN] @ coefficients).view(-1, 10)


def _left(own: Problem, model: Scaled, run: km.Run) -> Tensor:
    """Σ_t J(x; w_t) d_t: what one tangent at the start of each step explains."""
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    states = [run.weights(t) for t in range(len(run) + 1)]
    stacked = {name: torch.stack([state[name] for state in states]) for name in names}
    return slopes_at(model, stacked, own.x_test, 0.0)
