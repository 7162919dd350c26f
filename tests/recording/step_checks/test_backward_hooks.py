"""kernelmem.recording.step_checks.backward_hooks: hooks that change gradients are refused by name, others are not."""

import pytest
import torch
import torch.nn.functional as F

from kernelmem.core.errors import InputError
from kernelmem.recording.recorder import Recorder
from kernelmem.recording.run import Run


def step(lab, add_hook):
    model = lab.network()
    add_hook(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, lab.directory / "run", loss="cross_entropy") as recorder:
        for t in range(2):
            index, x, y = lab.batch(t)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            recorder.step(index, x, y)
    return Run.open(lab.directory / "run")


def halve(gradient):
    return gradient / 2


def halve_input(module, grad_input, grad_output):
    return tuple(None if g is None else g / 2 for g in grad_input)


def halve_output(module, grad_output):
    return tuple(g / 2 for g in grad_output)


def halve_accumulated(parameter):
    parameter.grad.mul_(0.5)


@pytest.mark.parametrize(
    ("add_hook", "words"),
    [
        (lambda model: model[2].weight.register_hook(halve), r"halve on parameter 2\.weight"),
        (
            lambda model: model[2].bias.register_post_accumulate_grad_hook(halve_accumulated),
            "halve_accumulated on parameter",
        ),
        (lambda model: model[2].register_full_backward_hook(halve_input), "halve_input on module '2'"),
        (lambda model: model[1].register_full_backward_pre_hook(halve_output), "halve_output on module '1'"),
    ],
)
def test_hooks_that_change_gradients_are_refused_by_name(lab, add_hook, words):
    with pytest.raises(
        InputError, match=rf"gradients that are not a multiple.*probable cause: gradient hooks \(.*{words}"
    ):
        step(lab, add_hook)


def test_hooks_that_only_look_are_called_by_the_training_loop(lab):
    seen = []

    def add_hooks(model):
        model[2].weight.register_hook(lambda gradient: seen.append(gradient.norm()))
        model[2].register_full_backward_hook(lambda *args: seen.append(args))

    assert len(step(lab, add_hooks)) == 2
    assert len(seen) == 4


def test_accumulation_with_dropout_is_refused_by_name(lab):
    model = lab.network(dropout=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, lab.directory / "run", loss="cross_entropy") as recorder:
        parts = [lab.batch(k) for k in range(2)]
        for _, x, y in parts:
            (F.cross_entropy(model(x), y) / 2).backward()
        with pytest.raises(InputError, match=r"probable cause: 2 forward passes since the last step, which draw"):
            recorder.step(*(torch.cat(column) for column in zip(*parts, strict=True)))
