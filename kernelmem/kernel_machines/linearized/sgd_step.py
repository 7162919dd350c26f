"""SGD on the coefficients of a kernel, step by step, equal to torch.optim.SGD on the weights of the linearized network."""

from collections.abc import Callable

import torch
from torch import Tensor

from kernelmem.core.errors import NumericalError
from kernelmem.kernel_machines.linearized.function_space import FunctionSpace
from kernelmem.kernel_machines.linearized.sgd_config import SGDConfig
from kernelmem.training.losses import per_example_loss

MAX_DENSE_SIZE = 512  # all eigenvalues are computed up to this matrix size, Lanczos is used above it


class FunctionSpaceSGD:
    """State of SGD for a network linearized at w_0, stored as coefficients a of the kernel K of the training rows X.

    The weights are s w_0 + J(X)ᵀ a, where J is the Jacobian of the outputs, and s is 1 without weight decay. The momentum
    has the same form, with coefficients b.

    K a is updated instead of recomputed, so a step costs only the columns of its batch; ``drift`` measures the rounding.
    """

    def __init__(self, space: FunctionSpace) -> None:
        """Start at the initial weights, with zero coefficients and zero momentum."""
        self.space = space
        zeros = torch.zeros_like(space.fold(space.initial))
        self.a, self.b = zeros, zeros  # coefficients, and those of the momentum
        self.Ka, self.Kb = zeros, zeros
        self.s_minus_1, self.s_buffer = 0.0, 0.0  # s − 1, and the momentum of s
        self.n_steps = 0

    def restore(self, a: Tensor, b: Tensor, s_minus_1: float, s_buffer: float, *, n_steps: int) -> None:
        """Set the state that was reached after ``n_steps`` steps.

        ``a`` and ``b`` (N, k) are the coefficients of weights and momentum; ``s_minus_1`` is s − 1, with s the factor of the
        initial weights, and ``s_buffer`` is its momentum.
        """
        self.a, self.b, self.s_minus_1, self.s_buffer, self.n_steps = a, b, s_minus_1, s_buffer, n_steps
        self.Ka, self.Kb = self.space.matrix @ a, self.space.matrix @ b

    def state(self) -> tuple[Tensor, Tensor]:
        """Return a copy of the coefficients a (N, k), and s − 1 as a tensor without dimensions."""
        return self.a.clone(), self.a.new_tensor(self.s_minus_1)

    def outputs(self, row_index: Tensor) -> Tensor:
        """Return the current outputs of the B training rows ``row_index``, (B, C) for C outputs."""
        change = self.space.unfold(self.Ka)[row_index]
        return self.space.initial[row_index] + change + self.s_minus_1 * self.space.Jw0[row_index]

    def step(self, row_index: Tensor, output_gradient: Tensor, sgd: SGDConfig) -> None:
        """Take one SGD step on a batch of the B training rows ``row_index``.

        ``output_gradient`` (B, C) is the gradient of the batch loss with respect to the outputs of these rows.

        Raises:
            NumericalError: the outputs are no longer finite.
        """
        space, decay, mu = self.space, sgd.weight_decay, sgd.momentum
        columns = space.columns(row_index)
        batch_gradient = output_gradient.reshape(len(columns), -1)
        g = (decay * self.a).index_add(0, columns, batch_gradient)  # rows may repeat
        Kg = decay * self.Ka + space.matrix[:, columns] @ batch_gradient
        s_gradient = decay * (1 + self.s_minus_1)
        if mu:
            # torch does not dampen the first gradient
            gradient_factor = 1.0 if self.n_steps == 0 else 1 - sgd.dampening
            self.b, self.Kb = mu * self.b + gradient_factor * g, mu * self.Kb + gradient_factor * Kg
            self.s_buffer = mu * self.s_buffer + gradient_factor * s_gradient
            if sgd.nesterov:
                g, Kg, s_gradient = g + mu * self.b, Kg + mu * self.Kb, s_gradient + mu * self.s_buffer
            else:
                g, Kg, s_gradient = self.b, self.Kb, self.s_buffer
        self.a, self.Ka = self.a - sgd.lr * g, self.Ka - sgd.lr * Kg
        self.s_minus_1 -= sgd.lr * s_gradient
        self.n_steps += 1
        if not bool(torch.isfinite(self.Ka).all()):
            raise NumericalError(
                f"linearized training whose outputs are no longer finite after {self.n_steps} steps",
                expected="steps that do not diverge",
                hint="use a smaller learning rate, or larger batches",
            )

    def drift(self) -> float:
        """Return the accumulated rounding error: the largest absolute difference of the stored and the recomputed K a."""
        return float((self.space.matrix @ self.a - self.Ka).abs().max())


def output_gradient_function(loss: str | Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a function that computes the derivatives of the loss of B examples with respect to their outputs.

    It maps outputs (B, C) and targets to derivatives (B, C). ``loss`` is the name of a loss, or a function that returns one
    loss per example.

    Raises:
        InputError: the name is unknown, or the callable does not return (B,).
    """
    if loss == "mse":
        return lambda outputs, targets: outputs - targets
    example_loss = per_example_loss(loss)

    def gradient(outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the derivatives (B, C) of the summed example losses with respect to the outputs (B, C)."""
        with torch.enable_grad():
            differentiable_outputs = outputs.detach().requires_grad_()
            return torch.autograd.grad(example_loss(differentiable_outputs, targets).sum(), differentiable_outputs)[0]

    return gradient


def largest_eigenvalue(matrix: Tensor) -> float:
    """Return the largest eigenvalue of a symmetric matrix (N, N).

    Up to N = 512 all eigenvalues are computed; larger matrices use Lanczos iterations with tolerance 1e-9.
    """
    if len(matrix) <= MAX_DENSE_SIZE:
        return float(torch.linalg.eigvalsh(matrix)[-1])
    import numpy as np
    from scipy.sparse.linalg import eigsh  # slow to import

    start = np.cos(np.arange(len(matrix)))  # a fixed start vector makes results repeat to the bit
    values = eigsh(matrix.cpu().numpy(), k=1, which="LA", tol=1e-9, v0=start, return_eigenvectors=False)  # pyright: ignore[reportArgumentType]
    return float(values[0])
