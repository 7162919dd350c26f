"""Memorized share and memorized rows from shadow models, with control and power."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernelmem.auditing.retraining.deconvolution import CorrectCounts, Deconvolved, deconvolve
from kernelmem.auditing.schema import HowMuch, Power
from kernelmem.memorization.output_statistics import label_statistic
from kernelmem.memorization.retraining import Retraining, feldman_zhang
from kernelmem.memorization.shadows import ShadowEnsemble
from kernelmem.statistics import Interval

LEVEL = 0.95
THRESHOLD = 0.25  # memorization above which a row counts (Feldman and Zhang 2020)
FALSE_SHARE = 0.03  # expected share of false rows among those that are flagged
BOOTSTRAPS = 400
CONTROL_REPETITIONS = 20
SIGNIFICANCE = 0.01
PROBABILITY = 0.8
EXPONENT = 1.5  # training on all rows memorizes at least share**1.5 times as many rows as training on a share of them
DEFINITION = (
    "Share of training rows whose label models trained with the row give more often than models trained without it, by more"
    " than {threshold:.0%} of the models (Feldman's memorization above {threshold:g}), in training on random"
    " {share:.0%} of the rows. The interval allows for training on all rows, which memorizes fewer."
)
CONTROL_DEFINITION = (
    "The same estimate after the rows' memberships were permuted among the models, so that none counts."
)


@dataclass(frozen=True)
class RetrainingScores:
    """Memorization of n training rows from m shadow models.

    Attributes:
        shadows: the models.
        retraining: memorization of the probability of the label, with its reliability.
        probability: (n,) mean probability of the label in models with the row minus models without it.
        margin_without: (n,) mean margin of the label in models without the row; its negative is the ranking score.
        margin_error: (n,) its standard error.
        predicted_without: (n,) most frequent class among the models without the row.
        counts: numbers of models that give the label.
        deconvolved: posterior probabilities of memorization above .25, and the share of such rows.
        p_values: (n,) p-value of each row (Fisher's exact test), adjusted for all rows (Bonferroni).
    """

    shadows: ShadowEnsemble
    retraining: Retraining
    probability: np.ndarray
    margin_without: np.ndarray
    margin_error: np.ndarray
    predicted_without: np.ndarray
    counts: CorrectCounts
    deconvolved: Deconvolved
    p_values: np.ndarray

    def flagged(self, network_correct: np.ndarray) -> np.ndarray:
        """Return (n,) True for the rows that are called memorized.

        These are the rows most likely memorized that the audited network gives the label of, as many as keep the expected
        share of false ones below 3 %.
        """
        p = np.where(network_correct, self.deconvolved.probability, 0.0)
        order = np.argsort(-p, kind="stable")
        false_share = np.cumsum(1 - p[order]) / np.arange(1, len(p) + 1)
        flagged = np.zeros(len(p), bool)
        flagged[order[: int((false_share <= FALSE_SHARE).sum())]] = True
        return flagged & (p > 0.5)


def retraining_scores(shadows: ShadowEnsemble, *, seed: int) -> RetrainingScores:
    """Compute memorization of every row from shadow models, a pure function of their outputs."""
    masks = shadows.masks.cpu()
    retraining = feldman_zhang(shadows, statistic="probability")
    correct = _gives_label(shadows)
    counts = count_correct(correct, masks.numpy())
    out = (~masks).to(torch.float64)
    margin = label_statistic(shadows.logits, shadows.labels, "margin")
    margin_without = (margin * out).sum(0) / out.sum(0)
    votes = torch.nn.functional.one_hot(shadows.logits.argmax(-1), shadows.n_classes).to(torch.float64)
    return RetrainingScores(
        shadows=shadows,
        retraining=retraining,
        probability=retraining.memorization.values.numpy(),
        margin_without=margin_without.numpy(),
        margin_error=(((margin - margin_without).square() * out).sum(0) / (out.sum(0) - 1) / out.sum(0)).sqrt().numpy(),
        predicted_without=(votes * out[:, :, None]).sum(0).argmax(1).numpy(),
        counts=counts,
        deconvolved=deconvolve(counts, THRESHOLD, level=LEVEL, seed=seed),
        p_values=adjusted_p_values(counts),
    )


def retraining_how_much(scores: RetrainingScores, network_correct: np.ndarray, *, seed: int) -> HowMuch:
    """Return the memorized share with its interval, and the same share with permuted memberships.

    The share is that of training on random subsets. Its interval reaches as far down as the share may be lower in training on
    all rows: the more rows, the fewer are memorized. On digits (clean labels, and wrong ones that are fitted or not; 200 rows;
    subsets of 80 %) leaving out 2 % of the rows at a time gave .72 to 1.02 times the share, that is subset share^1.5 or more.
    """
    rng = np.random.default_rng(seed)
    masks, correct = scores.shadows.masks.cpu().numpy(), _gives_label(scores.shadows)
    permuted = rng.permuted(masks, axis=0)
    control = deconvolve(
        count_correct(correct, permuted), THRESHOLD, level=LEVEL, repetitions=CONTROL_REPETITIONS, seed=seed
    )
    n, share = masks.shape[1], float(masks.mean())
    result = scores.deconvolved
    low = result.fraction - np.hypot(result.fraction - result.low, (1 - share**EXPONENT) * result.fraction)
    p = np.where(network_correct, scores.p_values, 1.0)
    return HowMuch(
        method="retraining",
        definition=DEFINITION.format(threshold=THRESHOLD, share=share),
        fraction=Interval(result.fraction, max(0.0, float(low)), result.high, LEVEL),
        mean=_mean_memorization(masks, correct, rng),
        n_flagged=int(scores.flagged(network_correct).sum()),
        n_rows=n,
        control=Interval(control.fraction, control.low, control.high, LEVEL),
        control_definition=CONTROL_DEFINITION,
        n_control=n,
        expected_by_chance=n * control.fraction,
        p_value=float(p.min()),
        n_models=scores.shadows.n_models,
    )


def retraining_power(scores: RetrainingScores, budget: str) -> Power:
    """Find the smallest memorization of one row that these models announce with probability .8.

    A row whose label every model with it gives, and models without it give with probability 1 − e, is announced if Fisher's
    exact test, corrected for n rows, has p < .01. The smallest e is found by bisection on exact binomial probabilities.
    """
    n = len(scores.p_values)
    n_in = int(np.median(scores.counts.n_in))
    n_out = int(np.median(scores.counts.n_out))
    effect = smallest_effect(n, n_in, n_out)
    meaning = (
        f"With {n_in} models trained with and {n_out} without a typical row, a single row is announced with probability"
        f" {PROBABILITY:g} if training on it raises the probability of its label by {effect:.2f} or more."
        if effect is not None
        else f"With {n_in} models trained with and {n_out} without a typical row, no single row would be announced."
    )
    doubled = smallest_effect(n, 2 * n_in, 2 * n_out)
    if doubled is not None:
        budget += f" Twice as many models would announce a single row from {doubled:.2f} on."
    return Power("retraining", PROBABILITY, SIGNIFICANCE, None if effect is None else 1, effect, meaning, budget)


def smallest_effect(n: int, n_in: int, n_out: int) -> float | None:
    """Return the smallest e for which a row with p_in = 1 and p_out = 1 − e is announced with probability .8, or None."""
    from scipy.stats import binom, hypergeom

    correct_out = np.arange(n_out + 1)
    p = hypergeom.sf(n_in - 1, n_in + n_out, n_in + correct_out, n_in) * n
    most = int((p < SIGNIFICANCE).sum()) - 1  # largest number of models without the row that may give its label
    if most < 0:
        return None
    low, high = 0.0, 1.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (low, middle) if binom.cdf(most, n_out, 1 - middle) >= PROBABILITY else (middle, high)
    return high


def adjusted_p_values(counts: CorrectCounts) -> np.ndarray:
    """Return Fisher's one-sided p-value of each row, P(at least as many of its correct models were trained with it) · n."""
    from scipy.stats import hypergeom

    n_models, total = counts.n_in + counts.n_out, counts.correct_in + counts.correct_out
    p = hypergeom.sf(counts.correct_in - 1, n_models, total, counts.n_in)
    return np.minimum(1.0, p * len(p))


def count_correct(correct: np.ndarray, masks: np.ndarray) -> CorrectCounts:
    """Return the numbers of models that give the label of each row; both arguments (m, n) bool."""
    return CorrectCounts((correct & masks).sum(0), masks.sum(0), (correct & ~masks).sum(0), (~masks).sum(0))


def _gives_label(shadows: ShadowEnsemble) -> np.ndarray:
    """Return (m, n) True where a model gives the label."""
    return (shadows.logits.argmax(-1) == shadows.labels).cpu().numpy()


def _mean_memorization(masks: np.ndarray, correct: np.ndarray, rng: np.random.Generator) -> Interval:
    """Return the mean over rows of p_in − p_out, with a bootstrap over models."""
    m = len(masks)
    weights = np.concatenate([np.ones((1, m)), rng.multinomial(m, np.full(m, 1 / m), size=BOOTSTRAPS)])
    inside, c = masks.astype(np.float64), correct.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        memorization = (weights @ (c * inside)) / (weights @ inside) - (weights @ (c * (1 - inside))) / (
            weights @ (1 - inside)
        )
    means = np.nanmean(memorization, axis=1)
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(2 * means[0] - means[1:], [tail, 100 - tail])
    return Interval(float(means[0]), float(min(low, means[0])), float(max(high, means[0])), LEVEL)


def shadow_accuracies(shadows: ShadowEnsemble) -> tuple[Tensor, Tensor]:
    """Return the accuracy of each model on its training rows, and on test rows (NaN without any), both (m,)."""
    correct, masks = torch.from_numpy(_gives_label(shadows)).to(torch.float64), shadows.masks.cpu().to(torch.float64)
    test = (shadows.test_logits.argmax(-1) == shadows.test_labels).to(torch.float64).mean(1)
    return (correct * masks).sum(1) / masks.sum(1), test
