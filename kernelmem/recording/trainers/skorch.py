"""A mixin that records what skorch trains; needs the extra ``kernelmem[skorch]``."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from kernelmem.core.errors import InputError
from kernelmem.recording.gradient_check import Forward
from kernelmem.recording.recorder import Recorder
from kernelmem.recording.trainers.indexed_dataset import position_in
from kernelmem.recording.trainers.optimizer_hook import OptimizerHook
from kernelmem.training.losses import Loss

__all__ = ["Recorded", "keywords", "nll_of_probabilities"]


if TYPE_CHECKING:
    from skorch import NeuralNet as Base
else:
    Base = object

LOSSES = {nn.CrossEntropyLoss: "cross_entropy", nn.MSELoss: "mse_mean"}
PLAIN = {"ignore_index": -100, "label_smoothing": 0.0, "reduction": "mean"}


def nll_of_probabilities(outputs: Tensor, y: Tensor) -> Tensor:
    """The loss of a NeuralNetClassifier with NLLLoss, whose module ends in a softmax: -log(p_y + eps), (n,)."""
    return F.nll_loss(torch.log(outputs + torch.finfo(outputs.dtype).eps), y, reduction="none")


def keywords(module: nn.Module, batch: Any) -> Tensor:
    """The forward of a module for X that is a dict: as skorch does, its parts are keywords."""
    return module(**batch)


class Recorded(Base):
    """Mixin for skorch's NeuralNet classes: ``fit`` records a run in ``out``, by the positions of the rows in X.

    ::

        class RecordedClassifier(Recorded, skorch.NeuralNetClassifier):
            pass

        net = RecordedClassifier(Net, criterion=nn.CrossEntropyLoss, max_epochs=5, out="runs/a")
        net.fit(X, y)
        run = km.Run.open("runs/a")
        ledger = km.ledger(run, net.module_, X_test)

    Rows that ``train_split`` holds out are never met. A step is recorded where ``optimizer.step`` is called, after the
    closure: GradientNormClipping is covered, and so are schedules. Gradients that are not those of the loss on the batch
    (regularization in ``get_loss``, say) end the training with an error that names the parameter. Every call of ``fit`` or
    ``partial_fit`` is a run of its own and wants another ``out``: ``net.set_params(out=...)``.
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
        """Take the options of the recorder beside skorch's own.

        Args:
            args: skorch's.
            out: directory of the run.
            loss: as in :class:`~kernelmem.recording.recorder.Recorder`; None: that of the criterion, where it is CrossEntropyLoss,
                MSELoss, or NLLLoss (then analyses of the run take ``loss=`` :func:`nll_of_probabilities`), without weights
                or other options.
            call: maps (module, x) to outputs (B, C); None: ``module(x)``, or :func:`keywords` where X is a dict.
                What it is, analyses of the run take as ``forward=``.
            keep: which weights are kept.
            options: skorch's.
        """
        super().__init__(*args, **options)
        self.out, self.loss, self.call, self.keep = out, loss, call, keep

    def fit_loop(self, X: Any, y: Any = None, *args: Any, **options: Any) -> Any:
        """Skorch's loop, inside a recorder.

        Raises:
            InputError: several optimizers, a criterion without a known loss; what the recorder refuses.
        """
        if self._optimizers != ["optimizer"]:
            raise InputError(
                f"a net with the optimizers {', '.join(self._optimizers)}",
                expected="one optimizer",
                hint="write the training loop around kernelmem.Recorder instead",
            )
        loss = _loss_of(self.criterion_) if self.loss is None else self.loss
        call = keywords if self.call is None and isinstance(X, Mapping) else self.call
        recorder = Recorder(self.module_, self.optimizer_, self.out, loss=loss, forward=call, keep=self.keep)
        with recorder, ExitStack() as stack:
            self.recording_ = OptimizerHook(recorder, self.optimizer_)
            stack.callback(self.recording_.detach)
            stack.callback(setattr, self, "recording_", None)
            return super().fit_loop(X, y, *args, **options)

    def get_iterator(self, dataset: Any, training: bool = False) -> Any:
        """Skorch's batches; those of the training are noted with the positions of their rows.

        Raises:
            InputError: an iterator that is no DataLoader.
        """
        stepping = getattr(self, "recording_", None)
        if not training or stepping is None:
            return super().get_iterator(dataset, training=training)
        loader = super().get_iterator(_Positioned(dataset), training=True)
        if not isinstance(loader, DataLoader):
            raise InputError(
                f"iterator_train that makes a {type(loader).__name__}",
                expected="a torch DataLoader",
                hint="leave iterator_train out",
            )
        loader.collate_fn = _Apart(loader.collate_fn)
        return _Noted(loader, stepping)


class _Positioned(Dataset):
    """Items of a dataset, each in a pair with its position in the whole data."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[int, Any]:
        return position_in(self.dataset, index), self.dataset[index]


class _Apart:
    """Collate the items as they would be without positions, and the positions beside them."""

    def __init__(self, collate: Any) -> None:
        self.collate = collate

    def __call__(self, pairs: list[tuple[int, Any]]) -> tuple[Tensor, Any]:
        positions, items = zip(*pairs, strict=True)
        return torch.tensor(positions), self.collate(list(items))


class _Noted:
    """The batches of a loader as skorch knows them; their positions go to the recorder."""

    def __init__(self, loader: DataLoader, stepping: OptimizerHook) -> None:
        self.loader, self.stepping = loader, stepping

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        for index, batch in self.loader:
            self.stepping.note(index, *batch)
            yield batch


def _loss_of(criterion: nn.Module) -> Loss:
    known: dict[type, Loss] = {**LOSSES, nn.NLLLoss: nll_of_probabilities}
    own = {name: getattr(criterion, name, value) for name, value in PLAIN.items()}
    options = [f"{name}={value!r}" for name, value in own.items() if value != PLAIN[name]]
    options += ["weight"] if getattr(criterion, "weight", None) is not None else []
    if type(criterion) not in known or options:
        raise InputError(
            f"the criterion {type(criterion).__name__}({', '.join(options)}), with the loss to be found out",
            expected=f"{', '.join(kind.__name__ for kind in known)} without weights or other options",
            hint="pass loss=, a callable (outputs, targets) -> (n,) losses",
        )
    return known[type(criterion)]
