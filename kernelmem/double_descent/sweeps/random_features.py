"""Random-feature regression along width, samples, ridge and noise: least squares by SVD, one for many ridges."""

import math
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.checks import as_labels, as_tensor, seed_sequence
from kernelmem.core.errors import InputError
from kernelmem.double_descent.sweeps.result import Sweep, stack
from kernelmem.double_descent.sweeps.threshold import Threshold
from kernelmem.double_descent.sweeps.training_sets import Drawn, TrainingSet, draw
from kernelmem.training.datasets import LabeledData

__all__ = ["feature_sweep", "random_features"]

Over = Literal["width", "samples", "ridge", "noise"]
KINDS = {"width": "features", "samples": "features_sample", "ridge": "features_ridge", "noise": "features_noise"}


def random_features(
    x: Tensor, count: int, *, seed: int, features: Literal["cosine", "relu"] = "cosine", scale: float = 0.3
) -> Tensor:
    """Compute random features without their factor 1/√N: column j is that of any larger count with the same seed.

    Cosine: √2 cos(w·x + b), w ~ N(0, scale² I), b ~ U(0, 2π); φφᵀ/N tends to
    exp(-scale² |x - x'|² / 2) (Rahimi and Recht 2007). ReLU: max(0, w·x), w ~ N(0, 2 I / d), no bias.

    Args:
        x: (n, d) float64.
        count: N.
        seed: of the draws; column j depends on the seed and j alone.
        features: which map.
        scale: standard deviation of w, cosine only, for one coordinate of x.

    Returns:
        (n, N) float64. Cost O(n N d).
    """
    d = x.shape[1]
    seeds = seed_sequence(seed, ["weights", "phases"])
    # One row a feature, and NumPy draws in order: the first rows of a longer draw are those of a shorter one.
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
    n: int = 500,
    width: int = 1000,
    ridge: float = 0.0,
    noise: float = 0.2,
    seeds: int = 6,
    seed: int = 0,
    control: bool = True,
    features: Literal["cosine", "relu"] = "cosine",
    scale: float = 0.3,
    rcond: float | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Sweep:
    """Compute random-feature ridge regression of one-hot labels along one axis.

    With φ (n, N) the features scaled by 1/√N and Y the one-hot labels less 1/C::

        w = argmin |φ w - Y|² + ridge |w|²,  at ridge 0 the one of least norm;   prediction = argmax φ(x) w

    by a singular value decomposition in float64 of each (n, N), never by normal equations: they square the condition number
    where the curve peaks. Singular values below ``rcond`` times the largest count as zero at ridge 0. Rows, flips and features
    are nested: of n' < n rows and N' < N features they are the first ones. The loss is the squared error summed over classes.

    Args:
        data: rows and clean labels; training rows are drawn from its training set.
        over: "width" (number of features), "samples", "ridge" or "noise".
        values: increasing values of it.
        n: training rows; like the next three not looked at where it is swept.
        width: number of features.
        ridge: added to the squared singular values.
        noise: share of wrong labels.
        seeds: how many draws of rows, flips and features.
        seed: of the draws.
        control: also without noise, of the same rows and features (not where the noise is swept).
        features: see :func:`random_features`.
        scale: likewise; 0.3 of the digits, x = 2 (pixel / 16 - 0.3).
        rcond: default eps(float64) max(n, N).
        progress: called with (decompositions done, of how many).

    Returns:
        Sweep of kind "features" (over the width), "features_sample", "features_ridge" or "features_noise"; the threshold over
        the width is N = n, exactly; ``config["condition"]`` holds the largest condition number over seeds at each value.

    Raises:
        InputError: values not increasing or outside of their range, more rows than the training set has.

    Cost: one decomposition, O(n N min(n, N)), a seed and (n, N); ridges and noise rates share it.
    """
    started = time.perf_counter()
    if over not in KINDS:
        raise InputError(f"over={over!r}", expected=f"one of {', '.join(KINDS)}", hint="pass one of these")
    axis = _checked(over, values, len(data.x_train))
    settings = {"samples": n, "width": width, "ridge": ridge, "noise": noise}
    cells = [{**settings, over: value} for value in axis]
    x, x_test = (as_tensor(own, "x", dtype=torch.float64).flatten(1) for own in (data.x_train, data.x_test))
    y, y_test = as_labels(data.y_train, "y_train", n=len(x)), as_labels(data.y_test, "y_test", n=len(x_test))
    C = data.n_classes
    most = int(max(own["width"] for own in cells))
    parts: dict[bool, list[dict[str, Tensor]]] = {False: [], True: []}
    condition = torch.zeros(len(axis), dtype=torch.float64)
    distinct = len({(own["samples"], own["width"]) for own in cells})
    rounds = (False, True) if control and over != "noise" else (False,)
    for s in range(seeds):
        own = seed_sequence(seed, [f"seed {i}" for i in range(s + 1)] + ["features"])
        drawn = draw(y, own[f"seed {s}"], nested="rates" if over == "noise" else "samples")
        test_noise = draw(y_test, drawn.order_seed)
        maps = [
            random_features(z, most, seed=drawn.init_seed, features=features, scale=scale)
            for z in (x[drawn.order[: int(max(own["samples"] for own in cells))]], x_test)
        ]
        found: dict[bool, list[dict[str, Tensor]]] = {False: [], True: []}
        held: tuple[Any, _Decomposed] | None = None
        for a, cell in enumerate(cells):
            key = (int(cell["samples"]), int(cell["width"]))
            if held is None or held[0] != key:
                held = (key, _Decomposed.of(maps[0][: key[0], : key[1]], maps[1][:, : key[1]], rcond))
                if progress is not None:
                    progress(s * distinct + len({(c["samples"], c["width"]) for c in cells[: a + 1]}), seeds * distinct)
            condition[a] = max(condition[a], held[1].condition(cell["ridge"]))
            for clean in rounds:
                rate = 0.0 if clean else cell["noise"]
                found[clean].append(_figures(held[1], drawn, key[0], rate, cell["ridge"], y_test, test_noise, C))
        for clean in rounds:
            parts[clean].append({name: torch.stack([p[name] for p in found[clean]]) for name in found[clean][0]})
    config = {"n": n, "width": width, "ridge": ridge, "noise": noise} | {
        "over": over, "features": features, "scale": scale, "seed": seed, "seeds": seeds, "data": data.name,
        "condition": condition.tolist(), "rcond": rcond,
    }  # fmt: skip
    threshold = Threshold(float(n), float(n), float(n), 0.5, "falling") if over == "width" else None
    return Sweep(
        kind=KINDS[over],
        axis=axis,
        curves=stack(parts[False]),
        control=stack(parts[True]) if parts[True] else None,
        threshold=threshold,
        metric="test_error",
        epsilon=0.1,
        seconds=time.perf_counter() - started,
        config=config,
    )


