"""Training history of a recorded run: outputs, gradient norms and input gradients at replayed weights."""

from collections.abc import Collection

import torch
from torch import Tensor, nn

from kernelmem.core.batches import Batch, Forward, Rows, Tree, as_rows, map_tree, named_leaves
from kernelmem.core.checks import (
    ArrayLike,
    as_count,
    as_list,
    as_names,
    check_choice,
    check_result,
)
from kernelmem.core.errors import InputError
from kernelmem.core.models.torch_func import exclusive
from kernelmem.core.options import Progress, as_progress
from kernelmem.kernels import ntk_operator
from kernelmem.memorization.training_dynamics.history import (
    TrainingHistory,
    as_history_labels,
    as_outputs,
    two_columns,
)
from kernelmem.recording import Run, replay
from kernelmem.recording.run import check_run
from kernelmem.tangents.prepare import PreparedModel, prepare
from kernelmem.training.losses import Loss, class_outputs, per_example_loss

GRADIENTS = ("weights", "inputs")
DEFAULT_CHECKPOINTS = 30
ROWS_PER_PASS = 1024
HINT = "check these rows and the weights (a diverged run?)"


@exclusive()
def training_history(
    run: Run,
    model: nn.Module,
    x: Batch,
    y: ArrayLike,
    *,
    every: int | None = None,
    steps: ArrayLike | None = None,
    gradients: Collection[str] = (),
    loss: Loss | None = None,
    forward: Forward | None = None,
    progress: Progress = None,
) -> TrainingHistory:
    """Replay a recorded run and return the model's outputs on n rows, in eval mode, at checkpoints.

    Args:
        run: written by :class:`Recorder` or :func:`fit`.
        model: the module that was trained, in any state; never changed.
        x: n rows, usually the training rows in the order of the recorded indices.
        y: (n,) class indices or (n, C) real targets, as given to the training.
        every: steps between checkpoints, the last step included; the weights before the first step are one too.
        steps: the checkpoints themselves, numbers of steps in 0..T, instead of ``every``. If both are None: about 30, evenly
            spaced from 0 to T.
        gradients: "weights": also the norm of the gradient of each row's loss with respect to the weights, at every
            checkpoint (for GraNd); "inputs": also the variance over checkpoints of the derivative of the label's output
            with respect to the row's inputs (for VoG), with class labels and floating-point inputs.
        loss: the per-example loss, if the run was recorded with a callable.
        forward: maps (model, batch) to outputs (n, C), as in the recording.
        progress: called with (checkpoints done, checkpoints in all).

    Returns:
        TrainingHistory: one run, with the learning rates of the first parameter group.

    Raises:
        InputError: a model, loss or forward other than the recorded one, labels that do not fit, checkpoints beyond the
            run, inputs without derivatives.
        VerificationError: replayed weights that differ from the recorded ones.

    Cost: the replay (steps that were not kept), one forward pass of the n rows per checkpoint; "weights": one backward pass
    per row and checkpoint more; "inputs": one backward pass of all rows per checkpoint, and 2 n d numbers.
    """
    check_run(run)
    names = as_names(gradients, "gradients") or []
    for name in names:
        check_choice(name, "gradients", GRADIENTS)
    rows = as_rows(x, "x")
    checkpoints = _checkpoints(run, every, steps)
    states = replay(run, model, loss=loss, start=checkpoints[0], stop=checkpoints[-1], forward=forward)
    network = _Network(
        prepare(model, rows, forward=forward, evaluation=True), rows, y, run.loss if loss is None else loss
    )
    report = as_progress(progress, "training history", "checkpoint")
    logits: list[Tensor] = []
    norms: list[Tensor] = []
    variance = _InputGradientVariance(network) if "inputs" in names else None
    for t, state in states:
        if t not in checkpoints:
            continue
        network.set_state(state)
        logits.append(network.logits())
        if "weights" in names:
            norms.append(network.gradient_norms())
        if variance is not None:
            variance.update()
        report(len(logits), len(checkpoints))
    rates = [run.steps[min(t, len(run) - 1)].groups[0].get("lr") for t in checkpoints]
    return TrainingHistory(
        torch.stack(logits)[None],
        network.labels.cpu(),
        torch.tensor(checkpoints),
        torch.tensor(rates, dtype=torch.float64) if all(isinstance(rate, float | int) for rate in rates) else None,
        torch.stack(norms)[None] if norms else None,
        None if variance is None else variance.value()[None],
    )


