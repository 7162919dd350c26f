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
from kernelmem.training.loss_modules import CLASSES, module_name
from kernelmem.training.losses import Loss

if TYPE_CHECKING:
    from skorch import NeuralNet as Base
else:
    Base = object

Collate: TypeAlias = Callable[[list], Sequence[Batch]]


def nll_of_probabilities(outputs: Tensor, y: Tensor) -> Tensor:
    """Return -log(p_y + eps), (n,), for n rows with class probabilities p (n, C) and labels y (n,).

    It is the loss of a skorch NeuralNetClassifier with NLLLoss, whose module ends in a softmax; eps is that of the dtype.
    """
    return F.nll_loss(torch.log(outputs + torch.finfo(outputs.dtype).eps), y, reduction="none")


def call_with_keywords(module: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Return ``module(**batch)``, as skorch calls a module if X is a dict."""
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
    ``partial_fit`` records a separate run and needs another ``out``: ``net.set_params(out=...)``. ``partial_fit`` after
    training with an optimizer that has a state (momentum, Adam) is refused: gradients of the earlier run would act on it.
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
            args: positional arguments of the skorch class.
            out: directory of the run.
            loss: as in :class:`~kernelmem.recording.Recorder`; None: that of the criterion, a loss module of torch.nn;
                NLLLoss without options (analyses of the run then need ``loss=`` :func:`nll_of_probabilities`).
            call: maps (module, x) to outputs (B, C); None: ``module(x)``, or :func:`call_with_keywords` if X is a dict.
                Pass it to analyses of the run as ``forward=``.
            keep: which weights are kept: "all", "sqrt", or k for every k-th step.
            options: keyword arguments of the skorch class.
        """
        super().__init__(*args, **options)
        self.out, self.loss, self.call, self.keep = out, loss, call, keep

    def fit_loop(self, X: Any, y: Any = None, *args: Any, **fit_params: Any) -> Any:
        """Run the training loop of skorch inside a recorder.

        Raises:
            InputError: the net has several optimizers, the criterion has no known loss, or the recorder refuses its arguments.
        """
        if self._optimizers != ["optimizer"]:
            raise InputError(
                f"a net with the optimizers {', '.join(self._optimizers)}",
                expected="one optimizer",
                hint="write your own training loop with kernelmem.Recorder",
            )
        loss = _criterion_loss(self.criterion_) if self.loss is None else self.loss
        forward = call_with_keywords if self.call is None and isinstance(X, Mapping) else self.call
        recorder = Recorder(self.module_, self.optimizer_, self.out, loss=loss, forward=forward, keep=self.keep)
        with recorder, ExitStack() as stack:
            self.recording_ = OptimizerHook(recorder, self.optimizer_)
            stack.callback(self.recording_.detach)
            stack.callback(setattr, self, "recording_", None)
            return super().fit_loop(X, y, *args, **fit_params)

    def get_iterator(self, dataset: Any, training: bool = False) -> Any:
        """Return skorch's batches; training batches are passed to the recorder with the positions of their rows.

        Raises:
            InputError: the iterator is not a DataLoader.
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
    """Dataset of pairs (position of the item in the whole data, item) for the items of ``dataset``."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]  # map-style

    def __getitem__(self, index: int) -> tuple[int, object]:
        return position_in(self.dataset, index), self.dataset[index]


class _CollatePositions:
    """Maps a list of b pairs (position, item) to (positions (b,), batch), where ``collate`` makes the batch of items."""

    def __init__(self, collate: Collate) -> None:
        self.collate = collate

    def __call__(self, pairs: list[tuple[int, object]]) -> tuple[Tensor, Sequence[Batch]]:
        positions, items = zip(*pairs, strict=True)
        return torch.tensor(positions), self.collate(list(items))


class _RecordedBatches:
    """Iterable over the batches of ``loader``, without the positions of their rows.

    Each batch is passed to ``hook`` with these positions before it is yielded.
    """

    def __init__(self, loader: DataLoader, hook: OptimizerHook) -> None:
        self.loader, self.hook = loader, hook

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        for index, batch in self.loader:
            self.hook.add_batch(index, *batch)
            yield batch


def _criterion_loss(criterion: nn.Module) -> Loss:
    """Return the loss that a torch criterion computes, as a name or a callable (outputs, targets) -> (n,) losses.

    Raises:
        InputError: the criterion is of another class, or an NLLLoss with weights or options.
    """
    if type(criterion) is nn.NLLLoss:  # skorch takes the logarithm of the module's outputs
        is_default = criterion.weight is None and (criterion.ignore_index, criterion.reduction) == (-100, "mean")
        loss = nll_of_probabilities if is_default else None
    else:
        loss = module_name(criterion)
    if loss is None:
        raise InputError(
            f"the criterion {criterion} without loss=",
            expected=f"{', '.join(CLASSES)} with reduction 'mean' or 'sum' (NLLLoss without options)",
            hint="pass loss=, a callable (outputs, targets) -> (n,) losses",
        )
    return loss
