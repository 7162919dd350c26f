"""Documents of a recorded run: comparison with its batches, and the number of steps that used each."""

from collections.abc import Mapping

import torch
from torch import Tensor

from kernelmem.core.checks import as_count, check_instance
from kernelmem.core.errors import InputError
from kernelmem.recording import Run
from kernelmem.text.documents import Documents


def count_passes(run: Run, documents: Documents, bos: int | None) -> Tensor:
    """Return the number of steps that used each document, (n,), after comparing each with its row in the run.

    Raises:
        InputError: not a run, a run of other rows than token ids, or of other documents than these.
    """
    check_instance(run, "run", Run, hint="pass km.Run.open(directory)")
    passes = torch.zeros(len(documents), dtype=torch.int64)
    start = torch.tensor([] if bos is None else [as_count(bos, "bos", minimum=0)], dtype=torch.int64)
    for step in run.steps:
        examples = step.examples.to(torch.int64)
        if int(examples.max()) >= len(documents):
            raise _other(f"{len(documents)} documents for a run that used example {int(examples.max())}")
        if bool((passes[examples] == 0).any()):
            x, _ = run.batch(step.index)
            for i, row in zip(examples.tolist(), _rows(x, len(examples)), strict=True):
                if not torch.equal(row, torch.cat([start, documents[i]])):
                    raise _other(f"documents[{i}] that differs from the row of example {i} in the run")
        passes.index_add_(0, examples, torch.ones_like(examples))
    return passes


def _rows(x: object, n: int) -> list[Tensor]:
    """Return the token ids of a recorded batch, without padding.

    Raises:
        InputError: the batch has no token ids.
    """
    parts = (
        {name: x.get(name) for name in ("input_ids", "attention_mask")} if isinstance(x, Mapping) else {"input_ids": x}
    )
    ids, mask = parts["input_ids"], parts.get("attention_mask")
    if not isinstance(ids, Tensor) or ids.ndim != 2 or len(ids) != n or ids.is_floating_point():
        raise InputError(
            "a run whose batches are not token ids",
            expected="a run that was recorded with forward=km.text.document_loss",
            hint="record batches from km.text.document_batch(documents)",
        )
    lengths = mask.sum(1).tolist() if isinstance(mask, Tensor) else [ids.shape[1]] * n
    return [row[: int(length)].to(torch.int64) for row, length in zip(ids, lengths, strict=True)]


def _other(given: str) -> InputError:
    return InputError(
        given,
        expected="the documents that the run was recorded with, in the order of its example numbers, and their bos",
        hint="pass the documents whose batches from km.text.document_batch were recorded, with the same bos=",
    )
