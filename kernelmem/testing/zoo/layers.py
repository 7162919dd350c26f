"""Zoo entries: linear, convolution, normalization and pooling layers."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from torch.nn.utils import parametrizations

from kernelmem.testing.cases import Inputs
from kernelmem.testing.modules import Apply, Gain, SelfBilinear

Group = Mapping[str, tuple[Callable[[], nn.Module], Inputs]]

VECTOR, SEQUENCE = Inputs((5,)), Inputs((4, 5))
SIGNAL, IMAGE, VOLUME = Inputs((4, 7)), Inputs((4, 5, 5)), Inputs((2, 4, 3, 4))


def _with_readout(*layers: nn.Module, width: int, outputs: int = 3) -> nn.Sequential:
    """Return the layers followed by tanh, flatten and a linear layer from ``width`` features to ``outputs``."""
    return nn.Sequential(*layers, nn.Tanh(), nn.Flatten(), nn.Linear(width, outputs))


def linears() -> Group:
    """Return entries of linear layers on vectors and sequences, bilinear layers and parametrizations."""
    mean = lambda: Apply(lambda h: h.mean(1))  # noqa: E731
    return {
        "linear": (lambda: _with_readout(nn.Linear(5, 4), width=4), VECTOR),
        "linear without bias": (lambda: nn.Sequential(nn.Linear(5, 4, bias=False), nn.ReLU(), nn.Linear(4, 3)), VECTOR),
        "linear alone": (lambda: nn.Linear(5, 3), VECTOR),
        "linear on sequences": (lambda: _with_readout(nn.Linear(5, 4), width=16), SEQUENCE),
        "linear on sequences, long": (lambda: nn.Sequential(nn.Linear(2, 3), nn.Tanh(), mean(), nn.Linear(3, 2)),
                                      Inputs((24, 2))),
        "linear on sequences, readout before the mean": (
            lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3), mean()), SEQUENCE),
        "linear on grids": (lambda: _with_readout(nn.Linear(3, 2), width=8), Inputs((2, 2, 3))),
        "bilinear": (lambda: _with_readout(SelfBilinear(5, 4), width=4), VECTOR),
        "bilinear without bias": (lambda: _with_readout(SelfBilinear(5, 4, bias=False), width=4), VECTOR),
        "prelu": (lambda: _with_readout(nn.Linear(5, 4), nn.PReLU(), nn.Linear(4, 4), nn.PReLU(4), width=4), VECTOR),
        "in-place activations": (
            lambda: nn.Sequential(nn.Linear(5, 4), nn.ReLU(inplace=True), nn.Linear(4, 4), nn.SiLU(inplace=True),
                                  nn.Linear(4, 3)), VECTOR),
        "dropout in eval mode": (lambda: _with_readout(nn.Linear(5, 4), nn.Dropout(0.5), nn.Linear(4, 4), width=4), VECTOR),
        "scalar inputs": (lambda: _with_readout(nn.Linear(1, 6), width=6), Inputs((1,))),
        "inputs without an axis": (
            lambda: nn.Sequential(Apply(lambda x: x[:, None]), nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 2)),
            Inputs(())),
        "weight norm": (
            lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(5, 4)), nn.Tanh(), nn.Linear(4, 3)), VECTOR),
        "spectral norm in eval mode": (
            lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(5, 4)), nn.Tanh(), nn.Linear(4, 3)), VECTOR),
        "orthogonal weight": (
            lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), parametrizations.orthogonal(nn.Linear(4, 4)),
                                  nn.Tanh(), nn.Linear(4, 3)), VECTOR),
        "weight norm of a convolution": (
            lambda: _with_readout(parametrizations.weight_norm(nn.Conv1d(4, 3, 3)), width=15), SIGNAL),
    }  # fmt: skip


def convolutions() -> Group:
    """Return entries of convolutions of one, two and three axes, also transposed, with every option."""

    def conv(kind: type[nn.Module], inputs: Inputs, width: int, *args: Any, **options: Any):
        return lambda: _with_readout(kind(*args, **options), width=width, outputs=2), inputs

    c1, c2, c3 = nn.Conv1d, nn.Conv2d, nn.Conv3d
    t1, t2, t3 = nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d
    return {
        "conv1d": conv(c1, SIGNAL, 15, 4, 3, 3),
        "conv1d stride, padding, no bias": conv(c1, SIGNAL, 12, 4, 3, 3, stride=2, padding=1, bias=False),
        "conv1d dilation": conv(c1, SIGNAL, 9, 4, 3, 3, dilation=2),
        "conv1d same": conv(c1, SIGNAL, 21, 4, 3, 3, padding="same"),
        "conv1d circular": conv(c1, SIGNAL, 21, 4, 3, 3, padding=1, padding_mode="circular"),
        "conv1d kernel 1": conv(c1, SIGNAL, 21, 4, 3, 1),
        "conv1d one position left": conv(c1, SIGNAL, 3, 4, 3, 7),
        "conv2d": conv(c2, IMAGE, 27, 4, 3, 3),
        "conv2d stride": conv(c2, IMAGE, 12, 4, 3, 3, stride=2),
        "conv2d unequal": conv(c2, IMAGE, 27, 4, 3, (2, 3), stride=(1, 2), padding=(0, 1), dilation=(2, 1)),
        "conv2d groups": conv(c2, IMAGE, 54, 4, 6, 3, groups=2),
        "conv2d depthwise": conv(c2, IMAGE, 36, 4, 4, 3, groups=4),
        "conv2d depthwise multiplier, no bias": conv(c2, IMAGE, 32, 4, 8, 3, groups=4, stride=2, bias=False),
        "conv2d same, even kernel": conv(c2, IMAGE, 75, 4, 3, 2, padding="same"),
        "conv2d same, dilated": conv(c2, IMAGE, 75, 4, 3, 3, padding="same", dilation=2),
        "conv2d valid": conv(c2, IMAGE, 27, 4, 3, 3, padding="valid"),
        "conv2d reflect": conv(c2, IMAGE, 75, 4, 3, 3, padding=1, padding_mode="reflect"),
        "conv2d replicate": conv(c2, IMAGE, 75, 4, 3, 3, padding="same", padding_mode="replicate"),
        "conv2d circular": conv(c2, IMAGE, 36, 4, 3, 3, padding=(2, 0), padding_mode="circular", stride=(2, 1)),
        "conv3d": conv(c3, VOLUME, 36, 2, 2, 2),
        "conv3d groups, padding, stride": conv(c3, VOLUME, 32, 2, 4, 3, groups=2, padding=1, stride=2),
        "conv transpose 1d": conv(t1, SIGNAL, 45, 4, 3, 3, stride=2),
        "conv transpose 1d output padding, groups": conv(
            t1, SIGNAL, 26, 4, 2, 2, stride=2, groups=2, output_padding=1, padding=1),
        "conv transpose 2d": conv(t2, IMAGE, 98, 4, 2, 3),
        "conv transpose 2d dilation, no bias": conv(t2, Inputs((4, 2, 3)), 40, 4, 2, 2, dilation=2, bias=False),
        "conv transpose 3d": conv(t3, Inputs((2, 2, 2, 2)), 54, 2, 2, 2),
        "conv stack": (
            lambda: nn.Sequential(nn.Conv2d(4, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(),
                                  nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)), IMAGE),
        "conv readout, then mean": (
            lambda: nn.Sequential(nn.Conv2d(4, 4, 3), nn.Tanh(), nn.Conv2d(4, 3, 1), Apply(lambda h: h.mean((2, 3)))),
            IMAGE),
    }  # fmt: skip


def normalizations() -> Group:
    """Return entries of normalization layers in eval mode with nontrivial statistics."""
    features = lambda *layers: _with_readout(nn.Linear(5, 6), *layers, width=6)  # noqa: E731
    image = lambda *layers: _with_readout(nn.Conv2d(4, 4, 3), *layers, width=36)  # noqa: E731
    signal = lambda *layers: _with_readout(nn.Conv1d(4, 4, 3), *layers, width=20)  # noqa: E731
    return {
        "batch norm 1d": (lambda: features(nn.BatchNorm1d(6)), VECTOR),
        "batch norm 1d on signals": (lambda: signal(nn.BatchNorm1d(4)), SIGNAL),
        "batch norm 2d": (lambda: image(nn.BatchNorm2d(4)), IMAGE),
        "batch norm 2d without affine": (lambda: image(nn.BatchNorm2d(4, affine=False)), IMAGE),
        "batch norm 3d": (lambda: _with_readout(nn.BatchNorm3d(2), width=96), VOLUME),
        "batch norm first": (lambda: _with_readout(nn.BatchNorm1d(5), width=5), VECTOR),
        "layer norm": (lambda: features(nn.LayerNorm(6)), VECTOR),
        "layer norm on sequences": (lambda: _with_readout(nn.Linear(5, 6), nn.LayerNorm(6), width=24), SEQUENCE),
        "layer norm over two axes": (lambda: _with_readout(nn.Linear(5, 6), nn.LayerNorm([4, 6]), width=24), SEQUENCE),
        "layer norm without bias": (lambda: features(nn.LayerNorm(6, bias=False)), VECTOR),
        "layer norm without affine": (lambda: features(nn.LayerNorm(6, elementwise_affine=False)), VECTOR),
        "layer norm of images": (lambda: image(nn.LayerNorm([4, 3, 3])), IMAGE),
        "group norm": (lambda: image(nn.GroupNorm(2, 4)), IMAGE),
        "group norm on vectors": (lambda: features(nn.GroupNorm(2, 6)), VECTOR),
        "rms norm": (lambda: features(nn.RMSNorm(6)), VECTOR),
        "rms norm over two axes": (lambda: _with_readout(nn.Linear(5, 6), nn.RMSNorm([4, 6]), width=24), SEQUENCE),
        "instance norm 1d affine": (lambda: signal(nn.InstanceNorm1d(4, affine=True)), SIGNAL),
        "instance norm 2d affine": (lambda: image(nn.InstanceNorm2d(4, affine=True)), IMAGE),
        "instance norm 2d": (lambda: image(nn.InstanceNorm2d(4)), IMAGE),
        "instance norm 2d tracking": (
            lambda: image(nn.InstanceNorm2d(4, affine=True, track_running_stats=True)), IMAGE),
    }  # fmt: skip


def pools() -> Group:
    """Return entries of pooling and reshaping between layers with parameters."""
    conv = lambda *layers, width: nn.Sequential(  # noqa: E731
        nn.Conv2d(4, 4, 2), *layers, nn.Flatten(), nn.Linear(width, 3)
    )
    return {
        "max pool": (lambda: conv(nn.MaxPool2d(2), nn.Conv2d(4, 3, 1), width=12), IMAGE),
        "average pool": (lambda: conv(nn.AvgPool2d(2), nn.Tanh(), nn.Conv2d(4, 3, 1), width=12), IMAGE),
        "adaptive average pool": (lambda: conv(nn.Tanh(), nn.AdaptiveAvgPool2d((1, 2)), Gain(4, 1, 2), width=8), IMAGE),
        "adaptive max pool": (lambda: conv(nn.AdaptiveMaxPool2d(2), nn.Conv2d(4, 3, 2), width=3), IMAGE),
        "max pool 1d": (
            lambda: nn.Sequential(nn.Conv1d(4, 4, 2), nn.MaxPool1d(2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)),
            SIGNAL),
        "pixel shuffle": (lambda: conv(nn.PixelShuffle(2), nn.Tanh(), nn.Conv2d(1, 2, 4, stride=2), width=18), IMAGE),
        "flatten first": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(20, 4), nn.Tanh(), nn.Linear(4, 3)), SEQUENCE),
    }  # fmt: skip
