"""Blocks on sequences (n, S, d) with masks of valid positions (n, S), and their reduction to one vector per row.

A block may use valid positions only; the program sets the others to zero after each block.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence, unpad_sequence

from tests.tangents.programs.block import Block, hidden_layer, parameter, square
from tests.tangents.programs.routing import ROUTING


def token_layer(choices, d):
    """A layer on every token: as (n, S, d), flattened, sequence-first, or on the valid tokens alone."""
    way = choices.choice(
        ["batch", "flat", "sequence-first", "flat sequence-first", "valid", "scatter", "list", "conv", "wide"]
    )
    wide = choices.choice([nn.Conv1d, nn.ConvTranspose1d])(d, d, 3, padding=1)

    def run(m, h, mask):
        n, S, d = h.shape
        if way == "batch":
            return m.inner(h).tanh()
        if way == "flat":
            return m.inner(h.reshape(n * S, d)).tanh().view(n, S, d)
        if way == "sequence-first":
            return m.inner(h.transpose(0, 1)).tanh().transpose(0, 1)
        if way == "flat sequence-first":
            return m.inner(h.transpose(0, 1).reshape(-1, d)).tanh().view(S, n, d).transpose(0, 1)
        if way == "valid":
            y = torch.zeros_like(h)
            y[mask] = m.inner(h[mask]).tanh()
            return y
        if way == "scatter":
            return torch.zeros_like(h).masked_scatter(mask[..., None].expand_as(h), m.inner(h[mask]).tanh())
        if way == "list":
            rows = unpad_sequence(h, mask.sum(1), batch_first=True)
            padded = pad_sequence([m.inner(row).tanh() for row in rows], batch_first=True)
            return F.pad(padded, (0, 0, 0, S - padded.shape[1]))
        if way == "wide":
            return m.wide(h.transpose(1, 2)).transpose(1, 2).tanh()
        return F.conv1d(h.transpose(1, 2), m.inner.weight[..., None], m.inner.bias).transpose(1, 2).tanh()

    return Block(run, inner=square(d), wide=wide)


def token_routing(choices, d):
    """A block of routing on the valid tokens, flattened (Mixtral's mixture of experts)."""
    inner = ROUTING[choices.choice(["experts_in_a_loop", "experts_by_sorting", "second_layer_for_some"])](choices, d)

    def run(m, h, mask):
        if every:
            return m.inner(h.flatten(0, 1)).view_as(h)
        y = torch.zeros_like(h)
        y[mask] = m.inner(h[mask])
        return y

    every = choices.random() < 0.5
    return Block(run, inner=inner)


def trimmed(choices, d):
    """The layer sees positions up to the longest row only."""

    def run(m, h, mask):
        longest = int(mask.sum(1).max())
        y = m.inner(h[:, :longest]) * mask[:, :longest, None]
        return torch.cat([y, torch.zeros_like(h[:, longest:])], 1)

    return Block(run, inner=hidden_layer(d, d))


def buckets(choices, d):
    """Rows of equal length together, one call per length."""

    def run(m, h, mask):
        lengths, y = mask.sum(1), torch.zeros_like(h)
        for length in lengths.unique().tolist():
            rows = (lengths == length).nonzero()[:, 0]
            y[rows, :length] = m.inner(h[rows, :length]).tanh()
        return y

    return Block(run, inner=square(d))


def loop_to_the_longest(choices, d):
    """A recurrent cell up to the longest row; finished rows keep their state (masked), or have left the batch."""
    cell = choices.choice([nn.GRUCell, nn.RNNCell])(d, d)
    way = choices.choice(["masked", "shrinking", "indexed"])

    def run(m, h, mask):
        lengths = mask.sum(1)
        order = lengths.argsort(descending=True, stable=True) if way == "shrinking" else torch.arange(len(h))
        h, lengths = h[order], lengths[order]
        state, outputs = h.new_zeros(len(h), h.shape[2]), []
        for t in range(int(lengths.max())):
            if way == "masked":
                state = torch.where((lengths > t)[:, None], m.cell(h[:, t], state), state)
            elif way == "shrinking":
                active = int((lengths > t).sum())
                state = torch.cat([m.cell(h[:active, t], state[:active]), state[active:]])
            else:
                rows = (lengths > t).nonzero()[:, 0]
                state = state.index_copy(0, rows, m.cell(h[rows, t], state[rows]))
            outputs.append(state)
        outputs = F.pad(torch.stack(outputs, 1), (0, 0, 0, h.shape[1] - len(outputs)))
        return outputs[order.argsort()]

    return Block(run, cell=cell)


def packed_recurrent(choices, d):
    """nn.GRU, nn.LSTM or nn.RNN on packed sequences, sorted by length by torch or by hand."""
    make, bidirectional = choices.choice([nn.GRU, nn.LSTM, nn.RNN]), choices.random() < 0.3
    rnn = make(d, d, num_layers=choices.randint(1, 2), batch_first=True, bidirectional=bidirectional)
    by_hand = choices.random() < 0.5

    def run(m, h, mask):
        lengths = mask.sum(1)
        order = lengths.argsort(descending=True, stable=True) if by_hand else torch.arange(len(h))
        packed = pack_padded_sequence(h[order], lengths[order], batch_first=True, enforce_sorted=by_hand)
        outputs, _ = pad_packed_sequence(m.rnn(packed)[0], batch_first=True, total_length=h.shape[1])
        return m.outward(outputs[order.argsort()])

    return Block(run, rnn=rnn, outward=nn.Linear(d * (1 + bidirectional), d))


def recurrent(choices, d):
    make, batch_first = choices.choice([nn.GRU, nn.LSTM, nn.RNN]), choices.random() < 0.5
    rnn = make(d, d, batch_first=batch_first)

    def run(m, h, mask):
        return m.rnn(h)[0] if batch_first else m.rnn(h.transpose(0, 1))[0].transpose(0, 1)

    return Block(run, rnn=rnn)


def attention(choices, d):
    """Attention among the valid positions of each row."""
    way = choices.choice(["functional", "module", "by hand", "encoder layer"])
    encoder = nn.TransformerEncoderLayer(d, 1, d, dropout=0.0, batch_first=True)

    def run(m, h, mask):
        if way == "module":
            return h + m.module(h, h, h, key_padding_mask=~mask, need_weights=False)[0]
        if way == "encoder layer":
            return m.encoder(h, src_key_padding_mask=~mask)
        q, k, v = m.inward(h).chunk(3, -1)
        if way == "functional":
            return h + F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], mask[:, None, None])[:, 0]
        scores = (q @ k.transpose(1, 2)).masked_fill(~mask[:, None], -torch.inf)
        return h + scores.softmax(-1) @ v

    return Block(run, inward=nn.Linear(d, 3 * d), module=nn.MultiheadAttention(d, 1, batch_first=True), encoder=encoder)


