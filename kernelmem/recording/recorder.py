"""Recorder of a training run: takes the optimizer's steps and writes down what determines each of them."""

from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim.swa_utils import AveragedModel

from kernelmem.core.batches import Batch, Forward
from kernelmem.core.checks import ArrayLike, as_path
from kernelmem.core.errors import InputError
from kernelmem.core.files.atomic_files import check_directory
from kernelmem.recording.averaging import AverageTracker
from kernelmem.recording.gradient_check import GradientCheck, call_model
from kernelmem.recording.resume import last_complete_checkpoint, matches_last_step
from kernelmem.recording.step_checks.forward_observer import ForwardObserver
from kernelmem.recording.step_checks.hidden_state import HiddenStateCheck
from kernelmem.recording.step_checks.loss_scaling import LossScaling, unscale
from kernelmem.recording.step_checks.optimizer_mirror import OptimizerMirror, StepGuard
from kernelmem.recording.step_checks.random_state import get_random_state, set_random_state
from kernelmem.recording.step_checks.unchanged_state import check_unchanged, refuse_used_optimizer
from kernelmem.recording.storage import checkpoints, header
from kernelmem.recording.storage.directory import DirectoryLock, translate_write_errors
from kernelmem.recording.storage.inputs import InputRegistry, read_batch
from kernelmem.recording.storage.param_groups import ParamGroup, read_groups
from kernelmem.recording.storage.tape import Tape, refuse_existing
from kernelmem.training import losses


