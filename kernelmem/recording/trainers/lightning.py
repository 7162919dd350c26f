"""Lightning callback that records the training; needs the extra ``kernelmem[lightning]``."""

from collections.abc import Callable, Sized
from contextlib import ExitStack
from pathlib import Path
from typing import TypeAlias, cast

from lightning.pytorch import Callback, LightningModule, Trainer

from kernelmem.core.batches import Batch, Forward
from kernelmem.core.checks import ArrayLike
from kernelmem.core.errors import InputError
from kernelmem.recording.recorder import Recorder
from kernelmem.recording.trainers.optimizer_hook import OptimizerHook
from kernelmem.training.losses import Loss

IndexedBatch: TypeAlias = tuple[ArrayLike, Batch, ArrayLike]
"""index, x, y."""

SUPPORTED_PRECISIONS = ("32-true", "64-true", "bf16-true", "bf16-mixed")


class LightningRecorder(Callback):
    """Record a LightningModule with automatic optimization, one optimizer and one device.

    The batch must include the positions of its rows: wrap the dataset in
    :class:`~kernelmem.recording.trainers.Indexed`, which prepends them to x and y::

        class Classifier(lightning.LightningModule):
            def training_step(self, batch, _):
                index, x, y = batch
                return F.cross_entropy(self(x), y)
            ...

        recorder = LightningRecorder("runs/a", loss="cross_entropy")
        trainer = lightning.Trainer(max_epochs=5, accelerator="cpu", callbacks=[recorder])
        trainer.fit(module, DataLoader(Indexed(dataset), batch_size=32, shuffle=True))
        run = km.Run.open("runs/a")

    A step is recorded when ``optimizer.step`` is called, after its closure, so clipping of the norm and
    ``accumulate_grad_batches`` are supported. Gradients that are not those of ``loss`` on the batch (another loss, clipping
    of values, dropout or BatchNorm with accumulation) raise an error that names the parameter. Precisions "32-true",
    "64-true", "bf16-true" and "bf16-mixed" are supported; "16-mixed" skips steps unnoticed and is refused.
    """

    def __init__(
        self,
        out: str | Path,
        *,
        loss: Loss,
        module: str = "",
        unpack: Callable[[Batch], IndexedBatch] | None = None,
        forward: Forward | None = None,
        keep: str | int = "all",
        tolerance: float | None = None,
    ) -> None:
        """Set the options of the recorder; nothing is written before training starts.

        Args:
            out: directory of the run.
            loss: as in :class:`~kernelmem.recording.Recorder`; ``training_step`` must return its mean over the batch.
            module: the part of the LightningModule that is recorded ("net"); it holds all trained parameters, and is the
                model of the run: ``km.ledger(run, module.net, ...)``. "": all of it.
            unpack: maps the batch to (index, x, y); None: the batch is (index, x, y).
            forward: maps (module, x) to outputs (B, C); None: ``module(x)``.
            keep: which weights are kept: "all", "sqrt", or k for every k-th step.
            tolerance: relative tolerance of the gradient check, as in :class:`~kernelmem.recording.Recorder`.
        """
        self._directory, self._module_path, self._unpack = out, module, unpack
        self._recorder_options = {"loss": loss, "forward": forward, "keep": keep, "tolerance": tolerance}
        self._exit_stack: ExitStack | None = None
        self._hook: OptimizerHook | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the run and attach the recorder to the optimizer.

        Raises:
            InputError: manual optimization, several optimizers or processes, another precision, training resumed from a
                Lightning checkpoint, or arguments that the recorder refuses.
        """
        _check_trainer(trainer, pl_module)
        try:
            recorded_module = pl_module.get_submodule(self._module_path)
        except AttributeError as error:
            raise InputError(
                f"module={self._module_path!r} ({error})",
                expected=f"a part of {type(pl_module).__name__}: {', '.join(name for name, _ in pl_module.named_children())}",
                hint='omit module to record all of it, or pass the path of a part, e.g. "net.encoder"',
            ) from error
        optimizer = trainer.optimizers[0]
        with ExitStack() as stack:
            recorder = stack.enter_context(
                Recorder(recorded_module, optimizer, self._directory, **self._recorder_options)
            )
            self._hook = OptimizerHook(recorder, optimizer)
            stack.callback(self._hook.detach)
            self._exit_stack = stack.pop_all()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Discard the batches of the epoch before it that were not followed by an optimizer step."""
        if self._hook is not None:
            self._hook.clear()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """Pass the batch to the recorder, which uses it in the next optimizer step.

        Raises:
            InputError: the batch is not (index, x, y).
        """
        indexed_batch = batch if self._unpack is None else self._unpack(batch)
        if not isinstance(indexed_batch, list | tuple) or len(indexed_batch) != 3:
            length = f" and length {len(indexed_batch)}" if isinstance(indexed_batch, Sized) else ""
            raise InputError(
                f"a batch of type {type(indexed_batch).__name__}{length}",
                expected="(index, x, y)",
                hint="wrap the dataset in kernelmem.recording.trainers.Indexed, or pass unpack=lambda batch: (index, x, y)",
            )
        if self._hook is not None:
            self._hook.add_batch(*cast(IndexedBatch, indexed_batch))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the run."""
        self._close(None)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the run after an error; completed steps are kept."""
        self._close(exception)

    def _close(self, error: BaseException | None) -> None:
        """Restore the optimizer's own step and close the run; ``error`` is the exception that ended training, or None."""
        stack, self._exit_stack, self._hook = self._exit_stack, None, None
        if stack is not None:
            stack.__exit__(None if error is None else type(error), error, None)


def _check_trainer(trainer: Trainer, pl_module: LightningModule) -> None:
    """Check that the training can be recorded.

    Raises:
        InputError: manual optimization, several optimizers or processes, mixed precision, or a start after step 0.
    """
    n_optimizers = len(trainer.optimizers)
    for description, is_unsupported, expected in (
        ("manual optimization", not pl_module.automatic_optimization, "automatic_optimization=True"),
        (f"{n_optimizers} optimizers", n_optimizers != 1, "one optimizer"),
        (
            f"precision {trainer.precision}",
            trainer.precision not in SUPPORTED_PRECISIONS,
            f"one of {', '.join(SUPPORTED_PRECISIONS)}",
        ),
        (f"{trainer.world_size} processes", trainer.world_size != 1, "devices=1"),
        (f"training that starts at step {trainer.global_step}", trainer.global_step != 0, "fit without ckpt_path"),
    ):
        if is_unsupported:
            raise InputError(
                description, expected=expected, hint="write your own training loop with kernelmem.Recorder"
            )