def positions(choices, d):
    """Learned positions: a table, a broadcast lookup (1, S), lookups that depend on the row, or a free parameter."""
    way = choices.choice(["broadcast", "slice", "expanded", "own", "arange", "free"])

    def run(m, h, mask):
        n, S = mask.shape
        if way == "broadcast":
            return h + m.table(torch.arange(S)[None])
        if way == "slice":
            return h + m.table.weight[:S]
        if way == "expanded":
            return h + m.table(torch.arange(S).expand(n, S))
        if way == "own":
            return h + m.table(mask.long().cumsum(1) * mask)
        if way == "arange":
            return h + m.table(torch.arange(S))
        return h + m.free[:, :S]

    return Block(run, table=nn.Embedding(8, d), free=parameter(1, 8, d))


SEQUENCES = {
    make.__name__: make
    for make in (
        token_layer,
        token_routing,
        trimmed,
        buckets,
        loop_to_the_longest,
        packed_recurrent,
        recurrent,
        attention,
        positions,
    )
}


def masked_mean(choices, d):
    way = choices.choice(["mask", "segments", "loop"])

    def run(m, h, mask):
        lengths = mask.sum(1)
        if way == "mask":
            return (h * mask[..., None]).sum(1) / lengths[:, None]
        if way == "segments":
            rows = mask.nonzero()[:, 0]
            return torch.zeros_like(h[:, 0]).index_add(0, rows, m.inner(h[mask])) / lengths[:, None]
        return torch.stack([row[:length].mean(0) for row, length in zip(h, lengths.tolist(), strict=True)])

    return Block(run, inner=square(d))


def last_position(choices, d):
    way = choices.choice(["gather", "index", "first", "max"])

    def run(m, h, mask):
        last = mask.sum(1) - 1
        if way == "gather":
            return h.gather(1, last[:, None, None].expand(-1, 1, h.shape[2]))[:, 0]
        if way == "index":
            return h[torch.arange(len(h)), last]
        return h[:, 0] if way == "first" else h.masked_fill(~mask[..., None], -10.0).amax(1)

    return Block(run)


def class_token(choices, d):
    """A learned token in front of each row, which attends to the row."""

    def run(m, h, mask):
        full = torch.cat([m.token.expand(len(h), -1, -1), h], 1)
        valid = F.pad(mask, (1, 0), value=True)
        q, k, v = m.query(full[:, :1]), m.key(full), m.value(full)
        return F.scaled_dot_product_attention(q, k, v, valid[:, None])[:, 0]

    return Block(run, token=parameter(1, 1, d), query=square(d), key=square(d), value=square(d))


def final_state(choices, d):
    """The last state of a packed recurrent network."""
    lstm = choices.random() < 0.5
    sorted_ = choices.random() < 0.5

    def run(m, h, mask):
        lengths = mask.sum(1)
        order = lengths.argsort(descending=True, stable=True) if sorted_ else torch.arange(len(h))
        packed = pack_padded_sequence(h[order], lengths[order], batch_first=True, enforce_sorted=sorted_)
        state = m.rnn(packed)[1]
        return (state[0] if lstm else state)[-1][order.argsort()]

    return Block(run, rnn=(nn.LSTM if lstm else nn.GRU)(d, d, batch_first=True))


POOLS = {make.__name__: make for make in (masked_mean, last_position, class_token, final_state)}
