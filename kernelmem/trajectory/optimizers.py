r"""Optimizers of torch.optim as linear filters of gradients, given their realized statistics.

Each of them moves the weights by d_t = Σ_{s<=t} (a linear map of the gradient g_s) + decay. The adjoint, with a cotangent
J̄_t of every step, is one recursion: the change Σ_t J̄_t d_t equals Σ_s A_s g_s + decay, where A_s is the effect of the
gradient of step s in all later steps.

=============  ===========================================  ========================================================
optimizer      d_t                                          recursion, from the last step down
=============  ===========================================  ========================================================
SGD            −h g                                         A = −h J̄
momentum       −h b_t, b_t = μ b_{t−1} + (1 − τ) g_t         q = −h J̄ + μ⁺ q⁺; A = (1 − τ) q
Nesterov       −h (g + μ b_t)                               q = −h μ J̄ + μ⁺ q⁺; A = (1 − τ) q − h J̄
Adam, AdamW    −h/(1 − β₁ᵏ) m_t/s_t, s_t = √v̂_t + ε          q = −h/(1 − β₁ᵏ) J̄/s + β₁⁺ q⁺; A = (1 − β₁) q
RMSprop        −h b_t, b_t = μ b_{t−1} + g_t/s_t            q = −h J̄ + μ⁺ q⁺; A = q/s
Adagrad        −h/(1 + (k−1) η) g/s_t, s_t = √Σg² + ε       A = −h/(1 + (k−1) η) J̄/s
=============  ===========================================  ========================================================

with m_t = β₁ m_{t−1} + (1 − β₁) g_t, and b_0 = g_0 in the first step with momentum.
A plus marks the next step in which the parameter moved. The denominators are computed from the gradients (the realized
statistics); coupled decay adds λ w_t to g_t, decoupled decay −h λ w_t to d_t.

Source: the filters are those of torch.optim (Kingma and Ba 2015; Loshchilov and Hutter 2019; Duchi et al. 2011; Sutskever
et al. 2013); written as sums over past gradients: Bell et al. 2023 for gradient descent.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from kernelmem.core.errors import InputError

Options: TypeAlias = Mapping[str, Any]
"""Hyper-parameters of a parameter group, by their names in torch.optim."""


@dataclass(frozen=True)
class ParameterStep:
    """One step of one parameter by the optimizer's formula, with the statistics that the recursion needs."""

    step: Tensor  # d_t by the formula, float64
    options: Options
    count: int  # steps in which this parameter moved, this one included
    is_first_momentum_step: bool = False  # True if this step initializes the momentum buffer
    denominator: Tensor | None = None  # e.g. √v̂ + ε
    weights: Tensor | None = None  # w_t, if there is decay
    frozen: bool = False  # True if the gradient was zero because the parameter did not require one

    def entries(self, positions: slice) -> "ParameterStep":
        """Return the step restricted to some entries; the parameter must be given as a vector."""
        step, denominator, weights = (
            None if t is None else t[positions] for t in (self.step, self.denominator, self.weights)
        )
        assert step is not None
        return replace(self, step=step, denominator=denominator, weights=weights)


@dataclass(frozen=True)
class Recursion:
    """A step of the recursion q = scale · J̄ / s + f · q⁺, A = effect · q, with s the denominator and f of the next step."""

    scale: float
    factor: float  # f of the step before
    effect: float


@dataclass
class AdjointState:
    """Adjoint q of the optimizer's state, which is carried backward from one step of a parameter to the previous one."""

    q: Tensor | None = None  # updated in place
    factor: float = 0.0  # by which the next step multiplies the adjoint that it passes back

    def add(self, cotangent: Tensor, scale: float, factor: float, divisor: Tensor | None = None) -> Tensor:
        """Set q to scale · cotangent / divisor + f · q and return it, with f the ``factor`` passed at the last call.

        The last call was for the next step of the run; ``factor`` is stored for the call of the previous step.
        """
        if self.q is None:
            self.q = scale * cotangent if divisor is None else scale * cotangent / divisor
        elif divisor is None:
            self.q.mul_(self.factor).add_(cotangent, alpha=scale)
        else:
            self.q.mul_(self.factor).addcdiv_(cotangent, divisor, value=scale)
        self.factor = factor
        return self.q


