"""Random program: a small model put together from named blocks, its inputs, and its Jacobian by definition."""

from dataclasses import dataclass, replace
from functools import cached_property
from random import Random

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from kernelmem.testing.cases import with_random_weights
from tests.tangents.programs.ends import READERS, VOCABULARY, readout
from tests.tangents.programs.layout import LAYOUTS
from tests.tangents.programs.mixing import MIXING
from tests.tangents.programs.routing import ROUTING
from tests.tangents.programs.sequences import POOLS, SEQUENCES
from tests.tangents.programs.sharing import SHARING
from tests.tangents.programs.special import SPECIAL, make_complex

VECTORS = ROUTING | LAYOUTS | SHARING | SPECIAL
ROWWISE = VECTORS | SEQUENCES  # every block in which an example's outputs depend on that example alone

MAY_BE_REFUSED = {
    "complex_numbers": "parameters that are complex numbers",
}


class Model(nn.Module):
    """Reader, blocks on sequences, reduction to vectors, blocks on vectors, readout."""

    def __init__(self, reader, sequence_blocks, pool, vector_blocks, last):
        super().__init__()
        self.reader, self.pool, self.last = reader, pool, last
        self.sequence_blocks, self.vector_blocks = nn.ModuleList(sequence_blocks), nn.ModuleList(vector_blocks)

    def forward(self, x):
        h, mask = self.reader(x)
        if mask is not None:
            h = h * mask[..., None]
            for block in self.sequence_blocks:
                h = block(h, mask) * mask[..., None]
            h = self.pool(h, mask)
        for block in self.vector_blocks:
            h = block(h)
        return self.last(h)


@dataclass(frozen=True)
class Program:
    """Description of a random program: the same description gives the same model and the same inputs.

    Attributes:
        kind: inputs: "vectors" (n, d), "sequences" (n, S, d), "tokens" (n, S), "dict" of tokens and mask.
        blocks: names of blocks, those on sequences before those on vectors.
        pool: reduction of sequences to vectors.
        n: number of rows; d: width; C: number of outputs.
        seed: seed of the options of the blocks, of all weights and of the inputs.
    """

    kind: str
    blocks: tuple[str, ...]
    pool: str = "masked_mean"
    n: int = 7
    d: int = 4
    C: int = 2
    seed: int = 0
    dtype: torch.dtype = torch.float64

    @cached_property
    def model(self) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            made = [self._make(ROWWISE | MIXING, name, i) for i, name in enumerate(self.blocks)]
            on_sequences = [block for name, block in zip(self.blocks, made, strict=True) if name in SEQUENCES]
            on_vectors = [block for name, block in zip(self.blocks, made, strict=True) if name not in SEQUENCES]
            reader, pool = self._make(READERS, self.kind, -1), self._make(POOLS, self.pool, -2)
            table = {"tokens": lambda: reader.table, "dict": lambda: reader.tokens.table}.get(self.kind, lambda: None)()
            last = readout(self._choices(-3), self.d, self.C, table)
            model = Model(reader, on_sequences, pool if self.kind != "vectors" else None, on_vectors, last)
            model = make_complex(with_random_weights(model, self.seed, self.dtype))
        for name, block in zip(self.blocks, made, strict=True):
            block.train(name in MIXING)
        return model

    def inputs(self, n: int, stream: int = 0) -> object:
        """Draw n rows; some are repeated. ``stream`` distinguishes several batches of one program."""
        generator = torch.Generator().manual_seed(2 * self.seed + stream)
        S = 2 + self.seed % 4
        if self.kind in ("vectors", "sequences"):
            size = (n, self.d) if self.kind == "vectors" else (n, S, self.d)
            x = torch.randn(size, generator=generator, dtype=torch.float64).to(self.dtype)
        else:
            x = torch.randint(1, VOCABULARY, (n, S), generator=generator)
            lengths = torch.randint(1, S + 1, (n, 1), generator=generator)
            x = x * (torch.arange(S) < lengths)
        if self.seed % 3 == 0:
            x[-1] = x[0]
        return {"ids": x, "mask": (x != 0).long()} if self.kind == "dict" else x

    @cached_property
    def x(self) -> object:
        return self.inputs(self.n)

    @property
    def may_be_refused(self) -> bool:
        return not MAY_BE_REFUSED.keys().isdisjoint(self.blocks)

    def in_float32(self) -> "Program":
        return replace(self, dtype=torch.float32)

    def _choices(self, index: int) -> Random:
        return Random(f"{self.seed} {index}")

    def _make(self, makers, name: str, index: int) -> nn.Module:
        return makers[name](self._choices(index), self.d)


