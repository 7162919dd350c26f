"""Networks of Nakkiran et al. 2019 by width: ResNet18 and a convolutional network of five layers."""

import torch.nn.functional as F
from torch import Tensor, nn

from kernelmem.core import InputError


class ResNet18(nn.Module):
    """ResNet18 with pre-activation blocks, of widths k, 2k, 4k, 8k for images (n, 3, 32, 32); k = 64 is the usual one.

    A 3x3 convolution, four stages of two blocks x + conv(relu(bn(conv(relu(bn(x)))))) with strides 1, 2, 2, 2, average
    over positions, linear.

    Raises:
        InputError: width below 1, fewer than two classes.

    Source: He et al. 2016; as Nakkiran et al. 2019 use it.
    """

    def __init__(self, width: int, n_classes: int = 10, channels: int = 3) -> None:
        super().__init__()
        _check(width, n_classes)
        self.stem = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        stages, in_channels = [], width
        for stage, stride in enumerate((1, 2, 2, 2)):
            out_channels = width * 2**stage
            stages += [_Block(in_channels, out_channels, stride), _Block(out_channels, out_channels, 1)]
            in_channels = out_channels
        self.stages = nn.Sequential(*stages)
        self.readout = nn.Linear(in_channels, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, C)."""
        return self.readout(self.stages(self.stem(x)).mean((2, 3)))


class ConvolutionalNetwork(nn.Module):
    """Four 3x3 convolutions of widths k, 2k, 4k, 8k with BatchNorm, ReLU and pooling by 1, 2, 2 and globally; linear.

    For images (n, channels, H, W), H and W multiples of 4.

    Raises:
        InputError: width below 1, fewer than two classes.

    Source: Nakkiran et al. 2019.
    """

    def __init__(self, width: int, n_classes: int = 10, channels: int = 3) -> None:
        super().__init__()
        _check(width, n_classes)
        layers, in_channels = [], channels
        for stage, pool in enumerate((1, 2, 2, None)):
            out_channels = width * 2**stage
            layers += [nn.Conv2d(in_channels, out_channels, 3, padding=1), nn.BatchNorm2d(out_channels), nn.ReLU()]
            layers.append(nn.AdaptiveMaxPool2d(1) if pool is None else nn.MaxPool2d(pool))
            in_channels = out_channels
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(in_channels, n_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, C)."""
        return self.layers(x)


class _Block(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(in_channels), nn.BatchNorm2d(out_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        same_shape = in_channels == out_channels and stride == 1
        self.shortcut = None if same_shape else nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.norm1(x))
        shortcut = x if self.shortcut is None else self.shortcut(active)
        return shortcut + self.conv2(F.relu(self.norm2(self.conv1(active))))


def _check(width: int, n_classes: int) -> None:
    if not isinstance(width, int) or isinstance(width, bool) or width < 1 or n_classes < 2:
        raise InputError(
            f"width={width!r} and n_classes={n_classes!r}",
            expected="a whole number of channels >= 1 and at least two classes",
            hint="pass width=64 for the usual network",
        )
