"""AuditOptions: description of data and model, methods, and content of the files of an audit."""

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

from torch import Tensor, nn

from kernelmem.auditing.schema import JSON_NAME, REPORT, ROWS_CSV, ROWS_NPZ
from kernelmem.core.checks import (
    ArrayLike,
    as_count,
    as_flag,
    as_list,
    as_number,
    as_path,
    as_text,
    check_callable,
    check_instance,
)
from kernelmem.core.errors import InputError, printable
from kernelmem.memorization.shadows import EnsembleTraining, ShadowEnsemble

Retrain: TypeAlias = EnsembleTraining | ShadowEnsemble | Callable[[Tensor, int], nn.Module]
"""Type of ``retrain=``: a training that the library carries out, models trained elsewhere, or the user's training."""

TEXTS = ("name", "model_name", "training", "reproduce", "auditor", "purpose", "threat_model", "date")
THREAT_MODEL = (
    "the attacker has the outputs of the model (logits) for records of their choice, and data of the same kind"
)
RESERVED = (JSON_NAME, REPORT, ROWS_NPZ, ROWS_CSV)


@dataclass(frozen=True)
class AuditOptions:
    """Description of model and data, methods, and content of the files of :func:`audit`.

    Attributes:
        n_classes: number of classes C; None: the number of outputs of the model.
        class_names: C names of the classes, in the order of the outputs; None: the labels.
        feature_names: names of the input features.
        groups: group of each training row, (n,) text or whole numbers, or several such arrays by name: results are also
            given for these slices.
        name: name of the data set.
        model_name: name of the network; None: its class.
        image_shape: (H, W) or (H, W, 3) if each row is an image, possibly flattened; None: rows are not images.
        training: description of how the network was trained.
        reproduce: command or call that reproduces this report.
        auditor, purpose: person or organization, and reason for the audit.
        threat_model: assumed access and knowledge of an attacker.
        date: date of the audit, YYYY-MM-DD; None: today.
        retrain: training that is repeated on subsets of the rows: an :class:`EnsembleTraining`, a function
            train(indices, seed) -> model, or a :class:`ShadowEnsemble` of the training rows in their order; None: the kernel
            method, without retraining.
        budget: minutes for retraining; a pilot of a few models decides how many are trained, at most 512.
        n_models: number of models to train for retraining, at least 32, whatever time it takes: unlike ``budget``, it gives
            the same audit on every computer. None: ``budget`` decides.
        n_verified: number of most memorized rows that are verified by retraining without them.
        n_listed: number of most memorized rows in the report.
        near_duplicate_cosine: cosine of tangents from which rows are near-duplicates; None: chosen from the data.
        show_rows: True to include the inputs of the listed training rows (images or features) in report and JSON. By
            default no inputs leave the data.
        redact: True to leave out labels and predictions of single rows as well, so that only row indices remain.
        overwrite: True to replace an older report in ``out``.
        extra_files: contents of further files to write into ``out``, by file name.
    """

    n_classes: int | None = None
    class_names: Sequence[str] | None = None
    feature_names: Sequence[str] = ()
    groups: ArrayLike | Mapping[str, ArrayLike] | None = None
    name: str = "data"
    model_name: str | None = None
    image_shape: tuple[int, ...] | None = None
    training: str = "not described"
    reproduce: str = "km.audit(model, (x_train, y_train), (x_test, y_test)) with model and data of the hashes above"
    auditor: str = ""
    purpose: str = ""
    threat_model: str = THREAT_MODEL
    date: str | None = None
    retrain: Retrain | None = None
    budget: float = 2.0
    n_models: int | None = None
    n_verified: int = 5
    n_listed: int = 12
    near_duplicate_cosine: float | None = None
    show_rows: bool = False
    redact: bool = False
    overwrite: bool = False
    extra_files: Mapping[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.n_classes is not None:
            as_count(self.n_classes, "n_classes")
        if self.image_shape is not None:
            for length in as_list(self.image_shape, "image_shape"):
                as_count(length, "length in image_shape")
        for name in TEXTS:
            if name not in ("model_name", "date") or getattr(self, name) is not None:
                as_text(getattr(self, name), name)
        for name in ("class_names", "feature_names"):
            if getattr(self, name) is not None:
                for text in as_list(getattr(self, name), name):
                    as_text(text, f"entry of {name}")
        for name in ("show_rows", "redact", "overwrite"):
            as_flag(getattr(self, name), name)
        for name in ("n_verified", "n_listed"):
            as_count(getattr(self, name), name, minimum=0, maximum=1000)
        as_number(self.budget, "budget", exclusive=True)
        if self.n_models is not None:
            as_count(self.n_models, "n_models", minimum=32, maximum=10_000)
        if self.near_duplicate_cosine is not None:
            as_number(self.near_duplicate_cosine, "near_duplicate_cosine", exclusive=True, maximum=1.0)
        if self.show_rows and self.redact:
            raise InputError(
                "show_rows=True together with redact=True",
                expected="one of them",
                hint="omit show_rows: a redacted report shows row indices only",
            )
        if self.retrain is not None and not isinstance(self.retrain, EnsembleTraining | ShadowEnsemble):
            check_callable(self.retrain, "retrain", ("indices", "seed"))
        self._check_extra_files()

    def _check_extra_files(self) -> None:
        """Raise an InputError if a further file has no content, or the name of a file of every report."""
        check_instance(self.extra_files, "extra_files", Mapping, hint="pass a dict of file contents by name")
        for name, content in self.extra_files.items():
            as_path(name, "name of an extra file")
            check_instance(content, f"extra file {name}", bytes, hint="encode text with .encode()")
            if name in ("", ".", "..", *RESERVED) or Path(name).name != name:
                raise InputError(
                    f"extra_files with the name {name!r}",
                    expected=f"names of files, without a directory, other than {', '.join(RESERVED)}",
                    hint='pass for example {"weights.safetensors": content}',
                )


def printable_options(options: AuditOptions) -> AuditOptions:
    """Return the options with texts that can be written as UTF-8 and that a page shows in their own order."""
    texts = {name: getattr(options, name) for name in TEXTS}
    texts["date"] = options.date or datetime.datetime.now(datetime.UTC).date().isoformat()
    return replace(
        options,
        feature_names=tuple(printable(text) for text in options.feature_names),
        **{name: None if text is None else printable(text) for name, text in texts.items()},
    )
