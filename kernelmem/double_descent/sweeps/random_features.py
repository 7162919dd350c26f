"""Random-feature regression over width, samples, ridge and noise, by singular value decomposition."""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.checks import as_count, as_number, seed_sequence
from kernelmem.core.errors import InputError
from kernelmem.core.options import Progress, as_progress
from kernelmem.double_descent.argument_checks import as_axis
from kernelmem.double_descent.sweeps.result import Curves, Sweep
from kernelmem.double_descent.sweeps.threshold import Threshold
from kernelmem.double_descent.sweeps.training_sets import SeedDraw, draw, pool_data
from kernelmem.training.datasets import LabeledData

Over = Literal["width", "samples", "ridge", "noise"]
KINDS = {"width": "features", "samples": "features_sample", "ridge": "features_ridge", "noise": "features_noise"}


@dataclass(frozen=True)
class FeatureOptions:
    """Training set, features and ridge of a random-feature sweep; the swept quantity is ignored here.

    Attributes:
        n: number of training examples.
        width: number of features N.
        ridge: added to the squared singular values.
        control: also run without label noise, on the same examples and features (not if the noise is swept).
        features: "cosine" or "relu", see :func:`random_features`.
        scale: standard deviation of the weights of cosine features; 0.3 suits the digits, x = 2 (pixel / 16 − 0.3).
        rcond: at ridge 0, singular values below ``rcond`` times the largest count as zero; None: eps · max(n, N).
    """

    n: int = 500
    width: int = 1000
    ridge: float = 0.0
    control: bool = True
    features: Literal["cosine", "relu"] = "cosine"
    scale: float = 0.3
    rcond: float | None = None


def random_features(
    x: Tensor, count: int, *, seed: int, features: Literal["cosine", "relu"] = "cosine", scale: float = 0.3
) -> Tensor:
    """Compute random features without their factor 1/√N; column j is the same for any larger ``count`` and equal seed.

    Cosine: √2 cos(w·x + b), w ~ N(0, scale² I), b ~ U(0, 2π); φφᵀ/N tends to exp(−scale² |x − x'|² / 2) (Rahimi and Recht
    2007). ReLU: max(0, w·x), w ~ N(0, 2 I / d), no bias.

    Args:
        x: (n, d) float64.
        count: N.
        seed: seed of the draws.
        features: "cosine" or "relu".
        scale: standard deviation of each coordinate of w, cosine only.

    Returns:
        (n, N) float64. Cost: O(n N d).
    """
    d = x.shape[1]
    seeds = seed_sequence(seed, ["weights", "phases"])
    # One row per feature, and NumPy draws in order: the first rows of a longer draw are those of a shorter one.
    weights = torch.from_numpy(np.random.default_rng(seeds["weights"]).standard_normal((count, d)))
    if features == "relu":
        return (x @ weights.T * math.sqrt(2 / d)).clamp_min(0)
    phases = torch.from_numpy(np.random.default_rng(seeds["phases"]).random(count))
    return math.sqrt(2) * torch.cos(scale * x @ weights.T + 2 * math.pi * phases)


