r"""Derivative of a recorded training run with respect to the weight of every example's loss (reverse mode).

Carried from the last step to the first are the adjoints λ of the weights and μ of the optimizer's state, for each direction. With
the update (w, s, g) -> (w', s') and the gradient g = Σ_i v_i ∇ℓ_i(w) of step t,

    α = λ ∂w'/∂g + μ ∂s'/∂g,
    derivative with respect to the weight of example i  +=  v_i ⟨α, ∇ℓ_i(w)⟩,
    λ  <-  λ ∂w'/∂w + μ ∂s'/∂w + H α,
    μ  <-  λ ∂w'/∂s + μ ∂s'/∂s,

H the Hessian of the batch's loss. A gradient that was clipped at norm M is g = M G/(|G| + 10⁻⁶); with u = G/|G|, the α of
the clipped gradient is α − u ⟨u, α⟩ |G|/(|G| + 10⁻⁶), in all three lines. Running statistics of batch normalization are carried
like state that moves with the weights.

Source: Hara, Nitanda and Maehara 2019 for stochastic gradient descent; Maclaurin, Duvenaud and Adams 2015 for momentum; state of
adaptive optimizers, running statistics and clipping: derived here.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernelmem.core.errors import InputError
from kernelmem.trajectory.influence.batch_gradient import Tensors
from kernelmem.trajectory.influence.training_program import TrainingProgram, check_second_derivative
from kernelmem.trajectory.optimizers import Options, ParameterFilter

WEIGHTS = "weights"  # key of the weights in dictionaries that also hold the optimizer's state

CLIPS = (None, "norm", "fixed")
TORCH_EPSILON = 1e-6  # torch.nn.utils.clip_grad_norm_ divides by the norm plus this
NORM_TOLERANCE = 1e-4  # relative difference; norms of gradients clipped in float32 agree better


@dataclass(frozen=True)
class OptimizerTrace:
    """The optimizer's state before every step of a program."""

    counts: Sequence[dict[str, int]]
    states: Sequence[dict[str, Tensors]]
    clipped: Sequence[bool]  # True if the gradient factor of a step depends on its gradient
    norms: Sequence[float]  # of the gradients after clipping


def trace_states(
    program: TrainingProgram, *, clip: str | None = None, advance: Callable[[int], None]
) -> OptimizerTrace:
    """Compute the optimizer's state along the run, in float64 at the recorded weights.

    Raises:
        InputError: gradient factors that cannot be classified (see :class:`InfluenceOptions`).
        VerificationError: a model that cannot be differentiated twice.

    Cost: a gradient of every batch; memory T times the optimizer's state.
    """
    check_second_derivative(program)
    filters = {name: program.filter_class() for name in program.prepared.parameters}
    counts, states, norms = [], [], []
    for t in range(len(program)):
        gradient = program.gradient(t).gradient
        updated_parameters = program.updated_parameters(t)
        counts.append({name: filters[name].count for name in updated_parameters})
        states.append({name: dict(filters[name].state) for name in updated_parameters})
        norms.append(_norm(gradient[name] for name in updated_parameters))
        for name, options in updated_parameters.items():
            filters[name].forward(gradient[name], program.states[t][name].double(), options)
        advance(1)
    scales = [step.scale for step in program.steps]
    return OptimizerTrace(counts, states, _find_clipped_steps(scales, norms, clip), norms)


def unroll(
    program: TrainingProgram,
    trace: OptimizerTrace,
    tangents: Tensors,  # ∂φ/∂w after the last step, (D, shape) for each parameter
    statistics: Tensors,  # ∂φ/∂(running statistics), (D, shape)
    *,
    n_examples: int,
    advance: Callable[[int], None],
) -> Tensor:
    """Return the derivative (D, n) of D target values with respect to the loss weight of each of n examples.

    ``tangents`` and ``statistics`` are the derivatives of the target values with respect to the last weights and the
    last running statistics, one tensor (D, *shape) for each.

    Cost: for each step a gradient of the batch with its graph, D Hessian-vector products of it, D·P operations of the
    update; memory D·P numbers for the weights and as many for every tensor of the optimizer's state.
    """
    result = torch.zeros(len(next(iter(tangents.values()))), n_examples, dtype=torch.float64)
    adjoint = {name: {WEIGHTS: tangent} for name, tangent in tangents.items()}
    for t in reversed(range(len(program))):
        gradient = program.gradient(t)
        alpha = {name: torch.zeros_like(parameter_adjoints[WEIGHTS]) for name, parameter_adjoints in adjoint.items()}
        for name, options in program.updated_parameters(t).items():
            derivatives = step_derivatives(
                program.filter_class,
                trace.counts[t][name],
                trace.states[t][name],
                gradient.gradient[name],
                program.states[t][name].double(),
                options,
            )
            input_adjoints = _pull_back(adjoint[name], derivatives)
            alpha[name] = input_adjoints.pop("gradient", alpha[name])
            adjoint[name] = input_adjoints
        if trace.clipped[t]:
            updated_gradients = {name: gradient.gradient[name] for name in program.updated_parameters(t)}
            _pull_back_clipping(alpha, updated_gradients, program.steps[t].scale)
        shares, hessian, statistics = gradient.pull_back(alpha, statistics)
        result.index_add_(1, program.batches[t].examples, shares)
        for name, product in hessian.items():
            adjoint[name][WEIGHTS] = adjoint[name][WEIGHTS] + product
        del gradient  # free its graph before the next step builds one
        advance(1)
    return result


