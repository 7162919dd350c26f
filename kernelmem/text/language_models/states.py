"""States of models between tokens: recurrent states and caches of keys and values, their rows selected and repeated."""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

from torch import Tensor, nn

from kernelmem.core import UnsupportedModelError
from kernelmem.text.language_models.calls import forward_parameters, takes_use_cache

State: TypeAlias = Any
"""State of a model between tokens: tensors in tuples, lists, dicts or objects, each with a batch axis; None at first."""

StepFunction: TypeAlias = Callable[[nn.Module, Tensor, State], tuple[Tensor, State]]
"""Type of ``step=``: a function of (model, tokens (n,), state or None) that returns (logits (n, V), the next state)."""

Advance: TypeAlias = Callable[[nn.Module, Tensor, State], tuple[object, State]]
"""Reads tokens (n, T) from a state (None: at the beginning): (logits (n, V) after the last token, the next state)."""

DEPTH = 6  # of containers in a state
CACHES = ("past_key_values", "cache", "cache_params")  # names of arguments and outputs of Hugging Face models


def advance_by(step: StepFunction) -> Advance:
    """Return the function that reads several tokens by a ``step=`` of one."""

    def advance(model: nn.Module, ids: Tensor, state: State) -> tuple[object, State]:
        logits: object = None
        for tokens in ids.T:
            logits, state = _pair(step(model, tokens, state), model)
        return logits, state

    return advance


def advance_of(model: nn.Module) -> Advance | None:
    """Return how a model reads tokens from a state: its method ``step(tokens, state)``, or its cache; None: it does not."""
    step: Any = getattr(model, "step", None)
    if callable(step):
        try:
            inspect.signature(step).bind(None, None)
        except (TypeError, ValueError):
            return None
        return advance_by(lambda model, tokens, state: model.step(tokens, state))  # pyright: ignore
    parameters = forward_parameters(model)
    name = next((name for name in CACHES if name in parameters), None)
    return None if name is None or not takes_use_cache(model, parameters) else _advance_by_cache(name)


def batch_axes(state: State, larger: State, sizes: tuple[int, ...]) -> list[int | None]:
    """Return the batch axis of each tensor of a state, from the states of two ``sizes`` of batches; None: it has none.

    Raises:
        UnsupportedModelError: states that differ in another way.
    """
    tensors = tensors_in(state), tensors_in(larger)
    axes = [
        [axis for axis in range(max(a.ndim, b.ndim)) if a.shape[axis : axis + 1] != b.shape[axis : axis + 1]]
        for a, b in zip(*tensors, strict=False)
    ]
    has_axes = len(tensors[0]) == len(tensors[1]) and all(
        not found or (len(found) == 1 and a.ndim == b.ndim and (a.shape[found[0]], b.shape[found[0]]) == sizes)
        for found, a, b in zip(axes, *tensors, strict=True)
    )
    if not has_axes:
        raise UnsupportedModelError(
            "a state whose tensors have no batch axis of their own",
            expected="tensors in tuples, lists or dicts, each with one axis as long as the number of documents",
            hint="return the state as nn.LSTM and nn.GRU do",
        )
    return [found[0] if found else None for found in axes]


def select(state: State, axes: list[int | None], rows: Tensor) -> State:
    """Return a copy of the state of some rows, which may repeat.

    Raises:
        UnsupportedModelError: another number of tensors than before.
    """
    if len(tensors_in(state)) != len(axes):
        raise UnsupportedModelError(
            f"a state of {len(tensors_in(state))} tensors after one of {len(axes)}",
            expected="the same tensors after every token",
            hint="return the state as nn.LSTM and nn.GRU do",
        )
    remaining: Iterator[int | None] = iter(axes)

    def chosen(values: Tensor) -> Tensor:
        axis = next(remaining)
        return values.clone() if axis is None else values.index_select(axis, rows.to(values.device))

    return _mapped(chosen, state)


def tensors_in(state: State) -> list[Tensor]:
    """Return the tensors of a state."""
    tensors: list[Tensor] = []

    def collect(values: Tensor) -> Tensor:
        tensors.append(values)
        return values

    _mapped(collect, state)
    return tensors


def _mapped(function: Callable[[Tensor], Tensor], state: State, depth: int = 0) -> State:
    """Return a copy of a state with a function of each tensor, in a fixed order."""
    if isinstance(state, Tensor):
        return function(state)
    if depth == DEPTH or isinstance(state, nn.Module | type) or callable(state):
        return state
    if isinstance(state, tuple):
        values = [_mapped(function, value, depth + 1) for value in state]
        return type(state)(*values) if hasattr(state, "_fields") else tuple(values)
    if isinstance(state, list):
        return [_mapped(function, value, depth + 1) for value in state]
    if type(state) is dict:
        return {key: _mapped(function, value, depth + 1) for key, value in state.items()}
    if hasattr(state, "__dict__") and not isinstance(state, Mapping):  # caches of Hugging Face, dataclasses
        result = copy.copy(state)
        for key, value in vars(state).items():
            result.__dict__[key] = _mapped(function, value, depth + 1)
        return result
    return state


def _pair(value: object, model: nn.Module) -> tuple[object, State]:
    if isinstance(value, tuple) and len(value) == 2:
        return value
    raise UnsupportedModelError(
        f"a {type(model).__name__} whose step returns {type(value).__name__}",
        expected="(logits (n, V), state)",
        hint="return both, or leave out step=",
    )


def _advance_by_cache(name: str) -> Advance:
    """Return the function that reads tokens with a cache; the state is (number of tokens read, cache)."""

    def advance(model: nn.Module, ids: Tensor, state: State) -> tuple[object, State]:
        parameters = forward_parameters(model)
        options: dict[str, Any] = {"use_cache": True}
        n_read, cache = (0, None) if state is None else state
        n_read += ids.shape[1]
        if cache is not None:
            options[name] = cache
        if "attention_mask" in parameters and (cache is None or "position_ids" in parameters):  # not for Mamba's state
            options["attention_mask"] = ids.new_ones(len(ids), n_read)
        if "logits_to_keep" in parameters:
            options["logits_to_keep"] = 1
        output: Any = model(input_ids=ids, **options)
        caches = (getattr(output, key, None) for key in (name, *CACHES))
        return output.logits[:, -1], (n_read, next(value for value in caches if value is not None))

    return advance