class _Network:
    """Private copy of a model, run on n rows with labels at weights that are set."""

    def __init__(self, prepared: PreparedModel, rows: Rows, y: ArrayLike, loss: Loss) -> None:
        self.prepared, self.loss = prepared, per_example_loss(loss)
        self.rows = rows.to(dtype=prepared.dtype, device=prepared.device)
        self.labels = as_history_labels(
            y, rows.n, prepared.n_outputs, "y", squared_loss=loss in ("mse", "mse_mean")
        ).to(prepared.device)

    def set_state(self, state: dict[str, Tensor]) -> None:
        """Copy recorded parameters and buffers into the copy."""
        module = self.prepared.module
        with torch.no_grad():
            for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
                if name in state:
                    tensor.copy_(state[name])

    def logits(self) -> Tensor:
        """Return the outputs of all rows on the CPU, (n, C)."""
        with torch.no_grad():
            parts = [self.prepared.outputs(self.rows.slice(a, b), b - a) for a, b in _passes(self.rows.n)]
        outputs = as_outputs(torch.cat(parts))
        return check_result(outputs if self.labels.is_floating_point() else two_columns(outputs), "outputs", hint=HINT)

    def gradient_norms(self) -> Tensor:
        """Return the norm of the gradient of each row's loss, (n,) float64 on the CPU."""
        prepared = self.prepared
        with torch.enable_grad():  # ∂ℓ/∂f is a constant of each row: the gradient of its loss is that of ⟨∂ℓ/∂f, f⟩
            outputs = torch.cat(
                [prepared.outputs(self.rows.slice(a, b), b - a).detach() for a, b in _passes(self.rows.n)]
            )
            (errors,) = torch.autograd.grad(self.loss(outputs.requires_grad_(), self.labels).sum(), outputs)

        def products(module: nn.Module, batch: Tree) -> Tensor:
            inputs, row_errors = batch
            return (prepared.forward(module, inputs) * row_errors).sum(1, keepdim=True)

        operator = ntk_operator(
            prepared.module, (self.rows.tree, errors), forward=products, parameters=list(prepared.parameters)
        )
        return operator.diagonal().to("cpu", torch.float64).sqrt()

    def input_gradients(self) -> Tensor:
        """Return the derivative of the label's output with respect to the floating-point inputs of each row, (n, d) float64."""
        return torch.cat([self._input_gradients_of(a, b) for a, b in _passes(self.rows.n)])

    def _input_gradients_of(self, start: int, stop: int) -> Tensor:
        leaves: list[Tensor] = []

        def differentiable(leaf: Tensor) -> Tensor:
            if not leaf.is_floating_point():
                return leaf
            leaves.append(leaf.detach().requires_grad_())
            return leaves[-1]

        batch = map_tree(self.rows.slice(start, stop), differentiable)
        with torch.enable_grad():
            outputs = class_outputs(self.prepared.outputs(batch, stop - start))
            label_outputs = outputs.gather(1, self.labels[start:stop, None]).sum()
            gradients = torch.autograd.grad(label_outputs, leaves, allow_unused=True)
        parts = [
            torch.zeros_like(leaf) if gradient is None else gradient
            for leaf, gradient in zip(leaves, gradients, strict=True)
        ]
        return torch.cat([part.reshape(stop - start, -1).to("cpu", torch.float64) for part in parts], 1)


class _InputGradientVariance:
    """Variance over checkpoints of the input gradients, averaged over the inputs, without storing the checkpoints."""

    def __init__(self, network: _Network) -> None:
        leaves = [leaf for _, leaf in named_leaves(network.rows.tree, "x")]
        if network.labels.is_floating_point() or not any(leaf.is_floating_point() for leaf in leaves):
            raise InputError(
                'gradients="inputs" of '
                + ("real targets" if network.labels.is_floating_point() else "inputs that are whole numbers"),
                expected="class labels and floating-point inputs",
                hint='leave "inputs" out, or record the run on embedded inputs',
            )
        self.network, self.count = network, 0
        self.mean = self.squares = torch.zeros((), dtype=torch.float64)

    def update(self) -> None:
        """Add the input gradients at the current weights (Welford 1962)."""
        values = check_result(self.network.input_gradients(), "input gradients", hint=HINT)
        self.count += 1
        difference = values - self.mean
        self.mean = self.mean + difference / self.count
        self.squares = self.squares + difference * (values - self.mean)

    def value(self) -> Tensor:
        """Return the variance of each row, (n,)."""
        return self.squares.mean(1) / self.count


def _checkpoints(run: Run, every: int | None, steps: ArrayLike | None) -> list[int]:
    """Return the numbers of steps of the checkpoints, increasing.

    Raises:
        InputError: ``every`` and ``steps`` are both given, or steps are beyond the run.
    """
    T = len(run)
    if T == 0:
        raise InputError("run with no recorded steps", expected="at least one step", hint="record a step")
    if every is not None and steps is not None:
        raise InputError("every and steps", expected="one of them", hint="leave every out")
    if steps is None:
        gap = max(1, round(T / DEFAULT_CHECKPOINTS)) if every is None else as_count(every, "every")
        return sorted({*range(0, T, gap), T})
    values = [as_count(step, "steps", minimum=0, maximum=T) for step in as_list(steps, "steps")]
    if not values or sorted(set(values)) != values:
        raise InputError(
            f"steps {str(values)[:80]}",
            expected=f"numbers of steps in 0..{T} that increase",
            hint=f"pass steps=[0, {T}]",
        )
    return values


def _passes(n: int) -> list[tuple[int, int]]:
    return [(start, min(start + ROWS_PER_PASS, n)) for start in range(0, n, ROWS_PER_PASS)]
