"""Blocks in which the outputs of a row depend on the other rows of the batch, on its place, or on random numbers."""

import torch
import torch.nn.functional as F
from torch import nn

from tests.tangents.programs.block import Block, square


def batch_statistics(choices, d):
    """Means, variances or maxima over the batch."""
    way = choices.choice(["mean", "detached mean", "batch_norm", "module", "max", "whitened"])
    norm = nn.BatchNorm1d(d, track_running_stats=False)

    def run(m, h):
        return {
            "mean": lambda: h - h.mean(0),
            "detached mean": lambda: h - h.detach().mean(0),
            "batch_norm": lambda: F.batch_norm(h, None, None, training=True),
            "module": lambda: m.norm(h),
            "max": lambda: h / h.detach().abs().amax(),
            "whitened": lambda: h @ torch.linalg.inv(h.T @ h + torch.eye(d, dtype=h.dtype)),
        }[way]()

    return Block(run, norm=norm) if way == "module" else Block(run)


def attention_over_rows(choices, d):
    """Attention, or contrast, among the rows."""
    way = choices.choice(["softmax", "module", "cumulative", "neighbor", "first"])

    def run(m, h):
        if way == "softmax":
            return m.inner(h) + (h @ h.T).softmax(-1) @ h
        if way == "module":
            return h + m.module(h, h, h, need_weights=False)[0]
        if way == "cumulative":
            return m.inner(h).cumsum(0)
        return m.inner(h) + (h.roll(1, 0) if way == "neighbor" else h[:1])

    return Block(run, inner=square(d), module=nn.MultiheadAttention(d, 1))


def not_restored(choices, d):
    """Rows that come back in another order."""
    way = choices.choice(["sorted", "flipped", "swapped"])

    def run(m, h):
        y = m.inner(h).tanh()
        if way == "sorted":
            return y[h[:, 0].argsort()]
        return y.flip(0) if way == "flipped" else torch.cat([y[:1], y[2:3], y[1:2], y[3:]])

    return Block(run, inner=square(d))


def threshold_of_the_batch(choices, d):
    """A branch that depends on the batch, with no derivative that shows it."""
    way = choices.choice(["median", "top k", "rank", "maximum"])

    def run(m, h):
        score = h[:, 0].detach()
        if way == "median":
            chosen = score > score.median()
        elif way == "top k":
            chosen = torch.zeros(len(h), dtype=torch.bool).index_fill(0, score.topk(len(h) // 2).indices, True)
        elif way == "rank":
            chosen = score.argsort().argsort() % 2 == 0
        else:
            chosen = score == score.max()
        return torch.where(chosen[:, None], m.one(h), m.other(h)).tanh()

    return Block(run, one=square(d), other=square(d))


def expert_capacity(choices, d):
    """Experts that take the first rows of the batch only, until they are full."""
    n_experts, capacity = 2, choices.randint(1, 2)

    def run(m, h):
        weight, chosen = m.gate(h).softmax(-1).max(-1)
        y = torch.zeros_like(h)
        for e, expert in enumerate(m.experts):
            rows = (chosen == e).nonzero()[:capacity, 0]
            y = y.index_add(0, rows, weight[rows, None] * expert(h[rows]))
        return h + y

    return Block(run, gate=nn.Linear(d, n_experts), experts=nn.ModuleList(square(d) for _ in range(n_experts)))


def place_in_the_batch(choices, d):
    """Outputs that depend on the index of the row or on the number of rows."""
    way = choices.choice(["number", "index", "parity", "last", "size"])

    def run(m, h):
        index = torch.arange(len(h))[:, None]
        return {
            "number": lambda: m.one(h) * len(h),
            "index": lambda: m.one(h) * (1.0 + index),
            "parity": lambda: torch.where(index % 2 == 0, m.one(h), m.other(h)),
            "last": lambda: torch.where(index == len(h) - 1, m.other(h), m.one(h)),
            "size": lambda: m.one(h) if len(h) < 4 else m.other(h),
        }[way]()

    return Block(run, one=square(d), other=square(d))


def random_numbers(choices, d):
    """Dropout, noise, and a state that changes from call to call."""
    way = choices.choice(["dropout", "functional", "noise", "bernoulli", "counter"])
    dropout = nn.Dropout(0.5)

    def run(m, h):
        y = m.inner(h)
        if way == "dropout":
            return m.dropout(y)
        if way == "functional":
            return F.dropout(y, 0.5, training=True)
        if way == "noise":
            return y + torch.randn_like(y)
        if way == "counter":
            m.calls += 1
            return y * m.calls
        return y * torch.bernoulli(torch.full_like(y, 0.5))

    parts = {"dropout": dropout} if way == "dropout" else {}
    return Block(run, inner=square(d), calls=torch.tensor(0), **parts)


def in_training_mode(choices, d):
    """BatchNorm in training mode."""
    return nn.Sequential(square(d), nn.BatchNorm1d(d))


MIXING = {
    make.__name__: make
    for make in (
        batch_statistics,
        attention_over_rows,
        not_restored,
        threshold_of_the_batch,
        expert_capacity,
        place_in_the_batch,
        random_numbers,
        in_training_mode,
    )
}
