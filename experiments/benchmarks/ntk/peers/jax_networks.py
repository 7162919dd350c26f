"""W1 to W4 and relu networks in JAX, with the stored weights: matrices as (in, out), pictures as (n, height, width, channel)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

__all__ = ["functional"]

State = dict[str, np.ndarray]
Parameters = dict[str, jax.Array]


def functional(workload: str, state: State) -> tuple[Callable, Parameters] | None:
    """A function f(parameters, x) and its parameters; None where there is none."""
    builders = {"W1": _mlp, "wide": _mlp, "W2": _convolutional, "W3": _resnet, "W4": _transformer}
    build = _mlp if workload.startswith("mlp:") else builders.get(workload)
    return build(state) if build else None


def _layers(state: State) -> list[str]:
    """Prefixes "0", "2", ... of a Sequential."""
    return sorted({name.split(".")[0] for name in state}, key=int)


def _oriented(state: State) -> Parameters:
    """Matrices transposed to (in, out), convolution kernels to (height, width, in, out); buffers left out."""
    out = {}
    for name, value in state.items():
        if "running" in name or "num_batches" in name:
            continue
        square = name.endswith("weight") and value.ndim == 2 and "embedding" not in name
        out[name] = jnp.asarray(value.T if square else value.transpose(2, 3, 1, 0) if value.ndim == 4 else value)
    return out


def _mlp(state: State) -> tuple[Callable, Parameters]:
    layers = _layers(state)

    def apply(p, x, **_):
        for layer in layers:
            x = x @ p[f"{layer}.weight"] + p[f"{layer}.bias"]
            x = x if layer == layers[-1] else jax.nn.relu(x)
        return x

    return apply, _oriented(state)


def _convolve(x, kernel, stride: int):
    pad = kernel.shape[0] // 2
    padding = ((pad, pad), (pad, pad))
    return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _convolutional(state: State) -> tuple[Callable, Parameters]:
    *convolutions, readout = _layers(state)

    def apply(p, x, **_):
        x = x.transpose(0, 2, 3, 1)
        for layer, stride in zip(convolutions, (1, 2, 2), strict=True):
            x = jax.nn.relu(_convolve(x, p[f"{layer}.weight"], stride) + p[f"{layer}.bias"])
        return x.mean((1, 2)) @ p[f"{readout}.weight"] + p[f"{readout}.bias"]

    return apply, _oriented(state)


def _resnet(state: State) -> tuple[Callable, Parameters]:
    def normalize(p, name, x):  # eval mode: the statistics are constants
        scale = 1 / np.sqrt(state[f"{name}.running_var"] + 1e-5)
        return (x - state[f"{name}.running_mean"]) * scale * p[f"{name}.weight"] + p[f"{name}.bias"]

    def apply(p, x, **_):
        x = x.transpose(0, 2, 3, 1)
        x = jax.nn.relu(normalize(p, "norm", _convolve(x, p["stem.weight"], 1)))
        for index in range(9):
            name = f"blocks.{index}"
            stride = 2 if index in (3, 6) else 1
            inner = jax.nn.relu(normalize(p, f"{name}.bn1", _convolve(x, p[f"{name}.conv1.weight"], stride)))
            inner = normalize(p, f"{name}.bn2", _convolve(inner, p[f"{name}.conv2.weight"], 1))
            if f"{name}.shortcut.0.weight" in p:
                x = normalize(p, f"{name}.shortcut.1", _convolve(x, p[f"{name}.shortcut.0.weight"], stride))
            x = jax.nn.relu(inner + x)
        return x.mean((1, 2)) @ p["readout.weight"] + p["readout.bias"]

    return apply, _oriented(state)


def _transformer(state: State) -> tuple[Callable, Parameters]:
    parameters = _oriented(state)
    for name in [name for name in state if name.endswith("in_proj_weight")]:
        prefix = name.removesuffix("in_proj_weight")
        del parameters[name], parameters[f"{prefix}in_proj_bias"]
        parts = zip(
            ("query", "key", "value"),
            np.split(state[name], 3),
            np.split(state[f"{prefix}in_proj_bias"], 3),
            strict=True,
        )
        for part, weight, bias in parts:
            parameters[f"{prefix}{part}.weight"] = jnp.asarray(weight.T)
            parameters[f"{prefix}{part}.bias"] = jnp.asarray(bias)

    def linear(p, name, x):
        return x @ p[f"{name}.weight"] + p[f"{name}.bias"]

    def normalize(p, name, x):
        centered = x - x.mean(-1, keepdims=True)
        return (
            centered * lax.rsqrt((centered**2).mean(-1, keepdims=True) + 1e-5) * p[f"{name}.weight"] + p[f"{name}.bias"]
        )

    def attend(p, name, x):
        q, k, v = (linear(p, f"{name}.{part}", x).reshape(*x.shape[:2], 4, -1) for part in ("query", "key", "value"))
        weights = jax.nn.softmax(jnp.einsum("nshd,nthd->nhst", q, k) / np.sqrt(q.shape[-1]), -1)
        return linear(p, f"{name}.out_proj", jnp.einsum("nhst,nthd->nshd", weights, v).reshape(x.shape))

    def apply(p, tokens, **_):
        x = p["embedding.weight"][tokens] + p["positions"]
        for block in ("blocks.0", "blocks.1"):
            x = x + attend(p, f"{block}.attention", normalize(p, f"{block}.norm1", x))
            inner = linear(p, f"{block}.up", normalize(p, f"{block}.norm2", x))
            x = x + linear(p, f"{block}.down", jax.nn.gelu(inner, approximate=False))
        return linear(p, "readout", normalize(p, "norm", x).mean(1))

    return apply, parameters
