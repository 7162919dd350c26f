"""Zoo entries: free parameters, shared weights, branches, and outputs without a linear readout."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from kernelmem.testing.cases import Inputs
from kernelmem.testing.modules import (
    Apply,
    BorrowedWeight,
    CalledTwice,
    Gain,
    Parallel,
    ReadoutWithSkip,
    Recurrent,
    Residual,
    SelfBilinear,
    Shift,
    TiedMatrix,
    WithUnusedParameters,
)
from kernelmem.testing.zoo.layers import Group

VECTOR, SEQUENCE = Inputs((5,)), Inputs((4, 5))


class _WeightInFunction(nn.Module):
    """A network that uses one matrix in several function calls, views and slices."""

    def __init__(self, function: str) -> None:
        super().__init__()
        self.function = function
        self.matrix, self.offset = nn.Parameter(torch.zeros(4, 5)), nn.Parameter(torch.zeros(4))
        self.readout = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return the readout of tanh(matrix x + offset)."""
        W, b = self.matrix, self.offset
        hidden = {
            "matmul": lambda: x @ W.T + b,
            "einsum": lambda: torch.einsum("nd,hd->nh", x, W) + b,
            "addmm": lambda: torch.addmm(b, x, W.T),
            "view": lambda: F.linear(x, W.view(20).view(4, 5), b),
            "slices": lambda: torch.cat([F.linear(x, W[:2], b[:2]), F.linear(x, W[2:], b[2:])], dim=1),
            "stack": lambda: F.linear(x, torch.stack(list(W.unbind(0))), b),
            "product": lambda: (x[:, None, :] * W).sum(-1) + b,
            "keywords": lambda: F.linear(input=x, weight=W, bias=b),
            "square": lambda: F.linear(x, W * W, b.exp()),
            "convolution": lambda: F.conv1d(x[:, None], W[:, None], b)[..., 0],
        }[self.function]()
        return self.readout(torch.tanh(hidden))


