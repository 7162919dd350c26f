"""Mirror of an optimizer: its formula applied to copies of the weights, to find changes that it does not explain."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from kernelmem.core.errors import InputError
from kernelmem.recording.storage.checkpoints import optimizer_state, set_optimizer_state
from kernelmem.recording.storage.param_groups import (
    ParamGroup,
    build_optimizer,
    plain_defaults,
    read_groups,
    set_groups,
)

ROUNDINGS = 8.0  # largest accepted difference of a weight, in units of eps |w|


class OptimizerMirror:
    """Copies of the parameters that take the same steps as the model's, by a torch optimizer without hooks.

    ``weights`` maps names to the copies; they are equal to the parameters after the last compared step.
    Memory: the weights and the state of the optimizer once more.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> None:
        """Copy the parameters (of the model, by name) and the present state of the optimizer.

        Raises:
            InputError: an optimizer or hyper-parameter that cannot be recorded.
        """
        names = {parameter: name for name, parameter in parameters.items()}
        self._parameters = parameters
        self._copies = {
            name: nn.Parameter(parameter.detach().clone(), requires_grad=False)
            for name, parameter in parameters.items()
        }
        groups = read_groups(optimizer, names)
        self._optimizer = build_optimizer(type(optimizer).__name__, plain_defaults(optimizer), groups, self._copies)
        set_optimizer_state(self._optimizer, optimizer_state(optimizer, names), self._copies)
        step = type(self._optimizer).step
        self._step = getattr(step, "__wrapped__", step)  # without torch's global step hooks

    @property
    def weights(self) -> dict[str, Tensor]:
        """The copies by name, as tensors that share their memory."""
        return {name: copy.detach().contiguous() for name, copy in self._copies.items()}

    def step(
        self, groups: Sequence[ParamGroup], gradients: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
    ) -> None:
        """Take a step with hyper-parameters ``groups`` and the gradients by name, before ``optimizer`` takes it."""
        set_groups(self._optimizer, groups, self._copies)
        for name, copy in self._copies.items():
            copy.grad = gradients.get(name)
            parameter = self._parameters[name]
            if copy not in self._optimizer.state and parameter in optimizer.state:  # made when its group was added
                new_state = {k: v for k, v in optimizer.state[parameter].items() if v is not None}
                self._optimizer.state[copy] = {key: torch.as_tensor(value).clone() for key, value in new_state.items()}
        try:
            self._step(self._optimizer)
        finally:
            for copy in self._copies.values():
                copy.grad = None

    def compare(self, optimizer: torch.optim.Optimizer, *, step: int, own_hook: object) -> None:
        """Check that the parameters are those of the formula; rounding is copied from them.

        Args:
            optimizer: the optimizer that has taken the step.
            step: index of the step, for the message.
            own_hook: the step hook of the recorder, which is not a cause.

        Raises:
            InputError: a parameter differs; the message names the one that differs most, and the step hooks.
        """
        errors = {}
        for name, copy in self._copies.items():
            parameter = self._parameters[name].detach()
            if torch.equal(parameter, copy):
                continue
            difference = (parameter.double() - copy.double()).abs()
            allowed = ROUNDINGS * torch.finfo(copy.dtype).eps * (copy.double().abs() + parameter.double().abs())
            both_nan = parameter.isnan() & copy.isnan()
            if bool(((difference <= allowed) | both_nan | (parameter == copy)).all()):
                copy.copy_(parameter)
            else:
                errors[name] = float(difference.nan_to_num(torch.inf).max())
        if errors:
            worst = max(errors, key=lambda name: errors[name])
            hooks = _step_hooks(optimizer, own_hook)
            cause = (
                f"the step hooks {', '.join(hooks)} change gradients or weights"
                if hooks
                else "the state of the optimizer was changed between the steps, or optimizer.step was replaced"
            )
            raise InputError(
                f"weights after step {step} that differ from the formula of {type(optimizer).__name__} in {len(errors)} of"
                f" {len(self._copies)} parameters, most in {worst} (by {errors[worst]:.3g})",
                expected="weights that only the optimizer's formula changes, with the gradients in .grad when"
                " recorder.step was called",
                hint=f"the probable cause: {cause}. Clip or scale the norm of all gradients before recorder.step; clipping of"
                " single entries and constraints on the weights cannot be attributed to examples",
            )


def _step_hooks(optimizer: torch.optim.Optimizer, own_hook: object) -> list[str]:
    """Return the names of the step hooks of the optimizer and of torch's global ones, except the recorder's own."""
    hooks = [
        *optimizer._optimizer_step_pre_hooks.values(),
        *optimizer._optimizer_step_post_hooks.values(),
        *_global_optimizer_pre_hooks.values(),
        *_global_optimizer_post_hooks.values(),
    ]
    return [getattr(hook, "__qualname__", type(hook).__qualname__) for hook in hooks if hook is not own_hook]


class StepGuard:
    """Step pre-hook of the recorded optimizer that refuses steps outside ``Recorder.step``."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        """Register the hook."""
        self._is_open = False
        self._handle = optimizer.register_step_pre_hook(self)

    @contextmanager
    def open(self) -> Iterator[None]:
        """Allow steps inside the ``with`` block."""
        self._is_open = True
        try:
            yield
        finally:
            self._is_open = False

    def __call__(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        """Refuse a step that the recorder does not take.

        Raises:
            InputError: the step was called outside ``Recorder.step``; it is not taken.
        """
        if not self._is_open:
            raise InputError(
                f"a call of {type(optimizer).__name__}.step in the with block of a recorder",
                expected="recorder.step(index, x, y) instead of optimizer.step(): a step that is not recorded cannot be"
                " explained",
                hint="call recorder.step(index, x, y), which calls optimizer.step(); with a GradScaler, call"
                " recorder.step(index, x, y, scaler=scaler) instead of scaler.step(optimizer), and then scaler.update();"
                " leave the with block to train without recording",
            )

    def remove(self) -> None:
        """Remove the hook from the optimizer."""
        self._handle.remove()
