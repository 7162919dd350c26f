"""Re-initialized copy of a module, whose weights carry nothing of the labels that the module was trained on."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kernelmem.core.models import private_copy
from kernelmem.core.models.torch_func import GLOBAL_STATE


@dataclass(frozen=True)
class Reinitialized:
    """A re-initialized copy of a network.

    Attributes:
        module: the copy, in eval mode, on the device and in the dtype of the network.
        note: how its parameters were drawn.
    """

    module: nn.Module
    note: str


def reinitialize(model: nn.Module, seed: int) -> Reinitialized:
    """Return a copy of the model with new random parameters, also for those that were frozen.

    Every submodule that has ``reset_parameters()``, as the layers of torch do, is reset by it, the innermost first; running
    statistics are reset with it. Other parameters that are not constant are drawn from a normal distribution with their mean
    and standard deviation. Constant parameters (biases of 0, scales of 1) and buffers of other modules are kept. The random
    state of torch is not changed.
    """
    copy = private_copy(model).eval()
    device = next(copy.parameters()).device
    copy.cpu()
    before = {name: parameter.detach().clone() for name, parameter in copy.named_parameters()}
    with GLOBAL_STATE, torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(seed)
        for module in reversed(list(copy.modules())):
            _reset(module)
        drawn = [name for name, parameter in copy.named_parameters() if _draw(parameter, before[name])]
    note = "reset_parameters() of its modules"
    if drawn:
        note += f"; {len(drawn)} of {len(before)} parameters without it drawn with equal mean and standard deviation"
    return Reinitialized(copy.to(device), note)


def _reset(module: nn.Module) -> None:
    """Call ``reset_parameters()`` of a module that has it and does not need arguments."""
    reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
    if callable(reset):
        try:
            reset()
        except Exception:  # a user's function of this name may need arguments: its parameters are drawn instead
            return


def _draw(parameter: nn.Parameter, before: Tensor) -> bool:
    """Replace a parameter that is as before and not constant by normal numbers of its mean and standard deviation."""
    if not torch.equal(parameter, before) or parameter.numel() == 0 or not parameter.is_floating_point():
        return False
    spread = float(before.double().std(correction=0))
    if spread == 0:
        return False
    parameter.copy_(torch.randn_like(parameter) * spread + float(before.double().mean()))
    return True
