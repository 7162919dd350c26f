"""Random-feature regression over width, samples, ridge and noise, by singular value decomposition."""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from kernelmem.core.checks import as_count, as_flag, as_number, as_tensor, check_choice, check_instance, seed_sequence
from kernelmem.core.errors import InputError
from kernelmem.core.options import Progress, as_progress
from kernelmem.double_descent.argument_checks import as_axis
from kernelmem.double_descent.sweeps.options import MAX_SEEDS, MAX_WIDTH
from kernelmem.double_descent.sweeps.result import Curves, Sweep
from kernelmem.double_descent.sweeps.threshold import Threshold
from kernelmem.double_descent.sweeps.training_sets import SeedDraw, as_pool_data, draw_for_seed
from kernelmem.training.datasets import LabeledDataLike, as_labeled_data

Over = Literal["width", "samples", "ridge", "noise"]
KINDS = {"width": "features", "samples": "features_sample", "ridge": "features_ridge", "noise": "features_noise"}


@dataclass(frozen=True)
class FeatureOptions:
    """Training set, features and ridge of a random-feature sweep; the swept quantity is ignored here.

    Attributes:
        n: number of training examples.
        width: number of features N.
        ridge: number >= 0 added to the squared singular values.
        control: True if the sweep is also run without label noise, on the same examples and features; ignored if the noise
            is swept.
        features: "cosine" or "relu", see :func:`random_features`.
        scale: standard deviation of the weights of cosine features; 0.3 is suitable for digits, x = 2 (pixel / 16 − 0.3).
        rcond: at ridge 0, singular values below ``rcond`` times the largest count as zero; None: eps · max(n, N).
    """

    n: int = 500
    width: int = 1000
    ridge: float = 0.0
    control: bool = True
    features: Literal["cosine", "relu"] = "cosine"
    scale: float = 0.3
    rcond: float | None = None

    def __post_init__(self) -> None:
        as_count(self.n, "n")
        as_count(self.width, "width", maximum=MAX_WIDTH)
        as_number(self.ridge, "ridge")
        as_flag(self.control, "control")
        check_choice(self.features, "features", ("cosine", "relu"))
        as_number(self.scale, "scale")
        if self.rcond is not None:
            as_number(self.rcond, "rcond", maximum=0.5)


MAX_SCALE = 1e100  # the products with x stay in float64


def random_features(
    x: Tensor, count: int, *, seed: int, features: Literal["cosine", "relu"] = "cosine", scale: float = 0.3
) -> Tensor:
    """Compute random features without their factor 1/√N; column j is the same for any larger ``count`` and equal seed.

    Cosine: √2 cos(w·x + b), w ~ N(0, scale² I), b ~ U(0, 2π); φφᵀ/N tends to exp(−scale² |x − x'|² / 2) (Rahimi and Recht
    2007). ReLU: max(0, w·x), w ~ N(0, 2 I / d), no bias.

    Args:
        x: (n, d) float64.
        count: number of features N.
        seed: seed of the random draws.
        features: "cosine" or "relu".
        scale: standard deviation of each coordinate of w, cosine only.

    Returns:
        (n, N) float64. Cost: O(n N d).

    Raises:
        InputError: x is not (n, d) or not finite, ``count`` is below 1, or the features are unknown.
    """
    x = as_tensor(x, "x", dtype=torch.float64, squared=True)
    if x.ndim != 2 or x.numel() == 0:
        raise InputError(f"x of shape {tuple(x.shape)}", expected="(n, d), n and d >= 1", hint="flatten the rows")
    count, scale = as_count(count, "count", maximum=MAX_WIDTH), as_number(scale, "scale", maximum=MAX_SCALE)
    check_choice(features, "features", ("cosine", "relu"))
    d, seeds = x.shape[1], seed_sequence(seed, ["weights", "phases"])
    # One row per feature, and NumPy draws in order: the first rows of a longer draw are those of a shorter one.
    weights = torch.from_numpy(np.random.default_rng(seeds["weights"]).standard_normal((count, d)))
    if features == "relu":
        return (x @ weights.T * math.sqrt(2 / d)).clamp_min(0)
    phases = torch.from_numpy(np.random.default_rng(seeds["phases"]).random(count))
    return math.sqrt(2) * torch.cos(scale * x @ weights.T + 2 * math.pi * phases)


