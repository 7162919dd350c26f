"""ShadowEnsemble: outputs of m models that were trained on random subsets of the same rows."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

import torch
from torch import Tensor

from kernelmem.core.checks import ArrayLike, as_indices, as_labels, as_tensor
from kernelmem.core.errors import InputError, NumericalError
from kernelmem.core.files.result_files import Result
from kernelmem.memorization.output_statistics import Statistic, label_statistic

if TYPE_CHECKING:
    import pandas as pd

BLOCK_VALUES = 2**22  # outputs that are converted to float64 at once


@dataclass(frozen=True)
class ShadowIdentity:
    """What the models of an ensemble were trained on and how, as SHA-256 hashes (empty: not known).

    Attributes:
        data: hash of training rows and labels, and of test rows and labels, in their order.
        training: hash of the architecture, its initialization and the training recipe.
        sampling: "iid" (each row independently), "balanced" (each row in the same number of models), or "given".
        share: expected share of the rows that a model is trained on; the mean share for "given" masks.
        seed: seed of masks, initial weights and batch orders; None if not known.
        dropped: numbers of the models that are left out because they diverged.
    """

    data: str = ""
    training: str = ""
    sampling: str = "given"
    share: float = 0.5
    seed: int | None = None
    dropped: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False, repr=False)
class ShadowEnsemble(Result):
    """Outputs of m models on n rows, each model trained on a random subset of these rows.

    Only masks, outputs and labels are kept, no weights. Every score of ``kernelmem.memorization.retraining``,
    ``.membership`` and ``.attribution`` is a function of this artefact.

    Attributes:
        masks: (m, n) bool; True: row i was a training row of model k.
        logits: (m, n, C) outputs in eval mode on all n rows, whether trained on or not; may be memory-mapped.
        labels: (n,) int64 labels as given to the training, or (n, C) real targets.
        test_logits: (m, t, C) outputs on t test rows that no model was trained on; t may be 0.
        test_labels: (t,) or (t, C).
        identity: hashes of data and training.
    """

    masks: Tensor
    logits: Tensor
    labels: Tensor
    test_logits: Tensor
    test_labels: Tensor
    identity: ShadowIdentity

    shapes: ClassVar = {"masks": "mn", "logits": "mnC", "test_logits": "mtC"}

    def __post_init__(self) -> None:
        shape, test_shape = tuple(self.logits.shape), tuple(self.test_logits.shape)
        is_real = self.labels.is_floating_point()
        fits = (
            self.masks.dtype == torch.bool
            and len(shape) == 3
            and 0 not in shape
            and shape[:2] == tuple(self.masks.shape)
        )
        fits &= len(test_shape) == 3 and test_shape[:: max(1, len(test_shape) - 1)] == shape[:: max(1, len(shape) - 1)]
        for labels, outputs in ((self.labels, shape), (self.test_labels, test_shape)):
            fits &= tuple(labels.shape) == (outputs[1:] if is_real else outputs[1:2])
        if not fits or (shape[2] < 2 and not is_real):
            raise InputError(
                f"masks {tuple(self.masks.shape)}, logits {shape}, labels {tuple(self.labels.shape)}, test_logits {test_shape},"
                f" test_labels {tuple(self.test_labels.shape)}",
                expected="masks (m, n) of bool, logits (m, n, C), labels (n,), test_logits (m, t, C), test_labels (t,); C at"
                " least 2 for class labels",
                hint="call ShadowEnsemble.from_logits, which takes one logit and ensembles without test rows too",
            )
        if not is_real:
            for labels in (self.labels, self.test_labels):
                as_labels(labels, "labels", n_classes=shape[2])

    @classmethod
    def from_logits(
        cls,
        masks: ArrayLike,
        logits: ArrayLike,
        labels: ArrayLike,
        *,
        test_logits: ArrayLike | None = None,
        test_labels: ArrayLike | None = None,
    ) -> "ShadowEnsemble":
        """Return the ensemble of models that were trained elsewhere.

        Args:
            masks: (m, n) True or 1 where row i was a training row of model k, m >= 2.
            logits: (m, n, C) outputs in eval mode; (m, n) or (m, n, 1): one logit z of two classes, kept as [0, z].
            labels: (n,) labels 0..C-1, or (n, C) real targets.
            test_logits: (m, t, C) outputs on test rows that no model was trained on, or None.
            test_labels: (t,) or (t, C).

        Raises:
            InputError: shapes do not fit each other, masks are not 0 and 1, labels are out of range.
            NumericalError: outputs that are not finite; the message names the models.

        >>> masks = [[1, 0, 1], [0, 1, 1]]
        >>> ShadowEnsemble.from_logits(masks, torch.zeros(2, 3, 4), [0, 1, 3]).n_models
        2
        """
        mask_values = as_tensor(masks, "masks").cpu()
        if mask_values.ndim != 2 or len(mask_values) < 2 or not mask_values.shape[1]:
            raise InputError(
                f"masks of shape {tuple(mask_values.shape)}",
                expected="(m, n) with m >= 2 models and n >= 1 rows",
                hint="put the models along the first axis",
            )
        if not bool(((mask_values == 0) | (mask_values == 1)).all()):
            raise InputError(
                f"masks with values from {mask_values.min():g} to {mask_values.max():g}",
                expected="True or False, or 0 and 1",
                hint="pass masks[k, i] = 1 if model k was trained on row i",
            )
        m, n = mask_values.shape
        outputs = _as_outputs(logits, "logits", m, n)
        real = getattr(labels, "ndim", 0) == 2 and as_tensor(labels, "labels").is_floating_point()
        if not real:
            outputs = _two_classes(outputs)
        C = int(outputs.shape[2])
        checked_labels = _as_labels_of_outputs(labels, "labels", n, C, real=real)
        if (test_logits is None) != (test_labels is None):
            raise InputError(
                f"{'test_labels' if test_logits is None else 'test_logits'} alone",
                expected="test_logits and test_labels, or neither",
                hint="pass both",
            )
        test_outputs, checked_test_labels = outputs[:, :0], checked_labels[:0]
        if test_logits is not None:
            test_outputs = _as_outputs(test_logits, "test_logits", m, None)
            test_outputs = test_outputs if real else _two_classes(test_outputs)
            if test_outputs.shape[2] != C:
                raise InputError(
                    f"test_logits of shape {tuple(test_outputs.shape)} for {C} outputs",
                    expected=f"(m, t, {C})",
                    hint="compute both with the same models",
                )
            checked_test_labels = _as_labels_of_outputs(
                cast("ArrayLike", test_labels), "test_labels", int(test_outputs.shape[1]), C, real=real
            )
        bool_masks = mask_values.to(torch.bool)
        identity = ShadowIdentity(share=float(bool_masks.to(torch.float64).mean()))
        return cls(bool_masks, outputs, checked_labels, test_outputs, checked_test_labels, identity)

    @property
    def n_models(self) -> int:
        """The number m of models."""
        return len(self.masks)

    @property
    def n_rows(self) -> int:
        """The number n of rows that subsets were drawn from."""
        return int(self.masks.shape[1])

    @property
    def n_test(self) -> int:
        """The number t of test rows."""
        return int(self.test_logits.shape[1])

    @property
    def n_classes(self) -> int:
        """The number C of outputs."""
        return int(self.logits.shape[2])

    def statistic(self, statistic: Statistic) -> Tensor:
        """Return a statistic of the outputs at the labels, (m, n) float64 (see :func:`label_statistic`)."""
        return _in_blocks(self.logits, self.labels, statistic)

    def test_statistic(self, statistic: Statistic) -> Tensor:
        """Return a statistic of the outputs on the test rows at their labels, (m, t) float64."""
        return _in_blocks(self.test_logits, self.test_labels, statistic)

    def select(self, models: ArrayLike) -> "ShadowEnsemble":
        """Return the ensemble of the models in ``models``, indices (repeated for a bootstrap) or a mask (m,).

        Raises:
            InputError: no model, an index out of range, or a mask of another length.
        """
        chosen = as_indices(models, "models", self.n_models, what="model", distinct=False)
        return ShadowEnsemble(
            self.masks[chosen],
            self.logits[chosen],
            self.labels,
            self.test_logits[chosen],
            self.test_labels,
            self.identity,
        )

    def to_frame(self) -> "pd.DataFrame":
        """Return one row per training row: label, numbers of models with and without it, and the statistic of each.

        The statistic is the accuracy, or for real targets the squared error |f - target|², as a mean over models (NaN
        without models).
        """
        import pandas as pd  # slow to import

        name, values = self._summary_statistic(self.logits, self.labels)
        masks = self.masks.to(torch.float64)
        columns = {} if self.labels.is_floating_point() else {"label": self.labels.numpy()}
        columns |= {
            "models_with": self.masks.sum(0).numpy(),
            "models_without": (~self.masks).sum(0).numpy(),
            f"{name}_with": ((values * masks).sum(0) / masks.sum(0)).numpy(),
            f"{name}_without": ((values * (1 - masks)).sum(0) / (1 - masks).sum(0)).numpy(),
        }
        return pd.DataFrame(columns).rename_axis("example")

    def __str__(self) -> str:
        """Return sizes, sampling, and the mean accuracy on rows trained on, on rows left out, and on test rows."""
        sampling, seed = self.identity.sampling, self.identity.seed
        name, values = self._summary_statistic(self.logits, self.labels)
        parts = [
            f"{float(values[mask].mean()):.4g} on rows {label}"
            for mask, label in ((self.masks, "trained on"), (~self.masks, "left out"))
            if bool(mask.any())
        ]
        if self.n_test:
            test_values = self._summary_statistic(self.test_logits, self.test_labels)[1]
            parts.append(f"{float(test_values.mean()):.4g} on {self.n_test:,} test rows")
        n_with = self.masks.sum(0)
        lines = [
            f"ShadowEnsemble of {self.n_models:,} models on {self.n_rows:,} rows, {self.n_classes} outputs"
            f" ({sampling} subsets, share {self.identity.share:.3g}{'' if seed is None else f', seed {seed}'})",
            f"  mean {name.replace('_', ' ')}: {', '.join(parts)}",
            f"  each row trained on by {int(n_with.min())} to {int(n_with.max())} models,"
            f" left out by {self.n_models - int(n_with.max())} to {self.n_models - int(n_with.min())}",
        ]
        if dropped := self.identity.dropped:
            lines.append(
                f"  left out because they diverged: models {', '.join(map(str, dropped[:10]))}{', ...' * (len(dropped) > 10)}"
            )
        return "\n".join(lines)

    @staticmethod
    def _summary_statistic(logits: Tensor, labels: Tensor) -> tuple[str, Tensor]:
        """Return ("accuracy", values) for labels, ("squared_error", values) for real targets, values (m, n)."""
        if labels.is_floating_point():
            return "squared_error", -2 * _in_blocks(logits, labels, "log_likelihood")
        return "accuracy", _in_blocks(logits, labels, "correct")


def _in_blocks(logits: Tensor, labels: Tensor, statistic: Statistic) -> Tensor:
    """Return the statistic of outputs (m, n, C), a few models at a time, because it needs several float64 copies."""
    block = max(1, BLOCK_VALUES // max(1, logits[0].numel()))
    return torch.cat([label_statistic(part, labels, statistic) for part in logits.split(block)])


def _as_outputs(value: ArrayLike, name: str, m: int, n: int | None) -> Tensor:
    """Return outputs (m, n, C) of m models on the CPU, in float32 or float64.

    Raises:
        InputError: another shape. NumericalError: not finite, naming the models.
    """
    if isinstance(value, Tensor) and value.layout is torch.strided and not value.is_nested:
        diverged = _diverged(value.detach())
    else:
        diverged = []
    if diverged:
        raise NumericalError(
            f"{name} that are not finite, of models {', '.join(map(str, diverged[:10]))}{', ...' * (len(diverged) > 10)}",
            expected="finite outputs of every model",
            hint="leave these models out of masks and logits",
        )
    outputs = as_tensor(value, name).cpu()
    outputs = outputs if outputs.dtype == torch.float64 else outputs.to(torch.float32)
    outputs = outputs.unsqueeze(2) if outputs.ndim == 2 else outputs
    if outputs.ndim != 3 or len(outputs) != m or not outputs.shape[2] or (n is not None and outputs.shape[1] != n):
        raise InputError(
            f"{name} of shape {tuple(outputs.shape)} for {m} models" + ("" if n is None else f" and {n} rows"),
            expected="(m, n, C) outputs: models, rows, classes",
            hint="put the models along the first axis and the rows along the second, as in masks",
        )
    return outputs


def _diverged(outputs: Tensor) -> list[int]:
    """Return the numbers of models with outputs that are not finite."""
    if not outputs.is_floating_point() or outputs.ndim < 2 or outputs.is_meta:
        return []
    return [int(k) for k in (~outputs.isfinite().flatten(1).all(1)).nonzero()[:, 0]]


def _two_classes(outputs: Tensor) -> Tensor:
    """Return outputs (m, n, C), with one logit z per row replaced by [0, z]."""
    return torch.nn.functional.pad(outputs, (1, 0)) if outputs.shape[2] == 1 else outputs


def _as_labels_of_outputs(value: ArrayLike, name: str, n: int, C: int, *, real: bool) -> Tensor:
    """Return labels (n,) in 0..C-1, or real targets (n, C), on the CPU."""
    if not real:
        return as_labels(value, name, n=n, n_classes=C).cpu()
    targets = as_tensor(value, name, dtype=torch.float64).cpu()
    if tuple(targets.shape) != (n, C):
        raise InputError(
            f"{name} of shape {tuple(targets.shape)} for {C} outputs on {n} rows",
            expected=f"({n},) labels, or ({n}, {C}) real targets",
            hint="pass class indices for classes",
        )
    return targets
