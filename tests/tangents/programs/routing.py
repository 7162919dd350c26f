"""Branches that depend on the data of each row: mixtures of experts, early exit, adaptive depth."""

import torch
from torch import nn

from tests.tangents.programs.block import Block, hidden_layer, parameter, square


def experts_in_a_loop(choices, d):
    """Top-k experts, one after the other, each on the rows routed to it."""
    n_experts, k = choices.randint(2, 4), choices.randint(1, 2)
    write = choices.choice(["index_add", "index_add_", "assignment", "mask"])
    order = choices.choice(["fixed", "fixed", "by load", "as they come"])

    def run(m, h):
        weight, chosen = m.gate(h).softmax(-1).topk(k, -1)
        y = torch.zeros_like(h)
        experts = {
            "fixed": lambda: range(n_experts),
            "by load": lambda: chosen.flatten().bincount(minlength=n_experts).argsort(descending=True).tolist(),
            "as they come": lambda: list(dict.fromkeys(chosen.flatten().tolist())),
        }[order]()
        for e in experts:
            row, slot = (chosen == e).nonzero(as_tuple=True)
            if len(row) == 0:
                continue
            values = weight[row, slot, None] * m.experts[e](h[row])
            if write == "index_add":
                y = y.index_add(0, row, values)
            elif write == "index_add_":
                y.index_add_(0, row, values)
            elif write == "assignment":
                y[row] = y[row] + values
            else:
                y = y + torch.zeros_like(h).masked_scatter((chosen == e).any(1)[:, None].expand_as(h), values)
        return h + y

    return Block(
        run, gate=nn.Linear(d, n_experts), experts=nn.ModuleList(hidden_layer(d, d + 1) for _ in range(n_experts))
    )


def experts_by_sorting(choices, d):
    """Top-k experts on contiguous groups of rows: sort by expert, split, concatenate, restore the order."""
    n_experts, k = choices.randint(2, 4), choices.randint(1, 2)

    def run(m, h):
        weight, chosen = m.gate(h).softmax(-1).topk(k, -1)
        order = chosen.flatten().argsort(stable=True)
        counts = chosen.flatten().bincount(minlength=n_experts).tolist()
        inputs = h.repeat_interleave(k, 0)[order].split(counts)
        outputs = torch.cat([expert(part) for expert, part in zip(m.experts, inputs, strict=True)])
        restored = torch.empty_like(outputs).index_copy(0, order, outputs).view(len(h), k, -1)
        return h + (restored * weight[..., None]).sum(1)

    return Block(run, gate=nn.Linear(d, n_experts), experts=nn.ModuleList(hidden_layer(d, d) for _ in range(n_experts)))


def experts_batched(choices, d):
    """All experts as one weight (E, d, d): dense mixture, or the weight of each row's expert gathered."""
    n_experts, way = choices.randint(2, 3), choices.choice(["einsum", "bmm", "gathered", "dispatch"])

    def run(m, h):
        probabilities = m.gate(h).softmax(-1)
        if way == "einsum":
            return h + torch.einsum("ne,nd,edh->nh", probabilities, h, m.weight).tanh()
        if way == "bmm":  # (E, n, d) x (E, d, d)
            outputs = torch.bmm(h.expand(n_experts, *h.shape), m.weight).tanh()
            return h + (outputs * probabilities.T[..., None]).sum(0)
        top, chosen = probabilities.max(-1)
        if way == "gathered":
            return h + top[:, None] * torch.einsum("nd,ndh->nh", h, m.weight[chosen]).tanh()
        # A slot for every row in every expert (capacity n), filled in the order of the rows.
        one_hot = nn.functional.one_hot(chosen, n_experts).to(h)
        slot = ((one_hot.cumsum(0) - 1) * one_hot).sum(1).long()
        dispatch = torch.zeros(len(h), n_experts, len(h), dtype=h.dtype)
        dispatch[torch.arange(len(h)), chosen, slot] = 1.0
        outputs = torch.einsum("ecd,edh->ech", torch.einsum("nec,nd->ecd", dispatch, h), m.weight).tanh()
        return h + top[:, None] * torch.einsum("nec,ech->nh", dispatch, outputs)

    return Block(run, gate=nn.Linear(d, n_experts), weight=parameter(n_experts, d, d))


def early_exit(choices, d):
    """Rows leave as soon as their score passes a threshold; the rest go on."""
    stages, shared, threshold = choices.randint(2, 3), choices.random() < 0.3, choices.uniform(-0.3, 0.6)

    def run(m, h):
        done, active = torch.zeros_like(h), torch.arange(len(h))
        state = h
        for stage in range(stages):
            state = torch.tanh(m.layers[0 if shared else stage](state))
            leaves = (
                m.score(state)[:, 0] > threshold if stage < stages - 1 else torch.ones(len(state), dtype=torch.bool)
            )
            done = done.index_copy(0, active[leaves], state[leaves])
            active, state = active[~leaves], state[~leaves]
            if len(active) == 0:
                break
        return h + done

    return Block(run, score=nn.Linear(d, 1), layers=nn.ModuleList(square(d) for _ in range(1 if shared else stages)))


def second_layer_for_some(choices, d):
    """A layer that only some rows reach, by mask, by index or by ``where``."""
    way, feature = choices.choice(["mask", "index", "where", "in place"]), choices.randrange(d)

    def run(m, h):
        chosen = h[:, feature].detach() > 0.2
        if way == "where":
            return torch.where(chosen[:, None], m.inner(h).tanh(), h)
        if way == "index":
            rows = chosen.nonzero()[:, 0]
            return h.index_add(0, rows, m.inner(h[rows]).tanh())
        y = h.clone()
        if way == "mask":
            y[chosen] = m.inner(h[chosen]).tanh()
        else:
            y[chosen] += m.inner(h[chosen]).tanh()
        return y

    return Block(run, inner=square(d))


def row_by_row(choices, d):
    """A Python loop over the rows, with a branch each; rows keep or lose their batch axis."""
    keep, feature = choices.random() < 0.5, choices.randrange(d)

    def run(m, h):
        rows = h.split(1) if keep else h.unbind(0)
        outputs = [torch.tanh((m.one if row.flatten()[feature] > 0 else m.other)(row)) for row in rows]
        return h + (torch.cat(outputs) if keep else torch.stack(outputs))

    return Block(run, one=square(d), other=square(d))


def until_small(choices, d):
    """A shared layer applied to each row until its norm is small: the loop ends with the slowest row."""
    bound, packed = choices.uniform(0.3, 1.0), choices.random() < 0.5

    def run(m, h):
        for _ in range(4):
            large = h.norm(dim=1) > bound
            if not large.any():
                break
            if packed:
                h = h.index_put((large.nonzero()[:, 0],), 0.5 * m.inner(h[large]).tanh())
            else:
                h = torch.where(large[:, None], 0.5 * m.inner(h).tanh(), h)
        return h

    return Block(run, inner=square(d))


def only_late_rows(choices, d):
    """Two layers of which the second is run only if the batch has a row with a large feature, and for such rows."""
    feature = choices.randrange(d)

    def run(m, h):
        y, large = m.usual(h), h[:, feature] > 1.0
        if large.any():
            y = y + large[:, None] * m.rare(h)
        return y.tanh()

    return Block(run, usual=square(d), rare=square(d))


ROUTING = {
    make.__name__: make
    for make in (
        experts_in_a_loop,
        experts_by_sorting,
        experts_batched,
        early_exit,
        second_layer_for_some,
        row_by_row,
        until_small,
        only_late_rows,
    )
}
