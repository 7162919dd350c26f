"""forward= functions for models that other libraries make; none of these libraries is imported here."""

from typing import Any

from torch import Tensor, nn

from kernelmem.core.errors import InputError, UnsupportedModelError

__all__ = ["logits"]


def logits(model: nn.Module, batch: Any) -> Tensor:
    """Run a Hugging Face model on a dict of tensors (a tokenizer's output) and give its logits, (n, C).

    For ``forward=``: ``km.ntk(model, dict(tokenizer(texts, return_tensors="pt", padding=True)), forward=km.logits)``.
    A model that gives logits for every position, (n, S, V), gives those of its last position; with padding on the right
    that is no token of shorter rows: pad on the left, or write a forward of your own.

    Raises:
        InputError: the batch is no dict. UnsupportedModelError: the model's output has no logits.

    >>> import torch, types
    >>> class Tiny(nn.Module):
    ...     def forward(self, input_ids, attention_mask=None):
    ...         return types.SimpleNamespace(logits=input_ids.float() @ torch.ones(4, 2))
    >>> logits(Tiny(), {"input_ids": torch.ones(3, 4, dtype=torch.int64)}).shape
    torch.Size([3, 2])
    """
    if not isinstance(batch, dict):
        raise InputError(
            f"a batch of type {type(batch).__name__} for a model that is called with keywords",
            expected="a dict of tensors: input_ids, attention_mask, ...",
            hint='pass dict(tokenizer(texts, return_tensors="pt", padding=True)) as x',
        )
    output = model(**batch)
    found = output.get("logits") if isinstance(output, dict) else getattr(output, "logits", None)
    if not isinstance(found, Tensor):
        raise UnsupportedModelError(
            f"a {type(model).__name__} whose output, a {type(output).__name__}, has no logits",
            expected="a model with a head, e.g. AutoModelForSequenceClassification",
            hint="pass forward=lambda model, batch: ... that returns (n, C)",
        )
    return found[:, -1] if found.ndim == 3 else found
