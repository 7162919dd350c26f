"""Loss scaling by ``torch.amp.GradScaler``: the scale of a step, its unscaled gradients, and steps that are skipped."""

from dataclasses import dataclass

import torch
from torch.amp import GradScaler
from torch.amp.grad_scaler import OptState

from kernelmem.core.checks import check_instance
from kernelmem.core.errors import InputError


@dataclass(frozen=True)
class LossScaling:
    """How the loss of one step was scaled: by ``scale``; ``scaler`` is None if it is not a GradScaler that scales it."""

    scaler: GradScaler | None = None
    scale: float = 1.0
    overflowed: bool = False  # True if an unscaled gradient is not finite: the scaler then skips the step

    def take_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the step of the optimizer as the scaler does, which leaves it out if a gradient is not finite."""
        if self.scaler is None:
            optimizer.step()
        else:
            self.scaler.step(optimizer)

    def skip_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Let the scaler skip the step of the optimizer, because a gradient is not finite.

        Raises:
            InputError: the skipped step has left momentum buffers that were never written. They are removed again.
        """
        had_momentum = any(state.get("momentum_buffer") is not None for state in optimizer.state.values())
        self.take_step(optimizer)  # a fused optimizer skips it by itself
        states = [state for state in optimizer.state.values() if state.get("momentum_buffer") is not None]
        if states and not had_momentum:
            for state in states:
                state["momentum_buffer"] = None
            raise InputError(
                f"a first step of a fused {type(optimizer).__name__} with momentum that the scaler skips, after which torch"
                " uses momentum buffers that were never written",
                expected="fused=False, or finite gradients in the first step",
                hint="make the optimizer without fused=True, or the GradScaler with a smaller init_scale",
            )


def unscale(scaler: GradScaler | None, optimizer: torch.optim.Optimizer) -> LossScaling:
    """Divide the gradients of the optimizer by the scale, unless the caller has done so, and check that they are finite.

    Raises:
        InputError: ``scaler`` is not a GradScaler, has scaled no loss, or was not updated after the last step.
    """
    if scaler is None:
        return LossScaling()
    check_instance(scaler, "scaler", GradScaler, hint="pass the torch.amp.GradScaler that scaled the loss")
    if not scaler.is_enabled():
        return LossScaling()
    state = scaler._per_optimizer_states[id(optimizer)]  # torch has no public way to ask whether gradients are unscaled
    if state["stage"] is OptState.STEPPED:
        raise InputError(
            "a GradScaler that was not updated after the last step",
            expected="scaler.update() after every recorder.step",
            hint="call scaler.update() at the end of the loop",
        )
    if state["stage"] is OptState.READY:
        try:
            scaler.unscale_(optimizer)
        except (AssertionError, RuntimeError, ValueError) as error:  # no scaled loss yet, or gradients in float16
            raise InputError(
                f"a GradScaler that cannot unscale the gradients ({error})",
                expected="a scaler that has scaled the loss of this step, and parameters in float32",
                hint="call scaler.scale(loss).backward() before recorder.step(..., scaler=scaler)",
            ) from error
    overflowed = any(bool(found) for found in state["found_inf_per_device"].values())
    return LossScaling(scaler, float(scaler.get_scale()), overflowed)