class _GeneratedWeight(nn.Module):
    """A network whose weight is the output of another layer for learned codes.

    The batch axis of that other layer counts codes, not examples.
    """

    def __init__(self, codes: int) -> None:
        super().__init__()
        self.code = nn.Parameter(torch.zeros(codes, 3))
        self.generator, self.readout = nn.Linear(3, 5), nn.Linear(codes, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return the readout of tanh(W x), where W = generator(code) has one row per code."""
        return self.readout(torch.tanh(F.linear(x, self.generator(self.code))))


def parameters() -> Group:
    """Return entries of free, shared, borrowed, generated and unused parameters."""
    functions = ("matmul", "einsum", "addmm", "view", "slices", "stack", "product", "keywords", "square", "convolution")
    functional: Group = {
        f"weight used by {name}": (lambda name=name: _WeightInFunction(name), VECTOR) for name in functions
    }
    generated: Group = {
        f"weight generated from {k} codes": (lambda k=k: _GeneratedWeight(k), VECTOR) for k in (1, 2, 3, 4)
    }
    return {
        **functional,
        **generated,
        "free gain": (lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), Gain(4), nn.Linear(4, 3)), VECTOR),
        "free gain, scalar": (lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), Gain(), nn.Linear(4, 3)), VECTOR),
        "free shift at the end": (lambda: nn.Sequential(nn.Linear(5, 3), nn.Tanh(), Shift(3)), VECTOR),
        "free parameter alone": (lambda: Gain(5), VECTOR),
        "learned positions": (
            lambda: nn.Sequential(Shift(4, 5), nn.Linear(5, 3), nn.Tanh(), Apply(lambda h: h.mean(1)),
                                  nn.Linear(3, 2)), SEQUENCE),
        "layer scale": (
            lambda: nn.Sequential(Residual(nn.Sequential(nn.LayerNorm(5), nn.Linear(5, 5), nn.GELU(), Gain(5))),
                                  nn.Flatten(), nn.Linear(20, 2)), SEQUENCE),
        "module called twice": (lambda: nn.Sequential(CalledTwice(nn.Linear(5, 5)), nn.Tanh(), nn.Linear(5, 3)), VECTOR),
        "convolution called twice": (
            lambda: nn.Sequential(CalledTwice(nn.Conv1d(3, 3, 3, padding=1)), nn.Flatten(), nn.Linear(15, 2)),
            Inputs((3, 5))),
        "normalization called twice": (
            lambda: nn.Sequential(nn.Linear(5, 4), CalledTwice(nn.LayerNorm(4)), nn.Linear(4, 3)), VECTOR),
        "borrowed weight": (lambda: nn.Sequential(BorrowedWeight(5, 4), nn.Linear(4, 3)), VECTOR),
        "tied matrix, transposed": (lambda: TiedMatrix(5, 4), VECTOR),
        "unused parameters": (lambda: WithUnusedParameters(nn.Linear(5, 3), nn.Linear(5, 3)), VECTOR),
    }  # fmt: skip


def _shared_weight() -> nn.Module:
    """Return a network with two layers that share one weight and have separate biases."""
    first, second = nn.Linear(5, 5), nn.Linear(5, 5)
    second.weight = first.weight
    return nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), nn.Linear(5, 3))


def _residual_block(width: int) -> nn.Module:
    return Residual(nn.Sequential(nn.Linear(width, 4), nn.ReLU(), nn.Linear(4, width)))


def structures() -> Group:
    """Return entries of compositions: shared modules, in-place operations, residuals, nesting, readouts, branches."""
    return {
        "weight under two names": (_shared_weight, VECTOR),
        "same module at two places": (
            lambda: (lambda inner: nn.Sequential(inner, nn.Tanh(), inner, nn.Tanh(), nn.Linear(5, 3)))(nn.Linear(5, 5)),
            VECTOR),
        "same module at two places, over bags": (
            lambda: (lambda inner: nn.Sequential(nn.EmbeddingBag(6, 3), inner, nn.Tanh(), inner, nn.Linear(3, 2)))(
                nn.Linear(3, 3)), Inputs((4,), vocabulary=6)),
        "same module at two places, over a bilinear layer": (
            lambda: (lambda inner: nn.Sequential(SelfBilinear(5, 3), inner, nn.Tanh(), inner))(nn.Linear(3, 3)),
            VECTOR),
        "in place over a sequence": (
            lambda: nn.Sequential(Shift(4, 5), nn.Linear(5, 4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(16, 2)),
            SEQUENCE),
        "in place over two layers of a sequence": (
            lambda: nn.Sequential(nn.Linear(5, 3), nn.SiLU(inplace=True), nn.Linear(3, 4), nn.SiLU(inplace=True),
                                  Apply(lambda h: h.mean(1)), nn.Linear(4, 2)), SEQUENCE),
        "in place over signals": (
            lambda: nn.Sequential(nn.Conv1d(3, 3, 2), nn.SiLU(inplace=True), nn.Conv1d(3, 4, 2), nn.ReLU(inplace=True),
                                  nn.Flatten(), nn.Linear(12, 2)), Inputs((3, 5))),
        "in place over images": (
            lambda: nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.SiLU(inplace=True), nn.Conv2d(3, 3, 2),
                                  nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(12, 2)), Inputs((2, 4, 4))),
        "in place over norms of a sequence": (
            lambda: nn.Sequential(nn.Linear(5, 3), nn.LayerNorm(3), nn.SiLU(inplace=True), nn.Linear(3, 2),
                                  nn.RMSNorm(2), nn.SiLU(inplace=True), nn.Flatten(), nn.Linear(8, 2)), SEQUENCE),
        "residual blocks": (lambda: nn.Sequential(_residual_block(5), _residual_block(5), nn.Linear(5, 3)), VECTOR),
        "residual convolutions": (
            lambda: nn.Sequential(
                nn.Conv2d(2, 3, 3, padding=1),
                Residual(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 3, 3, padding=1))),
                nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3)), Inputs((2, 4, 4))),
        "nested modules": (
            lambda: nn.Sequential(nn.Sequential(nn.Linear(5, 4), nn.Sequential(nn.Tanh())), nn.Sequential(),
                                  nn.Sequential(nn.Sequential(nn.Linear(4, 3)))), VECTOR),
        "readout narrower than hidden": (lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2)), VECTOR),
        "readout wider than hidden": (lambda: nn.Sequential(nn.Linear(5, 2), nn.Tanh(), nn.Linear(2, 7)), VECTOR),
        "wide readout over a bilinear layer": (
            lambda: nn.Sequential(SelfBilinear(5, 2), nn.Linear(2, 6, bias=False)), VECTOR),
        "wide readout over bags and a spectral norm": (
            lambda: nn.Sequential(nn.EmbeddingBag(6, 3), parametrizations.spectral_norm(nn.Linear(3, 2)),
                                  nn.Linear(2, 6, bias=False)), Inputs((4,), vocabulary=6)),
        "wide readout over a recurrent layer": (
            lambda: nn.Sequential(Recurrent(nn.LSTM(5, 2, batch_first=True)), Apply(lambda h: h[:, -1]),
                                  nn.Linear(2, 6)), SEQUENCE),
        "wide readout over free parameters and a borrowed weight": (
            lambda: nn.Sequential(Shift(5), BorrowedWeight(5, 2), Gain(2), nn.Linear(2, 6)), VECTOR),
        "wide readout over blocks with prelu": (
            lambda: nn.Sequential(SelfBilinear(5, 2), nn.Linear(2, 2), nn.PReLU(), nn.Linear(2, 2), nn.GELU(),
                                  nn.Linear(2, 2), nn.Linear(2, 6, bias=False)), VECTOR),
        "readout as wide as hidden, no bias": (
            lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 4, bias=False)), VECTOR),
        "one output": (lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1)), VECTOR),
        "two linear layers without activation": (lambda: nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)), VECTOR),
        "branch around the readout": (
            lambda: ReadoutWithSkip(nn.Sequential(nn.Linear(5, 4), nn.Tanh()), nn.Linear(4, 3), nn.Linear(5, 3)), VECTOR),
        "deep branch around the readout": (
            lambda: nn.Sequential(
                nn.Linear(5, 4), nn.Tanh(),
                ReadoutWithSkip(nn.Sequential(nn.Linear(4, 3), nn.Tanh()), nn.Linear(3, 3), nn.Sequential(nn.Linear(4, 3)))),
            VECTOR),
        "input added to the outputs": (lambda: nn.Sequential(_residual_block(5)), VECTOR),
        "hidden tensor in the readout and in a branch": (
            lambda: nn.Sequential(nn.Linear(5, 3), nn.Tanh(), Parallel("sum", nn.Linear(3, 3), Gain(3))), VECTOR),
        "hidden tensor twice in the readout": (
            lambda: nn.Sequential(nn.Linear(5, 3), nn.Tanh(), CalledTwice(nn.Linear(3, 3))), VECTOR),
    }  # fmt: skip


def outputs() -> Group:
    """Return entries whose outputs are not those of a single last linear layer."""
    hidden = lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh())  # noqa: E731
    return {
        "softmax at the end": (lambda: nn.Sequential(hidden(), nn.Linear(4, 3), nn.Softmax(dim=1)), VECTOR),
        "log-softmax at the end": (lambda: nn.Sequential(hidden(), nn.Linear(4, 3), nn.LogSoftmax(dim=1)), VECTOR),
        "tanh at the end": (lambda: nn.Sequential(hidden(), nn.Linear(4, 3), nn.Tanh()), VECTOR),
        "outputs scaled": (lambda: nn.Sequential(hidden(), nn.Linear(4, 3), Apply(lambda f: 3.0 * f)), VECTOR),
        "outputs sliced": (lambda: nn.Sequential(hidden(), nn.Linear(4, 5), Apply(lambda f: f[:, 1:4])), VECTOR),
        "outputs permuted": (lambda: nn.Sequential(hidden(), nn.Linear(4, 3), Apply(lambda f: f.flip(1))), VECTOR),
        "outputs written in place": (
            lambda: nn.Sequential(hidden(), nn.Linear(4, 3), Apply(lambda f: f.mul_(2.0))), VECTOR),
        "product of two heads": (
            lambda: nn.Sequential(hidden(), Parallel("product", nn.Linear(4, 3), nn.Linear(4, 3))), VECTOR),
        "two heads side by side": (
            lambda: nn.Sequential(hidden(), Parallel("concatenate", nn.Linear(4, 2), nn.Linear(4, 1))), VECTOR),
        "heads at two depths": (
            lambda: Parallel("concatenate", nn.Linear(5, 2), nn.Sequential(hidden(), nn.Linear(4, 1))), VECTOR),
        "two networks": (
            lambda: Parallel("sum", nn.Sequential(hidden(), nn.Linear(4, 3)), nn.Sequential(hidden(), nn.Linear(4, 3))),
            VECTOR),
        "bilinear at the end": (lambda: nn.Sequential(hidden(), SelfBilinear(4, 3)), VECTOR),
        "normalization at the end": (lambda: nn.Sequential(hidden(), nn.Linear(4, 3), nn.LayerNorm(3)), VECTOR),
        "outputs without parameters in some classes": (
            lambda: nn.Sequential(hidden(), nn.Linear(4, 2), Apply(lambda f: F.pad(f, (0, 1)))), VECTOR),
    }  # fmt: skip
