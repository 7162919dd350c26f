"""Result of ``counterfactual``: memorization of documents in bits, with its errors and its controls."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from kernelmem.core import ArrayLike, InputError, Result
from kernelmem.core.checks import as_count, as_tensor, describe, seed_sequence
from kernelmem.statistics import Interval, as_level
from kernelmem.text.losses import TextTraining
from kernelmem.text.retraining import estimates
from kernelmem.text.retraining.estimates import PermutedMasks

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

MAX_PERMUTATIONS = 10**6


@dataclass(frozen=True, eq=False, repr=False)
class Counterfactual(Result):
    """Counterfactual memorization of n documents: their bits under models without them minus those under models with them.

    It is a property of the training algorithm, not of one model. Larger = more memorized.

    Attributes:
        masks: (m, n) bool, True for the documents that a model was trained on.
        bits: (m, n) code length of every document under every model.
        tokens: (n,) tokens with a loss in each document; None if they are not known.
        memorization: (n,) mean bits of the models without the document minus mean bits of those with it.
        standard_errors: (n,) their standard errors.
        low, high: (n,) confidence interval of each document.
        mean: mean memorization of the documents with its interval over models.
        level: confidence level of the intervals.
        paired: True if the models come in pairs of which exactly one was trained on each document; errors are then those
            of differences within pairs.
        permuted: the same with permuted masks, which must read 0.
        reliability: share of the rank variance of ``memorization`` that is not noise, by split halves (Spearman-Brown);
            None for fewer than four pairs (or models), or fewer than three documents.
        membership: AUROC of membership inference on each model by all the others (LiRA), mean over models.
        loss_membership: AUROC of the loss of that model alone (bits per token, if tokens are known), mean over models.
        recipe: training of the models; None if they were trained elsewhere.
        note: remark on the training.
    """

    masks: Tensor
    bits: Tensor
    tokens: Tensor | None
    memorization: Tensor
    standard_errors: Tensor
    low: Tensor
    high: Tensor
    mean: Interval
    level: float
    paired: bool
    permuted: PermutedMasks
    reliability: float | None
    membership: Interval | None
    loss_membership: Interval | None
    recipe: TextTraining | None
    note: str

    shapes: ClassVar[Mapping[str, str]] = {
        "masks": "mn",
        "bits": "mn",
        "tokens": "n",
        "memorization": "n",
        "standard_errors": "n",
        "low": "n",
        "high": "n",
    }

    @classmethod
    def of(
        cls,
        masks: ArrayLike,
        bits: ArrayLike,
        *,
        tokens: ArrayLike | None = None,
        level: float = 0.95,
        permutations: int = 199,
        seed: int = 0,
    ) -> "Counterfactual":
        """Estimate counterfactual memorization from models that were trained elsewhere.

        Args:
            masks: (m, n) bool or 0/1, True for the documents that a model was trained on, drawn at random. If the models come
                in pairs that share no document and leave out none, in any order, errors are computed within pairs.
            bits: (m, n) code length in bits of every document under every model, such as
                ``token_losses(lm, documents).per_document()``.
            tokens: (n,) number of tokens with a loss in each document.
            level: confidence level of intervals.
            permutations: number of permutations of the control.
            seed: seed of permutations and split halves.

        Raises:
            InputError: shapes that differ, bits that are not finite or negative, a document that fewer than two models were
                trained on or fewer than two were not, an option out of range.

        Cost: O(permutations · m n); membership O(m² n).

        >>> masks = torch.tensor([[True, False], [False, True], [True, False], [False, True]])
        >>> Counterfactual.of(masks, torch.where(masks, 3.0, 10.0)).memorization
        tensor([7., 7.], dtype=torch.float64)
        """
        level = as_level(level)
        permutations = as_count(permutations, "permutations", maximum=MAX_PERMUTATIONS)
        seeds = seed_sequence(seed, ["permutations", "splits"])
        used, values = _as_masks(masks), as_tensor(bits, "bits", dtype=torch.float64, squared=True).cpu()
        if values.shape != used.shape or bool((values < 0).any()):
            raise InputError(
                f"bits={describe(bits)} for masks {tuple(used.shape)}"
                + (", with negative values" if values.shape == used.shape else ""),
                expected=f"code lengths >= 0 of shape {tuple(used.shape)}",
                hint="pass token_losses(lm, documents).per_document() of each model as a row",
            )
        counts = None if tokens is None else _as_tokens(tokens, used.shape[1])
        pairs = estimates.complementary_pairs(used)
        pairs = None if pairs is None or len(pairs) < 2 else pairs
        parts = estimates.memorization(used, values, pairs, level)
        lengths = torch.ones(used.shape[1], dtype=torch.float64) if counts is None else counts.to(torch.float64)
        with_ensemble, from_loss = estimates.membership_aurocs(used, values, lengths, pairs)
        return cls(
            masks=used,
            bits=values,
            tokens=counts,
            memorization=parts.values,
            standard_errors=parts.standard_errors,
            low=parts.low,
            high=parts.high,
            mean=parts.mean,
            level=level,
            paired=pairs is not None,
            permuted=estimates.permuted_masks(
                used, values, parts.mean.value, permutations=permutations, seed=seeds["permutations"]
            ),
            reliability=estimates.reliability(used, values, pairs, seeds["splits"]),
            membership=estimates.over_models(with_ensemble, pairs, level),
            loss_membership=estimates.over_models(from_loss, pairs, level),
            recipe=None,
            note="",
        )

    def trained_by(self, recipe: TextTraining, note: str) -> "Counterfactual":
        """Return the result with the recipe of the models and a remark on their training."""
        return replace(self, recipe=recipe, note=note)

    @property
    def bits_with(self) -> Tensor:
        """Mean bits (n,) of each document under the models that were trained on it."""
        return (self.bits * self.masks).sum(0) / self.masks.sum(0)

    @property
    def bits_without(self) -> Tensor:
        """Mean bits (n,) of each document under the models that were not trained on it."""
        return (self.bits * ~self.masks).sum(0) / (~self.masks).sum(0)

    def to_frame(self) -> "pd.DataFrame":
        """Return one row per document: memorization, standard error, interval, mean bits with and without it, tokens."""
        import pandas as pd  # slow to import

        columns = {
            "memorization": self.memorization,
            "standard_error": self.standard_errors,
            "low": self.low,
            "high": self.high,
            "bits_with": self.bits_with,
            "bits_without": self.bits_without,
        }
        columns |= {} if self.tokens is None else {"tokens": self.tokens}
        return pd.DataFrame({name: values.numpy() for name, values in columns.items()}).rename_axis("document")

    def plot(self) -> "Figure":
        """Draw bits with and without each document, and the memorization in ascending order with the permuted control."""
        from kernelmem.plotting.text import counterfactual_figure  # draws with matplotlib, slow to import

        generator = torch.Generator().manual_seed(0)
        return counterfactual_figure(
            self.bits_with,
            self.bits_without,
            self.low,
            self.high,
            estimates.permuted_memorization(self.masks, self.bits, generator),
            level=self.level,
        )

    def __str__(self) -> str:
        m, n = self.masks.shape
        designs = f", {m // 2} pairs of which exactly one was trained on each document" if self.paired else ""
        largest, null = int(self.memorization.argmax()), self.permuted
        lines = [
            f"counterfactual memorization of {n:,} documents by {m} models{designs}",
            f"  memorization    {_of(self.mean)} bits per document"
            + (
                f", {self.mean.value * n / float(self.tokens.sum()):.3g} per token"
                if self.tokens is not None and int(self.tokens.sum())
                else ""
            )
            + f"; median standard error of a document {float(self.standard_errors.median()):.3g}",
            f"  largest         {float(self.memorization[largest]):.3g} ({float(self.low[largest]):.3g} to"
            f" {float(self.high[largest]):.3g}), document {largest}",
            f"  above 0         {int((self.low > 0).sum()):,} of {n:,} documents at {self.level:.0%} (by chance up to"
            f" {(1 - self.level) / 2:.1%})",
            f"  permuted masks  {null.mean:.3g} ± {null.sd:.3g} bits per document, p = {null.p:.2g}"
            f" ({null.permutations:,} permutations); spread over documents {null.spread:.3g}, observed"
            f" {float(self.memorization.std()) if n > 1 else 0.0:.3g}",
            "  reliability     "
            + (
                "not estimated"
                if self.reliability is None
                else f"{self.reliability:.3f} (split halves, Spearman-Brown)"
            ),
        ]
        if self.membership is not None:
            lines.append(f"  membership      AUROC {_of(self.membership)} by the other models (LiRA)")
        if self.loss_membership is not None:
            lines.append(f"                  AUROC {_of(self.loss_membership)} by the loss alone")
        return "\n".join([*lines, *([f"  note: {self.note}"] if self.note else [])])


def _of(interval: Interval) -> str:
    return f"{interval.value:.3g} ({interval.low:.3g} to {interval.high:.3g})"


def _as_masks(masks: ArrayLike) -> Tensor:
    """Return (m, n) bool on the CPU.

    Raises:
        InputError: other values or another shape.
    """
    values = as_tensor(masks, "masks").cpu()
    if values.ndim != 2 or not values.numel() or bool(((values != 0) & (values != 1)).any()):
        raise InputError(
            f"masks={describe(masks)}",
            expected="True and False, or 1 and 0, of shape (models, documents)",
            hint="pass masks[k, i] = True if model k was trained on document i",
        )
    return values.to(torch.bool)


def _as_tokens(tokens: ArrayLike, n: int) -> Tensor:
    """Return (n,) int64 on the CPU.

    Raises:
        InputError: not one whole number >= 0 per document.
    """
    values = as_tensor(tokens, "tokens").cpu()
    if tuple(values.shape) != (n,) or values.is_floating_point() or values.dtype == torch.bool or int(values.min()) < 0:
        raise InputError(
            f"tokens={describe(tokens)} for {n} documents",
            expected="one whole number >= 0 per document",
            hint="pass token_losses(lm, documents).counts",
        )
    return values.to(torch.int64)
