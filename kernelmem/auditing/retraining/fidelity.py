"""Share of the shadow models' memorization that the audited network shows, calibrated on test rows."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernelmem.auditing.retraining.answer import RetrainingScores
from kernelmem.memorization.shadows import ShadowEnsemble

BINS = 5  # of the share of models without a row that give its label
PRIOR_ROWS = (
    1.0  # test rows per bin that the network treats as a shadow model does; they decide where there are no others
)
VISIBLE = 3.0  # standard errors


@dataclass(frozen=True)
class ShownMemorization:
    """Result of :func:`shown_memorization`.

    Attributes:
        share: estimate; about 1 for a network of the same training, about 0 for one that never saw the rows.
        error: its standard error.
        visible: False if the shadow models memorize too little to tell one from the other.
    """

    share: float
    error: float
    visible: bool


def shown_memorization(
    scores: RetrainingScores,
    network_correct: np.ndarray,  # (n,)
    test_labels: Tensor,  # (t,)
    test_correct: np.ndarray,  # (t,)
    unseen: Tensor,
) -> ShownMemorization:
    """Estimate the share of the shadow models' memorization that the audited network shows.

    The shadow models predict by how much a network that was trained on the rows gives their labels more often than one that
    was not: Σ m_i (p_in,i − p_out,i), with shrunken memorization m_i as weights. The share of it that the network shows is

        Σ m_i (c_i − q(p_out,i)) / Σ m_i (p_in,i − p_out,i),    c_i = 1 where it gives the label.

    q(p) is the probability that the network gives the label of a row that it never saw, if a share p of the models that never
    saw it do. It is measured on test rows, in bins of p, for as many models as there are without a training row: a network
    that was trained on other rows gives some labels that these models miss without having seen them. Where there are no test
    rows, q(p) = p.

    Args:
        scores: memorization by retraining.
        network_correct: (n,) True where the network gives the label of a training row.
        test_labels: (t,) labels of the test rows; if the shadow models have outputs on others, q(p) = p.
        test_correct: (t,) True where the network gives the label of a test row.
        unseen: numbers of the test rows that are not near training rows.
    """
    counts, weight = scores.counts, np.clip(scores.deconvolved.mean, 0, None)
    p_in, p_out = counts.correct_in / counts.n_in, counts.correct_out / counts.n_out
    rows, given = _unseen_rows(scores.shadows, int(np.median(counts.n_out)), test_labels, test_correct, unseen)
    bins = _bins(p_out)
    q = (given[bins] + PRIOR_ROWS * p_out) / (rows[bins] + PRIOR_ROWS)
    expected = float((weight * (p_in - p_out)).sum())
    noise = float(np.sqrt((weight**2 * np.maximum(p_in * (1 - p_in), p_out * (1 - p_out))).sum()))
    in_bins, with_spread = (np.bincount(bins, w, minlength=BINS) for w in (weight, weight * q * (1 - q)))
    calibration = float(np.sqrt((in_bins * with_spread / (rows + PRIOR_ROWS)).sum()))
    if expected <= VISIBLE * noise:
        return ShownMemorization(float("nan"), float("nan"), False)
    shown = float((weight * (network_correct - q)).sum())
    return ShownMemorization(shown / expected, float(np.hypot(noise, calibration)) / expected, True)


def _unseen_rows(
    shadows: ShadowEnsemble, n_out: int, test_labels: Tensor, test_correct: np.ndarray, unseen: Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Return, per bin, the number of unseen test rows and the number of those whose label the network gives, both (BINS,).

    A row whose label k of the m models give counts in every bin, by the probability that n_out of the models, drawn at
    random, give it so often.
    """
    from scipy.stats import hypergeom

    totals = np.zeros((2, BINS))
    labels = shadows.test_labels.cpu()
    if labels.shape != test_labels.shape or not torch.equal(labels, test_labels.cpu()):
        return totals[0], totals[1]
    k = (shadows.test_logits.argmax(-1).cpu() == labels).sum(0)[unseen].numpy()
    drawn = np.arange(n_out + 1)
    probability = hypergeom.pmf(drawn, shadows.n_models, k[:, None], n_out)  # (rows, n_out + 1)
    np.add.at(totals[0], _bins(drawn / n_out), probability.sum(0))
    np.add.at(totals[1], _bins(drawn / n_out), (probability * test_correct[unseen.numpy(), None]).sum(0))
    return totals[0], totals[1]


def _bins(p: np.ndarray) -> np.ndarray:
    return np.minimum((p * BINS).astype(int), BINS - 1)
