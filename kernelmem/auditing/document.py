"""Content of ``audit.json`` as dataclasses of plain values, from which alone the report is drawn, and reading it back."""

from dataclasses import asdict, dataclass
from pathlib import Path

from kernelmem.core.errors import FileCorruptError, InputError
from kernelmem.core.hashed_files import READ_ERRORS, check_json, hashed_json, load_json, read_bytes, reason
from kernelmem.core.result_files import decode

SCHEMA_VERSION = 2  # version 1 had other names of fields


@dataclass(frozen=True)
class DataIdentity:
    """Name, numbers of rows, shapes, hash and duplicate rows of the audited data."""

    name: str
    n_train: int
    n_test: int
    n_classes: int
    input_shape: tuple[int, ...]  # of one row
    image_shape: tuple[int, ...] | None  # (H, W) or (H, W, 3) if rows are images
    sha256: str
    duplicates_train: int  # training rows equal to an earlier training row
    duplicates_conflicting: int  # those among them with a different label
    duplicates_train_test: int  # test rows that are also training rows


@dataclass(frozen=True)
class ModelIdentity:
    """Name, size, accuracies, hash and layers of the audited network."""

    name: str
    n_parameters: int
    train_accuracy: float
    test_accuracy: float
    sha256: str  # of the weights
    layers: tuple[str, ...]  # one line per leaf module
    training: str  # how it was trained, as the user describes it


@dataclass(frozen=True)
class KernelFidelity:
    """Agreement of NTK surrogate and label regression with the network on test rows.

    The NTK surrogate is kernel ridge regression on the network's NTK fitted to the network's outputs; the label regression
    is the same fitted to the labels.
    """

    agreement: float  # share of test rows on which surrogate and network predict the same class
    agreement_se: float
    agreement_required: float  # below it no claim is made
    relative_error: float  # |surrogate - network| / |network|, centered logits, Frobenius norm
    label_regression_agreement: float
    label_regression_test_accuracy: float
    surrogate_test_accuracy: float
    label_regression_ridge: float  # each ridge minimizes the leave-one-out error
    surrogate_ridge: float
    label_regression_loo_error: float  # mean squared leave-one-out residual at that ridge
    surrogate_loo_error: float


@dataclass(frozen=True)
class Memorization:
    """Memorization statistics of every row, the threshold from test rows, and the significance of the count.

    The tuples hold one value per training row, except for ``null``, which holds one per test row, and ``memorized``,
    which holds row indices.
    """

    label_memorization: tuple[float, ...]  # label regression: f(x_i) - f_{-i}(x_i) in the label's column
    loo_margin: tuple[float, ...]  # label regression: leave-one-out margin of the given label
    network_memorization: tuple[float, ...]  # margin of the network - leave-one-out margin of its NTK surrogate
    null: tuple[float, ...]  # network_memorization of test rows, which neither network nor surrogate saw
    loo_prediction: tuple[int, ...]  # class that the label regression predicts without the row
    threshold: float  # 99th percentile of the null
    memorized: tuple[int, ...]  # training rows above the threshold, most memorized first
    expected_by_chance: float  # rows above it if train and test rows were exchangeable
    p_value: float  # of the count, exact under exchangeability (beta-binomial)
    n_null: int  # test rows that are not training rows: they give threshold, mean and standard deviation
    null_mean: float
    null_se: float
    null_sd: float


@dataclass(frozen=True)
class InfluentialRow:
    """A training row with a large influence on the prediction for another row."""

    index: int
    label: int
    influence: float  # exact change of the margin (label - rival class) when this row is in the training set


@dataclass(frozen=True)
class Example:
    """One of the training rows that the network memorized most, with its statistics and the rows that influence it most."""

    index: int
    label: int
    loo_prediction: int
    label_memorization: float
    loo_margin: float
    network_memorization: float
    flipped: bool | None  # None if flips are unknown
    influential: tuple[InfluentialRow, ...]  # other rows with the largest |influence| on it, largest first


@dataclass(frozen=True)
class ClassRow:
    """Numbers of rows, accuracies and memorization of one class; a mean over no rows is None."""

    label: int
    name: str
    n_train: int
    n_test: int
    train_accuracy: float | None
    test_accuracy: float | None
    mean_label_memorization: float | None
    n_memorized: int
    n_contradicted: int  # training rows whose label differs from the leave-one-out prediction


@dataclass(frozen=True)
class Flips:
    """Detection of training labels known to be wrong, by each statistic.

    Every field is None if it is unknown which labels are wrong; ``n`` alone is set if no label or every label is wrong.
    """

    n: int | None = None
    auroc: float | None = None  # of the leave-one-out margin
    auroc_se: float | None = None
    auroc_label_memorization: float | None = None
    auroc_network_memorization: float | None = None
    permuted_auroc: float | None = None  # mean over permutations of the flags: the null control
    permuted_sd: float | None = None
    precision: tuple[float, ...] | None = None  # among the k most suspicious rows, for k in ``ranks``
    recall: tuple[float, ...] | None = None
    ranks: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Verdict:
    """Headline and detail of the audit result, and the limits of what the result says."""

    status: str  # "memorized" | "nothing-found" | "no-claim"
    headline: str
    detail: str
    limits: tuple[str, ...]


@dataclass(frozen=True)
class AuditDocument:
    """The complete content of ``audit.json``, from which the report is drawn."""

    schema_version: int
    verdict: Verdict
    data: DataIdentity
    model: ModelIdentity
    fidelity: KernelFidelity
    memorization: Memorization
    flips: Flips
    examples: tuple[Example, ...]
    classes: tuple[ClassRow, ...]
    images: dict[str, str]  # training index -> PNG data URI, for all rows shown (if rows are images)
    features: dict[str, tuple[float, ...]]  # training index -> features, for all rows shown (if they are not)
    files: dict[str, str]  # name -> SHA-256 of each further file of the report: weights, labels
    reproduce: str  # command or call that gives this report again
    seed: int | None
    versions: dict[str, str]
    seconds: float  # of the audit, without training


def write_document(document: AuditDocument) -> str:
    """Return ``audit.json``: the document as a JSON object, with an entry that is the SHA-256 of the others."""
    return hashed_json(asdict(document))


def read_document(path: Path) -> AuditDocument:
    """Read ``audit.json``.

    Raises:
        InputError: the file has another schema version.
        FileCorruptError: the file is missing, truncated, altered (its hash differs), or not an audit.json.
    """
    try:
        content = load_json(read_bytes(path), finite=True)
        version = decode(content["schema_version"], int, "schema_version")
        if version == SCHEMA_VERSION:
            return decode(check_json(content), AuditDocument, "audit")
    except READ_ERRORS as error:
        raise unreadable(path, error) from error
    raise InputError(
        f"audit file {path} of schema version {version}",
        expected=f"version {SCHEMA_VERSION}",
        hint="run the audit again, or read the file with the kernelmem version recorded in it under versions",
    )


def unreadable(path: Path, error: Exception) -> FileCorruptError:
    """Return the error for an audit.json that cannot be read because of ``error``."""
    return FileCorruptError(
        f"audit file {path} ({reason(error)})",
        expected="an audit.json written by kernelmem",
        hint="run the audit again",
    )
