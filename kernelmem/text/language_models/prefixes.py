"""Prefixes of texts, extended by one token at a time: from the state of the model, or by reading them again."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernelmem.core.options import as_bytes
from kernelmem.text.language_models.causal_lm import COPIES, CausalLM, check_defined
from kernelmem.text.language_models.states import State
from kernelmem.text.language_models.stepping import Stepper

MAX_ROWS = 4096  # per call: more are not faster
STATES = 4  # copies of a state that an extension holds


@dataclass(frozen=True)
class Prefixes:
    """Prefixes (n, T) of one length that a model has read.

    Attributes:
        lm: the model.
        ids: token ids with BOS, (n, T).
        dtype: precision of the computation; None: that of the model.
        memory: largest number of bytes of the log-probabilities of one batch.
        stepper: reads from ``state``; None: prefixes are read again.
        state: state of the model after the prefixes.
    """

    lm: CausalLM
    ids: Tensor
    dtype: torch.dtype | None
    memory: int | str
    stepper: Stepper | None
    state: State

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def n_bytes(self) -> int:
        """Size of ids and state in bytes."""
        return 8 * self.ids.numel() + (0 if self.stepper is None else self.stepper.n_bytes(self.state))

    @property
    def rows_at_once(self) -> int:
        """Number of prefixes that an extension within ``memory`` may have."""
        per_row = STATES * self.n_bytes // max(1, len(self)) + 8 * self.lm.vocabulary * COPIES
        return max(1, min(MAX_ROWS, as_bytes(self.memory) // per_row))

    def extend(self, rows: Tensor, tokens: Tensor) -> tuple["Prefixes", Tensor]:
        """Return the prefixes ``rows`` (m,), which may repeat, with one more token (m,) each; and log p (m, V) after it."""
        ids = torch.cat([self.ids[rows], tokens[:, None]], 1)
        if self.stepper is None:
            return self._with(ids, None), _read_again(self.lm, ids, self.dtype, self.memory)
        logits, state = self.stepper.extend(self.state, rows, tokens)
        return self._with(ids, state), _log_probs(logits, self.lm.name)

    def _with(self, ids: Tensor, state: State) -> "Prefixes":
        return Prefixes(self.lm, ids, self.dtype, self.memory, self.stepper, state)


def read_prefixes(
    lm: CausalLM, prefixes: Tensor, *, dtype: torch.dtype | None, memory: int | str
) -> tuple[Prefixes, Tensor]:
    """Read prefixes (n, T) without BOS; return them, and log p(· | BOS, prefix) (n, V).

    Raises:
        UnsupportedModelError: the model fails. NumericalError: NaN in the logits.
    """
    ids = torch.stack([lm.with_bos(row) for row in prefixes])
    stepper = lm.stepper(dtype)
    if stepper is None:
        return Prefixes(lm, ids, dtype, memory, None, None), _read_again(lm, ids, dtype, memory)
    logits, state = stepper.read(ids)
    return Prefixes(lm, ids, dtype, memory, stepper, state), _log_probs(logits, lm.name)


def _read_again(lm: CausalLM, ids: Tensor, dtype: torch.dtype | None, memory: int | str) -> Tensor:
    result = torch.zeros(len(ids), lm.vocabulary, dtype=torch.float64)
    for rows, log_probs in lm.batches(list(ids), dtype=dtype, memory=memory, last=True):
        result[rows] = log_probs[:, 0].cpu()
    return result


def _log_probs(logits: Tensor, name: str) -> Tensor:
    log_probs = logits.cpu().to(torch.float64).log_softmax(1)
    check_defined(log_probs[:, None], torch.ones(len(log_probs), dtype=torch.int64), name)
    return log_probs
