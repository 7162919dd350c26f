"""ShadowEnsemble: outputs of m models that were trained on random subsets of the same rows."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from kernelmem.core.result_files import Result
from kernelmem.memorization.output_statistics import Statistic, label_statistic


@dataclass(frozen=True)
class ShadowIdentity:
    """What the models of an ensemble were trained on and how, as SHA-256 hashes (empty: not known).

    Attributes:
        data: hash of training rows and labels, and of test rows and labels, in their order.
        training: hash of the architecture, its initialization and the training recipe.
        sampling: "iid" (each row independently), "balanced" (each row in exactly the same number of models), or "given".
        share: expected share of the rows that a model is trained on.
        seed: seed of masks, initial weights and batch orders; None if not known.
    """

    data: str = ""
    training: str = ""
    sampling: str = "given"
    share: float = 0.5
    seed: int | None = None


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

    @property
    def n_models(self) -> int:
        """The number m of models."""
        return len(self.masks)

    @property
    def n_rows(self) -> int:
        """The number n of rows that subsets were drawn from."""
        return int(self.masks.shape[1])

    @property
    def n_classes(self) -> int:
        """The number C of outputs."""
        return int(self.logits.shape[2])

    def statistic(self, statistic: Statistic) -> Tensor:
        """Return a statistic of the outputs at the labels, (m, n) float64 (see :func:`label_statistic`)."""
        return label_statistic(self.logits, self.labels, statistic)

    def test_statistic(self, statistic: Statistic) -> Tensor:
        """Return a statistic of the outputs on the test rows at their labels, (m, t) float64."""
        return label_statistic(self.test_logits, self.test_labels, statistic)

    def select(self, models: Tensor) -> "ShadowEnsemble":
        """Return the ensemble of the models in ``models``, integer indices or a mask (m,)."""
        return ShadowEnsemble(
            self.masks[models],
            self.logits[models],
            self.labels,
            self.test_logits[models],
            self.test_labels,
            self.identity,
        )
