"""Parameters used in unusual ways: shared, tied, computed from others, sliced, broadcast, frozen, unused."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from tests.tangents.programs.block import Block, hidden_layer, parameter, square


def plain(choices, d):
    layer, activation = square(d, bias=choices.random() < 0.7), choices.choice([nn.Tanh, nn.GELU, nn.ReLU, nn.SiLU])()
    return nn.Sequential(layer, activation)


def residual(choices, d):
    norm = choices.choice([nn.Identity(), nn.LayerNorm(d, eps=0.1), nn.RMSNorm(d, eps=0.1), nn.BatchNorm1d(d)])
    return Block(lambda m, h: h + m.scale * m.inner(m.norm(h)), norm=norm, inner=hidden_layer(d, d), scale=parameter(d))


def called_twice(choices, d):
    """One layer at two depths, on two halves of the features, or also in functional form."""
    way = choices.choice(["depth", "functional", "transposed", "square", "one bias"])

    def run(m, h):
        y = m.inner(h).tanh()
        if way == "depth":
            return m.inner(y)
        if way == "functional":
            return y + F.linear(h.sin(), m.inner.weight)
        if way == "transposed":
            return F.linear(y, m.inner.weight.T, m.inner.bias)
        if way == "square":
            return h @ (m.inner.weight.T @ m.inner.weight)
        return y + m.inner.bias * h

    return Block(run, inner=square(d))


def shared_modules(choices, d):
    """Two modules with one weight, which is registered under both names; or two with one bias."""
    one, other = square(d), square(d)
    if choices.random() < 0.5:
        other.weight = one.weight
    else:
        other.bias = one.bias
    return nn.Sequential(one, nn.Tanh(), other)


def computed_weight(choices, d):
    """A weight that is computed from parameters in each pass."""
    way = choices.choice(["gain", "low rank", "symmetric", "softmax", "slice", "gather", "blocks", "exp", "normalized"])

    def run(m, h):
        if way == "gain":
            return h * (1.0 + m.gain) + m.gain.square()
        weight = {
            "low rank": lambda: m.inner.weight.detach() + m.up @ m.down,
            "symmetric": lambda: m.inner.weight + m.inner.weight.T,
            "softmax": lambda: m.inner.weight.softmax(-1),
            "slice": lambda: m.large[1 : d + 1, :d],
            "gather": lambda: m.large[m.permutation][:d, :d],
            "blocks": lambda: torch.block_diag(m.large[:1, :1], m.inner.weight[1:, 1:]),
            "exp": lambda: m.inner.weight * m.gain.exp()[:, None],
            "normalized": lambda: F.normalize(m.inner.weight, dim=1),
        }[way]()
        return F.linear(h, weight, m.inner.bias).tanh()

    generator = torch.Generator().manual_seed(choices.randrange(1000))
    return Block(
        run,
        inner=square(d),
        gain=parameter(d),
        up=parameter(d, 2),
        down=parameter(2, d),
        large=parameter(d + 2, d + 1),
        permutation=torch.randperm(d + 2, generator=generator),
    )


def reparametrized(choices, d):
    make = choices.choice([parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal])
    return nn.Sequential(make(square(d)), nn.Tanh())


def free_parameters(choices, d):
    """Parameters in elementwise operations."""
    way = choices.choice(["affine", "where", "prelu", "lerp", "addcmul", "power", "outer", "expand", "division"])

    def run(m, h):
        return {
            "affine": lambda: h * m.a + m.b,
            "where": lambda: torch.where(h > 0, m.a, h * m.b),
            "prelu": lambda: F.prelu(h, m.a),
            "lerp": lambda: torch.lerp(h, m.b, m.a.sigmoid()),
            "addcmul": lambda: torch.addcmul(h, m.a, h, value=0.5),
            "power": lambda: h.abs().add(0.5) ** m.a.sigmoid(),
            "outer": lambda: (h[:, :, None] * m.a).sum(1) + m.b,
            "expand": lambda: h * m.a[None].expand_as(h) + m.b.expand(len(h), -1),
            "division": lambda: (h - m.b) / m.a.exp(),
        }[way]()

    return Block(run, a=parameter(d), b=parameter(d))


def without_a_rule(choices, d):
    """Operations on parameters that only the dense way covers."""
    way = choices.choice(["cdist", "kron", "cosine", "fft", "bilinear", "matrix_exp", "scaled positions"])

    def run(m, h):
        return {
            "cdist": lambda: (-torch.cdist(h, m.weight).square()).exp(),
            "kron": lambda: h @ torch.kron(torch.eye(1, dtype=h.dtype), m.weight),
            "cosine": lambda: F.cosine_similarity(h[:, None], m.weight[None], dim=-1),
            "fft": lambda: torch.fft.irfft(torch.fft.rfft(h) * torch.view_as_complex(m.spectrum), n=d),
            "bilinear": lambda: torch.einsum("ni,ij,nj->n", h, m.weight, h)[:, None] * h.tanh(),
            "matrix_exp": lambda: h @ torch.linalg.matrix_exp(m.weight - m.weight.T),
            "scaled positions": lambda: (h * torch.special.i0e(m.bias)).tanh(),
        }[way]()

    return Block(run, weight=parameter(d, d), bias=parameter(d), spectrum=parameter(d // 2 + 1, 2))


def bilinear(choices, d):
    return Block(lambda m, h: m.inner(h, h.tanh()), inner=nn.Bilinear(d, d, d, bias=choices.random() < 0.5))


def unused(choices, d):
    """Layers that are never called, whose result is dropped, or that are frozen."""
    frozen = square(d).requires_grad_(False)
    half_frozen = square(d)
    half_frozen.weight.requires_grad_(choices.random() < 0.5)
    half_frozen.bias.requires_grad_(False)

    def run(m, h):
        m.probe(h)
        return m.half_frozen(m.frozen(h).tanh()) + 0.0 * m.vanishing(h)

    return Block(run, probe=square(d), never=square(d), frozen=frozen, half_frozen=half_frozen, vanishing=square(d))


SHARING = {
    make.__name__: make
    for make in (
        plain,
        residual,
        called_twice,
        shared_modules,
        computed_weight,
        reparametrized,
        free_parameters,
        without_a_rule,
        bilinear,
        unused,
    )
}
