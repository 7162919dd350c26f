"""Small modules with unusual use of parameters: called twice, free, borrowed from another layer, tied, unused."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Apply(nn.Module):
    """Wrap a function without parameters as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """Return function(x)."""
        return self.function(x)


class Residual(nn.Module):
    """Residual connection x + body(x); body preserves the shape."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        """Return x + body(x)."""
        return x + self.body(x)


class ReadoutWithSkip(nn.Module):
    """A network readout(body(x)) + skip(x), whose outputs depend on x not only through the readout."""

    def __init__(self, body: nn.Module, readout: nn.Module, skip: nn.Module) -> None:
        super().__init__()
        self.body, self.readout, self.skip = body, readout, skip

    def forward(self, x: Tensor) -> Tensor:
        """Return readout(body(x)) + skip(x)."""
        return self.readout(self.body(x)) + self.skip(x)


class Parallel(nn.Module):
    """Several networks with the same input; their outputs are combined by "sum", "product" or "concatenate"."""

    def __init__(self, join: str, *branches: nn.Module) -> None:
        super().__init__()
        self.join, self.branches = join, nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum, product or concatenation (along the last axis) of the outputs of all branches."""
        outputs = [branch(x) for branch in self.branches]
        if self.join == "concatenate":
            return torch.cat(outputs, dim=-1)
        result = outputs[0]
        for output in outputs[1:]:
            result = result + output if self.join == "sum" else result * output
        return result


class CalledTwice(nn.Module):
    """One module that is called twice, so that the derivatives of both calls add up for every parameter."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """Return inner(tanh(inner(x)))."""
        return self.inner(torch.tanh(self.inner(x)))


class Gain(nn.Module):
    """Elementwise product of x and a free parameter ``gain``, which is broadcast over the batch (LayerScale)."""

    def __init__(self, *size: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        """Return x ∘ gain."""
        return x * self.gain


class Shift(nn.Module):
    """Sum of x and a free parameter ``shift``, which is broadcast over the batch (learned positions)."""

    def __init__(self, *size: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        """Return x + shift."""
        return x + self.shift


class ClassToken(nn.Module):
    """Prepend a learned token to n sequences of length S and width d: (n, S, d) becomes (n, S + 1, d)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        """Return the learned token followed by the positions of x, (n, S + 1, d)."""
        return torch.cat([self.token.expand(len(x), -1, -1), x], dim=1)