def row(x: object, i: int) -> object:
    """Batch of the example i alone."""
    if isinstance(x, dict):
        return {key: value[i : i + 1].clone() for key, value in x.items()}
    return x[i : i + 1].clone()


def definition(model: nn.Module, x: object) -> tuple[Tensor, Tensor]:
    """Outputs (n, C) and Jacobian (n, C, P): one backward pass per example and output, each example in its own batch.

    P counts the parameters that require gradients. Nothing of the package is used.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    outputs, jacobian = [], []
    for i in range(number_of_rows(x)):
        (values,) = model(row(x, i))
        outputs.append(values.detach())
        jacobian.append(torch.stack([gradient(value, parameters) for value in values]))
    return torch.stack(outputs), torch.stack(jacobian)


def gradient(value: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    """Gradient (P,) of one number. ``backward``, as reentrant checkpoints do not work with ``torch.autograd.grad``."""
    if value.requires_grad:
        value.backward(retain_graph=True)
    parts = [torch.zeros_like(p) if p.grad is None else p.grad.to_dense() for p in parameters]
    for p in parameters:
        p.grad = None
    return torch.cat([(torch.view_as_real(part) if part.is_complex() else part).flatten() for part in parts])


def rows_are_mixed(model: nn.Module, x: object) -> bool:
    """Return True if the outputs of the batch differ from those of its rows alone, or if the rows cannot be alone."""
    with torch.no_grad():
        together = model(x if not isinstance(x, Tensor) else x.clone())
        try:
            alone = torch.cat([model(row(x, i)) for i in range(len(together))])
        except ValueError:  # the batch statistics of one row
            return True
    tolerance = torch.finfo(alone.dtype).eps ** 0.75  # far above rounding, far below any effect of a mixing block
    return not bool((together - alone).abs().max() <= tolerance * alone.abs().max().clamp_min(1.0))


def number_of_rows(x: object) -> int:
    return len(next(iter(x.values())) if isinstance(x, dict) else x)


@st.composite
def programs(
    draw: st.DrawFn,
    *,
    among: tuple[str, ...] = tuple(ROWWISE),
    at_least: tuple[str, ...] = (),
    max_blocks: int = 3,
    rows: tuple[int, int] = (3, 13),
) -> Program:
    """Draw a program of blocks ``among`` the named ones, at least one of them of the names ``at_least``."""
    kind = draw(st.sampled_from(tuple(READERS)))
    allowed = [name for name in among if kind != "vectors" or name not in SEQUENCES]
    names = draw(st.lists(st.sampled_from(allowed), min_size=0 if at_least else 1, max_size=max_blocks))
    if at_least:
        names.insert(draw(st.integers(0, len(names))), draw(st.sampled_from(at_least)))
    names.sort(key=lambda name: name not in SEQUENCES)
    return Program(
        kind,
        tuple(names),
        draw(st.sampled_from(tuple(POOLS))) if kind != "vectors" else "masked_mean",
        n=draw(st.integers(*rows)),
        d=draw(st.integers(3, 6)),
        C=draw(st.sampled_from([1, 2, 3, 7])),
        seed=draw(st.integers(0, 2**31 - 1)),
    )
