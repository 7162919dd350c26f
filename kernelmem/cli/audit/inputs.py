"""Data and network of ``kernelmem audit``: from files and options to what is audited."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from kernelmem.auditing.data_checks import ClassLabels, read_class_labels
from kernelmem.cli.model_factory import build_model
from kernelmem.core.batches import as_rows
from kernelmem.core.errors import InputError, KernelmemError, printable
from kernelmem.memorization.shadows import EnsembleTraining
from kernelmem.tangents.prepare import prepare
from kernelmem.training.batching import batch_sizes
from kernelmem.training.classifier import Training, train_classifier
from kernelmem.training.datasets import LabeledData, digits, labeled_data, read_data_arrays
from kernelmem.training.ensemble import Recipe
from kernelmem.training.losses import class_forward
from kernelmem.training.mlp import standardized_mlp

BATCH_SIZE = 64
WIDTHS = (128,)  # hidden layers of the default network
LEARNING_RATE = 5e-3


@dataclass(frozen=True)
class AuditedData:
    """Rows with class indices, and names that the report uses.

    Attributes:
        data: rows and labels 0..C-1.
        n_classes: number of classes C.
        class_names: C names, in the order of the outputs.
        label_note: how labels were turned into class indices; "" if they were indices.
        feature_names: names of the input features; () if the file has none.
        groups: group of each training row, or None.
    """

    data: LabeledData
    n_classes: int
    class_names: tuple[str, ...]
    label_note: str = ""
    feature_names: tuple[str, ...] = ()
    groups: np.ndarray | None = None


def read_audit_data(path: Path | None, seed: int, n_outputs: int | None = None) -> AuditedData:
    """Read the data of an .npz file, or scikit-learn's digits if there is no path.

    Labels may be class indices from 0 or from 1, or text. Optional arrays besides those of
    :func:`kernelmem.training.datasets.read_npz`: class_names (C,), feature_names (d,), groups (n,).

    Args:
        path: path of the file.
        seed: seed of the split of the digits.
        n_outputs: number of outputs of the network; None: the number of classes follows from the labels.

    Raises:
        InputError, FileCorruptError: the file cannot be read, or its arrays do not fit together.
    """
    if path is None:
        data = digits(seed=seed)
        return AuditedData(data, data.n_classes, tuple(str(k) for k in range(data.n_classes)))
    arrays = read_data_arrays(path)
    names = arrays.get("class_names")
    labels = read_class_labels(arrays["y_train"], arrays["y_test"], None if names is None else _texts(names))
    n_classes = n_outputs or _n_classes(labels)
    labels = labels.for_outputs(n_classes)
    data = labeled_data(
        arrays["x_train"],
        labels.y_train,
        arrays["x_test"],
        labels.y_test,
        name=printable(path.name),
        image_shape=arrays.get("image_shape"),
        flipped=arrays.get("flipped"),
    )
    return AuditedData(
        data, n_classes, labels.names, labels.note, _texts(arrays.get("feature_names")), arrays.get("groups")
    )


def _texts(array: np.ndarray | None) -> tuple[str, ...]:
    return () if array is None else tuple(str(value) for value in array.ravel().tolist())


def _n_classes(labels: ClassLabels) -> int:
    """Return the number of names; without names the largest label if labels are 1..C without gaps, else one more."""
    if labels.names:
        return len(labels.names)
    present = torch.cat([labels.y_train, labels.y_test]).unique()
    largest = int(present.max())
    return largest if int(present.min()) == 1 and len(present) == largest else largest + 1


def check_classes(audited: AuditedData, *, all_present: bool) -> None:
    """Raise an InputError if a class has no rows although all must have some, or if most classes have none."""
    data = audited.data
    present = torch.cat([data.y_train, data.y_test]).unique()
    if len(present) == audited.n_classes or not (all_present or audited.n_classes > 2 * len(present)):
        return
    first_absent = next(k for k, label in enumerate([*present.tolist(), -1]) if k != label)
    raise InputError(
        f"y_train and y_test with {len(present)} classes up to {audited.n_classes - 1}, but none labeled {first_absent}",
        expected=f"classes 0..{len(present) - 1} or 1..{len(present)}, without gaps",
        hint="renumber both: numpy.unique(numpy.concatenate([y_train, y_test]), return_inverse=True)[1]",
    )


@dataclass(frozen=True)
class NetworkSource:
    """Untrained networks of one architecture, and their training, for the audited data.

    Attributes:
        audited: the data.
        factory: package.module:factory, or None for the default network.
        epochs: number of passes over the training rows.
        device: device of the training.
    """

    audited: AuditedData
    factory: str | None
    epochs: int
    device: torch.device

    def build(self, seed: int) -> nn.Module:
        """Return an untrained network on the CPU."""
        data = self.audited.data
        if self.factory is None:
            return standardized_mlp(
                data.x_train, self.audited.n_classes, widths=WIDTHS, seed=seed, per_feature=data.image_shape is None
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return build_model(
                self.factory, input_shape=tuple(data.x_train.shape[1:]), n_classes=self.audited.n_classes
            )

    def check(self, model: nn.Module, *, may_be_larger: bool) -> int:
        """Return the number of outputs, after a check that the forward pass returns one output per class.

        More outputs than classes are accepted if ``may_be_larger``.
        """
        x, n_classes = self.audited.data.x_train, self.audited.n_classes
        try:
            forward = class_forward() if n_classes == 2 else None  # which may have one logit
            rows = as_rows(x, "x_train")
            n_outputs = prepare(model, rows, forward=forward, dtype=torch.float64, evaluation=True).n_outputs
        except KernelmemError:
            raise
        except Exception as error:  # the user's forward may raise anything
            raise InputError(
                f"--model {self.factory}, whose forward raised {type(error).__name__}: {error}",
                expected=f"a model that takes rows of shape {tuple(x.shape[1:])}",
                hint="try model(x) on two rows of x_train",
            ) from error
        if n_outputs < n_classes or (n_outputs > n_classes and not may_be_larger):
            raise InputError(
                f"a model with {n_outputs} outputs for {n_classes} classes",
                expected=f"{n_classes} outputs, one for each class",
                hint=f"change the factory, or let it take n_classes={n_classes} as an argument",
            )
        return n_outputs

    def train(self, model: nn.Module, x: Tensor, y: Tensor, seed: int) -> Training:
        """Train a network in place on rows x (k, ...) with labels y (k,)."""
        rate = LEARNING_RATE if self.factory is None else 1e-3
        with torch.random.fork_rng(devices=[]):  # dropout in the user's model draws from the global state
            torch.manual_seed(seed)
            return train_classifier(
                model.to(self.device),
                x.to(self.device),
                y.to(self.device),
                epochs=self.epochs,
                batch_size=BATCH_SIZE,
                lr=rate,
                seed=seed,
            )

    def retraining(self) -> EnsembleTraining | Callable[[Tensor, int], nn.Module]:
        """Return the same training for subsets of the rows: batched for the default network, else one after the other."""
        data = self.audited.data
        if self.factory is not None:

            def train(indices: Tensor, seed: int) -> nn.Module:
                model = self.build(seed)
                self.train(model, data.x_train[indices], data.y_train[indices], seed)
                return model

            return train
        steps = self.epochs * len(batch_sizes(len(data.x_train), BATCH_SIZE))
        recipe = Recipe("adam", lr=LEARNING_RATE, schedule="cosine", batch_size=BATCH_SIZE, steps=steps)
        return EnsembleTraining(
            recipe, make_model=lambda _: self.build(int(torch.randint(2**31 - 1, ()))), equal_epochs=True
        )


def timed_training(source: NetworkSource, model: nn.Module, seed: int) -> tuple[Training, float]:
    """Train the network on all training rows; return a summary and the seconds that it took."""
    data, started = source.audited.data, time.perf_counter()
    training = source.train(model, data.x_train, data.y_train, seed)
    return training, time.perf_counter() - started
