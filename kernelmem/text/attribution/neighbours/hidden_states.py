"""Hidden states of a language model: what its output layer, or a function of the user, sees at every position."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from kernelmem.core import KernelmemError, UnsupportedModelError
from kernelmem.core.checks import check_callable
from kernelmem.text.language_models import CausalLM, check_causal

StateFunction: TypeAlias = Callable[[nn.Module, Tensor], Tensor]
"""Type of ``state=``: a function of (model, ids (n, T)) that returns hidden states (n, T, d)."""

HINT = "pass state=lambda model, ids: ... that returns hidden states (n, T, d), such as"
EXAMPLE = "model(ids, output_hidden_states=True).hidden_states[-1] of a Hugging Face model"
ROUNDING = 2048 * torch.finfo(torch.float32).eps  # of logits, relative: some models compute them in float32 always


class HiddenStates:
    """Log-probabilities and hidden states of a language model, of the same tokens.

    Raises:
        InputError: ``state`` is not a function of (model, ids).
        UnsupportedModelError: no state is given and no linear layer alone has the logits as its output; or the states do not
            have the shape (n, T, d), look at later tokens, or depend on the batch.
    """

    def __init__(self, lm: CausalLM, state: StateFunction | None) -> None:
        self._lm = lm
        self._states_lm: CausalLM | None = None
        self._head: nn.Module | None = None
        if state is None:
            self._head = _output_layer(lm)
            return
        check_callable(state, "state", ("model", "ids"))
        self._states_lm = states_lm = CausalLM(lm.module(), forward=state, bos=lm.bos)
        try:
            check_causal(lambda ids, skip=0: states_lm.evaluate(ids, skip=skip), lm.vocabulary, lm.bos or 0, lm.name)
        except KernelmemError as error:
            raise _refusal(error) from error

    def batches(self, inputs: Sequence[Tensor], memory: int | str) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """Iterate over batches: numbers of the inputs, log-probabilities (b, T, V), hidden states (b, T, d) on the CPU.

        Rows after the end of an input are undefined.
        """
        captured: list[Tensor] = []
        handle = self._head and self._head.register_forward_pre_hook(
            lambda _, values: captured.append(values[0].detach())
        )
        try:
            for rows, log_probs in self._lm.batches(inputs, dtype=None, memory=memory):
                if self._states_lm is None:
                    states = captured.pop()
                else:
                    try:
                        states = self._states_lm.evaluate([inputs[row] for row in rows])
                    except KernelmemError as error:
                        raise _refusal(error) from error
                captured.clear()
                yield rows, log_probs, states.cpu()
        finally:
            if handle:
                handle.remove()


def _output_layer(lm: CausalLM) -> nn.Module:
    """Return the only linear layer whose output is the logits.

    Raises:
        UnsupportedModelError: there is none, or several.
    """
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []

    def record(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if inputs:  # not given by keyword
            calls.append((layer, inputs[0], output))

    layers = [module for module in lm.module().modules() if isinstance(module, nn.Linear)]
    handles = [layer.register_forward_hook(record) for layer in layers]
    try:
        logits = lm.evaluate(next(lm.probes()))
    finally:
        for handle in handles:
            handle.remove()
    found = [layer for layer, states, output in calls if _gives(logits, states, output)]
    if len(found) == 1:
        return found[0]
    raise UnsupportedModelError(
        f"a {lm.name} in which {len(found) or 'no'} calls of nn.Linear give the logits from states (n, T, d)",
        expected="one output layer, whose input is the hidden state",
        hint=f"{HINT} {EXAMPLE}",
    )


def _gives(logits: Tensor, states: Tensor, output: Tensor) -> bool:
    """True if a layer that returned ``output`` (n, T, V) gives the logits, up to a constant per row and rounding."""
    if output.shape != logits.shape or states.shape[:2] != logits.shape[:2]:
        return False
    a, b = (values[:, :2].double().log_softmax(2) for values in (output, logits))  # every probe has two tokens
    return torch.allclose(a, b, rtol=ROUNDING, atol=ROUNDING * float(b.nan_to_num(0, 0, 0).abs().max()))


def _refusal(error: KernelmemError) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"states=, where the states take the place of logits: {error.given}".replace("states=", "state=", 1),
        expected="hidden states (n, T, d), each of the tokens up to its position, the same in every batch",
        hint=f"{HINT} {EXAMPLE}",
    )
