"""Workloads by name: a network in eval mode and its inputs, the same in every process."""

import torch
from torch import Tensor, nn

from experiments.benchmarks.ntk import networks

__all__ = ["NAMES", "build"]

BUILDERS = {
    "W1": lambda: networks.mlp([784, 512, 512, 10]),
    "W2": networks.convolutional,
    "W3": networks.ResNet,
    "W4": networks.Transformer,
    "depthwise": networks.depthwise,
    "vit": networks.VisionTransformer,
    "lstm": networks.Recurrent,
    "wide": lambda: networks.mlp([784, 256, 64, 100]),
}
NAMES = tuple(BUILDERS)
TOKENS = ("W4", "lstm")
PICTURES = ("W2", "W3", "depthwise", "vit")


def build(name: str, n: int) -> tuple[nn.Module, Tensor]:
    """Build network and n inputs; besides NAMES, "mlp:784-64-10" is a relu network of those sizes.

    >>> build("mlp:5-4-3", 2)[1].shape
    torch.Size([2, 5])
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = [int(size) for size in name.removeprefix("mlp:").split("-")] if name.startswith("mlp:") else [784]
        model = networks.mlp(sizes) if name.startswith("mlp:") else BUILDERS[name]()
        torch.manual_seed(1)
        if name in TOKENS:
            x = torch.randint(100, (n, 32))
        elif name in PICTURES:
            x = torch.randn(n, 3, 32, 32)
        else:
            x = torch.randn(n, sizes[0])
    return model.eval(), x