class _Decomposed:
    """φ = U S Vᵀ of the training rows, beside the test features; solves for one target after the other."""

    def __init__(self, U: Tensor, S: Tensor, V: Tensor, test: Tensor, cut: float) -> None:
        self.U, self.S, self.V, self.test, self.cut = U, S, V, test, cut

    @classmethod
    def of(cls, phi: Tensor, phi_test: Tensor, rcond: float | None) -> "_Decomposed":
        root = math.sqrt(phi.shape[1])
        U, S, V = _svd(phi / root)
        share = torch.finfo(torch.float64).eps * max(phi.shape) if rcond is None else rcond
        return cls(U, S, V, phi_test / root, share * float(S[0]))

    def condition(self, ridge: float) -> float:
        """Of what is solved: largest over smallest singular value that is kept, or √(s² + ridge) of them."""
        kept = self.S if ridge > 0 else self.S[self.cut < self.S]
        return math.sqrt(float((kept[0] ** 2 + ridge) / (kept[-1] ** 2 + ridge)))

    def outputs(self, targets: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
        """Outputs on training rows and on test rows."""
        shrunk = self.S / (self.S.square() + ridge) if ridge > 0 else torch.where(self.cut < self.S, 1 / self.S, 0.0)
        inner = shrunk[:, None] * (self.U.T @ targets)  # (r, C): w = V inner
        return self.U @ (self.S[:, None] * inner), self.test @ (self.V @ inner)


def _svd(phi: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """φ = U S Vᵀ, all thin; of an oblong φ from its QR, as stable and half the time."""
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


def _figures(
    solved: _Decomposed, drawn: Drawn, n: int, rate: float, ridge: float, y_test: Tensor, noisy: Drawn, C: int
) -> dict[str, Tensor]:
    own: TrainingSet = drawn.rows(n, rate)
    eye = torch.eye(C, dtype=torch.float64)
    fitted, outputs = solved.outputs(eye[own.labels] - 1 / C, ridge)
    said, said_test = fitted.argmax(1), outputs.argmax(1)
    other = torch.empty_like(y_test)  # test labels with the same noise, in the order of the test rows
    noisy_rows = noisy.rows(len(y_test), rate)
    other[noisy_rows.at] = noisy_rows.labels
    flips = own.flipped
    return {
        "test_error": (said_test != y_test).double().mean(),
        "test_loss": (outputs - (eye[y_test] - 1 / C)).square().sum(1).mean(),
        "train_error": (said != own.labels).double().mean(),
        "train_loss": (fitted - (eye[own.labels] - 1 / C)).square().sum(1).mean(),
        "memorized_flips": (said[flips] == own.labels[flips]).double().mean(),
        "recovered_flips": (said[flips] == own.clean[flips]).double().mean(),
        "noisy_test_error": (said_test != other).double().mean(),
    }


def _checked(over: Over, values: Sequence[float], most: int) -> tuple[float, ...]:
    axis = tuple(float(own) for own in as_tensor(list(values), over, dtype=torch.float64))
    whole = over in ("width", "samples")
    low, high = {"width": (1, math.inf), "samples": (2, most), "ridge": (0, math.inf), "noise": (0, 1)}[over]
    rising = all(a < b for a, b in pairwise(axis))
    if not axis or not rising or not low <= axis[0] or not axis[-1] <= high or (whole and any(v % 1 for v in axis)):
        raise InputError(
            f"values {list(values)!r} of {over}",
            expected=f"increasing {'whole ' if whole else ''}numbers from {low} to {high}",
            hint="sort them; a larger training set allows more samples",
        )
    return axis
