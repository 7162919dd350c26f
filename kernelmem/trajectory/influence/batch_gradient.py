"""The gradient of a batch with its graph, to be differentiated in many directions at once.

It is linear in what each example's loss weighs, g = Σ_i v_i ∇ℓ_i(w). So differentiating ⟨α, g⟩ once gives both ⟨α, ∇ℓ_i⟩ of all
examples and the Hessian-vector product H α, with the masks and batch statistics that the forward pass had.

Source: Hessian-vector products: Pearlmutter 1994.
"""

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

from kernelmem.core.errors import UnsupportedModelError, VerificationError

__all__ = ["BatchGradient", "Tensors"]

Tensors = dict[str, Tensor]  # parameter name -> tensor
TOGETHER = 32  # directions in one pass: of more, the activations leave the cache, and each takes longer


class BatchGradient:
    """g = Σ_i v_i ∇ℓ_i(w) with its graph: to be differentiated in many directions α."""

    def __init__(
        self,
        weights: Tensor,
        parameters: Mapping[str, Tensor],
        gradient: Tensors,
        before: Tensors,
        after: Tensors,
        batched: bool,
    ) -> None:
        """v, w, g, and running statistics before and after the step."""
        self.weights, self.parameters, self.before, self.batched = weights, parameters, before, batched
        self.gradient = {name: own.detach() for name, own in gradient.items()}
        self.after = after
        self.graph = {name: own for name, own in (gradient | after).items() if own.requires_grad}

    def shares(self, alpha: Tensors) -> Tensor:
        """v_i ⟨α_d, ∇ℓ_i⟩: (D, B) for α a tensor (D, shape) for each parameter.

        Raises:
            VerificationError: an operation whose derivative cannot be differentiated dropped out of the graph.
        """
        return self._checked(self._differentiated(alpha, [self.weights])[0], alpha)

    def transported(self, alpha: Tensors, statistics: Tensors) -> tuple[Tensor, Tensors, Tensors]:
        """The shares (D, B); H α_d for each parameter, H the Hessian of Σ_i v_i ℓ_i; adjoints of the statistics before.

        What the weights do to running statistics is added to H α for ``statistics``, the adjoints of those after the step.

        Raises:
            VerificationError: as in :meth:`shares`.
        """
        inputs = [self.weights, *self.parameters.values(), *self.before.values()]
        raw, *moved = self._differentiated(alpha | statistics, inputs)
        hessian = dict(zip(self.parameters, moved, strict=False))
        carried = dict(zip(self.before, moved[len(self.parameters) :], strict=True))
        for name, own in statistics.items():
            if name not in self.after:  # it stays as it was
                carried[name] = own + carried[name] if name in carried else own
        return self._checked(raw, alpha), hessian, carried

    def _checked(self, raw: Tensor, alpha: Tensors) -> Tensor:
        """The shares of ⟨α_d, ∇ℓ_i⟩, which add up to ⟨α_d, g⟩."""
        shares = raw * self.weights.detach()
        terms = torch.cat([own.reshape(len(own), -1) * self.gradient[name].flatten() for name, own in alpha.items()], 1)
        gap = (shares.sum(1) - terms.sum(1)).abs()
        if not bool((gap <= 1e-8 * (terms.abs().sum(1) + shares.abs().sum(1))).all()):
            raise VerificationError(
                "a model whose gradient, differentiated by the weights of the losses, does not give their gradients back",
                expected="operations with a second derivative",
                hint="replace custom functions whose backward pass is not itself made of torch operations",
            )
        return shares

    def batches(self) -> bool:
        """Whether torch differentiates many directions at once, and rightly: held against one by one on three.

        Raises:
            UnsupportedModelError: not even one by one.
        """
        if not self.graph:
            return True
        inputs = [self.weights, *self.parameters.values(), *self.before.values()]
        generator = torch.Generator().manual_seed(0)
        few = [torch.randn(3, *own.shape, generator=generator, dtype=own.dtype) for own in self.graph.values()]
        try:
            expected = self._singly(few, inputs)
        except RuntimeError as error:
            raise UnsupportedModelError(
                f"a model whose gradient cannot be differentiated ({str(error).splitlines()[0]})",
                expected="operations with a second derivative",
                hint="replace the operation that is named here",
            ) from error
        try:
            found = self._together(few, inputs)
        except RuntimeError:  # an operation without a rule for batches
            return False
        return all(bool(((a - b).norm() <= 1e-9 * b.norm()).item()) for a, b in zip(found, expected, strict=True))

    def _differentiated(self, alpha: Tensors, inputs: list[Tensor]) -> list[Tensor]:
        """∂⟨α_d, g⟩ by each input, (D, shape)."""
        D = len(next(iter(alpha.values())))
        if not self.graph:
            return [own.new_zeros(D, *own.shape) for own in inputs]
        parts = []
        for start in range(0, D, TOGETHER):
            some = [
                alpha[name][start : start + TOGETHER]
                if name in alpha
                else own.new_zeros(min(TOGETHER, D - start), *own.shape)
                for name, own in self.graph.items()
            ]
            parts.append(self._together(some, inputs) if self.batched else self._singly(some, inputs))
        return [torch.cat(own) for own in zip(*parts, strict=True)]

    def _together(self, alpha: list[Tensor], inputs: list[Tensor]) -> list[Tensor]:
        with warnings.catch_warnings():  # some operations are looped over inside: slower, not wrong
            warnings.filterwarnings("ignore", message="There is a performance drop")
            found = torch.autograd.grad(
                list(self.graph.values()), inputs, alpha, retain_graph=True, allow_unused=True, is_grads_batched=True
            )
        D = len(alpha[0])
        return [
            given.new_zeros(D, *given.shape) if own is None else own for own, given in zip(found, inputs, strict=True)
        ]

    def _singly(self, alpha: list[Tensor], inputs: list[Tensor]) -> list[Tensor]:
        rows = []
        for own in zip(*alpha, strict=True):
            found = torch.autograd.grad(
                list(self.graph.values()), inputs, own, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            rows.append(found)
        return [torch.stack(own) for own in zip(*rows, strict=True)]
