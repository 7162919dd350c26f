"""Comparison of the gradients in ``.grad`` with those of the loss on the batch, up to one scale factor."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kernelmem.core.batches import Batch, Forward, check_outputs, input_hint, map_tree, named_leaves
from kernelmem.core.errors import InputError, KernelmemError
from kernelmem.core.models import without_checkpointing
from kernelmem.core.models.torch_func import functional_call
from kernelmem.recording.step_checks.backward_hooks import hook_names, without_hooks
from kernelmem.recording.step_checks.forward_observer import ForwardObserver
from kernelmem.recording.step_checks.hidden_state import ForwardModule
from kernelmem.recording.step_checks.loss_rows import check_rows_are_independent
from kernelmem.recording.step_checks.precision import Precision, autocast_dtype
from kernelmem.recording.step_checks.random_state import get_random_state, random_state
from kernelmem.recording.storage.inputs import RecordedBatch
from kernelmem.recording.storage.param_groups import ParamGroup
from kernelmem.recording.storage.step import Step
from kernelmem.training import losses
from kernelmem.training.losses import Loss, batch_loss

FULL_PRECISION = Precision()
NEIGHBOR_FLOATS = 3  # floats tried on each side of the ratio: its two roundings displace it by less than two floats
TOTAL_NORM_SHARE = 0.01  # sums that cancel: a parameter may miss by this share of the tolerance for all parameters


def batch_gradient(
    forward: Callable[[Batch], Tensor],
    parameters: Mapping[str, nn.Parameter],
    x: Batch,
    y: Tensor,
    sample_weight: Tensor | None,
    *,
    loss: Loss,
    reduction: str,
    precision: Precision = FULL_PRECISION,
) -> dict[str, Tensor]:
    """Return a dict from name to the gradient of the batch loss with respect to that parameter.

    The gradient is zero for parameters on which the loss does not depend, and for those that do not require one. One
    forward and one backward pass are needed; the ``.grad`` of the parameters is neither read nor written. ``precision``:
    autocast and loss scaling of the pass.

    Raises:
        InputError, UnsupportedModelError: the loss does not accept the outputs or targets.
    """
    trainable = [parameter for parameter in parameters.values() if parameter.requires_grad]
    gradients: dict[nn.Parameter, Tensor | None] = {}
    copied_inputs = map_tree(x, Tensor.clone)  # a model may write to its input
    with torch.enable_grad(), without_checkpointing(), precision.autocasting():
        try:
            outputs = forward(copied_inputs)
        except Exception as error:  # raised by the user's module, so of any type
            if isinstance(error, KernelmemError):
                raise
            shapes = [tuple(leaf.shape) for _, leaf in named_leaves(x, "x")]
            raise InputError(
                f"a batch of shape {shapes} that the model or forward= does not accept ({error})",
                expected="inputs that model(x), or forward(model, x), accepts",
                hint=input_hint(x),
            ) from error
        if not isinstance(outputs, Tensor) or outputs.ndim == 0:
            check_outputs(outputs, len(y))
        loss_value = batch_loss(loss, outputs, y, sample_weight, reduction=reduction)
    if trainable and loss_value.requires_grad:
        gradients = dict(zip(trainable, precision.gradients(loss_value, trainable), strict=True))
    return {
        name: torch.zeros_like(parameter) if (gradient := gradients.get(parameter)) is None else gradient
        for name, parameter in parameters.items()
    }


def fit_scale(
    gradients: Mapping[str, Tensor],
    recomputed: Mapping[str, Tensor],
    *,
    tolerance: float,
    description: str,
    causes: str = "",
) -> float:
    """Return the number c with g = c h, up to rounding, for the gradients g used and the recomputed gradients h.

    c differs from 1 after clipping of the total norm, loss scaling or accumulation. It is <g, h>/<h, h>, over all
    parameters, or, if a floating-point number c gives c h, rounded, equal to g in every bit, that number. The error
    |g - c h| must be at most ``tolerance`` |g| over all parameters, and for each parameter at most ``tolerance`` times the
    sum of its own norm and a hundredth of the total norm.

    Args:
        gradients: the gradients g that the optimizer will use.
        recomputed: the gradients h of the batch loss.
        tolerance: largest relative error, as defined above.
        description: name of the recomputed loss in the error message.
        causes: probable causes of a mismatch, for the hint.

    Raises:
        InputError: no such number exists, or a gradient is NaN; the message names the parameter with the largest mismatch.
    """
    if not gradients:
        return 1.0
    squared_norm = sum(_dot(h, h) for h in recomputed.values())
    scale = sum(_dot(g, recomputed[name]) for name, g in gradients.items()) / squared_norm if squared_norm else 1.0
    norms = {name: math.sqrt(_dot(g, g)) for name, g in gradients.items()}
    errors = {name: _norm(g.double() - scale * recomputed[name].double()) for name, g in gradients.items()}
    total_norm, total_error = math.hypot(*norms.values()), math.hypot(*errors.values())
    within_tolerance = all(
        errors[name] <= tolerance * (norms[name] + TOTAL_NORM_SHARE * total_norm) for name in gradients
    )
    if not (within_tolerance and total_error <= tolerance * total_norm):  # negated, so that NaN is refused
        # one NaN makes all errors NaN: name the parameter whose own norm is not finite
        worst_parameter = max(errors, key=lambda name: (not math.isfinite(norms[name]), errors[name]))
        raise InputError(
            f"gradients that are not a multiple of those of {description}: the largest mismatch is in {worst_parameter}"
            f" (error {errors[worst_parameter]:.3g} at gradient norm {norms[worst_parameter]:.3g};"
            f" all parameters: {total_error:.3g} at {total_norm:.3g})",
            expected=f"gradients of this loss on this batch, times one number, with relative error at most {tolerance:g}",
            hint=(f"the probable cause: {causes}. " if causes else "")
            + "check index, x, y, sample_weight, loss and reduction; clip the norm of all gradients, not of single"
            " parameters or entries; with accumulation pass the concatenated micro-batches; change buffers in forward"
            " passes only",
        )
    return _exact_multiplier(gradients, recomputed) or scale


def _exact_multiplier(gradients: Mapping[str, Tensor], recomputed: Mapping[str, Tensor]) -> float | None:
    """Return a floating-point number c for which c ``recomputed``, rounded, equals ``gradients`` in every bit, or None.

    Candidates are the ratio of the entries with the largest recomputed gradient, and its three neighbors on each side.
    """
    largest_parameter = max(
        recomputed, key=lambda name: float(recomputed[name].abs().max()) if recomputed[name].numel() else 0.0
    )
    largest_entry = recomputed[largest_parameter].abs().argmax()
    ratio_dtype = torch.float64 if recomputed[largest_parameter].dtype == torch.float64 else torch.float32
    numerator, denominator = (
        tensors[largest_parameter].reshape(-1)[largest_entry].to(ratio_dtype) for tensors in (gradients, recomputed)
    )
    ratio = numerator / denominator
    below = above = ratio
    candidates = [ratio]
    for _ in range(NEIGHBOR_FLOATS):
        below = torch.nextafter(below, torch.full_like(below, -math.inf))
        above = torch.nextafter(above, torch.full_like(above, math.inf))
        candidates += [below, above]
    for candidate in map(float, candidates):
        if all(torch.equal(recomputed[name] * candidate, gradient) for name, gradient in gradients.items()):
            return candidate
    return None


def _dot(a: Tensor, b: Tensor) -> float:
    """Return the sum of the products of the entries of two tensors of the same shape, computed in float64."""
    return float(torch.dot(a.reshape(-1).double(), b.reshape(-1).double()))


def _norm(a: Tensor) -> float:
    return float(torch.linalg.vector_norm(a))


def call_model(model: nn.Module, batch: Batch) -> Tensor:
    """Return ``model(batch)``; this is the forward function of a recording if no other one is passed."""
    return model(batch)


@dataclass(frozen=True)
class CheckedGradient:
    """Gradients that passed the check, and what determines them."""

    gradients: dict[str, Tensor]  # in .grad, by name of the parameter
    scale: float  # c with .grad = c times the recomputed gradient
    exact: bool  # True if this holds in every bit
    skipped: frozenset[str]  # parameters whose .grad is None
    frozen: frozenset[str]  # parameters whose .grad is zero because they do not require one
    random: bytes | None  # state of torch's generators before the forward pass; None if the pass drew no random numbers
    precision: Precision  # in which both gradients were computed

    def step(
        self,
        index: int,
        batch: RecordedBatch,
        versions: Tensor,
        groups: tuple[ParamGroup, ...],
        *,
        after: str,
        buffers_changed: bool,
        evaluating: frozenset[str],
        exact: bool,
    ) -> Step:
        """Return the step with this gradient; ``exact`` is False if something else in it cannot be repeated to the bit."""
        weight = batch.sample_weight
        return Step(
            index,
            batch.examples,
            versions,
            torch.ones(len(versions), dtype=torch.float64) if weight is None else weight.cpu(),
            groups,
            self.scale,
            self.skipped,
            self.random,
            after,
            buffers_changed,
            evaluating=evaluating,
            frozen=self.frozen,
            exact=exact and self.exact,
            autocast=self.precision.autocast_name,
            loss_scale=self.precision.loss_scale,
        )


@dataclass(frozen=True)
class GradientCheck:
    """Check that the gradients in ``.grad`` are those of a loss on a batch, times one number.

    ``parameters`` maps names to the parameters of ``model`` on ``device``; ``tolerance`` is the largest relative error,
    None: what the rounding of the pass explains.
    """

    model: nn.Module
    parameters: Mapping[str, nn.Parameter]
    forward: Forward
    loss: losses.Loss
    reduction: str
    tolerance: float | None
    device: torch.device

    def run(
        self,
        step: int,
        batch: RecordedBatch,
        parameter_names: list[str],
        state_before: Mapping[str, Tensor],
        observer: ForwardObserver,
        *,
        loss_scale: float = 1.0,
    ) -> CheckedGradient:
        """Recompute the gradient of the batch loss without gradient hooks, and compare it with ``.grad``.

        Args:
            step: index of the step, for messages.
            batch: the batch from which the gradients were computed.
            parameter_names: names of the parameters that the optimizer updates.
            state_before: parameters and buffers of the model before the step.
            observer: observer of the forward passes of the training loop.
            loss_scale: the number by which a GradScaler multiplied the loss; ``.grad`` is already divided by it.

        Raises:
            InputError: no scale makes the gradients equal (names the parameter), a gradient is sparse, the forward pass drew
                random numbers without being observed, only some of the passes ran under autocast, or the loss of a row
                depends on other rows.
            UnsupportedModelError: the outputs are not (n, C).
        """
        parameters = self.parameters
        gradients = {name: grad for name in parameter_names if (grad := parameters[name].grad) is not None}
        for name, gradient in gradients.items():
            if gradient.layout != torch.strided:
                raise InputError(f"a sparse gradient of {name}", expected="dense gradients", hint="pass sparse=False")
        precision = self._precision(step, observer, loss_scale)
        # copies: the pass may write to buffers (BatchNorm), and the first pass has already changed the model's own
        buffers = {f"model.{name}": value.clone() for name, value in state_before.items() if name not in parameters}
        model = ForwardModule(self.model, self.forward)
        recomputed_outputs: list[Tensor] = []

        def forward(rows: Batch) -> Tensor:
            outputs = functional_call(model, buffers, (rows,)) if buffers else model(rows)
            recomputed_outputs.append(check_outputs(outputs, len(batch.y)))
            return outputs

        hooks = hook_names(self.model, parameters)
        with observer.paused(), random_state(observer.random, self.device), without_hooks(self.model, parameters):
            initial_state = get_random_state(self.device)
            recomputed = batch_gradient(
                forward,
                {name: parameters[name] for name in gradients},
                batch.x,
                batch.y,
                batch.sample_weight,
                loss=self.loss,
                reduction=self.reduction,
                precision=precision,
            )
            used_random_numbers = not torch.equal(initial_state, get_random_state(self.device))
            if callable(self.loss):
                name = losses.loss_name(self.loss).removeprefix("callable:")
                per_example = losses.per_example_loss(self.loss)
                check_rows_are_independent(per_example, recomputed_outputs[0], batch.y, step=step, name=name)
        if used_random_numbers and observer.random is None:
            raise InputError(
                f"step {step}, whose forward pass draws random numbers but was not observed",
                expected="a call of the model itself before each step, with gradients",
                hint="call model(x), not model.forward(x) or a part of the model",
            )
        short_name = losses.loss_name(self.loss).partition("(")[0]  # without the weights of classes
        description = f"the {self.reduction} of {short_name} on the batch of step {step}"
        causes = [f"gradient hooks ({'; '.join(hooks)})"] if hooks else []
        if observer.passes > 1 and (used_random_numbers or buffers):
            causes.append(
                f"{observer.passes} forward passes since the last step, which draw random numbers or use batch statistics:"
                " accumulate without dropout and with normalization in eval mode"
            )
        scale, exact = 1.0, all(torch.equal(gradient, recomputed[name]) for name, gradient in gradients.items())
        if not exact:
            tolerance = precision.tolerance(parameters.values()) if self.tolerance is None else self.tolerance
            scale = fit_scale(
                gradients, recomputed, tolerance=tolerance, description=description, causes="; or ".join(causes)
            )
            exact = all(torch.equal(recomputed[name] * scale, gradient) for name, gradient in gradients.items())
        return CheckedGradient(
            gradients,
            scale,
            exact,
            frozenset(parameter_names) - gradients.keys(),
            frozenset(name for name in gradients if not parameters[name].requires_grad),
            initial_state.numpy().tobytes() if used_random_numbers else None,
            precision,
        )

    def _precision(self, step: int, observer: ForwardObserver, loss_scale: float) -> Precision:
        """Return the precision of the passes that the observer has seen.

        Raises:
            InputError: they ran in different precisions, or the recorder is called under autocast.
        """
        if autocast_dtype(self.device) is not None or len(observer.autocasts) > 1:
            raise InputError(
                f"step {step}, with {len(observer.autocasts)} precisions of autocast in its forward passes"
                if len(observer.autocasts) > 1
                else f"step {step}, in which recorder.step was called under torch.autocast",
                expected="torch.autocast around every forward pass and loss of a step or around none, and around nothing else",
                hint="end the block of torch.autocast before backward() and recorder.step",
            )
        return Precision(self.device.type, next(iter(observer.autocasts), None), loss_scale)
