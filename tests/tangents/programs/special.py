"""What torch allows besides ordinary layers: custom gradients, hooks, state, other dtypes, complex numbers, torch.func."""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from tests.tangents.programs.block import Block, hidden_layer, parameter, square


class Reversed(torch.autograd.Function):
    """The identity, with gradients multiplied by -2."""

    @staticmethod
    def forward(ctx, h):
        return h.view_as(h)

    @staticmethod
    def backward(ctx, g):
        return -2.0 * g


def custom_gradients(choices, d):
    """Gradients that are not those of the values: straight-through estimators, reversal, hooks."""
    way = choices.choice(["straight through", "reversal", "tensor hook", "module hook", "output hook"])

    def run(m, h):
        y = m.inner(h).tanh()
        if way == "straight through":
            return y.round(decimals=1).detach() + y - y.detach()
        if way == "reversal":
            return Reversed.apply(y)
        if way == "tensor hook" and y.requires_grad:
            y.register_hook(lambda g: 0.5 * g)
        return y

    inner = square(d)
    if way == "module hook":
        inner.register_full_backward_hook(lambda m, inward, outward: (None if inward[0] is None else 2.0 * inward[0],))
    if way == "output hook":
        inner.register_forward_hook(lambda m, inputs, output: output * 1.5)
    return Block(run, inner=inner)


def kept_state(choices, d):
    """Activations that the module keeps, and a counter that changes nothing."""

    def run(m, h):
        m.calls += 1
        m.kept = m.inner(h).tanh()
        m.earlier = [*m.earlier[-1:], m.kept]
        return m.kept + h

    return Block(run, inner=square(d), calls=torch.tensor(0), earlier=[])


def in_autocast(choices, d):
    """Part of the model in autocast: nothing is cast in float64, bfloat16 in float32."""

    def run(m, h):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = m.inner(h).tanh()
        return h + y.to(h)

    return Block(run, inner=square(d))


def in_float32(choices, d):
    """Part of a float64 model that is computed in float32: norms, rotary tables, softmax."""
    way = choices.choice(["norm", "softmax", "angles"])

    def run(m, h):
        single = h.float()
        if way == "norm":
            y = single * (single.square().mean(-1, keepdim=True) + 0.1).rsqrt()
        elif way == "softmax":
            y = single.softmax(-1)
        else:
            angles = torch.arange(h.shape[-1], dtype=torch.float32)
            y = single * angles.cos() + single.roll(1, -1) * angles.sin()
        return m.gain * y.to(h) + m.inner(h)

    return Block(run, inner=square(d), gain=parameter(d))


def complex_numbers(choices, d):
    """Complex buffers, and complex parameters."""
    way = choices.choice(["buffer", "parameter"])

    def run(m, h):
        if way == "buffer":
            rotation = torch.polar(torch.ones(d), torch.arange(d) + 0.5) if m.rotation is None else m.rotation
            return (m.inner(h).to(rotation.dtype) * rotation).real
        return torch.fft.irfft(torch.fft.rfft(h) * m.spectrum, n=d) + m.inner(h)

    block = Block(run, inner=square(d), spectrum=parameter(d // 2 + 1, 2))
    block.complex_parameter = way == "parameter"
    block.complex_buffer = way == "buffer"
    block.rotation = None
    return block


def make_complex(model):
    """Give the blocks of ``complex_numbers`` their complex tensors: ``.to(dtype)`` of torch would discard them."""
    for module in model.modules():
        if getattr(module, "complex_parameter", False):
            module.spectrum = nn.Parameter(torch.view_as_complex(module.spectrum.detach().clone()))
        if getattr(module, "complex_buffer", False):
            angles = module.inner.bias.detach()
            del module.rotation
            module.register_buffer("rotation", torch.polar(torch.ones_like(angles), angles))
    return model


def mapped(choices, d):
    """torch.func inside the forward pass."""
    way = choices.choice(["vmap", "functional_call", "vmap over weights"])

    def run(m, h):
        if way == "vmap":
            return torch.func.vmap(lambda row: m.inner(row).tanh())(h)
        if way == "functional_call":
            weights = {name: 1.5 * value for name, value in m.inner.named_parameters()}
            return torch.func.functional_call(m.inner, weights, (h,)).tanh()
        return torch.func.vmap(lambda w: (h @ w.T).tanh())(m.stack).mean(0)

    return Block(run, inner=square(d), stack=parameter(2, d, d))


def input_gradient(choices, d):
    """Forces: the derivative of an energy of each row with respect to the row."""

    def run(m, h):
        with torch.enable_grad():
            position = h if h.requires_grad else h.detach().requires_grad_()
            energy = m.energy(position.tanh()).square().sum()
            (force,) = torch.autograd.grad(energy, position, create_graph=True)
        return h - force

    return Block(run, energy=nn.Sequential(nn.Linear(d, d), nn.Tanh(), nn.Linear(d, 1)))


def checkpointed(choices, d):
    """Segments that run again in the backward pass."""
    reentrant, width = choices.random() < 0.5, d + choices.randint(0, 2)
    sequential = choices.random() < 0.3

    def run(m, h):
        if not h.requires_grad and reentrant:  # a reentrant segment without differentiable inputs has no gradient
            h = h + 0.0 * m.anchor
        if sequential:
            return h + checkpoint_sequential(m.inner, 2, h, use_reentrant=reentrant)
        return h + checkpoint(lambda z: torch.tanh(m.inner(torch.tanh(z))), h, use_reentrant=reentrant)

    return Block(run, inner=hidden_layer(d, width), anchor=parameter(d))


def detached(choices, d):
    """A part of the graph that is cut: the layer before it gets no gradient from there."""

    def run(m, h):
        with torch.no_grad():
            scale = m.constant(h).sigmoid()
        return m.inner(h).tanh() * scale + m.outer(h).detach()

    return Block(run, inner=square(d), outer=square(d), constant=square(d))


SPECIAL = {
    make.__name__: make
    for make in (
        custom_gradients,
        kept_state,
        in_autocast,
        in_float32,
        complex_numbers,
        mapped,
        input_gradient,
        checkpointed,
        detached,
    )
}
