"""Workloads by name: a network in eval mode and its inputs, the same in every process."""

import copy

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
            x = _off_kinks(model, n, sizes[0])
    return model.eval(), x


def _off_kinks(model: nn.Module, n: int, width: int) -> Tensor:
    """Rows with no pre-activation near 0: float32 and float64 would take another piece of relu there, by rounding.

    Of 8,000 rows through 1,024 units one is close enough to be off by 3e-3, in any float32 implementation.
    """
    exact, kept = copy.deepcopy(model).double(), []
    while sum(map(len, kept)) < n:
        x = torch.randn(n + n // 8 + 8, width)
        z, near = x.double(), torch.zeros(len(x), dtype=torch.bool)
        with torch.no_grad():
            for layer in exact:  # type: ignore[attr-defined]  # a Sequential
                if isinstance(layer, nn.ReLU):
                    near |= (z.abs() < 1e-5).any(1)
                z = layer(z)
        kept.append(x[~near])
    return torch.cat(kept)[:n]