@dataclass
class ParameterFilter:
    """The filter of one parameter: ``forward`` along the run, then ``backward`` from its last step to its first."""

    count: int = 0
    state: dict[str, Tensor] = field(default_factory=dict)
    adjoint: AdjointState = field(default_factory=AdjointState)

    def forward(self, gradient: Tensor, weights: Tensor, options: Options) -> ParameterStep:
        """Return the optimizer's step for the gradient of the loss, including weight decay, and update the state."""
        self.count += 1
        gradient = -gradient if options.get("maximize") else gradient
        decay = options.get("weight_decay", 0.0)
        has_coupled_decay = bool(decay) and not self.has_decoupled_decay(options)
        if has_coupled_decay:
            gradient = gradient + decay * weights
        is_first_momentum_step = "buffer" not in self.state
        step, denominator = self.step_without_decay(gradient, options)
        if decay and not has_coupled_decay:
            step = step - options["lr"] * decay * weights
        return ParameterStep(step, options, self.count, is_first_momentum_step, denominator, weights if decay else None)

    def filter_gradients(self, gradients: Tensor, parameter_step: ParameterStep, state: dict[str, Tensor]) -> Tensor:
        """Return the steps (G, p) that G other gradients (G, p) would cause with the recorded denominators.

        ``state`` holds the momentum of the G gradients and is updated in place.
        """
        raise TypeError(f"{type(self).__name__} is abstract")

    def backward(
        self, cotangent: Tensor, parameter_step: ParameterStep, adjoint: AdjointState | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the effect A_t of the step's gradient on the outputs, and the decay term (None without decay).

        ``cotangent`` (..., *shape) is the mean tangent J̄_t of the step. With ``adjoint`` None the filter uses its
        own adjoint state, for whole parameters. A_t is valid until the next call.
        """
        A = self.adjoint_step(cotangent, parameter_step, self.adjoint if adjoint is None else adjoint)
        decay, options = None, parameter_step.options
        if parameter_step.weights is not None:
            weight_decay = options["weight_decay"]
            axes = tuple(range(cotangent.ndim - parameter_step.weights.ndim, cotangent.ndim))
            if self.has_decoupled_decay(options):
                decay = -options["lr"] * weight_decay * _inner(cotangent, parameter_step.weights, axes)
            else:
                decay = weight_decay * _inner(A, parameter_step.weights, axes)
        if parameter_step.frozen:
            return torch.zeros_like(A), decay
        return (-A if options.get("maximize") else A), decay

    def has_decoupled_decay(self, options: Options) -> bool:
        """Return True if decay acts on the weights directly (AdamW), not through the gradient."""
        return bool(options.get("decoupled_weight_decay"))

    def step_without_decay(self, gradient: Tensor, options: Options) -> tuple[Tensor, Tensor | None]:
        """Return the change of the parameter without decay, and the denominator of the formula (None if it has none)."""
        raise TypeError(f"{type(self).__name__} is abstract")

    def recursion(self, parameter_step: ParameterStep) -> Recursion | None:
        """Return the coefficients of the step if A_t is a multiple of the carried adjoint, and otherwise None."""
        return None

    def adjoint_step(self, cotangent: Tensor, parameter_step: ParameterStep, adjoint: AdjointState) -> Tensor:
        """Return the effect A_t of the gradient that was passed to ``step_without_decay``, shaped as ``cotangent``."""
        recursion = self.recursion(parameter_step)
        if recursion is None:
            raise TypeError(f"{type(self).__name__} is abstract")
        q = adjoint.add(cotangent, recursion.scale, recursion.factor, parameter_step.denominator)
        return q if recursion.effect == 1.0 else recursion.effect * q

    def has_momentum(self, options: Options) -> bool:
        """Return True if the gradient of a step also acts on later steps (momentum)."""
        return bool(options.get("momentum", 0.0))


class StochasticGradientDescent(ParameterFilter):
    """torch.optim.SGD: plain, momentum with dampening, Nesterov."""

    def step_without_decay(self, gradient: Tensor, options: Options) -> tuple[Tensor, Tensor | None]:
        """Return the step −h g, −h b (momentum) or −h (g + μ b) (Nesterov), and None because there is no denominator.

        h is the learning rate, g the gradient, b the momentum buffer and μ the momentum.
        """
        return self._step(gradient, options, self.state, is_first_momentum_step="buffer" not in self.state), None

    def filter_gradients(self, gradients: Tensor, parameter_step: ParameterStep, state: dict[str, Tensor]) -> Tensor:
        """Return the steps −h g, −h b (momentum) or −h (g + μ b) (Nesterov) of the given gradients g.

        h is the learning rate, b the momentum buffer in ``state`` and μ the momentum.
        """
        return self._step(
            gradients,
            parameter_step.options,
            state,
            is_first_momentum_step=parameter_step.is_first_momentum_step or "buffer" not in state,
        )

    @staticmethod
    def _step(gradient: Tensor, options: Options, state: dict[str, Tensor], *, is_first_momentum_step: bool) -> Tensor:
        """Update the momentum buffer in ``state`` and return the step."""
        momentum = options.get("momentum", 0.0)
        if not momentum:
            return -options["lr"] * gradient
        if is_first_momentum_step:
            state["buffer"] = gradient
        else:
            state["buffer"] = momentum * state["buffer"] + (1 - options.get("dampening", 0.0)) * gradient
        step = gradient + momentum * state["buffer"] if options.get("nesterov") else state["buffer"]
        return -options["lr"] * step

    def recursion(self, parameter_step: ParameterStep) -> Recursion | None:
        """Return the coefficients of momentum; None for plain and for Nesterov steps."""
        options = parameter_step.options
        momentum = options.get("momentum", 0.0)
        if not momentum or options.get("nesterov"):
            return None
        return Recursion(-options["lr"], momentum, self._effect_of_buffer(parameter_step))

    def adjoint_step(self, cotangent: Tensor, parameter_step: ParameterStep, adjoint: AdjointState) -> Tensor:
        """Return the effect A of the step's gradient, as the table of this module defines it for SGD."""
        options, learning_rate = parameter_step.options, parameter_step.options["lr"]
        momentum = options.get("momentum", 0.0)
        if not momentum:
            return -learning_rate * cotangent
        if not options.get("nesterov"):
            return super().adjoint_step(cotangent, parameter_step, adjoint)
        q = adjoint.add(cotangent, -learning_rate * momentum, momentum)
        return self._effect_of_buffer(parameter_step) * q - learning_rate * cotangent

    @staticmethod
    def _effect_of_buffer(parameter_step: ParameterStep) -> float:
        """Return the derivative of the momentum buffer with respect to the gradient, 1 minus the dampening."""
        return 1.0 if parameter_step.is_first_momentum_step else 1 - parameter_step.options.get("dampening", 0.0)


class AdaptiveMoments(ParameterFilter):
    """torch.optim.Adam and AdamW, amsgrad too."""

    def step_without_decay(self, gradient: Tensor, options: Options) -> tuple[Tensor, Tensor | None]:
        """Return the step −h m̂ / s and its denominator s = √v̂ + ε.

        h is the learning rate, m̂ and v̂ are the bias-corrected means of the gradient and of its square.
        """
        beta1, beta2 = options["betas"]
        state = self.state
        state["mean"] = beta1 * state.get("mean", torch.zeros_like(gradient)) + (1 - beta1) * gradient
        state["square"] = beta2 * state.get("square", torch.zeros_like(gradient)) + (1 - beta2) * gradient.square()
        square: Tensor = state["square"]
        if options.get("amsgrad"):
            square = torch.maximum(state["largest"], square) if "largest" in state else square
            state["largest"] = square
        denominator = _safe_sqrt(square / (1 - beta2**self.count)) + options["eps"]
        return -options["lr"] / (1 - beta1**self.count) * state["mean"] / denominator, denominator

    def filter_gradients(self, gradients: Tensor, parameter_step: ParameterStep, state: dict[str, Tensor]) -> Tensor:
        """Return −h m̂ / s with learning rate h, mean m̂ of the given gradients, and the recorded denominator s."""
        beta1 = parameter_step.options["betas"][0]
        assert parameter_step.denominator is not None
        mean = (1 - beta1) * gradients
        state["mean"] = mean if "mean" not in state else beta1 * state["mean"] + mean
        return (
            -parameter_step.options["lr"]
            / (1 - beta1**parameter_step.count)
            * state["mean"]
            / parameter_step.denominator
        )

    def recursion(self, parameter_step: ParameterStep) -> Recursion:
        """Return the coefficients of the first moment, as the table of this module defines them for Adam."""
        beta1 = parameter_step.options["betas"][0]
        return Recursion(-parameter_step.options["lr"] / (1 - beta1**parameter_step.count), beta1, 1 - beta1)

    def has_momentum(self, options: Options) -> bool:
        """Return True: the first moment is a momentum."""
        return True


class AdaptiveMomentsDecoupled(AdaptiveMoments):
    """torch.optim.AdamW."""

    def has_decoupled_decay(self, options: Options) -> bool:
        """Return True: AdamW always decays the weights directly."""
        return True


class RootMeanSquare(ParameterFilter):
    """torch.optim.RMSprop, centered too."""

    def step_without_decay(self, gradient: Tensor, options: Options) -> tuple[Tensor, Tensor | None]:
        """Return the step −h g / s, or that of its momentum buffer, and the denominator s = √v + ε.

        h is the learning rate, v the running mean of the squared gradients g.
        """
        alpha, momentum, state = options["alpha"], options.get("momentum", 0.0), self.state
        state["square"] = alpha * state.get("square", torch.zeros_like(gradient)) + (1 - alpha) * gradient.square()
        square = state["square"]
        if options.get("centered"):
            state["mean"] = alpha * state.get("mean", torch.zeros_like(gradient)) + (1 - alpha) * gradient
            square = square - state["mean"].square()
        denominator = _safe_sqrt(square) + options["eps"]
        scaled_gradient = gradient / denominator
        if momentum:
            scaled_gradient = state["buffer"] = (
                momentum * state.get("buffer", torch.zeros_like(gradient)) + scaled_gradient
            )
        return -options["lr"] * scaled_gradient, denominator

    def filter_gradients(self, gradients: Tensor, parameter_step: ParameterStep, state: dict[str, Tensor]) -> Tensor:
        """Return −h g / s with learning rate h and the recorded denominator s, or the step of the momentum buffer."""
        assert parameter_step.denominator is not None
        momentum, scaled_gradient = parameter_step.options.get("momentum", 0.0), gradients / parameter_step.denominator
        if momentum:
            scaled_gradient = state["buffer"] = (
                momentum * state["buffer"] + scaled_gradient if "buffer" in state else scaled_gradient
            )
        return -parameter_step.options["lr"] * scaled_gradient

    def adjoint_step(self, cotangent: Tensor, parameter_step: ParameterStep, adjoint: AdjointState) -> Tensor:
        """Return the effect A of the step's gradient, as the table of this module defines it for RMSprop."""
        assert parameter_step.denominator is not None
        momentum, learning_rate = parameter_step.options.get("momentum", 0.0), parameter_step.options["lr"]
        q = adjoint.add(cotangent, -learning_rate, momentum) if momentum else -learning_rate * cotangent
        return q / parameter_step.denominator


class AdaptiveGradient(ParameterFilter):
    """torch.optim.Adagrad."""

    def step_without_decay(self, gradient: Tensor, options: Options) -> tuple[Tensor, Tensor | None]:
        """Return the step −h/(1 + (k−1) η) g / s and s = √Σg² + ε in step k, with learning rate h and its decay η."""
        initial_sum = torch.full_like(gradient, options.get("initial_accumulator_value", 0.0))
        self.state["sum"] = self.state.get("sum", initial_sum) + gradient.square()
        denominator = _safe_sqrt(self.state["sum"]) + options["eps"]
        return -self._learning_rate(options, self.count) * gradient / denominator, denominator

    def filter_gradients(self, gradients: Tensor, parameter_step: ParameterStep, state: dict[str, Tensor]) -> Tensor:
        """Return −h/(1 + (k−1) η) g / s in step k: h is the learning rate, η its decay, s the recorded denominator."""
        assert parameter_step.denominator is not None
        return (
            -self._learning_rate(parameter_step.options, parameter_step.count) * gradients / parameter_step.denominator
        )

    def adjoint_step(self, cotangent: Tensor, parameter_step: ParameterStep, adjoint: AdjointState) -> Tensor:
        """Return the effect A of the step's gradient, as the table of this module defines it for Adagrad."""
        assert parameter_step.denominator is not None
        return (
            -self._learning_rate(parameter_step.options, parameter_step.count) * cotangent / parameter_step.denominator
        )

    @staticmethod
    def _learning_rate(options: Options, count: int) -> float:
        return options["lr"] / (1 + (count - 1) * options.get("lr_decay", 0.0))


FILTERS: dict[str, type[ParameterFilter]] = {
    "SGD": StochasticGradientDescent,
    "Adam": AdaptiveMoments,
    "AdamW": AdaptiveMomentsDecoupled,
    "RMSprop": RootMeanSquare,
    "Adagrad": AdaptiveGradient,
}


def filter_class(optimizer: str) -> type[ParameterFilter]:
    """Return the filter of an optimizer by the name of its class.

    Raises:
        InputError: the optimizer is not one of ``FILTERS``.
    """
    if optimizer not in FILTERS:
        raise InputError(
            f"a run of the optimizer {optimizer}",
            expected=f"one of torch.optim's {', '.join(FILTERS)}",
            hint="train with one of these",
        )
    return FILTERS[optimizer]


def _safe_sqrt(square: Tensor) -> Tensor:
    """Return the square root of ``square``, with derivative 0 where it is 0.

    Without gradients so far, a first gradient of size δ changes the step by δ/ε + O(δ²).
    """
    positive = square != 0
    return torch.where(positive, torch.where(positive, square, 1.0).sqrt(), 0.0)


def _inner(cotangent: Tensor, weights: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Return the inner product of ``cotangent`` and ``weights``, summed over ``axes``, those of the parameter."""
    return (cotangent * weights).sum(axes) if axes else cotangent * weights
