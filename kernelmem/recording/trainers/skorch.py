"""Mixin for skorch networks that records the training; needs the extra ``kernelmem[skorch]``."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from kernelmem.core.batches import Batch, Forward
from kernelmem.core.errors import InputError
from kernelmem.recording.recorder import Recorder
from kernelmem.recording.trainers.indexed_dataset import position_in
from kernelmem.recording.trainers.optimizer_hook import OptimizerHook
from kernelmem.training.losses import Loss

if TYPE_CHECKING:
    from skorch import NeuralNet as Base
else:
    Base = object

Collate: TypeAlias = Callable[[list], Sequence[Batch]]

LOSSES = {nn.CrossEntropyLoss: "cross_entropy", nn.MSELoss: "mse_mean"}
DEFAULTS = {"ignore_index": -100, "label_smoothing": 0.0, "reduction": "mean"}


def nll_of_probabilities(outputs: Tensor, y: Tensor) -> Tensor:
    """Return -log(p_y + eps), (n,): the loss of a NeuralNetClassifier with NLLLoss, whose module ends in a softmax."""
    return F.nll_loss(torch.log(outputs + torch.finfo(outputs.dtype).eps), y, reduction="none")


def call_with_keywords(module: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Return ``module(**batch)``: the forward of skorch for X that is a dict."""
    return module(**batch)


class Recorded(Base):
    """Mixin for skorch's NeuralNet classes: ``fit`` records a run in ``out``, with the positions of rows in X.

    ::

        class RecordedClassifier(Recorded, skorch.NeuralNetClassifier):
            pass

        net = RecordedClassifier(Net, criterion=nn.CrossEntropyLoss, max_epochs=5, out="runs/a")
        net.fit(X, y)
        run = km.Run.open("runs/a")
        ledger = km.ledger(run, net.module_, X_test)

    Rows held out by ``train_split`` are not part of the run. A step is recorded when ``optimizer.step`` is called, after
    its closure, so GradientNormClipping and schedules are supported. Gradients that are not those of the loss on the batch
    (for example regularization in ``get_loss``) raise an error that names the parameter. Every call of ``fit`` or
    ``partial_fit`` records a separate run and needs another ``out``: ``net.set_params(out=...)``.
    """

    def __init__(
        self,
        *args: Any,
        out: str | Path,
        loss: Loss | None = None,
        call: Forward | None = None,
        keep: str | int = "all",
        **options: Any,
    ) -> None:
        """Set the options of the recorder and those of skorch.

        Args:
            args: skorch's.
            out: directory of the run.
            loss: as in :class:`~kernelmem.recording.Recorder`; None: that of the criterion, if it is CrossEntropyLoss,
                MSELoss, or NLLLoss (analyses of the run then need ``loss=`` :func:`nll_of_probabilities`), without weights
                or other options.
            call: maps (module, x) to outputs (B, C); None: ``module(x)``, or :func:`call_with_keywords` if X is a dict.
                Pass it to analyses of the run as ``forward=``.
            keep: which weights are kept: "all", "sqrt", or k for every k-th step.
            options: skorch's.
        """
        super().__init__(*args, **options)
        self.out, self.loss, self.call, self.keep = out, loss, call, keep

    def fit_loop(self, X: Any, y: Any = None, *args: Any, **options: Any) -> Any:
        """Run skorch's loop inside a recorder.

        Raises:
            InputError: several optimizers, a criterion without a known loss; what the recorder refuses.
        """
        if self._optimizers != ["optimizer"]:
            raise InputError(
                f"a net with the optimizers {', '.join(self._optimizers)}",
                expected="one optimizer",
                hint="write your own training loop with kernelmem.Recorder",
            )
        loss = _loss_of(self.criterion_) if self.loss is None else self.loss
        call = call_with_keywords if self.call is None and isinstance(X, Mapping) else self.call
        recorder = Recorder(self.module_, self.optimizer_, self.out, loss=loss, forward=call, keep=self.keep)
        with recorder, ExitStack() as stack:
            self.recording_ = OptimizerHook(recorder, self.optimizer_)
            stack.callback(self.recording_.detach)
            stack.callback(setattr, self, "recording_", None)
            return super().fit_loop(X, y, *args, **options)

    def get_iterator(self, dataset: Any, training: bool = False) -> Any:
        """Return skorch's batches; training batches are passed to the recorder with the positions of their rows.

        Raises:
            InputError: an iterator that is not a DataLoader.
        """
        hook = getattr(self, "recording_", None)
        if not training or hook is None:
            return super().get_iterator(dataset, training=training)
        loader = super().get_iterator(_WithPositions(dataset), training=True)
        if not isinstance(loader, DataLoader):
            raise InputError(
                f"iterator_train that returns a {type(loader).__name__}",
                expected="a torch DataLoader",
                hint="omit iterator_train",
            )
        loader.collate_fn = _CollatePositions(loader.collate_fn)
        return _RecordedBatches(loader, hook)


class _WithPositions(Dataset):
    """Pairs (position in the whole data, item) of a dataset."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]  # map-style

    def __getitem__(self, index: int) -> tuple[int, object]:
        return position_in(self.dataset, index), self.dataset[index]


class _CollatePositions:
    """Collate positions and items separately."""

    def __init__(self, collate: Collate) -> None:
        self.collate = collate

    def __call__(self, pairs: list[tuple[int, object]]) -> tuple[Tensor, Sequence[Batch]]:
        positions, items = zip(*pairs, strict=True)
        return torch.tensor(positions), self.collate(list(items))


class _RecordedBatches:
    """Batches of a loader without their positions, which go to the recorder."""

    def __init__(self, loader: DataLoader, hook: OptimizerHook) -> None:
        self.loader, self.hook = loader, hook

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        for index, batch in self.loader:
            self.hook.add_batch(index, *batch)
            yield batch


def _loss_of(criterion: nn.Module) -> Loss:
    known: dict[type, Loss] = {**LOSSES, nn.NLLLoss: nll_of_probabilities}
    values = {name: getattr(criterion, name, value) for name, value in DEFAULTS.items()}
    options = [f"{name}={value!r}" for name, value in values.items() if value != DEFAULTS[name]]
    options += ["weight"] if getattr(criterion, "weight", None) is not None else []
    if type(criterion) not in known or options:
        raise InputError(
            f"the criterion {type(criterion).__name__}({', '.join(options)}) without loss=",
            expected=f"{', '.join(kind.__name__ for kind in known)} without weights or other options",
            hint="pass loss=, a callable (outputs, targets) -> (n,) losses",
        )
    return known[type(criterion)]
