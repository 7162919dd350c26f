"""The small default network."""

import math

import torch
from torch import Tensor, nn

__all__ = ["Standardize", "mlp"]


class Standardize(nn.Module):
    """Flatten rows and bring features to mean 0 and a common spread 1 (constants from the training rows, as buffers).

    One scale serves all features of a picture-like table, so that empty corners are not blown up to noise. A feature
    whose spread is below a millionth of its size is taken for constant: float32 hardly resolves it, and dividing by it
    would turn rounding into signal.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, x: Tensor, *, per_feature: bool = False) -> None:
        super().__init__()
        flat = x.reshape(len(x), -1).to(torch.float64)  # squares of large or tiny values leave the range of float32
        spread, size = flat.std(0, correction=0), flat.abs().amax(0)
        if not per_feature:
            spread, size = spread.square().mean().sqrt(), size.amax()
        constant = spread <= 1e-6 * size
        self.register_buffer("mean", flat.mean(0).to(torch.float32))
        self.register_buffer("scale", spread.masked_fill(constant, 1.0).to(torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, ...) to (n, d)."""
        return (x.reshape(len(x), -1) - self.mean) / self.scale


def standardized_mlp(
    x: Tensor, n_classes: int, *, widths: tuple[int, ...] = (256, 256), seed: int, pictures: bool
) -> nn.Sequential:
    """Build a relu network for rows like ``x``, He-initialized from ``seed`` alone (the global state is not touched).

    >>> standardized_mlp(torch.zeros(5, 64), 10, seed=0, pictures=True)(torch.zeros(2, 64)).shape
    torch.Size([2, 10])
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = [int(x[0].numel()), *widths]
    layers: list[nn.Module] = [Standardize(x, per_feature=not pictures)]
    for fan_in, fan_out in zip(sizes, [*sizes[1:], n_classes], strict=True):
        layer = nn.Linear(fan_in, fan_out, device="meta").to_empty(device="cpu")
        with torch.no_grad():
            layer.weight.normal_(0.0, math.sqrt(2.0 / fan_in), generator=generator)
            layer.bias.zero_()
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])
