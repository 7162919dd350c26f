"""Small networks that use parameters in ways which hook-based libraries get wrong: called twice, free, borrowed, tied."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "Apply",
    "Attention",
    "BorrowedWeight",
    "ByPosition",
    "CalledTwice",
    "CellLoop",
    "ClassToken",
    "Gain",
    "Parallel",
    "ProjectedAttention",
    "ReadoutWithSkip",
    "Recurrent",
    "Residual",
    "SelfBilinear",
    "SequenceFirst",
    "Shift",
    "TiedMatrix",
    "TiedReadout",
    "WithUnusedParameters",
]


class Apply(nn.Module):
    """A function without parameters, as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """Return function(x)."""
        return self.function(x)


class Residual(nn.Module):
    """x + body(x), where body keeps the shape."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        """Return x + body(x)."""
        return x + self.body(x)


class ReadoutWithSkip(nn.Module):
    """f = readout(body(x)) + skip(x): outputs on which the hidden tensor before the readout has no monopoly."""

    def __init__(self, body: nn.Module, readout: nn.Module, skip: nn.Module) -> None:
        super().__init__()
        self.body, self.readout, self.skip = body, readout, skip

    def forward(self, x: Tensor) -> Tensor:
        """Return readout(body(x)) + skip(x)."""
        return self.readout(self.body(x)) + self.skip(x)


class Parallel(nn.Module):
    """Several networks on the same rows, joined: "sum", "product" or "concatenate"."""

    def __init__(self, join: str, *branches: nn.Module) -> None:
        super().__init__()
        self.join, self.branches = join, nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """Join the branches."""
        parts = [branch(x) for branch in self.branches]
        if self.join == "concatenate":
            return torch.cat(parts, dim=-1)
        result = parts[0]
        for part in parts[1:]:
            result = result + part if self.join == "sum" else result * part
        return result


class CalledTwice(nn.Module):
    """One module called twice: its tangents must be summed before they are contracted."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """Return inner(tanh(inner(x)))."""
        return self.inner(torch.tanh(self.inner(x)))


class Gain(nn.Module):
    """x ∘ gain, a free parameter that is broadcast over the rows (LayerScale)."""

    def __init__(self, *size: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        """Return x ∘ gain."""
        return x * self.gain


class Shift(nn.Module):
    """x + shift, a free parameter that is broadcast over the rows (learned positions)."""

    def __init__(self, *size: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        """Return x + shift."""
        return x + self.shift


class ClassToken(nn.Module):
    """(n, S, d) -> (n, S + 1, d): a learned token before the others."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        """Return [token, x]."""
        return torch.cat([self.token.expand(len(x), -1, -1), x], dim=1)


class SelfBilinear(nn.Module):
    """y_k = xᵀ A_k tanh(x) + b_k."""

    def __init__(self, fan_in: int, fan_out: int, bias: bool = True) -> None:
        super().__init__()
        self.inner = nn.Bilinear(fan_in, fan_in, fan_out, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the bilinear form of x and tanh(x)."""
        return self.inner(x, torch.tanh(x))


class BorrowedWeight(nn.Module):
    """The weight of a layer that also runs by itself, used in functional form on something else."""

    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__()
        self.other = nn.Linear(fan_in, fan_out)

    def forward(self, x: Tensor) -> Tensor:
        """Return tanh(W x + b) + W sin(x)."""
        return torch.tanh(self.other(x)) + F.linear(torch.sin(x), self.other.weight)


class TiedMatrix(nn.Module):
    """An autoencoder with one matrix: Wᵀ tanh(W x + b)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Return Wᵀ tanh(W x + b)."""
        return F.linear(torch.tanh(self.inner(x)), self.inner.weight.T)


class TiedReadout(nn.Module):
    """Embedding, body, mean over positions, and logits by the embedding's own weight."""

    def __init__(self, vocabulary: int, width: int, body: nn.Module, *, share: bool = False) -> None:
        super().__init__()
        self.embedding, self.body = nn.Embedding(vocabulary, width), body
        self.readout = nn.Linear(width, vocabulary, bias=False) if share else None
        if self.readout is not None:
            self.readout.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        """Return E · mean(body(E[x]))."""
        hidden = self.body(self.embedding(x)).mean(1)
        return F.linear(hidden, self.embedding.weight) if self.readout is None else self.readout(hidden)


