"""``forward=`` for models of the transformers library, which is not imported here."""

from torch import Tensor, nn

from kernelmem.core.batches import Batch
from kernelmem.core.checks import check_model
from kernelmem.core.errors import InputError, UnsupportedModelError


def logits(model: nn.Module, batch: Batch) -> Tensor:
    """Return the logits (n, C) of a Hugging Face model for a dict of tensors (the output of a tokenizer).

    It is passed as ``forward=``, for example
    ``km.ntk(model, dict(tokenizer(texts, return_tensors="pt", padding=True)), forward=km.logits)``.
    If the model gives logits (n, S, V) for S positions and V tokens, those of the last position are returned. With padding
    on the right this is a padding token of shorter rows: pad on the left, or write your own forward.

    Raises:
        InputError: the batch is not a dict. UnsupportedModelError: the output of the model has no logits.

    >>> import torch, types
    >>> class Tiny(nn.Module):
    ...     def forward(self, input_ids, attention_mask=None):
    ...         return types.SimpleNamespace(logits=input_ids.float() @ torch.ones(4, 2))
    >>> logits(Tiny(), {"input_ids": torch.ones(3, 4, dtype=torch.int64)}).shape
    torch.Size([3, 2])
    """
    check_model(model)
    if not isinstance(batch, dict) or not all(isinstance(name, str) for name in batch):
        raise InputError(
            f"a batch of type {type(batch).__name__} for a model that is called with keywords",
            expected="a dict of tensors: input_ids, attention_mask, ...",
            hint='pass dict(tokenizer(texts, return_tensors="pt", padding=True)) as x',
        )
    output = model(**batch)
    values = output.get("logits") if isinstance(output, dict) else getattr(output, "logits", None)
    if not isinstance(values, Tensor):
        raise UnsupportedModelError(
            f"a {type(model).__name__} whose output, a {type(output).__name__}, has no logits",
            expected="a model with a head, e.g. AutoModelForSequenceClassification",
            hint="pass forward=lambda model, batch: ... that returns (n, C)",
        )
    return values[:, -1] if values.ndim == 3 else values
