"""A callback that records what Lightning trains; needs the extra ``kernelmem[lightning]``."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from kernelmem.core.errors import InputError
from kernelmem.recording.gradient_check import Forward
from kernelmem.recording.recorder import Recorder
from kernelmem.recording.trainers.optimizer_hook import OptimizerHook
from kernelmem.training.losses import Loss

__all__ = ["LightningRecorder"]

PRECISIONS = ("32-true", "64-true")


class LightningRecorder(Callback):
    """Record a LightningModule with automatic optimization, one optimizer, on the CPU.

    The batch has to carry the positions of its rows: wrap the dataset in :class:`~kernelmem.recording.trainers.indexed_dataset.Indexed`, which
    puts them before x and y::

        class Classifier(lightning.LightningModule):
            def training_step(self, batch, _):
                index, x, y = batch
                return F.cross_entropy(self(x), y)
            ...

        recorder = LightningRecorder("runs/a", loss="cross_entropy")
        trainer = lightning.Trainer(max_epochs=5, accelerator="cpu", callbacks=[recorder])
        trainer.fit(module, DataLoader(Indexed(dataset), batch_size=32, shuffle=True))
        run = km.Run.open("runs/a")

    A step is recorded where ``optimizer.step`` is called, after the closure: clipping of the norm and
    ``accumulate_grad_batches`` are covered. Gradients that are not those of ``loss`` on the batch (another loss, clipping of
    values, dropout or BatchNorm under accumulation) end the training with an error that names the parameter.
    """

    def __init__(
        self,
        out: str | Path,
        *,
        loss: Loss,
        module: str = "",
        unpack: Callable[[Any], tuple[Any, Any, Any]] | None = None,
        forward: Forward | None = None,
        keep: str | int = "all",
        tolerance: float | None = None,
    ) -> None:
        """Take the options of the recorder; nothing is opened before training starts.

        Args:
            out: directory of the run.
            loss: as in :class:`~kernelmem.recording.recorder.Recorder`; its mean over the batch is what ``training_step`` returns.
            module: the part of the LightningModule that is recorded ("net"); it holds all trained parameters, and is the
                model of the run: ``km.ledger(run, module.net, ...)``. "": all of it.
            unpack: maps the batch to (index, x, y); None: the batch is that.
            forward: maps (module, x) to outputs (B, C); None: ``module(x)``.
            keep: which weights are kept.
            tolerance: of the check of the gradients.
        """
        self._out, self._module, self._unpack = out, module, unpack
        self._options = {"loss": loss, "forward": forward, "keep": keep, "tolerance": tolerance}
        self._open: ExitStack | None = None
        self._stepping: OptimizerHook | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the run.

        Raises:
            InputError: manual optimization, several optimizers or processes, another precision, a training that
                goes on from a Lightning checkpoint; what the recorder refuses.
        """
        _check_trainer(trainer, pl_module)
        try:
            recorded = pl_module.get_submodule(self._module)
        except AttributeError as error:
            raise InputError(
                f"module={self._module!r} ({error})",
                expected=f"a part of {type(pl_module).__name__}: {', '.join(name for name, _ in pl_module.named_children())}",
                hint='leave module out for all of it, or name the part by its path, "net.encoder"',
            ) from error
        optimizer = trainer.optimizers[0]
        with ExitStack() as stack:
            recorder = stack.enter_context(Recorder(recorded, optimizer, self._out, **self._options))
            self._stepping = OptimizerHook(recorder, optimizer)
            stack.callback(self._stepping.detach)
            self._open = stack.pop_all()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget batches of an epoch that was left early."""
        if self._stepping is not None:
            self._stepping.forget()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note the batch.

        Raises:
            InputError: no (index, x, y).
        """
        found = batch if self._unpack is None else self._unpack(batch)
        if not isinstance(found, list | tuple) or len(found) != 3:
            raise InputError(
                f"a batch of type {type(found).__name__}"
                + (f" and length {len(found)}" if hasattr(found, "__len__") else ""),
                expected="(index, x, y)",
                hint="wrap the dataset in kernelmem.recording.trainers.indexed_dataset.Indexed, or pass unpack=lambda batch: (index, x, y)",
            )
        if self._stepping is not None:
            self._stepping.note(*found)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the run."""
        self._close(None)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the run where it is."""
        self._close(exception)

    def _close(self, error: BaseException | None) -> None:
        stack, self._open, self._stepping = self._open, None, None
        if stack is not None:
            stack.__exit__(None if error is None else type(error), error, None)


def _check_trainer(trainer: Trainer, pl_module: LightningModule) -> None:
    n = len(trainer.optimizers)
    for given, refused, expected in (
        ("manual optimization", not pl_module.automatic_optimization, "automatic_optimization=True"),
        (f"{n} optimizers", n != 1, "one optimizer"),
        (f"precision {trainer.precision}", trainer.precision not in PRECISIONS, 'precision="32-true" or "64-true"'),
        (f"{trainer.world_size} processes", trainer.world_size != 1, "devices=1"),
        (f"a training that starts at step {trainer.global_step}", trainer.global_step != 0, "fit without ckpt_path"),
    ):
        if refused:
            raise InputError(given, expected=expected, hint="write the training loop around kernelmem.Recorder instead")
