"""Targets: the tokens on which training put loss, as masks or as labels with -100."""

import torch
from torch import Tensor

from kernelmem.core import InputError
from kernelmem.core.checks import as_list, as_tensor
from kernelmem.text.documents import Documents

IGNORED = -100  # label of tokens without loss, in torch and Hugging Face
HINT = "pass one mask of True and False per document, or its labels: the token ids, -100 where training put no loss"


def as_targets(value: object, documents: Documents) -> tuple[Tensor, ...]:
    """Return one mask (T_i,) per document; None: all tokens.

    Args:
        value: per document True and False, or labels: token ids with -100 at tokens without loss, in the place of the
            tokens (not shifted). Labels may be padded with -100 at the end.
        documents: the documents.

    Raises:
        InputError: another number of masks, another length, or labels that are not the ids of the document.
    """
    if value is None:
        return tuple(torch.ones(len(ids), dtype=torch.bool) for ids in documents)
    rows = as_list(value, "targets")
    if len(rows) != len(documents):
        raise InputError(
            f"targets of {len(rows)} for {len(documents)} documents", expected="one per document", hint=HINT
        )
    return tuple(_as_mask(row, ids, f"targets[{i}]") for i, (row, ids) in enumerate(zip(rows, documents, strict=True)))


def _as_mask(value: object, ids: Tensor, name: str) -> Tensor:
    is_empty_list = isinstance(value, list | tuple) and not value
    values = as_tensor(torch.zeros(0, dtype=torch.bool) if is_empty_list else value, name).cpu()  # pyright: ignore
    if values.ndim != 1:
        raise InputError(f"{name} of shape {tuple(values.shape)}", expected=f"shape ({len(ids)},)", hint=HINT)
    if values.dtype != torch.bool and len(values) > len(ids) and bool((values[len(ids) :] == IGNORED).all()):
        values = values[: len(ids)]
    if values.shape != ids.shape:
        raise InputError(
            f"{name} of {len(values)} tokens for a document of {len(ids)}", expected="one value per token", hint=HINT
        )
    if values.dtype == torch.bool:
        return values.clone()
    mask = values != IGNORED
    if bool((values[mask] != ids[mask]).any()):
        place = int((mask & (values != ids)).nonzero()[0])
        raise InputError(
            f"{name} with label {values[place].item():g} at token {place}, whose id is {int(ids[place])}",
            expected="labels equal to the token ids of the document, or -100",
            hint="labels are not shifted: label t is token t, not token t + 1; pass masks as booleans, not as 0 and 1",
        )
    return mask
