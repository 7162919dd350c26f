"""Honest predictors of several kinds, and cheats: each of them a code length that somebody published or might publish."""

import os
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn


def data(n, n_classes, seed=0, spread=0.7):
    """Rows around one center per class, and their labels."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, n_classes, n)
    centers = rng.standard_normal((n_classes, 4)) * 2
    return centers[y] + spread * rng.standard_normal((n, 4)), y


def gaussian_kernel(x, width=2.0):
    x = np.asarray(x, dtype=float).reshape(len(x), -1)
    squared = ((x[:, None] - x[None]) ** 2).sum(2)
    return np.exp(-squared / (2 * width**2))


def softmax(z):
    z = np.exp(z - z.max(-1, keepdims=True))
    return z / z.sum(-1, keepdims=True)


class Uniform:
    """1 / C."""

    def __init__(self, n_classes):
        self.n_classes = n_classes

    def __call__(self, x, y):
        return np.full((len(y), self.n_classes), 1 / self.n_classes)


class Counting:
    """Counts of the classes so far plus a constant, divided by their sum; one row after the other as well."""

    def __init__(self, n_classes, constant=0.5):
        self.n_classes, self.constant = n_classes, constant

    def __call__(self, x, y):
        one_hot = np.eye(self.n_classes)[np.asarray(y)]
        counts = one_hot.cumsum(0) - one_hot + self.constant
        return counts / counts.sum(1, keepdims=True)

    def sequential(self, x):
        counts = np.full(self.n_classes, self.constant)
        for _ in range(len(x)):
            counts[(yield counts / counts.sum())] += 1


class Frequent(Counting):
    """The same without ``sequential``."""

    sequential = None


class Slow(Frequent):
    """A predictor that takes its time."""

    def __call__(self, x, y):
        time.sleep(0.05)
        return super().__call__(x, y)


class SequentialThere(Counting):
    """Can only be stepped through in the process of the decoder."""

    def __call__(self, x, y):
        assert "KERNELMEM_DECODER_THREADS" not in os.environ
        return super().__call__(x, y)


class OnlineKernel:
    """Gaussian process regression of one-hot labels on the rows before, one Cholesky factorization for all rows."""

    def __init__(self, n_classes, ridge=0.1, temperature=0.3, floor=1e-3):
        self.n_classes, self.ridge, self.temperature, self.floor = n_classes, ridge, temperature, floor

    def kernel(self, x, y):
        return gaussian_kernel(x)

    def __call__(self, x, y, temperature=None):
        targets = np.eye(self.n_classes)[np.asarray(y)] - 1 / self.n_classes
        L = np.linalg.cholesky(self.kernel(x, y) + self.ridge * np.eye(len(y)))
        mean = np.zeros_like(targets)
        z = np.zeros_like(targets)
        for i in range(len(y)):
            mean[i] = L[i, :i] @ z[:i]
            z[i] = (targets[i] - mean[i]) / L[i, i]
        p = softmax(mean / (np.diag(L)[:, None] ** 2 * (temperature or self.temperature)))
        return (1 - self.floor) * p + self.floor / self.n_classes


class NearestNeighbor:
    """Label of the nearest row before, with a floor; torch, float32."""

    def __init__(self, n_classes, floor=0.1):
        self.n_classes, self.floor = n_classes, floor

    def __call__(self, x, y):
        x = torch.as_tensor(x, dtype=torch.float32).reshape(len(x), -1)
        labels = torch.as_tensor(y)
        p = torch.full((len(x), self.n_classes), 1 / self.n_classes)
        for i in range(1, len(x)):
            nearest = int(((x[:i] - x[i]) ** 2).sum(1).argmin())
            p[i] = self.floor / self.n_classes
            p[i, labels[nearest]] += 1 - self.floor
        return p


class Blocks:
    """Class means of the rows before the block; standardizes with the inputs of all rows (transductive)."""

    def __init__(self, n_classes):
        self.n_classes = n_classes

    def __call__(self, x, y):
        x = np.asarray(x, dtype=float)
        x = (x - x.mean(0)) / (x.std(0) + 1e-6)
        p = np.full((len(x), self.n_classes), 1 / self.n_classes)
        start = 4
        while start < len(x):
            end = min(len(x), 2 * start)
            logits = np.asarray(self.predict(x[:start], np.asarray(y)[:start], x[start:end]))
            p[start:end] = 0.9 * softmax(logits) + 0.1 / self.n_classes
            start = end
        return p

    def predict(self, x, y, rows):
        members = np.eye(self.n_classes)[y].T
        means = members @ x / (members.sum(1, keepdims=True) + 1)
        return -((rows[:, None] - means[None]) ** 2).sum(2)


class NeedsTwoClasses(Blocks):
    """A learner that refuses labels of one class, as scikit-learn's do."""

    def predict(self, x, y, rows):
        assert len(np.unique(y)) > 1
        return super().predict(x, y, rows)


