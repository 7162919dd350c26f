"""Memorized share by the kernel method: a calibration on unseen rows, an exact permutation test, and its power."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernelmem.auditing.schema import HowMuch, Power
from kernelmem.auditing.scores.kernel_scores import KernelScores
from kernelmem.statistics import Interval, mean_interval

LEVEL = 0.95
BOOTSTRAPS = 200
PERMUTATIONS = 9999
SIGNIFICANCE = 0.01  # largest p-value of a claim
PROBABILITY = 0.8  # of an announcement, for the power
KERNEL_ERROR = 0.12  # relative; training on a row has shaped the kernel, measured against retraining
SMALLEST_PROBABILITY = 0.01  # bounds the weight of a single row in the test
FOLDS = 10
POWER_REPETITIONS, POWER_PERMUTATIONS = 50, 599
DEFINITION = (
    "Share of the training labels that the network gives only because it was trained on them: the share that it gives, minus"
    " the share expected of rows that it never saw and that the other rows predict equally well."
)
CONTROL_DEFINITION = (
    "The same difference on test rows that the network never saw, each predicted from the other test rows."
)


@dataclass(frozen=True)
class _Calibration:
    """Margins of all classes and the class given by the network, for calibration: both (k, C)."""

    margins: np.ndarray
    given: np.ndarray

    def fit(self, rows: np.ndarray | slice = slice(None), weights: np.ndarray | None = None) -> "_Curve":
        """Return the monotone probability that the network gives a class, as a function of its leave-one-out margin."""
        from sklearn.isotonic import isotonic_regression

        x, y = self.margins[rows].ravel(), self.given[rows].ravel().astype(np.float64)
        order = np.argsort(x, kind="stable")
        return _Curve(x[order], isotonic_regression(y[order], y_min=0.0, y_max=1.0))


@dataclass(frozen=True)
class _Curve:
    """A monotone function through points, constant outside."""

    x: np.ndarray
    y: np.ndarray

    def __call__(self, margins: np.ndarray) -> np.ndarray:
        return np.interp(margins, self.x, self.y)


def kernel_how_much(scores: KernelScores, outputs: Tensor, *, seed: int) -> HowMuch:
    """Estimate the memorized share of the training labels without retraining.

    Let q(t) be the probability that the network gives a class whose leave-one-out margin by the label regression is t, for
    rows that it never saw. q is a monotone function, fitted to all classes of the control rows (test rows, one of each
    group of near-duplicates). The share is the mean of 1[network gives the label of i] − q(t_i) over training rows i. Its
    interval contains the bootstrap error of q over control rows, the variation q (1 − q) of single rows, the difference that is
    found on the control itself, and a relative error of 12 % (the kernel was shaped by training on the row, which leaving it
    out of the regression does not undo).

    The p-value compares training and control rows by permutation, which is exact if the network saw neither. With c_i = 1 if
    the network gives the label of row i, and q fitted to both kinds of rows, it is twice the smaller p-value of two sums over
    training rows: c_i − q_i, and c_i (1 − q_i)/q_i − (1 − c_i), the score of the hypothesis that every label is memorized with
    a small probability, which weighs rows that the other rows contradict.

    Args:
        scores: kernel scores of all rows.
        outputs: (N, C) outputs of the network.
        seed: seed of bootstrap and permutations.
    """
    rng = np.random.default_rng(seed)
    n, control = scores.n_train, scores.control
    curve_data = _calibration(scores, outputs, control)
    correct = scores.network_correct.numpy().astype(np.float64)
    margins = scores.loo_margin.numpy()
    expected = curve_data.fit()(margins[:n])
    estimate = float((correct[:n] - expected).mean())
    u = len(control)
    bootstrapped = [curve_data.fit(rng.integers(u, size=u))(margins[:n]).mean() for _ in range(BOOTSTRAPS)]
    on_control = _cross_fitted_control(scores, outputs)
    variance = float(np.var(bootstrapped, ddof=1) + (expected * (1 - expected)).mean() / n)
    variance += (KERNEL_ERROR * estimate) ** 2 + on_control.value**2
    fraction = _normal_interval(estimate, variance**0.5)
    units, is_train = _test_units(scores, outputs)
    n_flagged = int(scores.flagged[:n].sum())
    control_rate = float(scores.flagged[control].double().mean())
    return HowMuch(
        method="kernel",
        definition=DEFINITION,
        fraction=fraction,
        mean=fraction,
        n_flagged=n_flagged,
        n_rows=n,
        control=on_control,
        control_definition=CONTROL_DEFINITION,
        n_control=u,
        expected_by_chance=n * control_rate,
        p_value=units.p_value(is_train, units.sums(int(is_train.sum()), rng, PERMUTATIONS)),
        n_models=0,
    )


def permutation_sums(statistic: np.ndarray, n_train: int, *, rng: np.random.Generator, permutations: int) -> np.ndarray:
    """Return the sums of ``statistic`` (G,) over random subsets of n_train units, (permutations,), sorted.

    The number of units of each distinct value in a random subset is multivariate hypergeometric.
    """
    values, counts = np.unique(statistic, return_counts=True)
    return np.sort(rng.multivariate_hypergeometric(counts, n_train, size=permutations, method="marginals") @ values)


def permutation_p_value(statistic: np.ndarray, is_train: np.ndarray, sums: np.ndarray) -> float:
    """Return the p-value (1 + number of ``sums`` at least the observed one) / (1 + number of sums)."""
    observed = statistic[is_train].sum() - 1e-9 * np.abs(statistic).sum()  # the order of a sum changes its rounding
    return (1 + len(sums) - int(np.searchsorted(sums, observed))) / (1 + len(sums))


@dataclass(frozen=True)
class _Units:
    """Statistics of G units, one row of each group of near-duplicates: weighted and unweighted excess over expectation."""

    weighted: np.ndarray
    excess: np.ndarray

    @classmethod
    def of(cls, correct: np.ndarray, probability: np.ndarray) -> "_Units":
        """Return both statistics for c = 1 where the network gives the label and q its probability, rounded to few values."""
        q = np.clip(probability, SMALLEST_PROBABILITY, 1.0)
        return cls(_rounded(np.where(correct, (1 - q) / q, -1.0)), _rounded(correct - q))

    def sums(self, n_train: int, rng: np.random.Generator, permutations: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the sums of both statistics over random subsets."""
        weighted, excess = (
            permutation_sums(v, n_train, rng=rng, permutations=permutations) for v in (self.weighted, self.excess)
        )
        return weighted, excess

    def p_value(self, is_train: np.ndarray, sums: tuple[np.ndarray, np.ndarray]) -> float:
        """Return twice the smaller of the two permutation p-values."""
        pairs = zip((self.weighted, self.excess), sums, strict=True)
        return min(1.0, 2 * min(permutation_p_value(v, is_train, null) for v, null in pairs))


