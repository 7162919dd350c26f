"""Bayesian mixture of experts that predict labels one after the other."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


class Scores(Protocol):
    """Scores (B, C) of each row that depend on the labels of the rows before it only."""

    @property
    def names(self) -> Sequence[str]:
        """Names of the B scores."""
        ...

    def __len__(self) -> int:
        """Return the number n of rows."""
        ...

    def n_bytes(self, *, decoding: bool) -> int:
        """Return the memory of :meth:`of_all_rows`, or of :meth:`one_by_one` if ``decoding``."""
        ...

    def of_all_rows(self, labels: np.ndarray) -> np.ndarray:
        """Return the scores (B, n, C) of all rows, given all labels (n,)."""
        ...

    def one_by_one(self) -> Generator[np.ndarray, int, None]:
        """Yield the scores (B, C) of one row after the other, and receive the label of each."""
        ...


@dataclass(frozen=True, eq=False)
class Predictions:
    """Probabilities q_i(c) of the mixture, (n, C), and the weights of its experts after the last row, (E,)."""

    probabilities: np.ndarray
    posterior: np.ndarray


@dataclass(frozen=True)
class Mixture:
    """Mixture of scores × temperatures × floors, a marginal expert and a uniform expert.

    Expert (b, τ, f) predicts p(c) = (1 − f) softmax_c(score_b(c) / τ) + f / C; the marginal expert (count_c + 1/2) / (i + C/2);
    the uniform expert 1/C. The mixture q_i = Σ_k w_k(i) p_k weighs expert k by its prior times the probabilities that it has
    given to the labels so far, so that for every k ::

        −Σ_i log₂ q_i(y_i) <= −Σ_i log₂ p_k(y_i) − log₂ prior_k

    Attributes:
        n_scores: number B of scores per row and class.
        n_classes: number C of classes.
        temperatures, floors: grids of τ and f.
        uniform: prior weight of the uniform expert; the others share the rest equally.
    """

    n_scores: int
    n_classes: int
    temperatures: tuple[float, ...]
    floors: tuple[float, ...]
    uniform: float

    def names(self, scores: Sequence[str]) -> tuple[str, ...]:
        """Return the names of the E experts, given those of the scores."""
        names = [
            f"{score}, temperature {temperature:g}, floor {floor:.3g}"
            for score in scores
            for temperature in self.temperatures
            for floor in self.floors
        ]
        return (*names, "marginal", "uniform")

    def predict_all(self, scores: Scores, labels: np.ndarray) -> Predictions:
        """Return the predictions of all rows, given the labels (n,): row i depends on the labels before i only, to the bit.

        Cost: two softmax of B × temperatures × n × C numbers; memory: (B + 3) n C + 3 E n numbers.
        """
        n, C = len(labels), self.n_classes
        values, marginal = scores.of_all_rows(labels), marginal_probabilities(labels, C)
        rows, floors = np.arange(n), np.array(self.floors)
        given = np.empty((self._n_experts, n))  # probabilities of the given labels
        tempered = given[:-2].reshape(self.n_scores, len(self.temperatures), len(floors), n)
        for b, t in np.ndindex(tempered.shape[:2]):
            p = normalized(values[b] / self.temperatures[t], axis=1)[rows, labels]
            tempered[b, t] = (1 - floors[:, None]) * p + floors[:, None] / C
        given[-2], given[-1] = marginal[rows, labels], 1 / C
        weights = np.empty((self._n_experts, n + 1))
        weights[:, 0] = self._log_prior()
        np.cumsum(np.log(given, out=given), axis=1, out=weights[:, 1:])
        weights[:, 1:] += weights[:, :1]
        weights = normalized(weights, axis=0)
        q = weights[-2, :n, None] * marginal + weights[-1, :n, None] / C
        shares = weights[:-2, :n].reshape(tempered.shape)
        for b, t in np.ndindex(tempered.shape[:2]):
            p = normalized(values[b] / self.temperatures[t], axis=1)
            q += ((1 - floors) @ shares[b, t])[:, None] * p + (floors @ shares[b, t])[:, None] / C
        return Predictions(q, weights[:, n].copy())

    def predict_each(self, scores: Scores) -> Generator[np.ndarray, int, None]:
        """Yield the probabilities (C,) of one row after the other, and receive the label of each.

        They differ from those of :meth:`predict_all` by rounding.
        """
        C, floors = self.n_classes, np.array(self.floors)
        temperatures, counts = np.array(self.temperatures)[:, None], np.zeros(C)
        log_weights, given = self._log_prior(), np.empty(self._n_experts)
        shape = (self.n_scores, len(temperatures), len(floors))
        steps = scores.one_by_one()
        values = next(steps)
        while True:
            p = normalized(values[:, None] / temperatures, axis=2)  # (B, T, C)
            marginal = (counts + 0.5) / (counts.sum() + C / 2)
            weights = normalized(log_weights, axis=0)
            shares = weights[:-2].reshape(shape)
            q = weights[-2] * marginal + weights[-1] / C + float((shares @ floors).sum()) / C
            label = yield q + (shares @ (1 - floors)).reshape(-1) @ p.reshape(-1, C)
            given[:-2] = ((1 - floors) * p[..., label, None] + floors / C).reshape(-1)
            given[-2], given[-1] = marginal[label], 1 / C
            log_weights += np.log(given)
            counts[label] += 1
            try:
                values = steps.send(label)
            except StopIteration:
                return

    def n_bytes(self, n: int, *, decoding: bool) -> int:
        """Return the memory of :meth:`predict_all` for n rows, or of :meth:`predict_each` if ``decoding``."""
        C = self.n_classes
        return 8 * (2 * self._n_experts * C if decoding else 5 * n * C + 3 * self._n_experts * n)

    @property
    def _n_experts(self) -> int:
        return self.n_scores * len(self.temperatures) * len(self.floors) + 2

    def _log_prior(self) -> np.ndarray:
        log_prior = np.full(self._n_experts, np.log((1 - self.uniform) / (self._n_experts - 1)))
        log_prior[-1] = np.log(self.uniform)
        return log_prior


def marginal_probabilities(labels: np.ndarray, n_classes: int) -> np.ndarray:
    """Return the predictions of the marginal expert, (n, C): (count of c before i + 1/2) / (i + C/2).

    Source: Krichevsky and Trofimov 1981.
    """
    counts = np.zeros((len(labels), n_classes))
    counts[np.arange(1, len(labels)), labels[:-1]] = 1
    np.cumsum(counts, axis=0, out=counts)
    return (counts + 0.5) / (np.arange(len(labels))[:, None] + n_classes / 2)


def normalized(logarithms: np.ndarray, axis: int) -> np.ndarray:
    """Return exp(logarithms) divided by its sums along the axis.

    A function of its own, because those of SciPy take most of the time of a decoder: 0.5 ms for ten numbers.
    """
    values = np.exp(logarithms - logarithms.max(axis, keepdims=True))
    values /= values.sum(axis, keepdims=True)
    return values
