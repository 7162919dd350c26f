"""Ledger of an SGD run by its definition: dense tangents, and torch.optim.SGD applied to each example's part.

SGD is linear in the gradients, whatever its momentum: run on the gradients of one example alone, from weights of zero, it
makes that example's part of every step. A further source has the gradient λ w of weight decay.
"""

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from kernelmem.recording.recorder import Recorder
from kernelmem.recording.run import Run
from kernelmem.training.losses import per_example_loss


def small(activation=nn.Tanh, widths=(4, 5, 3), seed=0):
    """A network of linear layers, float64."""
    torch.manual_seed(seed)
    layers = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), activation()]
    return nn.Sequential(*layers[:-1]).double()


def data(n=12, inputs=4, outputs=3, seed=0):
    """Rows and labels."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, inputs, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, outputs, (n,), generator=generator)


def ragged(n=12, sizes=(5, 3, 3, 4, 1, 5), seed=0):
    """Batches of these sizes."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randperm(n, generator=generator)[:size] for size in sizes]


def train(path, model, optimizer, x, y, batches, *, before=None, weights=None, average=None, **options):
    """Train on these batches; ``before`` (t, model, optimizer) is called after the backward pass of every step."""
    with Recorder(model, optimizer, path, loss="cross_entropy", **options) as recorder:
        for t, index in enumerate(batches):
            model.zero_grad()
            weight = None if weights is None else weights[index]
            losses = nn.functional.cross_entropy(model(x[index]), y[index], reduction="none")
            losses = losses if weight is None else losses * weight
            (losses.sum() if options.get("reduction") == "sum" else losses.mean()).backward()
            if before is not None:
                before(t, model, optimizer)
            recorder.step(index, x[index], y[index], weight)
            if average is not None and t >= 2:
                recorder.average(average)
    return Run.open(path)


def definition(run, model, x, y, rows, *, nodes=8) -> tuple[Tensor, Tensor]:
    """Contributions (m, n, C) and decay (m, C) of a run of SGD."""
    names, n, m = run.parameters, len(x), len(rows)
    own = {name: nn.Parameter(torch.zeros(n + 1, *run.weights(0)[name].shape, dtype=torch.float64)) for name in names}
    optimizer = torch.optim.SGD(own.values(), lr=0.0, foreach=False)
    loss = per_example_loss(run.loss)
    places, shares = np.polynomial.legendre.leggauss(nodes)
    places, shares = 0.5 * (places + 1), 0.5 * shares
    total = 0.0
    for t, step in enumerate(run.steps):
        state, after = ({name: run.weights(s)[name].double() for name in names} for s in (t, t + 1))
        index = step.examples

        def losses(weights, index=index):
            return loss(functional_call(model, weights, (x[index],)), y[index])

        gradients = jacrev(losses)(state)
        share = step.sample_weight.double() * step.scale / (len(index) if run.reduction == "mean" else 1)
        before = {name: p.detach().clone() for name, p in own.items()}
        optimizer.param_groups.clear()
        for group in step.groups:
            held = {"params": [own[name] for name in group["parameters"]], "foreach": False}
            optimizer.add_param_group({**{k: v for k, v in group.items() if k not in ("parameters", "params")}, **held})
            optimizer.param_groups[-1]["weight_decay"] = 0.0
            for name in group["parameters"]:
                p = own[name]
                p.grad = None
                if name in step.skipped:
                    continue
                p.grad = torch.zeros_like(p)
                scaled = gradients[name] * share.view(-1, *[1] * (p.ndim - 1))
                p.grad.index_add_(0, index, scaled)
                p.grad[n] = (-1 if group["maximize"] else 1) * group["weight_decay"] * state[name]
        optimizer.step()
        for place, weight in zip(places, shares, strict=True):
            here = {name: torch.lerp(state[name], after[name], float(place)) for name in names}
            tangents = jacrev(lambda w: functional_call(model, w, (rows,)))(here)
            for name in names:
                moved = (own[name].detach() - before[name]).reshape(n + 1, -1)
                total = total + weight * torch.einsum(
                    "mcp,np->mnc", tangents[name].reshape(m, -1, moved.shape[1]), moved
                )
    return total[:, :n], total[:, n].view(m, -1)
