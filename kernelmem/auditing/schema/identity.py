"""Context of an audit, and identity of the audited data and model."""

import platform
from dataclasses import dataclass
from importlib import metadata

import torch

from kernelmem.version import __version__


@dataclass(frozen=True)
class Context:
    """Date, author and purpose of an audit, and the content that was left out of its files.

    Attributes:
        date: date of the audit, YYYY-MM-DD.
        auditor: person or organization that ran the audit; "" if not stated.
        purpose: reason for the audit; "" if not stated.
        threat_model: assumed access and knowledge of an attacker.
        redacted: True if labels and predictions of single rows are left out, so that only row indices remain.
        rows_shown: True if the document contains the inputs of single training rows (images or features).
    """

    date: str
    auditor: str
    purpose: str
    threat_model: str
    redacted: bool
    rows_shown: bool


@dataclass(frozen=True)
class Duplicates:
    """Numbers of equal and of nearly equal rows.

    Two rows are near-duplicates if the cosine of their tangents, K(x, x') / √(K(x, x) K(x', x')), is at least ``cosine``.

    Attributes:
        train: training rows equal to an earlier training row.
        conflicting: those among them with a different label.
        across: test rows that are also training rows.
        cosine: threshold for near-duplicates.
        near_train: training rows with a near-duplicate among the other training rows (equal rows included).
        near_test: test rows with a near-duplicate among the other test rows.
        near_across: test rows with a near-duplicate among the training rows.
    """

    train: int
    conflicting: int
    across: int
    cosine: float
    near_train: int
    near_test: int
    near_across: int


@dataclass(frozen=True)
class DataIdentity:
    """Name, sizes, hash and duplicates of the audited data.

    Attributes:
        name: name of the data set.
        n_train, n_test: numbers of rows.
        n_classes: number of classes C.
        class_names: C names, in the order of the outputs of the model.
        feature_names: names of the input features; () if not stated.
        input_shape: shape of one row.
        image_shape: (H, W) or (H, W, 3) if rows are images, else None.
        sha256: hash of training rows, labels, test rows and labels, in their order.
        duplicates: equal and nearly equal rows.
    """

    name: str
    n_train: int
    n_test: int
    n_classes: int
    class_names: tuple[str, ...]
    feature_names: tuple[str, ...]
    input_shape: tuple[int, ...]
    image_shape: tuple[int, ...] | None
    sha256: str
    duplicates: Duplicates


@dataclass(frozen=True)
class ModelIdentity:
    """Name, size, accuracies, hash and layers of the audited network.

    Attributes:
        name: name of the network.
        n_parameters: number of parameters P.
        train_accuracy, test_accuracy: shares of rows whose largest output is at the given label.
        sha256: hash of the weights.
        layers: one line per leaf module.
        training: description of the training by the user.
    """

    name: str
    n_parameters: int
    train_accuracy: float
    test_accuracy: float
    sha256: str
    layers: tuple[str, ...]
    training: str


def versions() -> dict[str, str]:
    """Return a dict from package name to version, for Python and the packages that determine the result.

    The entry "threads" is the number of CPU threads of torch.
    """
    packages = {name: metadata.version(name) for name in ("torch", "numpy", "scipy", "scikit-learn")}
    return {
        "python": platform.python_version(),
        "kernelmem": __version__,
        **packages,
        "threads": str(torch.get_num_threads()),
    }
