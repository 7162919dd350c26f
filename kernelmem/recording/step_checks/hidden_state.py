"""Detection of state that is neither parameter nor buffer: the first rows of a run, evaluated again at every step."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn

from kernelmem.core.batches import Batch, Forward, Tree, map_tree
from kernelmem.core.errors import InputError
from kernelmem.core.models.torch_func import functional_call
from kernelmem.recording.step_checks.random_state import get_random_state, random_state
from kernelmem.training.losses import Loss, per_example_loss

N_ROWS = 2  # rows that are evaluated again; batch normalization in train mode needs two
ROUNDINGS = 1e3  # largest accepted change, in units of eps: the same program gives the same bits
PLAIN = (bool, int, float, str, type(None))


class ForwardModule(nn.Module):
    """A model with its forward function as one module, so that buffers can be replaced for one call."""

    def __init__(self, model: nn.Module, function: Forward) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, batch: Batch) -> Tensor:
        """Return the outputs of the model on a batch."""
        return self.function(self.model, batch)


class HiddenStateCheck:
    """Evaluates two rows of the first step at its weights, buffers, modes and random state, once more at every step.

    A schedule of a Python attribute (a temperature, a dropout probability, the weight of a loss term) changes the result,
    though no parameter or buffer shows it; what is not recorded could not be explained later.
    Cost: a forward pass of two rows; memory for the weights.
    """

    def __init__(self, model: nn.Module, forward: Forward, loss: Loss, device: torch.device) -> None:
        """Store what is evaluated, on ``device``; a loss that is a name has no state."""
        self._model, self._forward, self._loss, self._device = model, forward, loss, device
        self._module = ForwardModule(model, forward)
        self._parts: list[Tensor] = []  # outputs and losses at the first step; empty before it

    def check(self, step: int, x: Tree, y: Tensor, state: Mapping[str, Tensor]) -> None:
        """Store the first two rows and their outputs in the first call, and compare with them in the next ones.

        Args:
            step: index of the step, for the message.
            x: (B, ...) inputs of the step.
            y: (B, ...) targets.
            state: parameters and buffers before the step.

        Raises:
            InputError: outputs or losses have changed; the message names the attributes that did.
        """
        if not self._parts:
            self._first_step = step
            parameters = dict(self._model.named_parameters())
            self._weights = [(p, state[name].clone()) for name, p in parameters.items() if name in state]
            self._buffers = {f"model.{name}": value.clone() for name, value in state.items() if name not in parameters}
            self._modes = {module: module.training for module in self._model.modules()}
            self._random = get_random_state(self._device)
            self._attributes = self._plain_attributes()
            for n in (N_ROWS, len(y)):  # some models take whole batches only
                self._x = map_tree(x, lambda leaf, n=n: leaf[:n].clone())
                self._y = y[:n].clone()
                try:
                    self._parts = self._evaluate()
                    return
                except Exception:  # raised by the user's module, so of any type
                    if n == len(y):
                        raise
        for description, before, after in zip(("outputs", "losses"), self._parts, self._evaluate(), strict=False):
            limit = ROUNDINGS * torch.finfo(before.dtype).eps * float(before.abs().max())
            difference = (after - before).abs().max() if after.shape == before.shape else torch.inf
            if not (float(difference) <= limit or torch.equal(before, after)):
                self._refuse(step, description, float(difference))

    def _refuse(self, step: int, description: str, difference: float) -> None:
        """Raise the error for ``description`` (outputs or losses) that differ by ``difference`` from the first step's."""
        attributes = self._plain_attributes()
        changes = [
            f"{name} from {self._attributes.get(name)!r} to {attributes.get(name)!r}"
            for name in {**self._attributes, **attributes}
            if self._attributes.get(name) != attributes.get(name)
        ]
        owner = "model" if description == "outputs" else "loss"
        raise InputError(
            f"a {owner} that has changed between step {self._first_step} and step {step}, though its parameters and buffers"
            f" are the same: the {description} of two rows differ by {difference:.3g}"
            + (f" ({'; '.join(changes[:4])})" if changes else ""),
            expected=f"a {owner} without schedules in Python attributes: they are not recorded, so that later analyses would"
            " use their last value",
            hint="keep the attribute constant, or make it an input: one value for each row in x (a dict or tuple), or"
            " sample_weight= for the weight of a loss",
        )

    def _evaluate(self) -> list[Tensor]:
        """Return the outputs, and the losses if there is a loss, of the stored rows in the stored state."""
        buffers = {name: value.clone() for name, value in self._buffers.items()}
        with random_state(self._random, self._device), torch.no_grad(), self._stored_weights():
            rows = map_tree(self._x, Tensor.clone)
            outputs = functional_call(self._module, buffers, (rows,)) if buffers else self._module(rows)
            parts = [outputs.detach().clone()]
            if callable(self._loss):
                parts.append(per_example_loss(self._loss)(outputs, self._y).detach().clone())
            return parts

    @contextmanager
    def _stored_weights(self) -> Iterator[None]:
        """Give the model's parameters the stored values, and its modules the stored modes, in a ``with`` block."""
        # .data: functional_call does not reach weights that a module holds in lists of its own (nn.LSTM)
        current = [(parameter, parameter.data) for parameter, _ in self._weights]
        changed_modes = [
            (module, not training) for module, training in self._modes.items() if module.training != training
        ]
        try:
            for parameter, value in self._weights:
                parameter.data = value
            for module, training in changed_modes:
                module.training = not training
            yield
        finally:
            for parameter, value in current:
                parameter.data = value
            for module, training in changed_modes:
                module.training = training

    def _plain_attributes(self) -> dict[str, object]:
        """Return the numbers, strings and truth values among the attributes of model, loss and forward, by name."""
        owners: dict[str, object] = {name or "model": module for name, module in self._model.named_modules()}
        attributes = {}
        for owner_name, owner in (owners | {"loss": self._loss, "forward": self._forward}).items():
            names = [*getattr(owner, "__dict__", ())]
            values = dict(zip(names, (getattr(owner, name, None) for name in names), strict=True))
            code, cells = getattr(owner, "__code__", None), getattr(owner, "__closure__", None) or ()
            for name, cell in zip(getattr(code, "co_freevars", ()), cells, strict=False):
                with suppress(ValueError):  # an empty cell
                    values[name] = cell.cell_contents
            attributes |= {
                f"{owner_name}.{name}": value
                for name, value in values.items()
                if isinstance(value, PLAIN) and name != "training"
            }
        return attributes