class Recorder:
    """Record a training run, so that it can be replayed to the bit and attributed to its examples.

    ::

        with km.Recorder(model, optimizer, "runs/a", loss="cross_entropy") as recorder:
            for index, x, y in batches:
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                recorder.step(index, x, y)  # instead of optimizer.step()

    Every step is checked: before it is taken, the gradient of the loss on the batch is computed a second time, without
    gradient hooks, and the gradients in ``.grad`` must equal it times one number; the loss of a row must not depend on other
    rows; model and loss must not have changed but in parameters and buffers. Afterwards the weights must be those of the
    optimizer's formula. Training gives the same bits as without the recorder.

    ``keep`` determines which weights are kept (:func:`~kernelmem.recording.storage.checkpoints.is_kept`); the initial and,
    on leaving the ``with`` block, the final ones always are. After a crash the run holds every acknowledged step;
    ``resume=True`` and :meth:`restore` resume it from its last kept checkpoint::

        with km.Recorder(model, optimizer, "runs/a", loss="cross_entropy", resume=True) as recorder:
            for t in range(recorder.restore(), steps): ...

    ``forward`` calls a model whose batch is a dict, tuple or list of tensors, or whose output is not a tensor of logits.
    For Hugging Face models it is ``km.logits``, and x is ``dict(tokenizer(...))``; pad all examples to one length::

        with km.Recorder(model, optimizer, "runs/b", loss="cross_entropy", forward=km.logits) as recorder:
            ...; recorder.step(index, batch, y)  # batch: {"input_ids": (B, S), "attention_mask": (B, S)}

    Averaged weights (EMA, SWA) are recorded by :meth:`average`, called instead of ``update_parameters``; ``run.averages``
    holds the coefficients, ``run.averaged()`` the weights. Call ``update_bn`` inside the block: the buffers of the
    averaged model are saved on leaving it::

        averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999))
        with km.Recorder(model, optimizer, "runs/c", loss="cross_entropy", averaged=averaged) as recorder:
            ...; recorder.step(index, x, y); recorder.average(averaged)
            update_bn(loader, averaged)

    The model may be on any device; batches are copied to it. Mixed precision is recorded as torch's, with autocast around
    forward pass and loss; the state of the scaler is not part of a checkpoint::

        with torch.autocast("cuda", torch.float16):
            loss = F.cross_entropy(model(x), y)
        scaler.scale(loss).backward()  # scaler = torch.amp.GradScaler("cuda"); bfloat16 needs none
        recorder.step(index, x, y, scaler=scaler)  # instead of scaler.step(optimizer)
        scaler.update()

    Cost per step: one more forward and backward pass, a forward pass of two rows, a second step of the optimizer on copies
    of the weights, a hash of the weights, the new inputs, one fsync. Memory: twice the weights and the optimizer's state.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        directory: str | Path,
        *,
        loss: losses.Loss,
        reduction: str = "mean",
        keep: str | int = "all",
        resume: bool = False,
        tolerance: float | None = None,
        forward: Forward | None = None,
        averaged: AveragedModel | None = None,
    ) -> None:
        """Check model, optimizer and options; nothing is written before ``with``.

        Args:
            model: maps x to outputs (B, C); on one device. Only the optimizer changes it.
            optimizer: torch.optim.SGD, Adam, AdamW, RMSprop or Adagrad.
            directory: directory of the run, which will contain ``tape.sqlite`` and ``weights/``.
            loss: "cross_entropy", "mse" (half the squared distance), "mse_mean" (torch's convention), a loss module such as
                ``nn.CrossEntropyLoss(weight=...)``, or a callable (outputs, targets) -> (B,) losses.
            reduction: "mean": sum_i w_i l_i / B; "sum": sum_i w_i l_i.
            keep: "all", "sqrt", or k for every k-th step.
            resume: True to resume the run that is in ``directory``.
            tolerance: relative tolerance of the gradient check; None: 1e-10 in float64, 1e-4 in float32, 3e-3 where CUDA
                may compute in TF32, 3e-2 in half precision and under autocast.
            forward: maps (model, x) to outputs (B, C); it must call the model itself. None: ``model(x)``.
            averaged: the AveragedModel that :meth:`average` will update; every checkpoint then includes its state, and is
                written just before the next step.

        Raises:
            InputError: an option is unknown, the optimizer is not listed above, or the directory already holds a run (or,
                to resume, holds none). UnsupportedModelError: the model is scripted, data-parallel or on several devices,
                or a parameter is lazy, complex or without values.
        """
        loss = losses.as_loss(loss)
        reduction = losses.loss_reduction(loss) or reduction
        header.check_options(reduction, keep, tolerance, resume, forward)
        header.check_model(model)
        self._model, self._optimizer, self._forward = model, optimizer, forward
        self._directory, self._keep_rule, self._resume = as_path(directory, "directory"), keep, resume
        self._parameters = dict(model.named_parameters())
        self._parameter_names = {parameter: name for name, parameter in self._parameters.items()}
        read_groups(optimizer, self._parameter_names)
        self._device, forward = header.model_device(model), forward or call_model
        self._gradient_check = GradientCheck(model, self._parameters, forward, loss, reduction, tolerance, self._device)
        self._hidden_state_check = HiddenStateCheck(model, forward, loss, self._device)
        self._average_tracker = None if averaged is None else AverageTracker(averaged, model)
        if not resume:
            refuse_existing(check_directory(directory))
        self._tape: Tape | None = None
        self._inputs = InputRegistry()
        self._recorded_state: dict[str, Tensor] | None = None  # after the last recorded step; None: the model differs
        self._mirror: OptimizerMirror | None = None  # its weights are the parameters in _recorded_state
        self._random_after = get_random_state(self._device)
        self._skip_changed_buffers = False  # True after a skipped step whose forward pass changed buffers
        self._checkpoint_due = False  # the checkpoint of the last step waits for the averages after it

    def __enter__(self) -> "Recorder":
        """Create the files of the run, or open those of the run to resume, and return the recorder.

        Raises:
            InputError: another recorder is recording in the directory, or it cannot be written to; the optimizer has already
                taken steps; the run to resume is another one.
        """
        if self._resume:
            Tape(self._directory).close()  # refuses a directory without a run before anything is created
        else:
            refuse_existing(self._directory)
        self._lock = DirectoryLock(self._directory)
        try:
            with translate_write_errors(self._directory):
                self._open()
        except BaseException:
            self._lock.release()
            raise
        self._observer = ForwardObserver(self._model, self._device)
        self._step_guard = StepGuard(self._optimizer)
        return self

    def _open(self) -> None:
        """Create the files of the run, or open those of the run to resume."""
        optimizer_state = checkpoints.optimizer_state(self._optimizer, self._parameter_names)
        if self._resume:
            state = checkpoints.model_state(self._model)
            header.check_same_run(self._header(state), Tape(self._directory).meta, self._directory)
            self._tape = Tape(self._directory, write=True)
            self._inputs = InputRegistry(self._tape.known_inputs())
            matches_recording = matches_last_step(
                self._directory, self._tape, state, optimizer_state, self._average_tracker
            )
            self._mirror = OptimizerMirror(self._optimizer, self._parameters) if matches_recording else None
            self._recorded_state = state if matches_recording else None
        else:
            refuse_used_optimizer(self._optimizer, optimizer_state)
            refuse_existing(self._directory)
            self._mirror = OptimizerMirror(self._optimizer, self._parameters)
            self._recorded_state = checkpoints.model_state(self._model)
            self._random_after = get_random_state(self._device)
            run_header = self._header(self._recorded_state)
            initial_sha256 = self._write_checkpoint(0, self._recorded_state)
            self._tape = Tape.create(self._directory, run_header, initial_sha256=initial_sha256)

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Write the last checkpoint and the averaged weights, if there are any, and close the files of the run.

        Raises:
            InputError: weights have changed since the last recorded step (the run holds all steps before that), or the disk
                is full. If the block ended with an error, that one is raised.
        """
        tape, self._tape = self._tape, None
        if tape is None:
            return
        self._observer.remove()
        self._step_guard.remove()
        try:
            with translate_write_errors(self._directory):
                if self._recorded_state is not None and len(tape) not in tape.checkpoints():
                    tape.keep(self._write_checkpoint(len(tape), self._recorded_state))
                if self._average_tracker is not None:
                    self._average_tracker.save(self._directory, tape.keep_averaged)
            if self._recorded_state is not None:
                self._current_state(tape)
        except Exception:
            # otherwise the error of the loop is raised; the run stays readable without these files
            if error_type is None:
                raise
        finally:
            tape.close()
            self._lock.release()

    def step(
        self,
        index: ArrayLike,
        x: Batch,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        *,
        scaler: GradScaler | None = None,
    ) -> bool:
        """Check the gradients, take the optimizer's step, and record it; the step is on disk when this returns.

        Args:
            index: (B,) positions of the rows of the batch in the training data.
            x: (B, ...) input of the model, or a dict, tuple or list of such tensors; with gradient accumulation, all
                micro-batches of the step concatenated.
            y: (B,) or (B, C) targets of the loss.
            sample_weight: (B,) loss weights of the rows; None: ones.
            scaler: the GradScaler that has scaled the loss; this call replaces ``scaler.step(optimizer)``.

        Returns:
            True if the step was taken; False if the scaler skipped it, because a gradient was not finite: nothing is recorded.

        Raises:
            InputError: the gradients are not those of the loss on this batch (names the parameter with the largest
                mismatch), the loss of a row depends on others, model or loss have changed otherwise than in parameters and
                buffers, weights changed between the steps, or lengths differ. The step is then not taken. After the step:
                its weights are not those of the optimizer's formula (step hooks, constraints), or the disk is full; the step
                is then not recorded, and :meth:`restore` returns to the last kept one.
            UnsupportedModelError: the outputs are not (n, C); the hint says which ``forward=`` to pass. Not taken.
        """
        tape = self._require_tape()
        batch = read_batch(index, x, y, sample_weight)
        versions, new_inputs = self._inputs.versions(batch)
        state_before = self._current_state(tape)
        scaling = unscale(scaler, self._optimizer)
        if scaling.overflowed:
            self._skip_step(tape, scaling)
            return False
        batch = batch.to(self._device)
        groups = read_groups(self._optimizer, self._parameter_names)
        trained_names = [name for group in groups for name in group["parameters"]]
        checked = self._gradient_check.run(
            len(tape), batch, trained_names, state_before, self._observer, loss_scale=scaling.scale
        )
        with self._observer.paused():
            self._hidden_state_check.check(len(tape), batch.x, batch.y, state_before)
        if self._checkpoint_due:
            with translate_write_errors(self._directory):
                tape.keep(self._write_checkpoint(len(tape), state_before))
            self._checkpoint_due = False
        eval_modules = frozenset(name for name, module in self._model.named_modules() if not module.training)
        self._recorded_state = None  # if anything fails from here on, the model differs from the last recorded step
        state = self._take_step(len(tape), groups, checked.gradients, scaling)
        step = checked.step(
            len(tape),
            batch,
            versions,
            groups,
            after=checkpoints.state_sha256(state),
            buffers_changed=self._buffers_differ(state_before),
            evaluating=eval_modules,
            exact=not self._skip_changed_buffers,
        )
        self._random_after, self._skip_changed_buffers = get_random_state(self._device), False
        checkpoint_due = checkpoints.is_kept(len(tape) + 1, self._keep_rule)
        write_now = checkpoint_due and self._average_tracker is None
        with translate_write_errors(self._directory):
            # file before row: an unrecorded checkpoint does no harm, a recorded one must exist
            checkpoint_sha256 = self._write_checkpoint(len(tape) + 1, state) if write_now else None
            tape.append(step, new_inputs, checkpoint_sha256=checkpoint_sha256)
        self._inputs.add(new_inputs)
        self._recorded_state = state
        self._observer.clear()
        self._checkpoint_due = checkpoint_due and not write_now
        return True

    def _skip_step(self, tape: Tape, scaling: LossScaling) -> None:
        """Let the scaler skip a step, and check that it does."""
        with self._step_guard.open():
            scaling.skip_step(self._optimizer)
        self._skip_changed_buffers |= self._buffers_differ(self._current_state(tape))
        self._observer.clear()

    def _take_step(
        self, index: int, groups: tuple[ParamGroup, ...], gradients: dict[str, Tensor], scaling: LossScaling
    ) -> dict[str, Tensor]:
        """Take step ``index`` with the checked gradients, check it, and return parameters and buffers after it.

        Raises:
            InputError: the weights after it are not those of the optimizer's formula.
        """
        assert self._mirror is not None
        self._mirror.step(groups, gradients, self._optimizer)
        with self._step_guard.open():
            scaling.take_step(self._optimizer)
        self._mirror.compare(self._optimizer, step=index, own_hook=self._step_guard)
        return self._mirror.weights | checkpoints.buffer_state(self._model)

    def average(self, averaged: AveragedModel | None = None) -> None:
        """Update the averaged weights, instead of ``averaged.update_parameters(model)``, and record the update.

        Args:
            averaged: the averaged model of the recorder; required in the first call if ``Recorder`` was given none.

        Raises:
            InputError: the averaged model is another one, was updated elsewhere, or its update is not
                w_avg <- w_avg + kappa (w - w_avg) with one number kappa for all parameters. The average is then unchanged.
        """
        tape = self._require_tape()
        self._average_tracker = AverageTracker.of_run(self._average_tracker, averaged, self._model)
        self._average_tracker.update(self._model, self._current_state(tape), tape.append_average)

    def restore(self) -> int:
        """Restore weights, buffers, optimizer, averages and random state of the last kept checkpoint; drop later steps.

        The caller sets hyper-parameters, schedules and data order to the returned step.

        Returns:
            The number of recorded steps that remain, i.e. the index of the next step.

        Raises:
            InputError: the model is not the recorded one. FileCorruptError: a checkpoint is missing or altered.
        """
        tape = self._require_tape()
        averages = tape.averages()
        last_step, checkpoint = last_complete_checkpoint(self._directory, tape)
        checkpoints.load_model_state(self._model, checkpoint.model)
        checkpoints.set_optimizer_state(self._optimizer, checkpoint.optimizer, self._parameters)
        set_random_state(checkpoint.random, self._device)
        if self._average_tracker is not None:
            self._average_tracker.restore(checkpoint.averaged, averages[: checkpoint.updates])
        tape.truncate(last_step, averages=checkpoint.updates)
        self._inputs = InputRegistry(tape.known_inputs())
        self._recorded_state, self._random_after = checkpoints.model_state(self._model), checkpoint.random
        self._mirror = OptimizerMirror(self._optimizer, self._parameters)
        self._observer.clear()
        self._checkpoint_due = False
        return last_step

    def _require_tape(self) -> Tape:
        """Return the tape of the run.

        Raises:
            InputError: the call is outside the ``with`` block of the recorder.
        """
        if self._tape is None:
            raise InputError(
                "a call outside the recorder's with block",
                expected="a call inside it",
                hint="write `with Recorder(...) as recorder:` around the training loop",
            )
        return self._tape

    def _current_state(self, tape: Tape) -> dict[str, Tensor]:
        """Return parameters and buffers by name after the last recorded step.

        Raises:
            InputError: the model does not have these parameters now.
        """
        return check_unchanged(self._parameters, self._recorded_state, len(tape))

    def _buffers_differ(self, state: dict[str, Tensor]) -> bool:
        """Return True if buffers of the model differ from those in ``state``."""
        return any(not torch.equal(value, state[name]) for name, value in self._model.named_buffers())

    def _write_checkpoint(self, step: int, state: dict[str, Tensor]) -> str:
        """Write the checkpoint after ``step`` steps, with weights and buffers ``state``; return the SHA-256 of its file."""
        optimizer_state = checkpoints.optimizer_state(self._optimizer, self._parameter_names)
        averaging = self._average_tracker
        averaged, updates = ({}, 0) if averaging is None else (averaging.state or {}, averaging.count)
        checkpoint = checkpoints.Checkpoint(state, optimizer_state, self._random_after, averaged, updates)
        return checkpoints.write_checkpoint(self._directory, step, checkpoint)

    def _header(self, state: dict[str, Tensor]) -> header.Header:
        """Return the header, a dict of JSON values, of a run that starts from the parameters and buffers ``state``."""
        return header.run_header(
            self._model,
            self._optimizer,
            state,
            loss=self._gradient_check.loss,
            forward=self._forward,
            reduction=self._gradient_check.reduction,
            keep=self._keep_rule,
        )
