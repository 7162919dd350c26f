"""Reference for influence: recorded runs trained again by torch.optim with weight 1 + ε on the loss of one example."""

import torch
from torch import nn

from kernelmem.recording.replay import set_modes
from kernelmem.recording.storage.param_groups import build_optimizer, set_groups
from kernelmem.training.losses import per_example_loss
from tests.trajectory.recorded import digits, record

N = 23
SGD, ADAM, ADAMW = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW
RMSPROP, ADAGRAD = torch.optim.RMSprop, torch.optim.Adagrad
UPDATES = {
    "plain": (SGD, {"lr": 0.3}),
    "decay": (SGD, {"lr": 0.3, "weight_decay": 0.02}),
    "momentum": (SGD, {"lr": 0.1, "momentum": 0.8}),
    "dampening": (SGD, {"lr": 0.2, "momentum": 0.8, "dampening": 0.3, "weight_decay": 0.02}),
    "nesterov": (SGD, {"lr": 0.1, "momentum": 0.8, "nesterov": True, "weight_decay": 0.02}),
    "maximize": (SGD, {"lr": 0.02, "momentum": 0.5, "maximize": True, "weight_decay": 0.01}),
    "adam": (ADAM, {"lr": 0.02, "eps": 1e-3, "betas": (0.8, 0.95)}),
    "adam_coupled": (ADAM, {"lr": 0.02, "eps": 1e-3, "weight_decay": 0.02}),
    "amsgrad": (ADAM, {"lr": 0.02, "eps": 1e-3, "betas": (0.8, 0.6), "amsgrad": True}),
    "adamw": (ADAMW, {"lr": 0.02, "eps": 1e-3, "weight_decay": 0.5}),
    "rmsprop": (RMSPROP, {"lr": 0.01, "eps": 1e-3}),
    "rmsprop_centered": (RMSPROP, {"lr": 0.01, "eps": 1e-2, "momentum": 0.6, "centered": True, "weight_decay": 0.02}),
    "adagrad": (ADAGRAD, {"lr": 0.05, "eps": 1e-3, "lr_decay": 0.1, "weight_decay": 0.02}),
}


def small(seed=0, activation=nn.Tanh):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 6), activation(), nn.Linear(6, 10)).double()


def run_of(path, kind, options, *, model=None, steps=9, batch=5, **recorded):
    """Batches of five of 23 examples: the fifth of an epoch is ragged."""
    x, y = digits(40)
    model = model or small()
    own = record(path, model, kind(model.parameters(), **options), x[:N], y[:N], steps=steps, batch=batch, **recorded)
    return own, model, x, y


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
        (factor * (own * step.sample_weight * weights[step.examples]).sum() / divisor).backward()
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
