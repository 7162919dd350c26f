"""Gradient of a batch with its graph, to be differentiated in many directions at once.

It is linear in the weights of the examples' losses, g = Σ_i v_i ∇ℓ_i(w). So differentiating ⟨α, g⟩ once gives both ⟨α, ∇ℓ_i⟩
of all examples and the Hessian-vector product H α, with the masks and batch statistics of the forward pass.

Source: Hessian-vector products: Pearlmutter 1994.
"""

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

from kernelmem.core.errors import UnsupportedModelError, VerificationError

Tensors = dict[str, Tensor]  # parameter name -> tensor
DIRECTIONS_TOGETHER = 32  # directions per pass: with more, activations exceed the cache and each direction takes longer
ROUNDING_EPSILONS = 64  # rounding error of an entry of a gradient, in machine epsilons of the largest entry


class BatchGradient:
    """Gradient g = Σ_i v_i ∇ℓ_i(w) of one batch with its graph; v_i is the weight of the loss ℓ_i of example i."""

    def __init__(
        self,
        weights: Tensor,
        parameters: Mapping[str, Tensor],
        gradient: Tensors,
        statistics_before: Tensors,
        statistics_after: Tensors,
        batched: bool,
    ) -> None:
        """Store the tensors that the gradient is differentiated with respect to, and the gradient itself.

        ``weights`` (B,) are the loss weights of the B examples, ``statistics_before`` and ``statistics_after`` the
        running statistics of batch normalization before and after the step; ``batched`` allows one backward pass for
        all directions.
        """
        self.weights, self.parameters, self.batched = weights, parameters, batched
        self.statistics_before, self.statistics_after = statistics_before, statistics_after
        self.gradient = {name: g.detach() for name, g in gradient.items()}
        self.differentiable = {
            name: value for name, value in (gradient | statistics_after).items() if value.requires_grad
        }

    def shares(self, alpha: Tensors) -> Tensor:
        """Return the share v_i ⟨α_d, ∇ℓ_i⟩ of each of B examples in the product with each of D directions, (D, B).

        ``alpha`` holds the directions α: one tensor (D, *shape) for each parameter.

        Raises:
            VerificationError: the shares do not add up to ⟨α_d, g⟩: an operation has no second derivative.
        """
        return self._check_shares(self._differentiate(alpha, [self.weights])[0], alpha)

    def pull_back(self, alpha: Tensors, statistics: Tensors) -> tuple[Tensor, Tensors, Tensors]:
        """Return the shares (D, B) of B examples, the products H α_d with D directions α, and adjoints of the statistics.

        H is the Hessian of Σ_i v_i ℓ_i, and the products are one tensor (D, *shape) for each parameter.
        ``statistics`` are the adjoints of the running statistics after the step; returned are those of the statistics
        before it. The products include the derivatives of the statistics.

        Raises:
            VerificationError: as in :meth:`shares`.
        """
        inputs = [self.weights, *self.parameters.values(), *self.statistics_before.values()]
        loss_derivatives, *products = self._differentiate(alpha | statistics, inputs)
        hessian = dict(zip(self.parameters, products, strict=False))
        statistics_before = dict(zip(self.statistics_before, products[len(self.parameters) :], strict=True))
        for name, adjoint in statistics.items():
            if name not in self.statistics_after:  # the step did not update this statistic
                statistics_before[name] = adjoint + statistics_before[name] if name in statistics_before else adjoint
        return self._check_shares(loss_derivatives, alpha), hessian, statistics_before

    def _check_shares(self, loss_derivatives: Tensor, alpha: Tensors) -> Tensor:
        """Return v_i ⟨α_d, ∇ℓ_i⟩, (D, B), for D directions and B examples; check that the sum over i is ⟨α_d, g⟩."""
        shares = loss_derivatives * self.weights.detach()
        terms = torch.cat([a.reshape(len(a), -1) * self.gradient[name].flatten() for name, a in alpha.items()], 1)
        difference = (shares.sum(1) - terms.sum(1)).abs()
        # A gradient that is zero up to rounding (a bias before batch normalization) may have a large α (Adam).
        largest = max(float(gradient.detach().abs().max()) for gradient in self.gradient.values() if gradient.numel())
        rounding = ROUNDING_EPSILONS * torch.finfo(torch.float64).eps * largest
        size = torch.stack([a.reshape(len(a), -1).abs().sum(1) for a in alpha.values()]).sum(0)
        if not bool((difference <= 1e-8 * (terms.abs().sum(1) + shares.abs().sum(1)) + rounding * size).all()):
            raise VerificationError(
                "a model whose gradient is not the sum of its derivatives with respect to the weights of the losses",
                expected="operations with a second derivative",
                hint="replace custom functions whose backward pass does not consist of torch operations",
            )
        return shares

    def can_batch(self) -> bool:
        """Return True if one backward pass for all directions gives the same result as one for each, tested on three.

        Raises:
            UnsupportedModelError: the gradient cannot be differentiated even one direction at a time.
        """
        if not self.differentiable:
            return True
        inputs = [self.weights, *self.parameters.values(), *self.statistics_before.values()]
        generator = torch.Generator().manual_seed(0)
        alpha = [torch.randn(3, *g.shape, generator=generator, dtype=g.dtype) for g in self.differentiable.values()]
        try:
            expected = self._differentiate_one_by_one(alpha, inputs)
        except RuntimeError as error:
            raise UnsupportedModelError(
                f"a model whose gradient cannot be differentiated ({str(error).splitlines()[0]})",
                expected="operations with a second derivative",
                hint="replace the operation named in this message",
            ) from error
        try:
            batched = self._differentiate_batched(alpha, inputs)
        except RuntimeError:  # an operation without a rule for batches
            return False
        return all(bool(((a - b).norm() <= 1e-9 * b.norm()).item()) for a, b in zip(batched, expected, strict=True))

    def _differentiate(self, alpha: Tensors, inputs: list[Tensor]) -> list[Tensor]:
        """Return the derivatives of ⟨α_d, g⟩ with respect to each input, (D, *shape), for D directions α."""
        D = len(next(iter(alpha.values())))
        if not self.differentiable:
            return [leaf.new_zeros(D, *leaf.shape) for leaf in inputs]
        chunk_derivatives = []
        for start in range(0, D, DIRECTIONS_TOGETHER):
            stop = min(start + DIRECTIONS_TOGETHER, D)
            direction_chunk = [
                alpha[name][start:stop] if name in alpha else value.new_zeros(stop - start, *value.shape)
                for name, value in self.differentiable.items()
            ]
            chunk_derivatives.append(
                self._differentiate_batched(direction_chunk, inputs)
                if self.batched
                else self._differentiate_one_by_one(direction_chunk, inputs)
            )
        return [torch.cat(input_derivatives) for input_derivatives in zip(*chunk_derivatives, strict=True)]

    def _differentiate_batched(self, alpha: list[Tensor], inputs: list[Tensor]) -> list[Tensor]:
        """Return the derivatives of ⟨α_d, g⟩ with respect to each input, (D, *shape), from one batched backward pass."""
        with warnings.catch_warnings():  # torch loops over some operations: slower, but correct
            warnings.filterwarnings("ignore", message="There is a performance drop")
            derivatives = torch.autograd.grad(
                list(self.differentiable.values()),
                inputs,
                alpha,
                retain_graph=True,
                allow_unused=True,
                is_grads_batched=True,
            )
        D = len(alpha[0])
        return [
            leaf.new_zeros(D, *leaf.shape) if derivative is None else derivative
            for derivative, leaf in zip(derivatives, inputs, strict=True)
        ]

    def _differentiate_one_by_one(self, alpha: list[Tensor], inputs: list[Tensor]) -> list[Tensor]:
        """Return the derivatives of ⟨α_d, g⟩ with respect to each input, (D, *shape), from D backward passes."""
        rows = []
        for direction in zip(*alpha, strict=True):
            derivatives = torch.autograd.grad(
                list(self.differentiable.values()),
                inputs,
                direction,
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
            rows.append(derivatives)
        return [torch.stack(input_derivatives) for input_derivatives in zip(*rows, strict=True)]
