"""Loss modules of torch.nn by name: a text with class, options and weights, from which the module is rebuilt."""

import json
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

CLASS_LOSSES = (nn.CrossEntropyLoss, nn.NLLLoss, nn.MultiMarginLoss)  # targets are labels (or probabilities)
OPTIONS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.CrossEntropyLoss: ("weight", "ignore_index", "label_smoothing"),
    nn.NLLLoss: ("weight", "ignore_index"),
    nn.MultiMarginLoss: ("weight", "p", "margin"),
    nn.MSELoss: (),
    nn.L1Loss: (),
    nn.SmoothL1Loss: ("beta",),
    nn.HuberLoss: ("delta",),
    nn.SoftMarginLoss: (),
    nn.PoissonNLLLoss: ("log_input", "full", "eps"),
    nn.BCELoss: ("weight",),
    nn.BCEWithLogitsLoss: ("weight", "pos_weight"),
}
CLASSES = {kind.__name__: kind for kind in OPTIONS}
REDUCTIONS = ("mean", "sum")
# modules that compute a named loss; its name is shorter and known to every analysis
NAMED = {
    'CrossEntropyLoss({"ignore_index": -100, "label_smoothing": 0.0, "reduction": "mean"})': "cross_entropy",
    'MSELoss({"reduction": "mean"})': "mse_mean",
}


class LossModule(NamedTuple):
    """A loss module with ``reduction="none"``, in float64, and the reduction in its name."""

    module: nn.Module
    reduction: str


def module_name(module: object) -> str | None:
    """Return the name of a loss module of torch.nn: class and options as JSON; None for everything else.

    Subclasses are not loss modules of torch.nn, and neither are modules with ``reduction="none"``.

    >>> module_name(nn.CrossEntropyLoss(label_smoothing=0.1))
    'CrossEntropyLoss({"ignore_index": -100, "label_smoothing": 0.1, "reduction": "mean"})'
    >>> module_name(nn.MSELoss())
    'mse_mean'
    """
    if not isinstance(module, nn.Module) or type(module) not in OPTIONS or module.reduction not in REDUCTIONS:
        return None
    values: dict[str, Any] = {"reduction": module.reduction}
    for name in OPTIONS[type(module)]:
        value = getattr(module, name)
        if isinstance(value, Tensor):
            value = value.detach().double().tolist()
        if value is not None:
            values[name] = value
    name = f"{type(module).__name__}({json.dumps(values, sort_keys=True)})"
    return NAMED.get(name, name)


@lru_cache(maxsize=32)
def module_from_name(name: str) -> LossModule | None:
    """Return the loss module with this name, or None if the text is not such a name."""
    class_name, _, text = name.partition("(")
    if class_name not in CLASSES or not text.endswith(")"):
        return None
    try:
        values = json.loads(text[:-1])
        reduction = values.pop("reduction")
        if reduction not in REDUCTIONS or not set(values) <= set(OPTIONS[CLASSES[class_name]]):
            return None
        for option in ("weight", "pos_weight"):
            if option in values:
                values[option] = torch.tensor(values[option], dtype=torch.float64)
        return LossModule(CLASSES[class_name](**values, reduction="none"), reduction)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, RecursionError):
        return None


def in_dtype(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return a loss module with its weights in ``dtype``; the module is not changed."""
    if all(buffer is None or buffer.dtype == dtype for buffer in module._buffers.values()):
        return module
    other = type(module).__new__(type(module))
    other.__dict__.update(module.__dict__)
    other.__dict__["_buffers"] = {k: None if b is None else b.to(dtype) for k, b in module._buffers.items()}
    return other
