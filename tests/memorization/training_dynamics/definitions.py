"""Slow direct definitions of the scores of one run: loops over rows and checkpoints in plain Python."""

import itertools
import math

import numpy as np


def softmax(z):
    weights = [math.exp(value - max(z)) for value in z]
    return [weight / sum(weights) for weight in weights]


def margin(z, y):
    return z[y] - max(value for k, value in enumerate(z) if k != y)


def is_right(z, y):
    return margin(z, y) > 0


def area_under_margin(z, y, steps):
    return -float(np.mean([margin(z_t, y) for z_t in z]))


def el2n(z, y, steps):
    later = [t for t, step in enumerate(steps) if step > 0]
    t = min(later, key=lambda t: abs(steps[t] - steps[-1] / 10))
    p = softmax(z[t])
    return math.sqrt(sum((p[k] - (k == y)) ** 2 for k in range(len(p))))


def cumulative_loss(z, y, steps):
    return sum(-math.log(softmax(z_t)[y]) for z_t in z)


def forgetting_events(z, y, steps):
    right = [is_right(z_t, y) for z_t in z]
    if not any(right):
        return len(right) + 1
    return sum(before and not after for before, after in itertools.pairwise(right))


def confidence(z, y, steps):
    return 1 - float(np.mean([softmax(z_t)[y] for z_t in z]))


def variability(z, y, steps):
    return float(np.std([softmax(z_t)[y] for z_t in z]))


def correctness(z, y, steps):
    return 1 - float(np.mean([is_right(z_t, y) for z_t in z]))


def learned_at(z, y, steps):
    right = [is_right(z_t, y) for z_t in z]
    return next((steps[t] for t in range(len(z)) if all(right[t:])), steps[-1] + 1)


SCORES = (
    "area_under_margin",
    "el2n",
    "cumulative_loss",
    "forgetting_events",
    "confidence",
    "variability",
    "correctness",
)
SCORES += ("learned_at",)