def feature_sweep(
    data: LabeledData,
    over: Over,
    values: Sequence[float],
    *,
    noise: float = 0.2,
    n_seeds: int = 6,
    seed: int = 0,
    options: FeatureOptions = FeatureOptions(),
    progress: Progress = None,
) -> Sweep:
    """Compute random-feature ridge regression of one-hot labels along one axis.

    With φ (n, N) the features scaled by 1/√N and Y the one-hot labels minus 1/C::

        w = argmin |φ w − Y|² + ridge |w|²  (at ridge 0 the one of least norm);   prediction = argmax φ(x) w

    by a singular value decomposition in float64 of each (n, N), never by normal equations: they square the condition number
    where the curve peaks. Examples, wrong labels and features are nested: n' < n examples and N' < N features are the first
    ones. The loss is the squared error summed over classes.

    Args:
        data: examples and clean labels; training examples are drawn from its training set.
        over: "width" (number of features), "samples", "ridge" or "noise".
        values: (A,) increasing values of it.
        noise: fraction of wrong labels; ignored if the noise is swept.
        n_seeds: S, number of draws of examples, wrong labels and features.
        seed: seed of the draws.
        options: number of examples and features, ridge, control, kind of features.
        progress: called with (decompositions done, decompositions in total).

    Returns:
        Sweep of kind "features" (over the width), "features_sample", "features_ridge" or "features_noise"; the threshold
        over the width is N = n, exactly; ``config["condition"]`` has the largest condition number over seeds per value.

    Raises:
        InputError: values not increasing or out of range, more examples than the training set has.

    Cost: one decomposition, O(n N min(n, N)), per seed and (n, N); ridges and noise rates share it.
    """
    started = time.perf_counter()
    if over not in KINDS:
        raise InputError(f"over={over!r}", expected=f"one of {', '.join(KINDS)}", hint="pass one of these")
    n_seeds = as_count(n_seeds, "n_seeds")
    if options.features not in ("cosine", "relu"):
        raise InputError(f"features={options.features!r}", expected='"cosine" or "relu"', hint="pass one of these")
    minimum, maximum = {"width": (1, math.inf), "samples": (2, len(data.x_train)), "noise": (0, 1)}.get(
        over, (0, math.inf)
    )
    whole = over in ("width", "samples")
    axis = as_axis(list(values), over, whole=whole, minimum=minimum, maximum=maximum, exclusive=False)
    n, width, ridge = as_count(options.n, "n"), as_count(options.width, "width"), as_number(options.ridge, "ridge")
    settings = {"samples": n, "width": width, "ridge": ridge, "noise": noise}
    cells = [{**settings, over: value} for value in axis.tolist()]
    shapes = [(int(cell["samples"]), int(cell["width"])) for cell in cells]
    x, y, x_test, y_test = pool_data(data, torch.float64)
    x, x_test = x.flatten(1), x_test.flatten(1)
    curves: dict[bool, list[dict[str, Tensor]]] = {False: [], True: []}
    condition = torch.zeros(len(axis), dtype=torch.float64)
    rounds = (False, True) if options.control and over != "noise" else (False,)
    report, done, total = as_progress(progress, f"random features over {over}", "SVD"), 0, n_seeds * len({*shapes})
    for s in range(n_seeds):
        draw_seed = seed_sequence(seed, [f"seed {i}" for i in range(s + 1)])[f"seed {s}"]
        drawn = draw(y, draw_seed, nested="rates" if over == "noise" else "samples")
        test_draws = draw(y_test, drawn.order_seed)
        phi, phi_test = (
            random_features(
                z, max(N for _, N in shapes), seed=drawn.init_seed, features=options.features, scale=options.scale
            )
            for z in (x[drawn.order[: max(n for n, _ in shapes)]], x_test)
        )
        columns: dict[bool, list[dict[str, Tensor]]] = {False: [], True: []}
        svd: _FeatureSVD | None = None
        for a, (cell, (n_cell, N)) in enumerate(zip(cells, shapes, strict=True)):
            if svd is None or shapes[a] != shapes[a - 1]:
                svd = _FeatureSVD.of(phi[:n_cell, :N], phi_test[:, :N], options.rcond)
                done += 1
                report(done, total)
            condition[a] = max(condition[a], svd.condition(cell["ridge"]))
            for control in rounds:
                rate = 0.0 if control else cell["noise"]
                columns[control].append(
                    _metrics(svd, drawn, n_cell, rate, cell["ridge"], y_test, test_draws, data.n_classes)
                )
        for control in rounds:
            names = columns[control][0]
            curves[control].append({name: torch.stack([column[name] for column in columns[control]]) for name in names})
    config = asdict(options) | {
        "over": over, "noise": noise, "seed": seed, "seeds": n_seeds, "data": data.name, "condition": condition.tolist(),
    }  # fmt: skip
    return Sweep(
        kind=KINDS[over],
        axis=tuple(axis.tolist()),
        curves=Curves.stack(curves[False]),
        control=Curves.stack(curves[True]) if curves[True] else None,
        threshold=Threshold(float(n), float(n), float(n), 0.5, "falling") if over == "width" else None,
        metric="test_error",
        epsilon=0.1,
        seconds=time.perf_counter() - started,
        config=config,
    )


