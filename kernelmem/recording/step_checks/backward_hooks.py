"""Gradient hooks of parameters and modules: their names, and a gradient without them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn


def hook_names(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> list[str]:
    """Return a description of each parameter and module whose gradients a hook may change."""
    named_hooks = {name: {**_parameter_hooks(p), **_accumulation_hooks(p)} for name, p in parameters.items()}
    descriptions = [f"{_names(hooks)} on parameter {name}" for name, hooks in named_hooks.items() if hooks]
    for name, module in model.named_modules():
        hooks = {**module._backward_hooks, **module._backward_pre_hooks}
        if hooks:
            descriptions.append(f"{_names(hooks)} on module {name or '(root)'!r}")
    return descriptions


@contextmanager
def without_hooks(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Disable the gradient hooks of parameters and modules in a ``with`` block.

    A gradient that is computed in the block is the derivative of the loss, whatever hooks do to it in the training loop.
    """
    hook_dicts = [hooks for p in parameters.values() if (hooks := _parameter_hooks(p))]
    for module in model.modules():
        hook_dicts += [hooks for hooks in (module._backward_hooks, module._backward_pre_hooks) if hooks]
    saved = [(hooks, dict(hooks)) for hooks in hook_dicts]
    try:
        for hooks in hook_dicts:
            hooks.clear()
        yield
    finally:
        for hooks, entries in saved:
            hooks.update(entries)


def _parameter_hooks(parameter: nn.Parameter) -> dict[Any, Any]:
    """Return the dict of the hooks that torch calls with the gradient of a parameter."""
    return parameter._backward_hooks or {}


def _accumulation_hooks(parameter: nn.Parameter) -> dict[Any, Any]:
    """Return the dict of the hooks that torch calls after it has accumulated the gradient of a parameter."""
    return getattr(parameter, "_post_accumulate_grad_hooks", None) or {}


def _names(hooks: Mapping[Any, Any]) -> str:
    return ", ".join(getattr(hook, "__qualname__", type(hook).__qualname__) for hook in hooks.values())
