"""Recorded runs trained again with real torch.optim, the loss of one example weighing 1 + ε: what influence is held against."""

import torch
from torch import nn

from kernelmem.runs.hyperparameters import build_optimizer, set_groups
from kernelmem.runs.losses import per_example_loss
from kernelmem.runs.replay import set_modes


def retrained(run, model, weights, *, clip=None, factor=1.0):
    """The model after the run's steps in float64, the loss of example i multiplied by weights[i].

    The optimizer, clipping at ``clip`` and train-mode layers are torch's own; ``factor`` is a constant on the gradients.
    """
    model = model.double()
    first = {name: value.double() if value.is_floating_point() else value for name, value in run.weights(0).items()}
    model.load_state_dict(first)
    parameters = dict(model.named_parameters())
    optimizer = build_optimizer(run.optimizer, run.meta["defaults"], run.steps[0].groups, parameters)
    loss = per_example_loss(run.loss)
    for step in run.steps:
        x, y = run.tape.inputs(step)
        set_groups(optimizer, step.groups, parameters)
        set_modes(model, step.evaluating)
        optimizer.zero_grad()
        if step.random is not None:
            torch.set_rng_state(torch.frombuffer(bytearray(step.random), dtype=torch.uint8))
        divisor = len(y) if run.reduction == "mean" else 1
        own = loss(model(x.double()), y.double() if y.is_floating_point() else y)
        (factor * (own * step.weights * weights[step.examples]).sum() / divisor).backward()
        for name in step.skipped:
            parameters[name].grad = None
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
    return model


def finite_difference(run, model, n, example, function, *, h, **options):
    """d function(retrained model) / dε of the weight 1 + ε of one example: central differences, extrapolated twice."""

    def central(width):
        found = []
        for sign in (1, -1):
            weights = torch.ones(n, dtype=torch.float64)
            weights[example] += sign * width
            found.append(function(retrained(run, model, weights, **options)))
        return (found[0] - found[1]) / (2 * width)

    coarse, middle, fine = central(h), central(h / 2), central(h / 4)
    first, second = (4 * middle - coarse) / 3, (4 * fine - middle) / 3
    return (16 * second - first) / 15