def step_derivatives(
    filter_class: type[ParameterFilter],
    count: int,
    state: Tensors,
    gradient: Tensor,
    weights: Tensor,
    options: Options,
) -> dict[str, Tensors]:
    """Return the derivatives of one optimizer step, entry by entry, as result[output][input].

    Outputs are "weights" and the names of the optimizer's state after the step; inputs are "weights", "gradient" and
    the names of the state before it. A pair is absent if the output does not depend on the input.
    """
    with torch.enable_grad():
        before = {key: value.detach().clone().requires_grad_() for key, value in state.items()}
        leaves = {
            WEIGHTS: weights.detach().clone().requires_grad_(),
            "gradient": gradient.detach().clone().requires_grad_(),
        }
        update = filter_class(count=count, state=dict(before))
        step = update.forward(leaves["gradient"], leaves[WEIGHTS], options).step
        after = {WEIGHTS: leaves[WEIGHTS] + step, **update.state}
        inputs = leaves | before
        derivatives: dict[str, Tensors] = {}
        for output, value in after.items():
            output_derivatives = torch.autograd.grad(
                value.sum(), list(inputs.values()), retain_graph=True, allow_unused=True
            )
            derivatives[output] = {key: d for key, d in zip(inputs, output_derivatives, strict=True) if d is not None}
    return derivatives


def _pull_back(adjoint: Tensors, derivatives: dict[str, Tensors]) -> Tensors:
    """Return the adjoints of the inputs of an optimizer step, by name, from the adjoints of its outputs.

    ``derivatives`` is the result of :func:`step_derivatives`; an output without an adjoint counts as zero.
    """
    input_adjoints: Tensors = {}
    for output, row in derivatives.items():
        if output not in adjoint:  # no later step has used this state
            continue
        for key, derivative in row.items():
            if key in input_adjoints:
                input_adjoints[key].addcmul_(adjoint[output], derivative)
            else:
                input_adjoints[key] = adjoint[output] * derivative
    return input_adjoints


def _pull_back_clipping(alpha: Tensors, gradient: Tensors, scale: float) -> None:
    """Subtract from each direction α_d its component along the gradient, because clipping keeps the norm constant.

    ``alpha`` (D, *shape for each parameter) is changed in place; ``scale`` is the factor by which clipping reduced
    the gradient.
    """
    norm = _norm(gradient.values())
    if norm == 0:
        return
    unclipped_norm = norm / scale
    components = sum(
        (
            alpha[name].reshape(len(alpha[name]), -1) @ parameter_gradient.flatten()
            for name, parameter_gradient in gradient.items()
        ),
        torch.zeros(()),
    )
    factor = unclipped_norm / (unclipped_norm + TORCH_EPSILON) / norm**2
    for name, parameter_gradient in gradient.items():
        alpha[name] -= (factor * components).view(-1, *[1] * parameter_gradient.ndim) * parameter_gradient


def _find_clipped_steps(scales: Sequence[float], norms: Sequence[float], clip: str | None) -> list[bool]:
    """Return a list with True for every step whose gradient was clipped by its norm."""
    scaled_steps = [t for t, scale in enumerate(scales) if scale < 1]
    if clip == "fixed" or not scaled_steps:
        return [False] * len(scales)
    if clip is None:
        scaled_norms = [norms[t] for t in scaled_steps]
        factors = [scales[t] for t in scaled_steps]
        if max(scaled_norms) - min(scaled_norms) > NORM_TOLERANCE * max(scaled_norms):
            if max(factors) - min(factors) <= NORM_TOLERANCE * max(factors):
                return [False] * len(scales)
            raise InputError(
                f"{len(scaled_steps)} steps with gradients multiplied by {min(factors):.3g} to {max(factors):.3g}, then of"
                f" norms {min(scaled_norms):.3g} to {max(scaled_norms):.3g}",
                expected="one norm (clipping), or one factor (scaling)",
                hint='pass InfluenceOptions(clip="norm") if clip_grad_norm_ was called with varying norms, clip="fixed" if the'
                " factors do not depend on the gradients",
            )
    return [scale < 1 for scale in scales]


def _norm(tensors: Iterable[Tensor]) -> float:
    return math.sqrt(sum(float(tensor.square().sum()) for tensor in tensors))
