"""The recorder: stands in the place of ``optimizer.step()`` and writes down what each step was made of."""

from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from kernelmem.ground.errors import InputError
from kernelmem.ground.transforms import functional_call
from kernelmem.runs import checkpoints, losses
from kernelmem.runs.gradients import batch_gradient, fit_scale, random_state
from kernelmem.runs.header import check_model, check_options, check_same_run, run_header
from kernelmem.runs.hyperparameters import read_groups
from kernelmem.runs.inputs import Batch, Inputs, read_batch
from kernelmem.runs.tape import Step, Tape, refuse_existing
from kernelmem.store.files import check_directory

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

    The weights are kept as ``keep`` says (:func:`~kernelmem.runs.checkpoints.is_kept`), the initial ones and, on leaving
    the ``with`` block, the last ones always. A killed process leaves a run that holds every acknowledged step;
    ``resume=True`` and :meth:`restore` go on from its last kept checkpoint.

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
    ) -> None:
        """Check everything that can be checked before training; nothing is written before ``with``.

        Args:
            model: maps x (B, ...) to outputs (B, C); on the CPU. The recorder never changes it but by the optimizer.
            optimizer: torch.optim.SGD, Adam, AdamW, RMSprop or Adagrad.
            directory: of the run: ``tape.sqlite`` and ``weights/``.
            loss: "cross_entropy", "mse" (half the squared distance), "mse_mean" (torch's convention), or a callable
                (outputs, targets) -> (B,) losses.
            reduction: "mean": sum_i w_i l_i / B; "sum": sum_i w_i l_i.
            keep: "all", "sqrt", or k for every k-th step.
            resume: go on with the run in ``directory``.
            tolerance: of the check, relative to the gradient's norm; None: 1e-4 in float32, 1e-10 in float64.

        Raises:
            InputError: an unknown option, an optimizer that is not listed, a directory that holds a run (or, to resume,
                none). UnsupportedModelError: a scripted or data-parallel model, parameters that are lazy, complex or not
                on the CPU.
        """
        losses.check_loss(loss)
        check_options(reduction, keep, tolerance)
        check_model(model)
        self._model, self._optimizer, self._loss, self._reduction = model, optimizer, loss, reduction
        self._directory, self._keep, self._resume = Path(directory), keep, resume
        self._parameters = dict(model.named_parameters())
        self._names = {parameter: name for name, parameter in self._parameters.items()}
        read_groups(optimizer, self._names)
        coarsest = max((TOLERANCES.get(p.dtype, COARSE) for p in self._parameters.values()), default=COARSE)
        self._tolerance = coarsest if tolerance is None else float(tolerance)
        if not resume:
            refuse_existing(check_directory(directory))
        self._tape: Tape | None = None
        self._inputs = Inputs()
        self._state: dict[str, Tensor] | None = None  # after the last step on the tape; None: the model is elsewhere
        self._random: Tensor | None = None  # before the last forward pass since the last step
        self._random_after = torch.get_rng_state()
        self._recomputing = False

    def __enter__(self) -> "Recorder":
        if self._resume:
            own = checkpoints.model_state(self._model)
            check_same_run(self._header(own), Tape(self._directory).meta, self._directory)
            self._tape = Tape(self._directory, write=True)
            self._inputs = Inputs(self._tape.known_inputs())
            self._state = self._resumed_state(self._tape, own)
        else:
            refuse_existing(self._directory)
            self._state = checkpoints.model_state(self._model)
            self._random_after = torch.get_rng_state()
            header = self._header(self._state)
            self._tape = Tape.create(self._directory, header, initial=self._write_checkpoint(0, self._state))
        self._hook = self._model.register_forward_pre_hook(self._note_random_state())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        tape, self._tape = self._tape, None
        if tape is None:
            return
        self._hook.remove()
        try:
            if self._state is not None and len(tape) not in tape.checkpoints():
                tape.keep(self._write_checkpoint(len(tape), self._state))
        except Exception:
            if kind is None:  # otherwise the error of the loop is the one to tell; the run stays readable without it
                raise
        finally:
            tape.close()

    def step(self, index: Any, x: Any, y: Any, weight: Any = None) -> None:
        """Check the gradients, take the optimizer's step, and write it down; it is on disk when this returns.

        Args:
            index: (B,) the position of each row in the training data.
            x: (B, ...) what the model was called with; in accumulation, all micro-batches of the step concatenated.
            y: (B,) or (B, C) targets as the loss takes them.
            weight: (B,) loss weights; None: ones.

        Raises:
            InputError: the gradients are not those of the loss on this batch (names the parameter with the largest
                mismatch), weights that changed between the steps, a batch that does not fit. The step is not taken.
        """
        tape = self._started()
        batch = read_batch(index, x, y, weight)
        versions, new = self._inputs.place(batch)
        before = self._agreed_state(tape)
        groups = read_groups(self._optimizer, self._names)
        scale, skipped, random = self._check_gradients(len(tape), batch, groups, before)
        evaluating = frozenset(name for name, module in self._model.named_modules() if not module.training)
        self._state = None  # if anything fails from here on, the model is no longer what the tape says
        self._optimizer.step()
        state = checkpoints.model_state(self._model)
        step = Step(
            index=len(tape),
            examples=batch.examples,
            versions=versions,
            weights=torch.ones(len(versions), dtype=torch.float64) if batch.weights is None else batch.weights,
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
        kept = checkpoints.is_kept(len(tape) + 1, self._keep)
        # the file first: a checkpoint that the tape does not know is no harm, one that it knows must be there
        checkpoint = self._write_checkpoint(len(tape) + 1, state) if kept else None
        tape.append(step, new, checkpoint=checkpoint)
        self._inputs.accept(new)
        self._state, self._random = state, None

    def restore(self) -> int:
        """Put back weights, buffers, optimizer state and random state of the last kept checkpoint, and drop later steps.

        Hyper-parameters, schedules and the data order are the caller's: set them to the step that is returned.

        Returns:
            The number of steps that are on the tape now: the index of the step to go on with.

        Raises:
            InputError: the model is another one. FileCorruptError: the checkpoint is missing or altered.
        """
        tape = self._started()
        kept = tape.checkpoints()
        last = max(kept)
        checkpoint = checkpoints.read_checkpoint(self._directory, last, kept[last])
        checkpoints.load_model_state(self._model, checkpoint.model)
        checkpoints.set_optimizer_state(self._optimizer, checkpoint.optimizer, self._parameters)
        torch.set_rng_state(checkpoint.random)
        tape.truncate(last)
        self._inputs = Inputs(tape.known_inputs())
        self._state, self._random, self._random_after = checkpoint.model, None, checkpoint.random
        return last

    def _started(self) -> Tape:
        if self._tape is None:
            raise InputError(
                "a recorder that is not recording",
                expected="a call inside its with block",
                do="write `with Recorder(...) as recorder:` around the training loop",
            )
        return self._tape

    def _note_random_state(self):
        # a closure, not a bound method: deepcopy of the model (an average of weights, say) must not copy the recorder
        def note(module: nn.Module, _: Any) -> None:
            # the last pass with gradients before the step is its own; earlier ones were skipped, or evaluations
            if module is self._model and not self._recomputing and torch.is_grad_enabled():
                self._random = torch.get_rng_state()

        return note

    def _agreed_state(self, tape: Tape) -> dict[str, Tensor]:
        """The model's state after the last step on the tape, if the model still has these weights."""
        if self._state is None:
            raise InputError(
                f"a model or optimizer that is not as it was after the {len(tape)} steps on the tape",
                expected="the state in which the run was left",
                do="call recorder.restore() before the first step: it returns the step to go on with",
            )
        for name, parameter in self._parameters.items():
            if not torch.equal(parameter, self._state[name]):
                raise InputError(
                    f"parameter {name}, which has changed since the last step ({len(tape)} on the tape)",
                    expected="weights that change in the optimizer's step only",
                    do="call recorder.restore(), or record a new run from these weights",
                )
        return self._state

    def _resumed_state(self, tape: Tape, own: dict[str, Tensor]) -> dict[str, Tensor] | None:
        """The state after the last step on the tape if model and optimizer are in it already, else None."""
        kept = tape.checkpoints()
        if len(tape) not in kept:
            return None
        last = checkpoints.read_checkpoint(self._directory, len(tape), kept[len(tape)])
        moments = checkpoints.optimizer_state(self._optimizer, self._names)
        names = {**moments, **last.optimizer}
        same = all(_equal(moments.get(name, {}), last.optimizer.get(name, {})) for name in names)
        return own if same and _equal(own, last.model) else None

    def _check_gradients(
        self, index: int, batch: Batch, groups: tuple[dict[str, Any], ...], before: dict[str, Tensor]
    ) -> tuple[float, frozenset[str], bytes | None]:
        """Recompute the gradient from the state before the step; return scale, skipped parameters, random state."""
        names = [name for group in groups for name in group["parameters"]]
        given = {name: grad for name in names if (grad := self._parameters[name].grad) is not None}
        for name, gradient in given.items():
            if gradient.layout != torch.strided:
                raise InputError(f"a sparse gradient of {name}", expected="dense gradients", do="pass sparse=False")
        # copies: the pass may write into buffers (BatchNorm), and the model's own have been written in the first pass
        buffers = {name: value.clone() for name, value in before.items() if name not in self._parameters}
        self._recomputing = True
        try:
            with random_state(self._random):
                start = torch.get_rng_state()
                recomputed = batch_gradient(
                    lambda rows: functional_call(self._model, buffers, (rows,)) if buffers else self._model(rows),
                    {name: self._parameters[name] for name in given},
                    batch.x,
                    batch.y,
                    batch.weights,
                    loss=self._loss,
                    reduction=self._reduction,
                )
                drew = not torch.equal(start, torch.get_rng_state())
        finally:
            self._recomputing = False
        if drew and self._random is None:
            raise InputError(
                f"step {index}, whose forward pass draws random numbers but was not seen",
                expected="a call of the model itself before each step, with gradients",
                do="call model(x), not model.forward(x) or a part of the model",
            )
        described = f"the {self._reduction} of {losses.loss_name(self._loss)} on the batch of step {index}"
        scale = fit_scale(given, recomputed, tolerance=self._tolerance, described=described)
        return scale, frozenset(names) - given.keys(), start.numpy().tobytes() if drew else None

    def _write_checkpoint(self, step: int, state: dict[str, Tensor]) -> str:
        optimizer = checkpoints.optimizer_state(self._optimizer, self._names)
        checkpoint = checkpoints.Checkpoint(state, optimizer, self._random_after)
        return checkpoints.write_checkpoint(self._directory, step, checkpoint)

    def _header(self, state: dict[str, Tensor]) -> dict[str, Any]:
        return run_header(
            self._model, self._optimizer, state, loss=self._loss, reduction=self._reduction, keep=self._keep
        )


def _equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())
