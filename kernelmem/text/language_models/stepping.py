"""Reading a model one token at a time, with a check that this gives what whole documents give."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor, nn

from kernelmem.core import NumericalError, UnsupportedModelError
from kernelmem.text.language_models.probes import REBATCHED
from kernelmem.text.language_models.states import Advance, State, batch_axes, select, tensors_in

Computing: TypeAlias = Callable[[tuple[int, ...]], AbstractContextManager[None]]
"""Makes the context in which a model is called on tokens of a shape."""

ROWS, LENGTH = (3, 2), 4  # numbers of documents, and tokens, of the check


@dataclass(frozen=True)
class Stepper:
    """A model and how it reads tokens from a state.

    Attributes:
        name: class of the model.
        model: the module.
        advance: reads tokens from a state.
        axes: batch axis of each tensor of a state; None: it has none.
        vocabulary: number V of tokens.
        device: device of the model.
        computing: makes the context in which the model is called.
    """

    name: str
    model: nn.Module
    advance: Advance
    axes: list[int | None]
    vocabulary: int
    device: torch.device
    computing: Computing

    def read(self, ids: Tensor) -> tuple[Tensor, State]:
        """Return the logits (n, V) after documents (n, T), T >= 1, and the state."""
        return self._advance(ids, None, None)

    def extend(self, state: State, rows: Tensor, tokens: Tensor) -> tuple[Tensor, State]:
        """Return the logits (m, V) after one more token (m,) of some rows (m,) of a state, and the next state."""
        return self._advance(tokens[:, None], state, rows)

    def n_bytes(self, state: State) -> int:
        """Return the size of a state in bytes."""
        return sum(values.numel() * values.element_size() for values in tensors_in(state))

    def _advance(self, ids: Tensor, state: State, rows: Tensor | None) -> tuple[Tensor, State]:
        with self.computing(tuple(ids.shape)):
            state = state if rows is None else select(state, self.axes, rows)
            value, state = self.advance(self.model, ids.to(self.device), state)
            logits = _as_logits(value, len(ids), self.vocabulary, self.name)
        return logits.detach(), state


def checked_stepper(stepper: Stepper, logits: Callable[[list[Tensor]], Tensor], first: int) -> Stepper:
    """Return a stepper that gives the logits of whole documents, with the batch axes of its states.

    Args:
        stepper: as yet without batch axes.
        logits: function of documents that returns their logits (n, T, V).
        first: token that may start a document.

    Raises:
        UnsupportedModelError: other logits, states without batch axes, or the model fails.
    """
    numbers = torch.Generator().manual_seed(1)
    ids = torch.randint(stepper.vocabulary, (ROWS[0], LENGTH), generator=numbers)
    ids[:, 0] = first
    expected = logits(list(ids))
    finite = expected[torch.isfinite(expected)]
    scale = max(float(finite.abs().max()), 1e-30) if len(finite) else 1.0
    read, state = stepper.read(ids[:, :2])
    stepper = replace(stepper, axes=batch_axes(stepper.read(ids[: ROWS[1], :2])[1], state, ROWS[::-1]))
    pairs, rows = [(read, expected[:, 1])], torch.tensor([2, 0, 2, 1])
    last = torch.tensor([3, 0])
    for _again in range(2):  # from one state, which must not change
        after, following = stepper.extend(state, rows, ids[rows, 2])
        second = stepper.extend(following, last, ids[rows[last], 3])[0]
        pairs += [(after, expected[rows, 2]), (second, expected[rows[last], 3])]
    difference = max(_difference(a, b) for a, b in pairs)
    if difference > REBATCHED * scale:
        raise UnsupportedModelError(
            f"a {stepper.name} whose logits token by token differ from those of whole documents by {difference:.2g}",
            expected="a step that continues the state of each document",
            hint="return the state after the token, and read the first token with state None",
        )
    return stepper


def stepper_or_none(stepper: Stepper, logits: Callable[[list[Tensor]], Tensor], first: int) -> Stepper | None:
    """Return the checked stepper, or None if the model cannot be read token by token."""
    try:
        return checked_stepper(stepper, logits, first)
    except (UnsupportedModelError, NumericalError):
        return None


def _difference(a: Tensor, b: Tensor) -> float:
    """Return the largest absolute difference, 0 where both are the same infinity."""
    difference = torch.where(a == b, 0.0, (a - b).abs().to(torch.float64))
    return float(torch.nan_to_num(difference, nan=torch.inf).max())


def _as_logits(value: object, n: int, vocabulary: int, model_name: str) -> Tensor:
    """Return logits (n, V) of real numbers.

    Raises:
        UnsupportedModelError: they are not.
    """
    if isinstance(value, Tensor) and tuple(value.shape) == (n, vocabulary) and value.is_floating_point():
        return value
    shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
    raise UnsupportedModelError(
        f"a {model_name} whose step returns logits {shape} for {n} tokens",
        expected=f"logits ({n}, {vocabulary}) of floating-point numbers",
        hint="return (logits, state) after one token of each document",
    )
