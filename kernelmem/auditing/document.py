"""What an audit found, as plain values: the shape of ``audit.json``, and all that the report is drawn from."""

from dataclasses import dataclass

__all__ = [
    "SCHEMA_VERSION",
    "AuditDocument",
    "ClassRow",
    "DataIdentity",
    "Example",
    "Flips",
    "KernelFidelity",
    "Memorization",
    "ModelIdentity",
    "Pusher",
    "Verdict",
]

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class DataIdentity:
    """Which data were audited."""

    name: str
    n_train: int
    n_test: int
    n_classes: int
    input_shape: tuple[int, ...]  # of one row
    image_shape: tuple[int, ...] | None  # (H, W) or (H, W, 3) where rows are pictures
    sha256: str
    duplicates_train: int  # training rows equal to an earlier training row
    duplicates_conflicting: int  # those among them whose labels differ
    duplicates_train_test: int  # test rows that are also training rows


@dataclass(frozen=True)
class ModelIdentity:
    """Which network was audited, and how good it is."""

    name: str
    n_parameters: int
    train_accuracy: float
    test_accuracy: float
    sha256: str  # of the weights
    layers: tuple[str, ...]  # one line a leaf module
    training: str  # how it was trained, or that it was trained elsewhere


@dataclass(frozen=True)
class KernelFidelity:
    """How well the kernel machines stand for the network, on test rows."""

    agreement: float  # share of test rows where network machine and network name the same class
    agreement_se: float
    agreement_required: float  # below it the headline is blanked
    relative_error: float  # |machine - network| / |network|, centered logits, Frobenius norm
    label_machine_agreement: float
    label_machine_test_accuracy: float
    network_machine_test_accuracy: float
    ridge: float  # the label machine's, by leave-one-out error
    network_ridge: float  # the network machine's, by leave-one-out error
    label_machine_loo_error: float  # mean squared leave-one-out residual at that ridge
    network_machine_loo_error: float


@dataclass(frozen=True)
class Memorization:
    """The statistics of every row: lists over training rows, ``null`` over test rows."""

    score: tuple[float, ...]  # label machine: leverage x left-out residual (what the learning problem makes memorized)
    margin: tuple[float, ...]  # label machine: left-out margin of the given label
    network: tuple[float, ...]  # this network: its margin - margin predicted without the row
    null: tuple[float, ...]  # the same on test rows, which neither saw
    vote: tuple[int, ...]  # class that the label machine names without the row
    threshold: float  # 99th percentile of the null
    memorized: tuple[int, ...]  # training rows above it, most memorized first
    expected_by_chance: float  # rows above it if train and test rows were exchangeable
    p_value: float  # of the count, exact under exchangeability (beta-binomial)
    n_null: int  # test rows that are no training rows: those that make the threshold, mean and spread
    null_mean: float
    null_se: float
    null_sd: float


@dataclass(frozen=True)
class Pusher:
    """A training row that moves the prediction on another row."""

    index: int
    label: int
    influence: float  # exact change of (label - vote) margin when this row is in the training set


@dataclass(frozen=True)
class Example:
    """One of the most memorized training rows."""

    index: int
    label: int
    vote: int  # what the rest of the data says
    score: float
    margin: float
    network: float
    flipped: bool | None  # None where flips are unknown
    pushers: tuple[Pusher, ...]  # the rows that push it most, itself left out, largest |influence| first


@dataclass(frozen=True)
class ClassRow:
    """One row of the per-class table."""

    label: int
    name: str
    n_train: int
    n_test: int
    train_accuracy: float | None
    test_accuracy: float | None
    mean_score: float | None
    n_memorized: int
    disagreeing: int  # training rows whose given label the rest of the data votes against


@dataclass(frozen=True)
class Flips:
    """How well the scores find known label flips; all None where flips are unknown."""

    n: int | None = None
    auroc: float | None = None  # of the left-out margin
    auroc_se: float | None = None
    auroc_score: float | None = None
    auroc_network: float | None = None
    permuted_auroc: float | None = None  # mean over permutations of the flags: the null control
    permuted_sd: float | None = None
    precision: tuple[float, ...] | None = None  # of the k most suspicious rows, for k in ``ranks``
    recall: tuple[float, ...] | None = None
    ranks: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Verdict:
    """The headline, and what it does not say."""

    status: str  # "memorized" | "nothing-found" | "no-claim"
    headline: str
    detail: str
    limits: tuple[str, ...]


@dataclass(frozen=True)
class AuditDocument:
    """The whole of ``audit.json``."""

    schema_version: int
    verdict: Verdict
    data: DataIdentity
    model: ModelIdentity
    kernel: KernelFidelity
    memorization: Memorization
    flips: Flips
    examples: tuple[Example, ...]
    classes: tuple[ClassRow, ...]
    pictures: dict[str, str]  # training index -> PNG data URI (where rows are pictures), for all rows shown
    rows: dict[str, tuple[float, ...]]  # training index -> features (where they are not), for all rows shown
    reproduce: str  # the command or call that gives this report again
    seed: int | None
    versions: dict[str, str]
    seconds: float  # of the audit proper, training not counted