def honest(k):
    """Predictor k of many, with inputs and labels: kinds, sizes, number of classes and noise vary."""
    n, n_classes = [12, 24, 40][k % 3], [2, 3, 5, 10][k // 3 % 4]
    x, y = data(n, n_classes, seed=k, spread=[0.3, 1.0, 3.0][k // 2 % 3])
    if k % 5 == 4:  # labels without structure
        y = np.random.default_rng(k).integers(0, n_classes, n)
    kinds = [Uniform, Counting, Frequent, OnlineKernel, NearestNeighbor, Blocks]
    return kinds[k % 6](n_classes), (torch.from_numpy(x) if k % 2 else x), (torch.from_numpy(y) if k % 4 == 1 else y)


# Cheats


class KernelTrainedOnLabels(OnlineKernel):
    """The kernel of a network that was trained on the labels carries them: here, features of all labels."""

    def kernel(self, x, y):
        return gaussian_kernel(x) + 0.5 * np.equal.outer(np.asarray(y), np.asarray(y))


class KernelBroughtAlong(OnlineKernel):
    """The same kernel, computed before the call."""

    def __init__(self, n_classes, K):
        super().__init__(n_classes)
        self.K = K

    def kernel(self, x, y):
        return self.K


class LabelsBroughtAlong:
    """Labels hidden in a value of the predictor."""

    def __init__(self, labels, n_classes):
        self.labels, self.n_classes = labels, n_classes

    def __call__(self, x, y):
        labels = np.array([int(label) for label in self.labels])
        return 0.999 * np.eye(self.n_classes)[labels] + 0.001 / self.n_classes


class LeaveOneOut(OnlineKernel):
    """Prediction of each row from all others."""

    def __call__(self, x, y):
        targets = np.eye(self.n_classes)[np.asarray(y)] - 1 / self.n_classes
        A = np.linalg.inv(gaussian_kernel(x) + self.ridge * np.eye(len(y)))
        mean = targets - A @ targets / np.diag(A)[:, None]
        return 0.99 * softmax(5 * mean) + 0.01 / self.n_classes


class HindsightTemperature(OnlineKernel):
    """Of several temperatures the one that suits all labels best."""

    def __call__(self, x, y):
        candidates = [super(HindsightTemperature, self).__call__(x, y, t) for t in (0.05, 0.2, 0.5, 1.0, 3.0)]
        return max(candidates, key=lambda p: np.log(p[np.arange(len(y)), y]).sum())


class LargerOfTwo(OnlineKernel):
    """max(p, q), which has more mass than 1."""

    def __call__(self, x, y):
        return np.maximum(super().__call__(x, y), Counting(self.n_classes)(x, y))


class TrueLabelOnly(OnlineKernel):
    """A probability for the label that occurred, and what is left for the others."""

    def __call__(self, x, y):
        p = super().__call__(x, y)
        realized = np.maximum(p[np.arange(len(y)), y], 0.9)
        result = np.repeat((1 - realized)[:, None] / max(self.n_classes - 1, 1), self.n_classes, 1)
        result[np.arange(len(y)), y] = realized
        return result


class SecondPass(OnlineKernel):
    """Scores rows again after a pass over all labels."""

    def __call__(self, x, y):
        twice = super().__call__(np.concatenate([x, x]), np.concatenate([y, y]))
        return twice[len(y) :]


class TopK(OnlineKernel):
    """No probability for classes outside the best two."""

    def __call__(self, x, y):
        p = super().__call__(x, y)
        p[p < np.sort(p, 1)[:, -2:-1]] = 0
        return p / p.sum(1, keepdims=True)


class RowsDropped(OnlineKernel):
    """Rows that are predicted badly are left out."""

    def __call__(self, x, y):
        p = super().__call__(x, y)
        return p[p[np.arange(len(y)), y] > 0.2]


class RowsTwice(OnlineKernel):
    """Every row is returned twice."""

    def __call__(self, x, y):
        return np.repeat(super().__call__(x, y), 2, 0)


class BatchNorm(Blocks):
    """A network with batch norm that predicts in training mode."""

    def predict(self, x, y, rows):
        torch.manual_seed(0)
        model = nn.Sequential(nn.BatchNorm1d(x.shape[1]), nn.Linear(x.shape[1], self.n_classes)).double()
        with torch.no_grad():
            return model(torch.from_numpy(rows))


class Dropout(Blocks):
    """A network that predicts with dropout, whose random numbers are not fixed."""

    def predict(self, x, y, rows):
        torch.seed()
        dropped = nn.functional.dropout(torch.from_numpy(rows))
        return super().predict(x, y, dropped.numpy())


class ThreadDependent(Counting):
    """Another prediction for each number of threads, as sums in float32 have."""

    sequential = None

    def __call__(self, x, y):
        p = super().__call__(x, y)
        share = 1e-3 * torch.get_num_threads()
        return (1 - share) * p + share / self.n_classes


class SequentialOtherwise(Counting):
    """Rows of ``sequential`` that differ from the same rows of one call."""

    def sequential(self, x):
        counts = np.full(self.n_classes, self.constant + 1e-4)
        for _ in range(len(x)):
            counts[(yield counts / counts.sum())] += 1


class FutureLabelsByState:
    """Keeps the labels of the first call for the next ones."""

    def __init__(self, n_classes):
        self.n_classes, self.labels = n_classes, None

    def __call__(self, x, y):
        self.labels = np.array(y) if self.labels is None else self.labels
        return 0.99 * np.eye(self.n_classes)[self.labels] + 0.01 / self.n_classes


class LabelsInAFile:
    """Writes the labels of the first call to a file, and reads them in all others."""

    def __init__(self, path, n_classes):
        self.path, self.n_classes = path, n_classes

    def __call__(self, x, y):
        if not Path(self.path).exists():
            np.save(self.path, np.asarray(y))
        return 0.999 * np.eye(self.n_classes)[np.load(self.path)] + 0.001 / self.n_classes


class LabelsAsNames:
    """Labels hidden in texts that look like names, which are not counted as values."""

    def __init__(self, labels, n_classes):
        text, self.n_classes = "".join("abcdefghij"[k] for k in labels), n_classes
        self.names = [text[i : i + 60] for i in range(0, len(text), 60)]

    def __call__(self, x, y):
        labels = np.array(["abcdefghij".index(letter) for letter in "".join(self.names)])
        return 0.999 * np.eye(self.n_classes)[labels] + 0.001 / self.n_classes


class LabelsInTheInputs:
    """Reads the labels from the last column of the inputs."""

    def __init__(self, n_classes):
        self.n_classes = n_classes

    def __call__(self, x, y):
        return 0.999 * np.eye(self.n_classes)[x[:, -1].astype(int)] + 0.001 / self.n_classes


class OwnLabelOfFewRows(Counting):
    """Uses the own labels of a few rows."""

    sequential = None

    def __call__(self, x, y):
        p = super().__call__(x, y)
        p[[7, 30]] = 0.01 / self.n_classes
        p[[7, 30], np.asarray(y)[[7, 30]]] += 0.99
        return p


class Faulty:
    """A predictor that fails in one of several ways."""

    def __init__(self, fault, n_classes=3):
        self.fault, self.n_classes = fault, n_classes

    def __call__(self, x, y):
        p = np.full((len(y), self.n_classes), 1 / self.n_classes)
        if self.fault == "raises":
            raise KeyError("no such\nkernel")
        if self.fault == "hangs":
            time.sleep(30)
        return {
            "NaN": np.where(np.arange(self.n_classes) == 1, np.nan, p),
            "shape": p[:, 0],
            "rows": p[1:],
            "columns": p[:, :1],
            "text": [["a"]],
            "None": None,
            "negative": p * np.array([3.0, 1.0, -1.0]),
            "logits": np.log(p),
        }.get(self.fault, p)
