"""Coverage of canaries: proof that every copy receives loss on every token of its secret, and no twin any."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from kernelmem.core import InputError, Result
from kernelmem.core.checks import as_count, check_instance
from kernelmem.recording import Run
from kernelmem.text.canary.design import Canaries
from kernelmem.text.canary.insertion import CanaryRows
from kernelmem.text.canary.training_rows import Row, rows_of_batch, rows_of_batches
from kernelmem.text.documents import Documents

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False, repr=False)
class TextCoverage(Result):
    """Copies of canaries in training data, all of which receive loss on every token of their secret.

    Attributes:
        copies: (n, 2) int64, training rows (or places in them) with the canary; 0 for twins.
        passes: (n, 2) int64, how often the copies received loss, over all batches or steps.
        rows: number of rows that were read.
        share: share of the targets that are tokens of canaries, head and secret.
        together: largest number of copies of one canary in one row; above 1 a model can copy it within its context.
        from_run: True if steps that were taken were counted, False if batches that were prepared.
    """

    copies: Tensor
    passes: Tensor
    rows: int
    share: float
    together: int
    from_run: bool

    shapes: ClassVar[Mapping[str, str]] = {"copies": "n2", "passes": "n2"}

    def to_frame(self) -> "pd.DataFrame":
        """Return one row per canary, with columns ``pair``, ``variant``, ``copies`` and ``passes``."""
        import pandas as pd  # slow to import

        n = len(self.copies)
        columns = {"pair": np.repeat(np.arange(n), 2), "variant": np.tile([0, 1], n)}
        return pd.DataFrame(
            columns | {"copies": self.copies.flatten().numpy(), "passes": self.passes.flatten().numpy()}
        )

    def __str__(self) -> str:
        source = "steps of a recorded run" if self.from_run else "prepared batches"
        found = self.copies > 0
        together = f"\n  up to {self.together} copies of a canary in one row" if self.together > 1 else ""
        return (
            f"canary coverage from {source}: {int(found.sum()):,} canaries in {int(self.copies.sum()):,} copies, every token of"
            f" every secret a target; no twin\n  {int(self.passes.sum()):,} passes over copies in {self.rows:,} rows;"
            f" canaries are {self.share:.2%} of the targets{together}"
        )


def coverage(
    canaries: Canaries,
    batches: Run | CanaryRows | Documents | Iterable[object],
    *,
    epochs: int = 1,
    ignored: int = -100,
) -> TextCoverage:
    """Check that training puts loss on every copy of every inserted canary, and on no twin.

    Canaries are found by their token ids, after tokenization, packing, truncation and masking. Before training pass the
    batches of an epoch, prepared as for training; afterwards the recorded run, whose tape has the rows, weights and gradient
    scale of every step.

    Args:
        canaries: from :func:`canaries`.
        batches: batches of ids (T,) or (B, T); of (ids, labels) or (ids, labels, weights); or of dicts with ``input_ids`` and,
            where present, ``labels`` and ``attention_mask``. Labels are the ids themselves (Hugging Face) or the next ids; ids
            without labels are all targets. Weights are those of tokens (B, T) or of rows (B,). Or a run.
        epochs: number of epochs that the batches cover; not used for a run, where each row counts once.
        ignored: label that the loss ignores.

    Raises:
        InputError: names the first canary with a copy missing, split, truncated or without loss, or more copies than planned,
            or a twin that is in the data; batches of another form. FileCorruptError: the run cannot be read.

    Cost: one pass over the tokens; a run is read once for each row.
    """
    check_instance(canaries, "canaries", Canaries, hint="pass the canaries that were inserted")
    epochs = 1 if isinstance(batches, Run) else as_count(epochs, "epochs")
    ignored = as_count(ignored, "ignored", minimum=-(2**63), maximum=2**63 - 1)
    counts = _Counts(canaries)
    if isinstance(batches, Run):
        _count_run(counts, batches, ignored)
    else:
        for row in rows_of_batches(batches, ignored):
            counts.add(counts.find(row))
    counts.check(epochs)
    copies = torch.from_numpy(counts.copies.reshape(-1, 2))
    passes = torch.from_numpy(counts.passes.reshape(-1, 2))
    share = counts.canary_targets / max(1, counts.targets)
    return TextCoverage(copies, passes, counts.rows, share, counts.together, isinstance(batches, Run))


@dataclass(frozen=True)
class _Found:
    """Canaries in one row, by their number 0..2n−1: complete with loss, cut off or altered, and complete without loss."""

    trained: list[int]
    cut: list[int]
    masked: list[int]
    targets: int
    canary_targets: int


class _Counts:
    """Numbers of copies found so far, and what was wrong with them."""

    def __init__(self, canaries: Canaries) -> None:
        self.canaries = canaries
        k = 2 * len(canaries)
        self.copies, self.passes, self.cut, self.masked = (np.zeros(k, dtype=np.int64) for _ in range(4))
        self.rows = self.targets = self.canary_targets = self.together = 0
        heads = [head for pair in canaries.heads for head in pair]
        self._by_head = {head: i for i, head in enumerate(heads)}
        self._lengths = sorted({len(head) for head in heads})
        shared = 0
        while all(len(head) > shared and head[shared] == heads[0][shared] for head in heads):
            shared += 1
        self._start = np.array(heads[0][:shared], dtype=np.int64)
        self._first = np.array(sorted({head[0] for head in heads}), dtype=np.int64)
        self._secrets = canaries.tokens[canaries.secrets].reshape(k, -1).numpy()

    def find(self, row: Row) -> _Found:
        """Return the canaries in a row."""
        ids, is_target = row
        found = _Found([], [], [], int(is_target.sum()), 0)
        n_canary_targets = 0
        for place in self._places(ids):
            for length in self._lengths:
                canary = self._by_head.get(tuple(ids[place : place + length].tolist()))
                if canary is None:
                    continue
                secret = self._secrets[canary]
                end = place + length + len(secret)
                if not np.array_equal(ids[place + length : end], secret):
                    found.cut.append(canary)
                elif not is_target[place + length : end].all():
                    found.masked.append(canary)
                else:
                    found.trained.append(canary)
                    n_canary_targets += int(is_target[place:end].sum())
        return _Found(found.trained, found.cut, found.masked, found.targets, n_canary_targets)

    def _places(self, ids: np.ndarray) -> list[int]:
        """Return the places at which a head may begin: those of the tokens that all heads begin with."""
        if not len(self._start):
            return np.isin(ids, self._first).nonzero()[0].tolist()
        width = len(ids) - len(self._start) + 1
        matches = np.ones(max(0, width), dtype=bool)
        for offset, token in enumerate(self._start.tolist()):
            matches &= ids[offset : offset + len(matches)] == token
        return matches.nonzero()[0].tolist()

    def add(self, found: _Found, *, is_new: bool = True) -> None:
        """Count a row that received loss; ``is_new`` is False if an earlier step had the same row."""
        self.rows += 1
        self.targets += found.targets
        self.canary_targets += found.canary_targets
        np.add.at(self.passes, np.array(found.trained, dtype=np.int64), 1)
        for counts, numbers in ((self.copies, found.trained), (self.cut, found.cut), (self.masked, found.masked)):
            np.add.at(counts, np.array(numbers, dtype=np.int64), int(is_new))
        self.together = max(self.together, max((found.trained.count(i) for i in found.trained), default=0))

    def check(self, epochs: int) -> None:
        """Check that copies are as planned.

        Raises:
            InputError: names the first canary of the first problem found.
        """
        design = self.canaries
        planned = design.repetitions[:, None] * (torch.arange(2) == design.inserted[:, None])
        wanted = planned.flatten().numpy() * epochs
        found = self.copies + self.cut + self.masked
        problems: tuple[tuple[np.ndarray, Callable[[int], str], str], ...] = (
            (
                (wanted == 0) & (found > 0),
                lambda i: f"a twin that was not to be inserted, {found[i]} times in the data",
                "remove its rows, or pass the canaries from which these rows were made",
            ),
            (
                self.cut > 0,
                lambda i: f"{self.cut[i]} copies cut off or altered within the secret",
                "truncate and split rows between documents, or insert canaries after less text (context=)",
            ),
            (
                self.masked > 0,
                lambda i: f"{self.masked[i]} copies with tokens of the secret that are no targets",
                "give every token of the secret a label and a weight",
            ),
            (
                found < wanted,
                lambda i: f"{found[i]} of {wanted[i]} copies that receive loss",
                "copies are lost by deduplication, by splitting or truncating rows, by a loader that drops its last batch, or"
                " by weights of 0",
            ),
            (
                found > wanted,
                lambda i: f"{found[i]} copies, not {wanted[i]}",
                "pass the batches of one epoch, or epochs= the number that they cover",
            ),
        )
        for is_wrong, text, hint in problems:
            if is_wrong.any():
                i = int(is_wrong.argmax())
                name = f"canary {i % 2} of pair {i // 2} (code {design.codes[i // 2][i % 2]})"
                raise InputError(
                    f"{name}: {text(i)}; {int(is_wrong.sum())} canaries have this problem",
                    expected="every planned copy, with loss on every token of its secret, and no twin",
                    hint=hint,
                )


def _count_run(counts: _Counts, run: Run, ignored: int) -> None:
    """Count the canaries in the rows that received loss: copies by distinct training rows, passes by steps."""
    rows: dict[tuple[int, int], _Found] = {}
    received: set[int] = set()
    for step in run.steps:
        keys = list(zip(step.examples.tolist(), step.versions.tolist(), strict=True))
        if any(key not in rows for key in keys):
            x, y = run.batch(step.index)
            batch = (x if x.get("labels") is not None else {**x, "labels": y}) if isinstance(x, Mapping) else (x, y)
            found = [counts.find(row) for row in rows_of_batch(batch, ignored, f"the batch of step {step.index}")]
            if len(found) != len(keys):
                raise InputError(
                    f"step {step.index} with {len(found)} rows of ids for {len(keys)} examples",
                    expected="token ids (B, T) of B examples",
                    hint="pass the batches instead of the run",
                )
            rows.update(zip(keys, found, strict=True))
        for key, weight in zip(keys, step.sample_weight.tolist(), strict=True):
            if weight != 0 and step.scale != 0:
                counts.add(rows[key], is_new=key[0] not in received)
                received.add(key[0])
