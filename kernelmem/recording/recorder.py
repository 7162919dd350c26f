"""The recorder: stands in the place of ``optimizer.step()`` and writes down what each step was made of."""

from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from kernelmem.core.atomic_files import check_directory
from kernelmem.core.batches import Batch
from kernelmem.core.checks import ArrayLike
from kernelmem.core.errors import InputError
from kernelmem.recording.averaging import AverageTracker
from kernelmem.recording.gradient_check import Forward, ForwardRandomState, GradientCheck, call
from kernelmem.recording.resume import last_whole_checkpoint, matches_last_step
from kernelmem.recording.storage import checkpoints
from kernelmem.recording.storage.header import check_model, check_options, check_same_run, run_header
from kernelmem.recording.storage.inputs import InputRegistry, read_batch
from kernelmem.recording.storage.param_groups import read_groups
from kernelmem.recording.storage.tape import Step, Tape, refuse_existing
from kernelmem.training import losses

__all__ = ["Recorder"]

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4}
COARSE = 3e-2  # of bfloat16 and float16: a few roundings


class Recorder:
    """Record a training run, so that it can be replayed to the bit and accounted for example by example.

    ::

        with km.Recorder(model, optimizer, "runs/a", loss="cross_entropy") as recorder:
            for index, x, y in batches:
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                recorder.step(index, x, y)  # in place of optimizer.step()

    Every step is checked before it is taken: the gradient of the loss on the batch is computed a second time, and the
    gradients in ``.grad`` must be that, times one number. Training goes on to the bit as it would without the recorder.

    The weights are kept as ``keep`` says (:func:`~kernelmem.recording.storage.checkpoints.is_kept`), the initial ones and, on leaving
    the ``with`` block, the last ones always. A killed process leaves a run that holds every acknowledged step;
    ``resume=True`` and :meth:`restore` go on from its last kept checkpoint::

        with km.Recorder(model, optimizer, "runs/a", loss="cross_entropy", resume=True) as recorder:
            for t in range(recorder.restore(), steps): ...

    A model whose batch is a dict, tuple or list of tensors, or whose output has to be taken apart, is called by
    ``forward``. For one of Hugging Face that is ``km.logits``, and x is ``dict(tokenizer(...))``. An example that is
    padded to another length in another batch is stored again: pad all to one length::

        with km.Recorder(model, optimizer, "runs/b", loss="cross_entropy", forward=km.logits) as recorder:
            ...
            recorder.step(index, batch, y)  # batch: {"input_ids": (B, S), "attention_mask": (B, S)}

    Averaged weights (EMA, SWA) are recorded by :meth:`average`, in place of ``update_parameters``; ``run.averages`` has the
    coefficients, ``run.averaged()`` the weights. ``update_bn`` belongs inside the block: what the averaged model's
    buffers are on leaving it is what is kept::

        averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999))
        with km.Recorder(model, optimizer, "runs/c", loss="cross_entropy", averaged=averaged) as recorder:
            for index, x, y in batches:
                ...
                recorder.step(index, x, y)
                recorder.average(averaged)
            update_bn(loader, averaged)

    Cost: one more forward and backward pass a step, a copy and a hash of the weights, the inputs that are new, one fsync.
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
        """Check everything that can be checked before training; nothing is written before ``with``.

        Args:
            model: maps x to outputs (B, C); on the CPU. The recorder never changes it but by the optimizer.
            optimizer: torch.optim.SGD, Adam, AdamW, RMSprop or Adagrad.
            directory: of the run: ``tape.sqlite`` and ``weights/``.
            loss: "cross_entropy", "mse" (half the squared distance), "mse_mean" (torch's convention), or a callable
                (outputs, targets) -> (B,) losses.
            reduction: "mean": sum_i w_i l_i / B; "sum": sum_i w_i l_i.
            keep: "all", "sqrt", or k for every k-th step.
            resume: go on with the run in ``directory``.
            tolerance: of the check, relative to the gradient's norm; None: 1e-4 in float32, 1e-10 in float64.
            forward: maps (model, x) to outputs (B, C); it has to call the model itself. None: ``model(x)``.
            averaged: the AveragedModel that :meth:`average` will update: its state is then part of every checkpoint, which
                is written before the step that follows it.

        Raises:
            InputError: an unknown option, an optimizer that is not listed, a directory that holds a run (or, to resume,
                none). UnsupportedModelError: a scripted or data-parallel model, parameters that are lazy, complex or not
                on the CPU.
        """
        losses.check_loss(loss)
        check_options(reduction, keep, tolerance)
        check_model(model)
        self._model, self._optimizer, self._forward = model, optimizer, forward
        self._directory, self._keep, self._resume = Path(directory), keep, resume
        self._parameters = dict(model.named_parameters())
        self._names = {parameter: name for name, parameter in self._parameters.items()}
        read_groups(optimizer, self._names)
        coarsest = max((TOLERANCES.get(p.dtype, COARSE) for p in self._parameters.values()), default=COARSE)
        tolerance = coarsest if tolerance is None else float(tolerance)
        self._check = GradientCheck(model, self._parameters, forward or call, loss, reduction, tolerance)
        self._averaging = None if averaged is None else AverageTracker(averaged, model)
        if not resume:
            refuse_existing(check_directory(directory))
        self._tape: Tape | None = None
        self._inputs = InputRegistry()
        self._state: dict[str, Tensor] | None = None  # after the last step on the tape; None: the model is elsewhere
        self._random_after = torch.get_rng_state()
        self._due = False  # a checkpoint of the last step that waits for the averages after it

    def __enter__(self) -> "Recorder":
        if self._resume:
            own = checkpoints.model_state(self._model)
            check_same_run(self._header(own), Tape(self._directory).meta, self._directory)
            self._tape = Tape(self._directory, write=True)
            self._inputs = InputRegistry(self._tape.known_inputs())
            moments = checkpoints.optimizer_state(self._optimizer, self._names)
            there = matches_last_step(self._directory, self._tape, own, moments, self._averaging)
            self._state = own if there else None
        else:
            refuse_existing(self._directory)
            self._state = checkpoints.model_state(self._model)
            self._random_after = torch.get_rng_state()
            header = self._header(self._state)
            self._tape = Tape.create(self._directory, header, initial=self._write_checkpoint(0, self._state))
        self._passes = ForwardRandomState(self._model)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        tape, self._tape = self._tape, None
        if tape is None:
            return
        self._passes.remove()
        try:
            if self._state is not None and len(tape) not in tape.checkpoints():
                tape.keep(self._write_checkpoint(len(tape), self._state))
            if self._averaging is not None and self._averaging.count:
                for old in tape.keep_averaged(checkpoints.write_averaged(self._directory, self._averaging.final())):
                    checkpoints.averaged_path(self._directory, old).unlink(missing_ok=True)
        except Exception:
            if kind is None:  # otherwise the error of the loop is the one to tell; the run stays readable without it
                raise
        finally:
            tape.close()

    def step(self, index: ArrayLike, x: Batch, y: ArrayLike, sample_weight: ArrayLike | None = None) -> None:
        """Check the gradients, take the optimizer's step, and write it down; it is on disk when this returns.

        Args:
            index: (B,) the position of each row in the training data.
            x: (B, ...) what the model was called with, or a dict, tuple or list of such tensors; in accumulation, all
                micro-batches of the step concatenated.
            y: (B,) or (B, C) targets as the loss takes them.
            sample_weight: (B,) loss weights; None: ones.

        Raises:
            InputError: the gradients are not those of the loss on this batch (names the parameter with the largest
                mismatch), weights that changed between the steps, a batch that does not fit. The step is not taken.
        """
        tape = self._started()
        batch = read_batch(index, x, y, sample_weight)
        versions, new = self._inputs.place(batch)
        before = self._agreed_state(tape)
        groups = read_groups(self._optimizer, self._names)
        held = [name for group in groups for name in group["parameters"]]
        scale, skipped, random = self._check.run(len(tape), batch, held, before, self._passes)
        if self._due:
            tape.keep(self._write_checkpoint(len(tape), before))
            self._due = False
        evaluating = frozenset(name for name, module in self._model.named_modules() if not module.training)
        self._state = None  # if anything fails from here on, the model is no longer what the tape says
        self._optimizer.step()
        state = checkpoints.model_state(self._model)
        step = Step(
            index=len(tape),
            examples=batch.examples,
            versions=versions,
            sample_weight=torch.ones(len(versions), dtype=torch.float64)
            if batch.sample_weight is None
            else batch.sample_weight,
            groups=groups,
            scale=scale,
            skipped=skipped,
            random=random,
            after=checkpoints.state_sha256(state),
            buffers_changed=any(
                not torch.equal(value, before[name]) for name, value in state.items() if name not in self._parameters
            ),
            evaluating=evaluating,
        )
        self._random_after = torch.get_rng_state()
        due = checkpoints.is_kept(len(tape) + 1, self._keep)
        kept = due and self._averaging is None
        # the file first: a checkpoint that the tape does not know is no harm, one that it knows must be there
        checkpoint = self._write_checkpoint(len(tape) + 1, state) if kept else None
        tape.append(step, new, checkpoint=checkpoint)
        self._inputs.accept(new)
        self._state, self._passes.random = state, None
        self._due = due and not kept

    def average(self, averaged: AveragedModel | None = None) -> None:
        """Update the averaged weights, in place of ``averaged.update_parameters(model)``, and write the update down.

        Args:
            averaged: the one that the recorder was made with; a recorder that was made without takes it from here.

        Raises:
            InputError: another averaged model, one that was updated elsewhere, or an update that is not
                w_avg <- w_avg + kappa (w - w_avg) with one number kappa for all parameters. The update is not taken.
        """
        tape = self._started()
        if self._averaging is None and averaged is not None:
            self._averaging = AverageTracker(averaged, self._model)
        if self._averaging is None or (averaged is not None and averaged is not self._averaging.model):
            raise InputError(
                "no averaged model" if averaged is None else "another averaged model than before",
                expected="one AveragedModel for each run",
                hint="pass it to the recorder: Recorder(..., averaged=averaged)",
            )
        self._averaging.update(self._model, self._agreed_state(tape), tape.append_average)

    def restore(self) -> int:
        """Put back weights, buffers, optimizer, averages and random state of the last kept checkpoint; drop later steps.

        Hyper-parameters, schedules and the data order are the caller's: set them to the step that is returned.

        Returns:
            The number of steps that are on the tape now: the index of the step to go on with.

        Raises:
            InputError: the model is another one. FileCorruptError: the checkpoint is missing or altered.
        """
        tape = self._started()
        averages = tape.averages()
        last, checkpoint = last_whole_checkpoint(self._directory, tape)
        checkpoints.load_model_state(self._model, checkpoint.model)
        checkpoints.set_optimizer_state(self._optimizer, checkpoint.optimizer, self._parameters)
        torch.set_rng_state(checkpoint.random)
        if self._averaging is not None:
            self._averaging.place(checkpoint.averaged, averages[: checkpoint.updates])
        tape.truncate(last, averages=checkpoint.updates)
        self._inputs = InputRegistry(tape.known_inputs())
        self._state, self._passes.random, self._random_after = checkpoint.model, None, checkpoint.random
        self._due = False
        return last

    def _started(self) -> Tape:
        if self._tape is None:
            raise InputError(
                "a recorder that is not recording",
                expected="a call inside its with block",
                hint="write `with Recorder(...) as recorder:` around the training loop",
            )
        return self._tape

    def _agreed_state(self, tape: Tape) -> dict[str, Tensor]:
        """The model's state after the last step on the tape, if the model still has these weights."""
        if self._state is None:
            raise InputError(
                f"a model or optimizer that is not as it was after the {len(tape)} steps on the tape",
                expected="the state in which the run was left",
                hint="call recorder.restore() before the first step: it returns the step to go on with",
            )
        for name, parameter in self._parameters.items():
            if not torch.equal(parameter, self._state[name]):
                raise InputError(
                    f"parameter {name}, which has changed since the last step ({len(tape)} on the tape)",
                    expected="weights that change in the optimizer's step only",
                    hint="call recorder.restore(), or record a new run from these weights",
                )
        return self._state

    def _write_checkpoint(self, step: int, state: dict[str, Tensor]) -> str:
        optimizer = checkpoints.optimizer_state(self._optimizer, self._names)
        average = self._averaging
        averaged, updates = ({}, 0) if average is None else (average.state or {}, average.count)
        checkpoint = checkpoints.Checkpoint(state, optimizer, self._random_after, averaged, updates)
        return checkpoints.write_checkpoint(self._directory, step, checkpoint)

    def _header(self, state: dict[str, Tensor]) -> dict[str, Any]:
        return run_header(
            self._model,
            self._optimizer,
            state,
            loss=self._check.loss,
            forward=self._forward,
            reduction=self._check.reduction,
            keep=self._keep,
        )
