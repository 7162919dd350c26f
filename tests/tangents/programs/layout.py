"""Rows at other places of the pass than in the batch: sorted, split, padded, repeated, transposed; in-place writes, views."""

import torch
import torch.nn.functional as F
from torch import nn

from tests.tangents.programs.block import Block, parameter, square


def sorted_rows(choices, d):
    """Sort or shuffle the rows, apply a layer, restore the order."""
    key, restore = (
        choices.choice(["norm", "feature", "flip", "roll", "random"]),
        choices.choice(["argsort", "scatter", "put"]),
    )

    def run(m, h):
        order = {
            "norm": lambda: h.detach().norm(dim=1).argsort(descending=True),
            "feature": lambda: h[:, 0].detach().argsort(),
            "flip": lambda: torch.arange(len(h)).flip(0),
            "roll": lambda: torch.arange(len(h)).roll(2),
            "random": lambda: torch.randperm(len(h)),
        }[key]()
        inner = m.inner(h[order]).tanh()
        if restore == "argsort":
            return h + inner[order.argsort()]
        if restore == "scatter":
            return h + torch.zeros_like(h).scatter(0, order[:, None].expand_as(h), inner)
        y = h.clone()
        y[order] = inner
        return y

    return Block(run, inner=square(d))


def chunks_of_rows(choices, d):
    """The layer is called on pieces of the batch: as many calls as there are pieces."""
    size, way = choices.randint(1, 4), choices.choice(["split", "strided", "halves"])

    def run(m, h):
        if way == "split":
            return h + torch.cat([m.inner(part).tanh() for part in h.split(size)])
        if way == "strided":
            y = torch.empty_like(h)
            for start in range(size):
                y[start::size] = m.inner(h[start::size]).tanh()
            return h + y
        middle = len(h) // 2
        return h + torch.cat([m.inner(h[middle:]), m.inner(h[:middle])]).roll(middle, 0).tanh()

    return Block(run, inner=square(d))


def padded_batch(choices, d):
    """The batch is padded to a multiple of a number of rows (in front or behind), and cut afterwards."""
    multiple, front, values = choices.choice([4, 5, 8]), choices.random() < 0.5, choices.choice([0.0, 1.0])

    def run(m, h):
        extra = -len(h) % multiple
        padded = F.pad(h, (0, 0, extra, 0) if front else (0, 0, 0, extra), value=values)
        y = m.inner(padded).tanh()
        return h + (y[extra:] if front else y[: len(h)])

    return Block(run, inner=square(d))


def repeated_rows(choices, d):
    """Each row enters the layer twice, with its copies next to each other or in a second half of the batch."""
    way = choices.choice(["cat", "interleave", "stack", "expand"])

    def run(m, h):
        n = len(h)
        if way == "cat":
            one, other = m.inner(torch.cat([h, -h])).tanh().chunk(2)
        elif way == "interleave":
            one, other = m.inner(h.repeat_interleave(2, 0)).tanh().view(n, 2, -1).unbind(1)
        elif way == "stack":
            one, other = m.inner(torch.stack([h, h.sin()])).tanh().unbind(0)
        else:
            one, other = m.inner(h.expand(2, *h.shape)).tanh().unbind(0)
        return h + one + 0.5 * other

    return Block(run, inner=square(d))


def features_first(choices, d):
    """The batch on the last axis: W hᵀ by mm, matmul, addmm, einsum or a convolution of width 1."""
    way = choices.choice(["mm", "matmul", "addmm", "einsum", "conv1d", "mv"])

    def run(m, h):
        if way == "mm":
            return torch.mm(m.weight, h.T).T.tanh()
        if way == "matmul":
            return (m.weight @ h.T).T.tanh()
        if way == "addmm":
            return torch.addmm(m.bias, h, m.weight).tanh()
        if way == "einsum":
            return torch.einsum("ij,nj->ni", m.weight, h).tanh()
        if way == "mv":
            return torch.stack([m.weight.mv(row) + m.bias for row in h]).tanh()
        return F.conv1d(h.T[None], m.weight[..., None], m.bias)[0].T.tanh()  # the rows as positions of one signal

    return Block(run, weight=parameter(d, d), bias=parameter(d))


def depends_on_n(choices, d):
    """The same function computed in different ways for small and large batches."""
    limit = choices.choice([2, 3, 4])

    def run(m, h):
        if len(h) <= limit:
            return m.inner(h).tanh()
        if len(h) % 2:
            return torch.einsum("nd,hd->nh", h, m.inner.weight).add(m.inner.bias).tanh()
        return torch.stack([F.linear(row, m.inner.weight, m.inner.bias) for row in h]).tanh()

    return Block(run, inner=square(d))


def written_in_place(choices, d):
    """In-place operations on what a layer returned, or views of it."""
    way = choices.choice(["relu_", "add_", "column", "half", "out", "clone"])

    def run(m, h):
        y = m.inner(h)
        if way == "relu_":
            y.relu_()
        elif way == "add_":
            y.add_(h).mul_(0.5)
        elif way == "column":
            y[:, 0] = h[:, 0]
        elif way == "half":
            y[:, : d // 2].mul_(2.0)
        elif way == "out":
            y = y.view(len(h), d, 1).squeeze_(-1).tanh_()
        else:
            y = y.clone()
            y += m.outer(h)
        return y if way != "clone" else y.tanh()

    return Block(run, inner=square(d), outer=square(d))


def written_to_the_input(choices, d):
    """In-place operations on a tensor that an operation with parameters has read, and whose values it does not need."""
    shift = choices.random() < 0.5
    inner = square(d)
    inner.weight.requires_grad_(False)

    def run(m, h):
        h = h.clone()
        y = h + m.shift if shift else m.inner(h)
        h *= 2.0
        return h + y.tanh()

    return Block(run, inner=inner, shift=parameter(d))


def views(choices, d):
    """Gates and products of views of one wide layer."""
    way = choices.choice(["chunk", "unflatten", "glu", "transpose", "unfold"])

    def run(m, h):
        wide = m.wide(h)
        if way == "chunk":
            value, gate = wide.chunk(2, -1)
            return value * gate.sigmoid()
        if way == "unflatten":
            return wide.unflatten(1, (2, d)).prod(1)
        if way == "glu":
            return F.glu(wide, -1)
        if way == "transpose":
            return wide.view(-1, 2, d).transpose(1, 2).tanh().sum(-1)
        return wide.unfold(1, d, d).amax(1)

    return Block(run, wide=nn.Linear(d, 2 * d))


LAYOUTS = {
    make.__name__: make
    for make in (
        sorted_rows,
        chunks_of_rows,
        padded_batch,
        repeated_rows,
        features_first,
        depends_on_n,
        written_in_place,
        written_to_the_input,
        views,
    )
}
