"""Small networks, one for each supported layer and feature, by name.

Entries are defined in layers.py (linear, convolution, normalization, pooling), sequences.py (embedding, recurrent),
attention.py, and structures.py (free and shared parameters, branches, outputs).

>>> [entry.name for entry in zoo_entries()][:2]
['linear', 'linear without bias']
>>> zoo_entries()[0].case(n=2, m=1)
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

__all__ = ["Entry", "zoo_entries"]


@dataclass(frozen=True)
class Entry:
    """A named network of the test collection: the function that builds it, and the shape and type of one input."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Inputs

    def case(self, *, seed: int = 0, n: int = 4, m: int = 3, dtype: torch.dtype = torch.float64) -> Case:
        """Return the network with weights, n inputs x and m inputs y drawn from ``seed``, with numbers of type ``dtype``."""
        with torch.random.fork_rng(devices=()):  # some modules store random numbers drawn when they are built
            torch.manual_seed(seed)
            model = self.build()
        return make_case(self.name, model, self.inputs, seed=seed, n=n, m=m, dtype=dtype)


def zoo_entries() -> list[Entry]:
    """Return all entries in a fixed order, with unique names.

    Every network maps n inputs to outputs (n, C), where C is the number of outputs.
    """
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