@dataclass(frozen=True, eq=False)
class _FeatureSVD:
    """φ = U S Vᵀ of the training features, and the test features; solves for one target after the other."""

    U: Tensor  # (n, r)
    S: Tensor  # (r,)
    V: Tensor  # (N, r)
    phi_test: Tensor  # (m, N)
    cutoff: float

    @classmethod
    def of(cls, phi: Tensor, phi_test: Tensor, rcond: float | None) -> "_FeatureSVD":
        root = math.sqrt(phi.shape[1])
        U, S, V = _thin_svd(phi / root)
        rcond = torch.finfo(torch.float64).eps * max(phi.shape) if rcond is None else rcond
        return cls(U, S, V, phi_test / root, rcond * float(S[0]))

    def condition(self, ridge: float) -> float:
        """Largest over smallest √(s² + ridge), at ridge 0 of the singular values above the cutoff."""
        kept = self.S if ridge > 0 else self.S[self.cutoff < self.S]
        return math.sqrt(float((kept[0] ** 2 + ridge) / (kept[-1] ** 2 + ridge)))

    def outputs(self, targets: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
        """Outputs on the training and on the test examples."""
        inverse = (
            self.S / (self.S.square() + ridge) if ridge > 0 else torch.where(self.cutoff < self.S, 1 / self.S, 0.0)
        )
        coefficients = inverse[:, None] * (self.U.T @ targets)  # (r, C); w = V coefficients
        return self.U @ (self.S[:, None] * coefficients), self.phi_test @ (self.V @ coefficients)


def _thin_svd(phi: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Thin φ = U S Vᵀ; for an oblong φ by way of its QR, equally stable in half the time."""
    n, N = phi.shape
    if 1.3 * n < N:
        Q, R = torch.linalg.qr(phi.T)
        V, S, Uh = torch.linalg.svd(R, full_matrices=False)
        return Uh.T, S, Q @ V
    if n > 1.3 * N:
        Q, R = torch.linalg.qr(phi)
        U, S, Vh = torch.linalg.svd(R, full_matrices=False)
        return Q @ U, S, Vh.T
    U, S, Vh = torch.linalg.svd(phi, full_matrices=False)
    return U, S, Vh.T


def _metrics(
    svd: _FeatureSVD, drawn: SeedDraw, n: int, rate: float, ridge: float, y_test: Tensor, test_draws: SeedDraw, C: int
) -> dict[str, Tensor]:
    rows, noisy_test = drawn.training_set(n, rate), test_draws.noisy_labels(rate)
    one_hot = torch.eye(C, dtype=torch.float64)
    fitted, outputs = svd.outputs(one_hot[rows.labels] - 1 / C, ridge)
    predicted, predicted_test = fitted.argmax(1), outputs.argmax(1)
    flips = rows.flipped
    return {
        "test_error": (predicted_test != y_test).double().mean(),
        "test_loss": (outputs - (one_hot[y_test] - 1 / C)).square().sum(1).mean(),
        "train_error": (predicted != rows.labels).double().mean(),
        "train_loss": (fitted - (one_hot[rows.labels] - 1 / C)).square().sum(1).mean(),
        "memorized_flips": (predicted[flips] == rows.labels[flips]).double().mean(),
        "recovered_flips": (predicted[flips] == rows.clean[flips]).double().mean(),
        "noisy_test_error": (predicted_test != noisy_test).double().mean(),
    }
