"""The least operations that a row can cost: forward, C backwards, per-example products, half of every Gram.

Layer by layer, with m multiply-adds an example forward, p weights, S positions: the cheaper of
per-example gradients (C·n·2m and a Gram of n²·C·p) and token Grams (n²·S²·(in + C·out)). The layer below a linear readout
needs one class-free product (readout factoring). Elementwise work and attention scores are left out, so it is a floor.
"""

from dataclasses import dataclass

import torch
from torch import nn

from experiments.benchmarks.ntk.workloads import build

__all__ = ["Layer", "gflop", "layers_of"]

FACTORED = {
    "W1": 1,
    "W2": 1,
    "depthwise": 1,
    "wide": 1,
    "mlp": 1,
}  # layers below the readout, nothing but relu and pooling between


@dataclass(frozen=True)
class Layer:
    """Linear or convolution."""

    positions: int
    fan_in: int
    fan_out: int
    groups: int

    @property
    def weights(self) -> int:
        """Entries of the weight."""
        return self.fan_in * self.fan_out

    @property
    def forward(self) -> int:
        """Operations an example."""
        return 2 * self.positions * self.weights


def layers_of(model: nn.Module, x: torch.Tensor) -> list[Layer]:
    """In the order they are called; fan_in counts one group and the kernel's window."""
    found: list[Layer] = []

    def record(module, inputs, output):
        if isinstance(module, nn.Linear):
            found.append(Layer(output[0].numel() // module.out_features, module.in_features, module.out_features, 1))
        elif isinstance(module, nn.MultiheadAttention):
            width, tokens = module.embed_dim, inputs[0].shape[1]
            found.extend([Layer(tokens, width, 3 * width, 1), Layer(tokens, width, width, 1)])
        elif isinstance(module, nn.LSTM):
            tokens, gates = inputs[0].shape[1], 4 * module.hidden_size
            found.extend([Layer(tokens, module.input_size, gates, 1), Layer(tokens, module.hidden_size, gates, 1)])
        else:
            fan_in = module.weight[0].numel()
            found.append(Layer(output[0, 0].numel(), fan_in, module.out_channels, module.groups))

    kinds = (nn.Linear, nn.Conv2d, nn.MultiheadAttention, nn.LSTM)
    handles = [
        module.register_forward_hook(record)
        for module in model.modules()
        if isinstance(module, kinds) and type(module).__name__ != "NonDynamicallyQuantizableLinear"
    ]
    try:
        with torch.no_grad():
            model(x[:1])
    finally:
        for handle in handles:
            handle.remove()
    return found


def gflop(workload: str, n: int, outputs: str) -> float:
    """Least number of operations, in 10⁹.

    >>> round(gflop("W1", 512, "trace"), 1), round(gflop("W2", 256, "trace"))
    (5.3, 85)
    """
    model, x = build(workload, 1)
    model.requires_grad_(False)
    layers = layers_of(model, x)
    c = layers[-1].fan_out
    factored = len(layers) - 2 if workload.split(":")[0] in FACTORED else None
    pairs = c * c if outputs == "full" else c  # blocks of the Gram a pair of rows
    total = 0.0
    for index, layer in enumerate(layers):
        total += n * layer.forward
        sweeps = min(c, layers[-1].fan_in)  # head compression
        if index == len(layers) - 1:  # its cotangents are unit vectors
            total += n * n * layer.fan_in
            continue
        if index > 0:
            total += n * sweeps * layer.forward
        if index == factored and outputs == "trace":
            by_gradients = n * layer.forward + n * n * layer.weights
            by_tokens = n * n * layer.positions**2 * (layer.fan_in + layer.fan_out)
        elif index == factored:
            by_gradients = n * layer.forward + n * n * (layer.weights + pairs * layer.fan_out)
            by_tokens = n * n * layer.positions**2 * (layer.fan_in + pairs * layer.fan_out)
        else:
            heads = pairs if outputs == "full" else sweeps
            by_gradients = n * sweeps * layer.forward + n * n * heads * layer.weights
            by_tokens = n * n * layer.positions**2 * (layer.groups * layer.fan_in + heads * layer.fan_out)
        # A vector input's per-example gradient is an outer product, which only the Gram pays for.
        total += min(by_gradients, by_tokens)
    return total / 1e9
