"""Adapters of PEFT (LoRA and others) in a model: found by their interface, switched on or off."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from kernelmem.core import UnsupportedModelError


def set_adapter(model: nn.Module, enabled: bool) -> None:
    """Switch all adapters in ``model``, a private copy, on or off; off, its outputs are those of the base to the bit.

    Raises:
        UnsupportedModelError: no adapter; an adapter that is merged into the weights; off, and biases of the base model
            were trained with the adapter.
    """
    layers = adapter_layers(model)
    name = type(model).__name__
    if not layers:
        raise UnsupportedModelError(
            f"adapter={enabled} for a {name} without adapter layers",
            expected="a model with an adapter of PEFT in its layers, such as LoRA, that is not merged",
            hint="leave out adapter, and pass the model before the fine-tune as a model of its own",
        )
    if any(getattr(layer, "merged", False) for layer in layers):
        raise UnsupportedModelError(
            f"adapter={enabled} for a {name} whose adapter {adapter_names(model)} is merged into the weights",
            expected="an adapter that is not merged",
            hint="load the base model and the adapter again: unmerging restores the weights only up to rounding",
        )
    configs: object = getattr(model, "peft_config", {})
    biases = {getattr(c, "bias", "none") for c in configs.values()} if isinstance(configs, Mapping) else set()
    if not enabled and biases - {"none", None, False}:
        raise UnsupportedModelError(
            f"adapter=False for a {name} whose adapter {adapter_names(model)} trained biases of the base model",
            expected='an adapter with bias="none", without which the model is its base again',
            hint="load the base model and pass it by itself",
        )
    switch_adapter(model, enabled)


def switch_adapter(model: nn.Module, enabled: bool) -> None:
    """Switch all adapters on or off, without checks."""
    for layer in adapter_layers(model):
        layer.enable_adapters(enabled)


def adapter_layers(model: nn.Module) -> list[Any]:
    """Return the layers that have an adapter of PEFT."""
    return [
        module
        for module in model.modules()
        if isinstance(getattr(module, "disable_adapters", None), bool)
        and callable(getattr(module, "enable_adapters", None))
    ]


def adapter_names(model: nn.Module) -> str:
    """Return the names of the active adapters, for messages."""
    names: set[str] = set()
    for layer in adapter_layers(model):
        active = getattr(layer, "active_adapters", ())
        names |= set(map(str, [active] if isinstance(active, str) else active))
    return ", ".join(f'"{name}"' for name in sorted(names)) or "without a name"


def virtual_tokens(model: nn.Module) -> int:
    """Return the number of trained vectors that an adapter of PEFT puts before every document (prompt and prefix tuning)."""
    config: object = getattr(model, "active_peft_config", None)
    number: object = getattr(config, "num_virtual_tokens", None) if getattr(config, "is_prompt_learning", False) else 0
    return number if isinstance(number, int) else 0