class SelfBilinear(nn.Module):
    """Bilinear layer of x and tanh(x): output k is y_k = xᵀ A_k tanh(x) + b_k with parameters A_k and b_k."""

    def __init__(self, fan_in: int, fan_out: int, bias: bool = True) -> None:
        super().__init__()
        self.inner = nn.Bilinear(fan_in, fan_in, fan_out, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the bilinear form of x and tanh(x)."""
        return self.inner(x, torch.tanh(x))


class BorrowedWeight(nn.Module):
    """A linear layer whose weight is also used by a function call on another input."""

    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__()
        self.inner = nn.Linear(fan_in, fan_out)

    def forward(self, x: Tensor) -> Tensor:
        """Return tanh(W x + b) + W sin(x)."""
        return torch.tanh(self.inner(x)) + F.linear(torch.sin(x), self.inner.weight)


class TiedMatrix(nn.Module):
    """Autoencoder Wᵀ tanh(W x + b), in which decoder and encoder share the matrix W."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Return Wᵀ tanh(W x + b)."""
        return F.linear(torch.tanh(self.inner(x)), self.inner.weight.T)


class TiedReadout(nn.Module):
    """Embedding, body, mean over positions, and a readout tied to the embedding."""

    def __init__(self, vocabulary: int, width: int, body: nn.Module, *, share: bool = False) -> None:
        super().__init__()
        self.embedding, self.body = nn.Embedding(vocabulary, width), body
        self.readout = nn.Linear(width, vocabulary, bias=False) if share else None
        if self.readout is not None:
            self.readout.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        """Return E · mean(body(E[x])), where E is the embedding matrix and the mean is over positions."""
        hidden = self.body(self.embedding(x)).mean(1)
        return F.linear(hidden, self.embedding.weight) if self.readout is None else self.readout(hidden)


class WithUnusedParameters(nn.Module):
    """A network ``body`` with parameters that do not affect the outputs.

    They are a layer that is never called, a layer whose output is not used, and a free parameter.
    """

    def __init__(self, body: nn.Module, probe: nn.Module) -> None:
        super().__init__()
        self.body, self.probe = body, probe
        self.never_called, self.free_parameter = nn.Linear(2, 2), nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        """Return body(x); the output of the layer ``probe`` is computed but not used."""
        self.probe(x)
        return self.body(x)


class Recurrent(nn.Module):
    """An nn.RNN, nn.LSTM or nn.GRU applied to n sequences of length S and width d, (n, S, d).

    Options are batch-first layout and a learned initial state. The output is the hidden state at every position.
    """

    def __init__(self, inner: nn.RNNBase, *, learned_start: bool = False) -> None:
        super().__init__()
        self.inner = inner
        n_states = inner.num_layers * (2 if inner.bidirectional else 1)
        self.initial_state = nn.Parameter(torch.zeros(n_states, 1, inner.hidden_size)) if learned_start else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the hidden states, (n, S, directions · hidden), for one or two directions and ``hidden`` units."""
        state = None if self.initial_state is None else self.initial_state.expand(-1, len(x), -1).contiguous()
        outputs = self.inner(x if self.inner.batch_first else x.transpose(0, 1), state)[0]
        return outputs if self.inner.batch_first else outputs.transpose(0, 1)


class CellLoop(nn.Module):
    """A recurrent cell applied in a loop to the S positions of (n, S, d); the output is the last hidden state."""

    def __init__(self, inner: nn.RNNCellBase) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """Return the last hidden state, (n, hidden), for n sequences and ``hidden`` units."""
        state: Any = None
        for position in x.unbind(1):
            state = self.inner(position, state)
        return state[0] if isinstance(state, tuple) else state


class Attention(nn.Module):
    """nn.MultiheadAttention from (n, S, d), n sequences of length S and width d, to itself.

    If the layer has keys and values of other widths (kdim, vdim), they are linear projections of the input.
    """

    def __init__(
        self,
        inner: nn.MultiheadAttention,
        *,
        need_weights: bool = False,
        mask: Tensor | None = None,
        padding: bool = False,
    ) -> None:
        """Wrap the layer ``inner``, optionally with an attention mask or padding of some positions.

        With ``need_weights`` the attention weights enter the output.
        """
        super().__init__()
        self.inner, self.need_weights, self.padding = inner, need_weights, padding
        width, same_width = inner.embed_dim, inner._qkv_same_embed_dim
        self.key = None if same_width else nn.Linear(width, inner.kdim)
        self.value = None if same_width else nn.Linear(width, inner.vdim)
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        """Return the attended values (n, S, d).

        With ``need_weights`` they are multiplied by 1 + the sum of squared attention weights.
        """
        # The mask depends on the example alone: positions whose first feature is below -1 are hidden, never the first.
        padding = None
        if self.padding:
            padding = (x.detach()[..., 0] < -1) & (torch.arange(x.shape[1]) > 0)
        query = x if self.inner.batch_first else x.transpose(0, 1)
        key = query if self.key is None else self.key(query)
        value = query if self.value is None else self.value(query)
        attended, weights = self.inner(
            query, key, value, key_padding_mask=padding, need_weights=self.need_weights, attn_mask=self.mask
        )
        attended = attended if self.inner.batch_first else attended.transpose(0, 1)
        return attended if weights is None else attended * (1 + (weights**2).sum((1, 2)))[:, None, None]


class ProjectedAttention(nn.Module):
    """F.scaled_dot_product_attention of (n, S, d) to itself, with linear projections for queries, keys and values.

    n is the number of sequences, S their length and d their width.
    """

    def __init__(self, width: int, heads: int, *, causal: bool = False, mask: Tensor | None = None) -> None:
        super().__init__()
        self.mask: Tensor | None
        self.heads, self.causal = heads, causal
        self.inward, self.outward = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        """Return the attended values, (n, S, d)."""
        n, S, width = x.shape
        qkv = self.inward(x).reshape(n, S, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(*qkv.unbind(0), attn_mask=self.mask, is_causal=self.causal)
        return self.outward(attended.transpose(1, 2).reshape(n, S, width))


class ByPosition(nn.Module):
    """Apply ``body`` to every position of n sequences of length S and width d.

    ``body`` receives (n·S, d), in which the positions of one example are consecutive rows.
    """

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of ``body`` at every position, (n, S, ...)."""
        return self.body(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class SequenceFirst(nn.Module):
    """Apply ``body`` to n sequences of length S and width d with the examples on the second axis, (S, n, d).

    With ``flat`` it receives (S·n, d), in which the examples at one position are consecutive rows.
    """

    def __init__(self, body: nn.Module, *, flat: bool = False) -> None:
        super().__init__()
        self.body, self.flat = body, flat

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of ``body`` at every position, with the examples first again, (n, S, ...)."""
        x = x.transpose(0, 1)
        outputs = self.body(x.flatten(0, 1)).unflatten(0, x.shape[:2]) if self.flat else self.body(x)
        return outputs.transpose(0, 1)
