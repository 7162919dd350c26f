"""One small network for each feature that an engine of tangents must get right; a failing feature shows by its name.

>>> [entry.name for entry in zoo()][:2]
['linear', 'linear without bias']
>>> zoo()[0].case(n=2, m=1)
Case(linear, x (2, 5), y (1, 5))
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from kernelmem.testing.cases import Case, Inputs, make_case
from kernelmem.testing.zoo.attention import attention
from kernelmem.testing.zoo.layers import convolutions, linears, normalizations, pools
from kernelmem.testing.zoo.sequences import embeddings, recurrences
from kernelmem.testing.zoo.structures import outputs, parameters, structures

__all__ = ["Entry", "zoo"]


@dataclass(frozen=True)
class Entry:
    """A feature's name, how to build a network that has it, and what its rows look like."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Inputs

    def case(self, *, seed: int = 0, n: int = 4, m: int = 3, dtype: torch.dtype = torch.float64) -> Case:
        """Build the network and draw its weights, n rows and m rows from ``seed``."""
        with torch.random.fork_rng(devices=()):  # some modules keep what they drew when they were built
            torch.manual_seed(seed)
            model = self.build()
        return make_case(self.name, model, self.inputs, seed=seed, n=n, m=m, dtype=dtype)


def zoo() -> list[Entry]:
    """Every entry, in a fixed order, under unique names; every network maps n rows to (n, C)."""
    groups = (
        linears,
        convolutions,
        normalizations,
        pools,
        embeddings,
        recurrences,
        attention,
        parameters,
        structures,
        outputs,
    )
    return [Entry(name, build, inputs) for group in groups for name, (build, inputs) in group().items()]
