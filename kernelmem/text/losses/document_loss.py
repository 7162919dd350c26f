"""Loss of documents as the output of a model: the ``forward=`` of kernels, recorded runs, ledgers and influences."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kernelmem.core import InputError
from kernelmem.core.checks import as_count, check_model
from kernelmem.core.models.torch_func import is_transformed
from kernelmem.text.documents import as_documents
from kernelmem.text.language_models import failure, model_logits
from kernelmem.text.losses.targets import IGNORED, as_targets

HINT = "pass km.text.document_batch(documents)"
Rows = Tensor | Mapping[str, Tensor]
"""Token ids (n, T), or a dict with "input_ids" and possibly "labels" and "attention_mask", all (n, T)."""


def document_loss(model: nn.Module, batch: Rows) -> Tensor:
    """Return the loss of each document, L_i = -Σ_t log p(x_t | x_0 ... x_{t-1}) in nats, as the only output (n, 1).

    It is passed as ``forward=`` to ``km.ntk``, ``km.Recorder``, ``km.ledger`` and ``km.influence``, which then explain by the
    training documents how the code length of a document changed. The first token, usually BOS, is read but has no loss.
    The model is called as by :func:`kernelmem.text.causal_lm`, in the mode it is in, and gradients flow.

    Args:
        model: a causal language model, called as ``model(ids)``, or with the names of Hugging Face models.
        batch: token ids (n, T) of documents of equal length; or a dict, as from :func:`document_batch`: "labels" are the
            ids at tokens with loss and -100 at others (not shifted).

    Raises:
        InputError: not such a batch. UnsupportedModelError: the model fails, or its output has no logits (n, T, V).

    >>> model = nn.Sequential(nn.Embedding(4, 2), nn.Linear(2, 4))
    >>> _ = [nn.init.zeros_(p) for p in model.parameters()]
    >>> document_loss(model, torch.tensor([[0, 3, 1]])) / torch.log(torch.tensor(2.0))  # uniform: 2 bits per token
    tensor([[4.]], grad_fn=<DivBackward0>)
    """
    check_model(model)
    parts: dict[str, object] = {"input_ids": batch}
    if isinstance(batch, Mapping):
        parts = {"input_ids": batch.get("input_ids")}
        parts |= {name: batch[name] for name in ("labels", "attention_mask") if batch.get(name) is not None}
    tensors = {name: _as_ids(part, name) for name, part in parts.items()}
    ids = tensors["input_ids"]
    if any(part.shape != ids.shape for part in tensors.values()):
        shapes = ", ".join(f"{name} {tuple(part.shape)}" for name, part in tensors.items())
        raise InputError(f"a batch of {shapes}", expected="one shape (n, T)", hint=HINT)
    labels = tensors.get("labels", ids)[:, 1:]
    try:
        logits = model_logits(model, ids, tensors.get("attention_mask"))
    except (TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
        if any(is_transformed(parameter) for parameter in [ids, *model.parameters()]):
            raise  # vmap and others have no rule for some operation, which their callers handle
        raise failure(error, type(model).__name__, tuple(ids.shape)) from error
    log_probs = logits[:, :-1].log_softmax(2)
    losses = -log_probs.gather(2, labels.clamp(min=0)[:, :, None])[:, :, 0]
    return torch.where(labels == IGNORED, 0.0, losses).sum(1, keepdim=True)


def _as_ids(value: object, name: str) -> Tensor:
    if isinstance(value, Tensor) and value.ndim == 2 and not (value.is_floating_point() or value.is_complex()):
        return value
    description = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"of type {type(value).__name__}"
    raise InputError(f"a batch with {name} {description}", expected="whole numbers (n, T) in a tensor", hint=HINT)


def document_batch(documents: object, *, bos: int | None = None, targets: object = None) -> dict[str, Tensor]:
    """Return documents as a batch for :func:`document_loss`: a dict of tensors (n, T) that is padded on the right.

    Args:
        documents: ragged token ids, as for :func:`kernelmem.text.as_documents`.
        bos: token id to put before every document; None: the first token of each document has no loss.
        targets: tokens with loss, as for :func:`kernelmem.text.token_losses`; None: all.

    Returns:
        "input_ids" (0 where padded), "labels" (-100 where there is no loss) and "attention_mask" (0 where padded).

    Raises:
        InputError: not token ids, targets that do not fit, or documents none of which has a token.

    >>> document_batch([[5, 2], [7]], bos=1)["labels"]
    tensor([[-100,    5,    2],
            [-100,    7, -100]])
    """
    documents = as_documents(documents)
    start = [] if bos is None else [as_count(bos, "bos", minimum=0)]
    masks = as_targets(targets, documents)
    length = len(start) + int(documents.lengths.max())
    if not length:
        raise InputError("documents without tokens", expected="at least one token", hint="pass bos=, or leave them out")
    shape = (len(documents), length)
    ids, labels = torch.zeros(shape, dtype=torch.int64), torch.full(shape, IGNORED)
    ids[:, : len(start)] = torch.tensor(start, dtype=torch.int64)
    for i, (document, mask) in enumerate(zip(documents, masks, strict=True)):
        stop = len(start) + len(document)
        ids[i, len(start) : stop] = document
        labels[i, len(start) : stop][mask] = document[mask]
    if not start:
        labels[:, 0] = IGNORED
    attention_mask = (torch.arange(length) < len(start) + documents.lengths[:, None]).to(torch.int64)
    return {"input_ids": ids, "labels": labels, "attention_mask": attention_mask}