def feature_sweep(
    data: LabeledDataLike,
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
        data: examples and clean labels, as LabeledData or ((x_train, y_train), (x_test, y_test)); training examples are
            drawn from its training set.
        over: "width" (number of features), "samples", "ridge" or "noise".
        values: (A,) increasing values of the swept quantity.
        noise: fraction of wrong labels; ignored if the noise is swept.
        n_seeds: S, number of draws of examples, wrong labels and features.
        seed: seed of the random draws.
        options: number of training examples and features, ridge, control and kind of features.
        progress: called with (decompositions done, decompositions in total).

    Returns:
        Sweep of kind "features" (over the width), "features_sample", "features_ridge" or "features_noise"; the threshold
        over the width is N = n, exactly; ``config["condition"]`` has the largest condition number over seeds per value.

    Raises:
        InputError: the values do not increase or are out of range, or exceed the number of training examples.

    Cost: one decomposition, O(n N min(n, N)), per seed and (n, N); ridges and noise rates share it.
    """
    start_time = time.perf_counter()
    data = as_labeled_data(data)
    check_instance(options, "options", FeatureOptions)
    check_choice(over, "over", tuple(KINDS))
    n_seeds, noise = as_count(n_seeds, "n_seeds", maximum=MAX_SEEDS), as_number(noise, "noise", maximum=1.0)
    minimum, maximum = {"width": (1, math.inf), "samples": (2, len(data.x_train)), "noise": (0, 1)}.get(
        over, (0, math.inf)
    )
    is_integer = over in ("width", "samples")
    axis = as_axis(values, over, integer=is_integer, minimum=minimum, maximum=maximum, exclusive=False)
    n, width, ridge = as_count(options.n, "n"), as_count(options.width, "width"), as_number(options.ridge, "ridge")
    settings = {"samples": n, "width": width, "ridge": ridge, "noise": noise}
    cell_settings = [{**settings, over: value} for value in axis.tolist()]
    shapes = [(int(cell["samples"]), int(cell["width"])) for cell in cell_settings]
    x, y, x_test, y_test = as_pool_data(data, torch.float64)
    x, x_test = x.flatten(1), x_test.flatten(1)
    curves: dict[bool, list[dict[str, Tensor]]] = {False: [], True: []}
    condition = torch.zeros(len(axis), dtype=torch.float64)
    control_flags = (False, True) if options.control and over != "noise" else (False,)
    report, n_done, n_total = as_progress(progress, f"random features over {over}", "SVD"), 0, n_seeds * len({*shapes})
    for s in range(n_seeds):
        derived_seed = seed_sequence(seed, [f"seed {i}" for i in range(s + 1)])[f"seed {s}"]
        seed_draw = draw_for_seed(y, derived_seed, nested="rates" if over == "noise" else "samples")
        test_draw = draw_for_seed(y_test, seed_draw.order_seed)
        train_features, test_features = (
            random_features(
                examples,
                max(N for _, N in shapes),
                seed=seed_draw.init_seed,
                features=options.features,
                scale=options.scale,
            )
            for examples in (x[seed_draw.order[: max(n for n, _ in shapes)]], x_test)
        )
        metrics_along_axis: dict[bool, list[dict[str, Tensor]]] = {False: [], True: []}
        svd: _FeatureSVD | None = None
        for a, (cell, (n_cell, N)) in enumerate(zip(cell_settings, shapes, strict=True)):
            if svd is None or shapes[a] != shapes[a - 1]:
                svd = _FeatureSVD.decompose(train_features[:n_cell, :N], test_features[:, :N], options.rcond)
                n_done += 1
                report(n_done, n_total)
            condition[a] = max(condition[a], svd.condition(cell["ridge"]))
            for is_control in control_flags:
                noise_rate = 0.0 if is_control else cell["noise"]
                metrics_along_axis[is_control].append(
                    _evaluate_features(
                        svd, seed_draw, n_cell, noise_rate, cell["ridge"], y_test, test_draw, data.n_classes
                    )
                )
        for is_control in control_flags:
            names = metrics_along_axis[is_control][0]
            curves[is_control].append(
                {name: torch.stack([column[name] for column in metrics_along_axis[is_control]]) for name in names}
            )
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
        seconds=time.perf_counter() - start_time,
        config=config,
    )


@dataclass(frozen=True, eq=False)
class _FeatureSVD:
    """Singular value decomposition U S Vᵀ of the training features (n examples, N features), and m rows of test features.

    r = min(n, N). If the ridge is 0, singular values up to ``cutoff`` count as zero.
    """

    U: Tensor  # (n, r)
    S: Tensor  # (r,)
    V: Tensor  # (N, r)
    test_features: Tensor  # (m, N)
    cutoff: float

    @classmethod
    def decompose(cls, train_features: Tensor, test_features: Tensor, rcond: float | None) -> "_FeatureSVD":
        """Decompose ``train_features`` (n examples, N features) / √N; ``test_features`` (m, N) are scaled in the same way.

        Singular values below ``rcond`` times the largest count as zero at ridge 0; None: eps · max(n, N).
        """
        sqrt_N = math.sqrt(train_features.shape[1])
        U, S, V = _thin_svd(train_features / sqrt_N)
        rcond = torch.finfo(torch.float64).eps * max(train_features.shape) if rcond is None else rcond
        return cls(U, S, V, test_features / sqrt_N, rcond * float(S[0]))

    def condition(self, ridge: float) -> float:
        """Return the condition number: the ratio of the largest to the smallest √(s² + ridge) over the singular values s.

        At ridge 0 only singular values above the cutoff are included.
        """
        nonzero = self.S if ridge > 0 else self.S[self.cutoff < self.S]
        return math.sqrt(float((nonzero[0] ** 2 + ridge) / (nonzero[-1] ** 2 + ridge)))

    def outputs(self, targets: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
        """Fit ``targets`` (n examples, C outputs) by ridge regression.

        The results are the outputs on the training examples, (n, C), and on the m test examples, (m, C).
        """
        inverse = (
            self.S / (self.S.square() + ridge) if ridge > 0 else torch.where(self.cutoff < self.S, 1 / self.S, 0.0)
        )
        coefficients = inverse[:, None] * (self.U.T @ targets)  # (r, C); w = V coefficients
        return self.U @ (self.S[:, None] * coefficients), self.test_features @ (self.V @ coefficients)


def _thin_svd(phi: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return U (n, r), S (r,) and V (N, r) of the thin decomposition phi = U S Vᵀ of an (n, N) matrix, r = min(n, N).

    If n and N differ by more than 30 %, a QR decomposition comes first; it is as stable and halves the time.
    """
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


def _evaluate_features(
    svd: _FeatureSVD,
    seed_draw: SeedDraw,
    n: int,
    noise_rate: float,
    ridge: float,
    y_test: Tensor,
    test_draw: SeedDraw,
    C: int,
) -> dict[str, Tensor]:
    """Fit the first n training examples by ridge regression on features, and return the metrics of the fit by name.

    Labels have the given noise rate (``seed_draw`` for training, ``test_draw`` for test examples) and C classes. Each metric
    is a scalar tensor, as in :class:`kernelmem.double_descent.Curves`; flip metrics are NaN without wrong labels.
    """
    training_set, noisy_test_labels = seed_draw.training_set(n, noise_rate), test_draw.noisy_labels(noise_rate)
    one_hot = torch.eye(C, dtype=torch.float64)
    train_outputs, test_outputs = svd.outputs(one_hot[training_set.labels] - 1 / C, ridge)
    train_predictions, test_predictions = train_outputs.argmax(1), test_outputs.argmax(1)
    flipped = training_set.flipped
    return {
        "test_error": (test_predictions != y_test).double().mean(),
        "test_loss": (test_outputs - (one_hot[y_test] - 1 / C)).square().sum(1).mean(),
        "train_error": (train_predictions != training_set.labels).double().mean(),
        "train_loss": (train_outputs - (one_hot[training_set.labels] - 1 / C)).square().sum(1).mean(),
        "memorized_flips": (train_predictions[flipped] == training_set.labels[flipped]).double().mean(),
        "recovered_flips": (train_predictions[flipped] == training_set.true_labels[flipped]).double().mean(),
        "noisy_test_error": (test_predictions != noisy_test_labels).double().mean(),
    }
