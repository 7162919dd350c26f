"""Block of a random program: a function of hidden states, with the modules, parameters and constants that it uses."""

from collections.abc import Callable
from random import Random

import torch
from torch import Tensor, nn

MakeBlock = Callable[[Random, int], nn.Module]  # (choices, width d) -> block


class Block(nn.Module):
    """The function run(self, ...), with ``parts`` as submodules, parameters, buffers or plain attributes."""

    def __init__(self, run, **parts):
        super().__init__()
        self.run = run
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, *inputs):
        return self.run(self, *inputs)


def square(d: int, *, bias: bool = True) -> nn.Linear:
    """A linear layer of width d."""
    return nn.Linear(d, d, bias=bias)


def parameter(*size: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(size))


def hidden_layer(d: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(d, width), nn.GELU(), nn.Linear(width, d))
