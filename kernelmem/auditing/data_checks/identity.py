"""Identity of data and network: hashes, counts, duplicates."""

import numpy as np
import torch
from torch import Tensor, nn

from kernelmem.auditing.data_checks.inputs import AuditInputs
from kernelmem.auditing.schema import DataIdentity, Duplicates, ModelIdentity
from kernelmem.core.errors import printable
from kernelmem.core.files.atomic_files import array_sha256
from kernelmem.core.files.weight_files import weights_sha256
from kernelmem.training.datasets import LabeledData


def find_duplicates(data: LabeledData) -> tuple[Tensor, int, int]:
    """Find bitwise equal rows.

    Returns:
        The mask of test rows that are also training rows, the number of training rows equal to an earlier one, and the
        number of those whose label differs from the earlier labels.
    """
    labels_by_row: dict[bytes, set[int]] = {}
    duplicates = conflicting = 0
    for row, label in zip(_row_bytes(data.x_train), data.y_train.tolist(), strict=True):
        labels = labels_by_row.get(row)
        if labels is None:
            labels_by_row[row] = {label}
            continue
        duplicates += 1
        conflicting += label not in labels
        labels.add(label)
    return torch.tensor([row in labels_by_row for row in _row_bytes(data.x_test)]), duplicates, conflicting


def _row_bytes(x: Tensor) -> list[bytes]:
    """Return every row of ``x`` as bytes, which are equal only for equal rows (0.0 and −0.0 count as equal)."""
    array = np.ascontiguousarray(x.reshape(len(x), -1).cpu().numpy())
    return [row.tobytes() for row in array + 0.0]  # + 0.0 turns minus zero into zero


def data_identity(inputs: AuditInputs, feature_names: tuple[str, ...], duplicates: Duplicates) -> DataIdentity:
    """Return names, numbers and shapes of the data and one SHA-256 over x_train, y_train, x_test and y_test."""
    data = inputs.data
    arrays = {key: getattr(data, key).cpu().numpy() for key in ("x_train", "y_train", "x_test", "y_test")}
    return DataIdentity(
        name=data.name,
        n_train=len(data.x_train),
        n_test=len(data.x_test),
        n_classes=inputs.train_outputs.shape[1],
        class_names=inputs.labels.names,
        feature_names=feature_names,
        input_shape=tuple(data.x_train.shape[1:]),
        image_shape=data.image_shape,
        sha256=array_sha256(arrays),
        duplicates=duplicates,
    )


def model_identity(
    model: nn.Module, name: str | None, training: str, train_accuracy: float, test_accuracy: float
) -> ModelIdentity:
    """Return the layers of the network, its number of parameters and a SHA-256 of its weights.

    The name, the description of the training and the accuracies are copied to the result; without ``name`` the class of
    the network is used.
    """
    layers = [
        printable(f"{name or type(module).__name__}: {module}".splitlines()[0])
        for name, module in model.named_modules()
        if not any(True for _ in module.children())
    ]
    return ModelIdentity(
        name=name or printable(type(model).__name__),
        n_parameters=sum(parameter.numel() for parameter in model.parameters()),
        train_accuracy=train_accuracy,
        test_accuracy=test_accuracy,
        sha256=weights_sha256(model),
        layers=tuple(layers),
        training=training,
    )
