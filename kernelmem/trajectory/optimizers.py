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
    fresh: bool = False  # True in the first step of its momentum
    denominator: Tensor | None = None  # e.g. √v̂ + ε
    weights: Tensor | None = None  # w_t, if there is decay

    def part(self, part: slice) -> "ParameterStep":
        """Return the step of some entries, of a parameter given as a vector."""
        step, denominator, weights = (
            None if t is None else t[part] for t in (self.step, self.denominator, self.weights)
        )
        assert step is not None
        return replace(self, step=step, denominator=denominator, weights=weights)


@dataclass
class AdjointState:
    """What the recursion carries from the next step in which a parameter moved to this one."""

    q: Tensor | None = None  # updated in place
    factor: float = 0.0  # by which that step multiplied what it carried

    def add(self, cotangent: Tensor, scale: float, factor: float, divisor: Tensor | None = None) -> Tensor:
        """Set q to scale · cotangent (/ divisor) + factor⁺ · q⁺ and return it; ``factor`` is used by the step before."""
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
    carried: AdjointState = field(default_factory=AdjointState)

    def forward(self, gradient: Tensor, weights: Tensor, options: Options) -> ParameterStep:
        """Return the step for the gradient of the loss, decay included."""
        self.count += 1
        gradient = -gradient if options.get("maximize") else gradient
        decay = options.get("weight_decay", 0.0)
        coupled = bool(decay) and not self.decoupled(options)
        if coupled:
            gradient = gradient + decay * weights
        fresh = "buffer" not in self.state
        step, denominator = self.move(gradient, options)
        if decay and not coupled:
            step = step - options["lr"] * decay * weights
        return ParameterStep(step, options, self.count, fresh, denominator, weights if decay else None)

    def linear(self, gradients: Tensor, moved: ParameterStep, state: dict[str, Tensor]) -> Tensor:
        """Return the steps for other gradients (G, p), given the realized statistics: the linear filter.

        ``state`` holds what the G rows carry, and is updated.
        """
        raise TypeError(f"{type(self).__name__} is abstract")

    def backward(
        self, cotangent: Tensor, moved: ParameterStep, carried: AdjointState | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return A_t for the gradient as autograd computes it, and the decay term; ``cotangent`` J̄_t is (..., shape).

        ``carried`` None: the filter's own state, for whole parameters. A_t is valid until the next call.
        """
        A = self.transposed(cotangent, moved, self.carried if carried is None else carried)
        decay, options = None, moved.options
        if moved.weights is not None:
            strength = options["weight_decay"]
            axes = tuple(range(cotangent.ndim - moved.weights.ndim, cotangent.ndim))
            if self.decoupled(options):
                decay = -options["lr"] * strength * _inner(cotangent, moved.weights, axes)
            else:
                decay = strength * _inner(A, moved.weights, axes)
        return (-A if options.get("maximize") else A), decay

    def decoupled(self, options: Options) -> bool:
        """Return True if decay acts on the weights directly (AdamW), not through the gradient."""
        return bool(options.get("decoupled_weight_decay"))

    def move(self, gradient: Tensor, options: Options) -> tuple[Tensor, Tensor | None]:
        """Return the step without decay, and the denominator if there is one."""
        raise TypeError(f"{type(self).__name__} is abstract")

    def transposed(self, cotangent: Tensor, moved: ParameterStep, carried: AdjointState) -> Tensor:
        """Return A_t for the gradient that ``move`` was given."""
        raise TypeError(f"{type(self).__name__} is abstract")

    def carries(self, options: Options) -> bool:
        """Return True if a step carries anything to later ones."""
        return bool(options.get("momentum", 0.0))


class StochasticGradientDescent(ParameterFilter):
    """torch.optim.SGD: plain, momentum with dampening, Nesterov."""

    def move(self, gradient: Tensor, options: Options) -> tuple[Tensor, Tensor | None]:
        """−h g, −h b or −h (g + μ b)."""
        return self._step(gradient, options, self.state, fresh="buffer" not in self.state), None

    def linear(self, gradients: Tensor, moved: ParameterStep, state: dict[str, Tensor]) -> Tensor:
        """−h g, −h b or −h (g + μ b)."""
        return self._step(gradients, moved.options, state, fresh=moved.fresh or "buffer" not in state)

    @staticmethod
    def _step(gradient: Tensor, options: Options, state: dict[str, Tensor], *, fresh: bool) -> Tensor:
        momentum = options.get("momentum", 0.0)
        if not momentum:
            return -options["lr"] * gradient
        if fresh:
            state["buffer"] = gradient
        else:
            state["buffer"] = momentum * state["buffer"] + (1 - options.get("dampening", 0.0)) * gradient
        step = gradient + momentum * state["buffer"] if options.get("nesterov") else state["buffer"]
        return -options["lr"] * step

    def transposed(self, cotangent: Tensor, moved: ParameterStep, carried: AdjointState) -> Tensor:
        """Return A_t by the table of this module."""
        options, rate = moved.options, moved.options["lr"]
        momentum = options.get("momentum", 0.0)
        if not momentum:
            return -rate * cotangent
        nesterov = options.get("nesterov")
        q = carried.add(cotangent, -rate * (momentum if nesterov else 1.0), momentum)
        dampening = 0.0 if moved.fresh else options.get("dampening", 0.0)
        A = (1 - dampening) * q if dampening else q
        return A - rate * cotangent if nesterov else A


class AdaptiveMoments(ParameterFilter):
    """torch.optim.Adam and AdamW, amsgrad too."""

    def move(self, gradient: Tensor, options: Options) -> tuple[Tensor, Tensor | None]:
        """−h m̂ / (√v̂ + ε)."""
        first, second = options["betas"]
        state = self.state
        state["mean"] = first * state.get("mean", torch.zeros_like(gradient)) + (1 - first) * gradient
        state["square"] = second * state.get("square", torch.zeros_like(gradient)) + (1 - second) * gradient.square()
        square: Tensor = state["square"]
        if options.get("amsgrad"):
            square = torch.maximum(state["largest"], square) if "largest" in state else square
            state["largest"] = square
        denominator = _root(square / (1 - second**self.count)) + options["eps"]
        return -options["lr"] / (1 - first**self.count) * state["mean"] / denominator, denominator

    def linear(self, gradients: Tensor, moved: ParameterStep, state: dict[str, Tensor]) -> Tensor:
        """−h m̂ / s."""
        first = moved.options["betas"][0]
        assert moved.denominator is not None
        mean = (1 - first) * gradients
        state["mean"] = mean if "mean" not in state else first * state["mean"] + mean
        return -moved.options["lr"] / (1 - first**moved.count) * state["mean"] / moved.denominator

    def transposed(self, cotangent: Tensor, moved: ParameterStep, carried: AdjointState) -> Tensor:
        """Return A_t by the table of this module."""
        first = moved.options["betas"][0]
        scale = -moved.options["lr"] / (1 - first**moved.count)
        assert moved.denominator is not None
        # A = (1 − β₁) q itself is carried: one pass over memory less.
        carried.factor *= 1 - first
        return carried.add(cotangent, (1 - first) * scale, first / (1 - first), moved.denominator)

    def carries(self, options: Options) -> bool:
        """Return True: the first moment is carried."""
        return True


class AdaptiveMomentsDecoupled(AdaptiveMoments):
    """torch.optim.AdamW."""

    def decoupled(self, options: Options) -> bool:
        """Return True."""
        return True


class RootMeanSquare(ParameterFilter):
    """torch.optim.RMSprop, centered too."""

    def move(self, gradient: Tensor, options: Options) -> tuple[Tensor, Tensor | None]:
        """−h g / (√v + ε), or its momentum."""
        alpha, momentum, state = options["alpha"], options.get("momentum", 0.0), self.state
        state["square"] = alpha * state.get("square", torch.zeros_like(gradient)) + (1 - alpha) * gradient.square()
        square = state["square"]
        if options.get("centered"):
            state["mean"] = alpha * state.get("mean", torch.zeros_like(gradient)) + (1 - alpha) * gradient
            square = square - state["mean"].square()
        denominator = _root(square) + options["eps"]
        scaled = gradient / denominator
        if momentum:
            scaled = state["buffer"] = momentum * state.get("buffer", torch.zeros_like(gradient)) + scaled
        return -options["lr"] * scaled, denominator

    def linear(self, gradients: Tensor, moved: ParameterStep, state: dict[str, Tensor]) -> Tensor:
        """−h g / s, or its momentum."""
        assert moved.denominator is not None
        momentum, scaled = moved.options.get("momentum", 0.0), gradients / moved.denominator
        if momentum:
            scaled = state["buffer"] = momentum * state["buffer"] + scaled if "buffer" in state else scaled
        return -moved.options["lr"] * scaled

    def transposed(self, cotangent: Tensor, moved: ParameterStep, carried: AdjointState) -> Tensor:
        """Return A_t by the table of this module."""
        assert moved.denominator is not None
        momentum, rate = moved.options.get("momentum", 0.0), moved.options["lr"]
        q = carried.add(cotangent, -rate, momentum) if momentum else -rate * cotangent
        return q / moved.denominator


class AdaptiveGradient(ParameterFilter):
    """torch.optim.Adagrad."""

    def move(self, gradient: Tensor, options: Options) -> tuple[Tensor, Tensor | None]:
        """−h/(1 + (k−1) η) g / (√Σg² + ε)."""
        start = torch.full_like(gradient, options.get("initial_accumulator_value", 0.0))
        self.state["sum"] = self.state.get("sum", start) + gradient.square()
        denominator = _root(self.state["sum"]) + options["eps"]
        return -self._rate(options, self.count) * gradient / denominator, denominator

    def linear(self, gradients: Tensor, moved: ParameterStep, state: dict[str, Tensor]) -> Tensor:
        """−h/(1 + (k−1) η) g / s."""
        assert moved.denominator is not None
        return -self._rate(moved.options, moved.count) * gradients / moved.denominator

    def transposed(self, cotangent: Tensor, moved: ParameterStep, carried: AdjointState) -> Tensor:
        """Return A_t by the table of this module."""
        assert moved.denominator is not None
        return -self._rate(moved.options, moved.count) * cotangent / moved.denominator

    @staticmethod
    def _rate(options: Options, count: int) -> float:
        return options["lr"] / (1 + (count - 1) * options.get("lr_decay", 0.0))


FILTERS: dict[str, type[ParameterFilter]] = {
    "SGD": StochasticGradientDescent,
    "Adam": AdaptiveMoments,
    "AdamW": AdaptiveMomentsDecoupled,
    "RMSprop": RootMeanSquare,
    "Adagrad": AdaptiveGradient,
}


def filter_of(optimizer: str) -> type[ParameterFilter]:
    """Return the filter of an optimizer by the name of its class.

    Raises:
        InputError: no such filter.
    """
    if optimizer not in FILTERS:
        raise InputError(
            f"a run of the optimizer {optimizer}",
            expected=f"one of torch.optim's {', '.join(FILTERS)}",
            hint="train with one of these",
        )
    return FILTERS[optimizer]


def _root(square: Tensor) -> Tensor:
    """Return √, with derivative 0 at 0: without gradients so far, a first one of size δ changes the step by δ/ε + O(δ²)."""
    positive = square != 0
    return torch.where(positive, torch.where(positive, square, 1.0).sqrt(), 0.0)


def _inner(cotangent: Tensor, weights: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Return ⟨cotangent, w⟩ over the axes of the parameter."""
    return (cotangent * weights).sum(axes) if axes else cotangent * weights