class WithUnusedParameters(nn.Module):
    """A body beside parameters that do not enter the outputs: one never called, one called for nothing, one free."""

    def __init__(self, body: nn.Module, probe: nn.Module) -> None:
        super().__init__()
        self.body, self.probe, self.never, self.free = body, probe, nn.Linear(2, 2), nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        """Return body(x), after running probe(x) for nothing."""
        self.probe(x)
        return self.body(x)


class Recurrent(nn.Module):
    """An nn.RNN, nn.LSTM or nn.GRU on (n, S, d), whichever axis it takes first; all positions are returned."""

    def __init__(self, inner: nn.RNNBase, *, start: bool = False) -> None:
        super().__init__()
        self.inner = inner
        layers = inner.num_layers * (2 if inner.bidirectional else 1)
        self.start = nn.Parameter(torch.zeros(layers, 1, inner.hidden_size)) if start else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the hidden states, (n, S, directions · hidden)."""
        state = None if self.start is None else self.start.expand(-1, len(x), -1).contiguous()
        outputs = self.inner(x if self.inner.batch_first else x.transpose(0, 1), state)[0]
        return outputs if self.inner.batch_first else outputs.transpose(0, 1)


class CellLoop(nn.Module):
    """A recurrent cell that a loop runs over the positions of (n, S, d); the last hidden state is returned."""

    def __init__(self, inner: nn.RNNCellBase) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """Return the last hidden state, (n, hidden)."""
        state: Any = None
        for position in x.unbind(1):
            state = self.inner(position, state)
        return state[0] if isinstance(state, tuple) else state


class Attention(nn.Module):
    """nn.MultiheadAttention of (n, S, d) to itself, or to projections of it with their own widths."""

    def __init__(
        self,
        inner: nn.MultiheadAttention,
        *,
        need_weights: bool = False,
        mask: Tensor | None = None,
        padding: bool = False,
    ) -> None:
        super().__init__()
        self.inner, self.need_weights, self.padding = inner, need_weights, padding
        width, same = inner.embed_dim, inner._qkv_same_embed_dim
        self.key = None if same else nn.Linear(width, inner.kdim)
        self.value = None if same else nn.Linear(width, inner.vdim)
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        """Return the attended values; where weights are asked for, scaled by the entropy of the weights."""
        # The padding depends on the row alone: positions whose first feature is below -1 are hidden, never the first.
        padding = None
        if self.padding:
            padding = (x.detach()[..., 0] < -1) & (torch.arange(x.shape[1]) > 0)
        query = x if self.inner.batch_first else x.transpose(0, 1)
        key = query if self.key is None else self.key(query)
        value = query if self.value is None else self.value(query)
        out, weights = self.inner(
            query, key, value, key_padding_mask=padding, need_weights=self.need_weights, attn_mask=self.mask
        )
        out = out if self.inner.batch_first else out.transpose(0, 1)
        return out if weights is None else out * (1 + (weights**2).sum((1, 2)))[:, None, None]


class ProjectedAttention(nn.Module):
    """F.scaled_dot_product_attention with the network's own projections, of (n, S, d)."""

    def __init__(self, width: int, heads: int, *, causal: bool = False, mask: Tensor | None = None) -> None:
        super().__init__()
        self.mask: Tensor | None
        self.heads, self.causal = heads, causal
        self.inward, self.outward = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        """Return the attended values, (n, S, d)."""
        n, S, width = x.shape
        parts = self.inward(x).reshape(n, S, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(*parts.unbind(0), attn_mask=self.mask, is_causal=self.causal)
        return self.outward(out.transpose(1, 2).reshape(n, S, width))


class ByPosition(nn.Module):
    """body on (n·S, d): rows and positions flattened into one batch axis, position fastest."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        """Return body over every position, (n, S, ...)."""
        return self.body(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class SequenceFirst(nn.Module):
    """body on (S, n, d): the rows are on the second axis; with ``flat`` on (S·n, d), row fastest."""

    def __init__(self, body: nn.Module, *, flat: bool = False) -> None:
        super().__init__()
        self.body, self.flat = body, flat

    def forward(self, x: Tensor) -> Tensor:
        """Return body over the transposed rows, (n, S, ...)."""
        x = x.transpose(0, 1)
        out = self.body(x.flatten(0, 1)).unflatten(0, x.shape[:2]) if self.flat else self.body(x)
        return out.transpose(0, 1)