def _rounded(values: np.ndarray) -> np.ndarray:
    """Return values rounded to steps of .05, and to one significant digit above 1: few values make permutations cheap."""
    magnitude = 10.0 ** np.floor(np.log10(np.maximum(np.abs(values), 1)))
    return np.where(np.abs(values) >= 1, np.round(values / magnitude) * magnitude, np.round(values * 20) / 20)


def kernel_power(scores: KernelScores, outputs: Tensor, *, seed: int) -> Power:
    """Find the smallest number of fitted wrong labels that the permutation test announces with probability .8.

    Training units are drawn from the control rows, which the network did not see; k of them get a wrong class as label and a
    network that gives it. The test with p < .01 is repeated for each k.
    """
    rng = np.random.default_rng(seed)
    control = scores.control
    units = scores.near.representative
    n_train = int((units < scores.n_train).sum())
    data = _calibration(scores, outputs, control)
    curve = data.fit()
    own = _Units.of(scores.network_correct[control].numpy(), curve(scores.loo_margin[control].numpy()))
    labels = scores.labels[control].numpy()
    C = data.margins.shape[1]
    wrong = (labels[:, None] + rng.integers(1, C, size=(len(labels), 64))) % C
    wrong_margins = np.take_along_axis(data.margins, wrong, 1).ravel()
    memorized = _Units.of(np.ones(len(wrong_margins), bool), curve(wrong_margins))
    is_train = np.arange(n_train + len(control)) < n_train

    def draw(k: int) -> _Units:
        drawn, planted = rng.integers(len(control), size=len(is_train)), rng.integers(len(wrong_margins), size=k)
        units = _Units(own.weighted[drawn], own.excess[drawn])
        units.weighted[:k], units.excess[:k] = memorized.weighted[planted], memorized.excess[planted]
        return units

    def announced(k: int) -> float:
        units = [draw(k) for _ in range(POWER_REPETITIONS)]
        p_values = [u.p_value(is_train, u.sums(n_train, rng, POWER_PERMUTATIONS)) for u in units]
        return float(np.mean(np.array(p_values) < SIGNIFICANCE))

    low, high = 0, 1
    while high < n_train and announced(high) < PROBABILITY:
        low, high = high, min(2 * high, n_train)
    found = high < n_train or announced(n_train) >= PROBABILITY
    while found and high - low > max(1, low // 10):
        middle = (low + high) // 2
        low, high = (low, middle) if announced(middle) >= PROBABILITY else (middle, high)
    count = high if found else None
    meaning = (
        f"With {n_train:,} training and {len(control):,} control rows, about {count:,} fitted wrong labels are announced with"
        f" probability {PROBABILITY:g} at p < {SIGNIFICANCE:g}. Single rows are flagged, but not announced."
        if count is not None
        else "No number of memorized rows would be announced with this control."
    )
    return Power("kernel", PROBABILITY, SIGNIFICANCE, count, None, meaning, "")


def permuted_alarms(scores: KernelScores, outputs: Tensor, *, seed: int, runs: int = 200) -> int:
    """Return how many of ``runs`` audits with permuted memberships of training and test rows have p < .01."""
    rng = np.random.default_rng(seed)
    units, is_train = _test_units(scores, outputs)
    sums = units.sums(int(is_train.sum()), rng, PERMUTATIONS)
    return sum(units.p_value(rng.permutation(is_train), sums) < SIGNIFICANCE for _ in range(runs))


def _test_units(scores: KernelScores, outputs: Tensor) -> tuple[_Units, np.ndarray]:
    """Return (statistics of each unit, mask of training units); the units are one row of each group of near-duplicates."""
    units = scores.near.representative
    probability = _calibration(scores, outputs, units).fit()(scores.loo_margin[units].numpy())
    return _Units.of(scores.network_correct[units].numpy(), probability), (units < scores.n_train).numpy()


def _calibration(scores: KernelScores, outputs: Tensor, rows: Tensor) -> _Calibration:
    """Return the margins of every class and the class that the network gives, for the rows at positions ``rows``."""
    predictions = scores.predictions[rows]
    C = predictions.shape[1]
    top = predictions.topk(2, dim=1).values
    rival = torch.where(predictions == top[:, :1], top[:, 1:2], top[:, :1])
    given = torch.nn.functional.one_hot(outputs[rows].argmax(1), C).bool()
    return _Calibration((predictions - rival).numpy(), given.numpy())


def _cross_fitted_control(scores: KernelScores, outputs: Tensor) -> Interval:
    """Return the mean over control rows of 1[network gives the label] − q, with q fitted to the other folds."""
    control = scores.control
    data = _calibration(scores, outputs, control)
    correct = scores.network_correct[control].numpy().astype(np.float64)
    margins = scores.loo_margin[control].numpy()
    difference = np.zeros(len(control))
    folds = np.arange(len(control)) % min(FOLDS, len(control))
    for fold in range(folds.max() + 1):
        inside = folds == fold
        difference[inside] = correct[inside] - data.fit(~inside if not inside.all() else inside)(margins[inside])
    return mean_interval(difference, level=LEVEL)


def _normal_interval(value: float, standard_error: float) -> Interval:
    from scipy.stats import norm  # slow to import

    half = float(norm.isf((1 - LEVEL) / 2)) * standard_error
    return Interval(value, max(-1.0, value - half), min(1.0, value + half), LEVEL)
