"""First and last parts of a program: readers of its inputs, readouts to its outputs."""

import torch
import torch.nn.functional as F
from torch import nn

from tests.tangents.programs.block import Block, parameter, square

VOCABULARY = 9  # token 0 is padding


def valid_positions(x):
    """Mask (n, S) of a batch of real sequences: up to the first position whose feature 0 is small, at least one."""
    valid = (x[..., 0] > -0.8).long()
    valid[:, 0] = 1
    return valid.cumprod(1).bool()


def vector_reader(choices, d):
    """Vectors as they are, or the distinct ones among them through a layer."""
    if choices.random() < 0.75:
        return Block(lambda m, x: (x, None))

    def run(m, x):
        distinct, place = x.unique(dim=0, return_inverse=True)
        return m.inner(distinct).tanh()[place], None

    return Block(run, inner=square(d))


def sequence_reader(choices, d):
    return Block(lambda m, x: (x, valid_positions(x)))


def token_reader(choices, d):
    """Embeddings: module, function, product with one-hot rows, distinct tokens, several tables."""
    way = choices.choice(["module", "function", "one-hot", "distinct", "types", "scaled", "indexed", "bag", "offsets"])
    table = nn.Embedding(
        VOCABULARY, d, padding_idx=0 if choices.random() < 0.4 else None, sparse=choices.random() < 0.2
    )
    bag = nn.EmbeddingBag(VOCABULARY, d, mode=choices.choice(["sum", "mean", "max"]), padding_idx=0)

    def run(m, ids):
        h = {
            "module": lambda: m.table(ids),
            "function": lambda: F.embedding(ids, m.table.weight),
            "one-hot": lambda: F.one_hot(ids, VOCABULARY).to(m.table.weight) @ m.table.weight,
            "distinct": lambda: distinct(m, ids),
            "types": lambda: m.table(ids) + m.types((ids > 4).long()) + m.types(torch.zeros_like(ids)),
            "scaled": lambda: m.norm(m.table(ids) * d**0.5),
            "indexed": lambda: m.table.weight[ids],
            "bag": lambda: m.table(ids) + m.bag(ids)[:, None],
            "offsets": lambda: m.table(ids) + m.bag(ids[ids != 0], starts(ids))[:, None],
        }[way]()
        return h, ids != 0

    def distinct(m, ids):
        tokens, place = ids.unique(return_inverse=True)
        return m.inner(m.table(tokens)).tanh()[place]

    def starts(ids):
        lengths = (ids != 0).sum(1)
        return lengths.cumsum(0) - lengths

    return Block(run, table=table, bag=bag, types=nn.Embedding(2, d), norm=nn.LayerNorm(d, eps=0.1), inner=square(d))


def dict_reader(choices, d):
    """A dict of tokens and their mask, as tokenizers give it."""
    tokens = token_reader(choices, d)
    return Block(lambda m, batch: (m.tokens(batch["ids"])[0], batch["mask"].bool()), tokens=tokens)


READERS = {"vectors": vector_reader, "sequences": sequence_reader, "tokens": token_reader, "dict": dict_reader}


def readout(choices, d, C, table):
    """A readout to C outputs; ``table`` is an embedding to tie to, or None."""
    ways = ["linear", "linear", "linear", "hidden", "normalized", "softmax", "outputs in place", "free", "none"]
    way = choices.choice([*ways, "tied", "tied"] if table is not None else ways)
    if way == "tied":
        return Block(lambda m, h: F.linear(h, m.weight)[:, :C], weight=table.weight)
    if way == "none":
        return Block(lambda m, h: h[:, :C].tanh())
    if way == "free":
        return Block(lambda m, h: h @ m.weight + m.bias, weight=parameter(d, C), bias=parameter(C))

    def run(m, h):
        return {
            "linear": lambda: m.last(h),
            "hidden": lambda: m.last(m.inner(h).relu()),
            "normalized": lambda: F.linear(F.normalize(h + 0.1, dim=1), F.normalize(m.last.weight, dim=1)) * 3.0,
            "softmax": lambda: m.last(h).log_softmax(-1),
            "outputs in place": lambda: m.last(h).mul_(2.0).add_(h[:, :1]),
        }[way]()

    return Block(run, last=nn.Linear(d, C, bias=choices.random() < 0.7), inner=square(d))
