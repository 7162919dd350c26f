"""Call of a language model and the logits in its output; neither transformers nor peft is imported."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from kernelmem.core import KernelmemError, UnsupportedModelError
from kernelmem.text.language_models.adapters import virtual_tokens

LogitsFunction: TypeAlias = Callable[[nn.Module, Tensor], Tensor]
"""Type of ``forward=``: a function of (model, ids (n, T)) that returns the logits (n, T, V)."""

HINT = "pass forward=lambda model, ids: ... that returns the logits (n, T, V) at all T positions"


def model_logits(model: nn.Module, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the logits (n, T, V) of a model on token ids (n, T).

    A module is called as ``model(ids)``. Parameters of its ``forward`` with the names of Hugging Face models are passed
    if it has them: ``attention_mask``, ``position_ids`` (0, 1, ...) and ``use_cache=False``.

    Args:
        model: a module whose output is the logits, has them as ``logits`` (attribute or key), or is a tuple that starts
            with them.
        ids: token ids, padded on the right.
        mask: (n, T), 1 for tokens and 0 for padding; None: no padding.

    Raises:
        UnsupportedModelError: the output has no logits of this shape.
    """
    n, length = ids.shape
    parameters = forward_parameters(model)
    keywords: dict[str, Any] = {}
    if "attention_mask" in parameters:
        keywords["attention_mask"] = torch.ones_like(ids) if mask is None else mask
    virtual = virtual_tokens(model)  # which have positions of their own
    if "position_ids" in parameters and not virtual:
        keywords["position_ids"] = torch.arange(length, device=ids.device).expand(n, length)
    if takes_use_cache(model, parameters):
        keywords["use_cache"] = False
    output = model(input_ids=ids, **keywords) if "input_ids" in parameters else model(ids, **keywords)
    logits = _logits_in(output, n, length)
    if virtual and isinstance(logits, Tensor) and logits.ndim == 3 and logits.shape[1] == virtual + length:
        logits = logits[:, virtual:]
    return check_logits(logits, n, length, type(model).__name__)


def check_logits(value: object, n: int, length: int, model_name: str) -> Tensor:
    """Return logits (n, T, V) of real numbers with V >= 1.

    Raises:
        UnsupportedModelError: they are not.
    """
    if isinstance(value, Tensor) and value.ndim == 3 and value.shape[:2] == (n, length) and value.shape[2] > 0:
        if value.is_floating_point():
            return value
        description = f"of dtype {value.dtype}".replace("torch.", "")
    elif isinstance(value, Tensor):
        description = f"of shape {tuple(value.shape)}"
    else:
        description = f"of type {type(value).__name__}"
    raise UnsupportedModelError(
        f"a {model_name} with outputs {description} for token ids ({n}, {length})",
        expected=f"logits ({n}, {length}, V): a floating-point number per position and token of the vocabulary",
        hint=HINT,
    )


@contextmanager
def ieee_precision(device: torch.device) -> Iterator[None]:
    """Compute float32 products in float32 inside a ``with`` block: CUDA runs recurrent layers in TF32 by default.

    TF32 has 10 bits of mantissa, and the losses of a document would depend on the batch in the third digit.
    """
    cudnn: Any = torch.backends.cudnn
    settings = [cudnn.rnn, cudnn.conv, torch.backends.cuda.matmul] if device.type == "cuda" else []
    before = [setting.fp32_precision for setting in settings]
    try:
        for setting in settings:
            setting.fp32_precision = "ieee"
        yield
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.fp32_precision = value


def failure(error: Exception, model_name: str, shape: tuple[int, ...]) -> KernelmemError:
    """Return the error to raise for an exception of a user's model."""
    if isinstance(error, KernelmemError):
        return error
    reason = str(error).splitlines()[0][:200] if str(error) else "no message"
    return UnsupportedModelError(
        f"a {model_name} that fails on token ids {tuple(shape)} ({type(error).__name__}: {reason})",
        expected="a model of token ids (n, T) of any n and T, with values in its vocabulary",
        hint="pass forward= if the model is called in another way, window= to token_losses if documents are too long for"
        " it, and check that bos is in its vocabulary",
    )


def _logits_in(output: object, n: int, length: int) -> object:
    """Return the part of an output that has the logits."""
    if isinstance(output, Mapping):
        return output.get("logits", output)
    if not isinstance(output, Tensor) and hasattr(output, "logits"):
        return output.logits  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(output, tuple | list) and output:
        candidates = [p for p in output if isinstance(p, Tensor) and p.ndim == 3 and p.shape[:2] == (n, length)]
        return output[0] if len(candidates) == 1 else output
    return output


def takes_use_cache(model: nn.Module, parameters: Mapping[str, inspect.Parameter]) -> bool:
    """Check that the ``forward`` of a model has an argument ``use_cache``, perhaps among its other keywords."""
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    return "use_cache" in parameters or (takes_any and hasattr(getattr(model, "config", None), "use_cache"))


def forward_parameters(model: nn.Module) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of the ``forward`` of a model; of the base model below an adapter that passes on any."""
    base_of: Any = getattr(model, "get_base_model", None)  # of PEFT, which passes on other keywords
    try:
        parameters = inspect.signature(model.forward).parameters
        if callable(base_of) and any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
            base: Any = base_of()
            parameters = {**inspect.signature(base.forward).parameters, **parameters}
        return parameters
    except (TypeError, ValueError):  # a scripted module without a signature
        return {}
